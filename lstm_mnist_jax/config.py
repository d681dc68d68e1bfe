"""What a run is: frozen dataclasses, and the named presets, which are values of them.

Every default stands here and nowhere else. A run folder's `config.json` holds one `Config`; from it, and the
data, the run can be repeated. How a run is *executed* (devices, caches) is not part of it: see `Execution`.
"""

import typing
from dataclasses import dataclass, field

from lstm_mnist_jax.config_json import from_value
from lstm_mnist_jax.errors import ConfigError


class Checked:
    """Gives each field its declared type, or says which value cannot have it, before a config's own checks."""

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self)).items():
            object.__setattr__(self, name, from_value(hint, getattr(self, name), name))


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{name} is {value}, expected {expected}.")


@dataclass(frozen=True)
class DataConfig(Checked):
    """The images, and which of them train and validate."""

    source: str = "mnist"
    """mnist (embedded), a folder of IDX files, or tfds:NAME."""
    data_dir: str | None = None
    """Folder of prepared TFDS data; None is TFDS's own default."""
    validation_examples: int = 5000
    """Examples that are taken from the front of the training examples for validation."""
    train_examples: int | None = None
    """Train on the first so many of the remaining examples; None is all of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.validation_examples > 0, "validation_examples", self.validation_examples, "1 or more")
        _require(
            self.train_examples is None or self.train_examples > 0,
            "train_examples",
            self.train_examples,
            "1 or more, or None for all",
        )


@dataclass(frozen=True)
class ModelConfig(Checked):
    """The network: a stack of LSTM layers and a dense output layer."""

    hidden_features: tuple[int, ...] = (32, 64)
    """Width of each LSTM layer, from the input to the output."""
    forget_bias: float = 1.0
    """Initial bias of the forget gates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            len(self.hidden_features) > 0 and min(self.hidden_features) > 0,
            "hidden_features",
            self.hidden_features,
            "one or more widths, each 1 or more",
        )


@dataclass(frozen=True)
class OptimizerConfig(Checked):
    """Adam, as TensorFlow 1 computes it (the paper's "epsilon hat" form)."""

    learning_rate: float = 0.01
    """Step size."""
    b1: float = 0.9
    """Decay of the running mean of the gradient."""
    b2: float = 0.999
    """Decay of the running mean of its square."""
    epsilon: float = 1e-8
    """Epsilon hat: added to the root of the uncorrected second moment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "a number above 0")
        _require(0 <= self.b1 < 1, "b1", self.b1, "at least 0 and below 1")
        _require(0 <= self.b2 < 1, "b2", self.b2, "at least 0 and below 1")
        _require(self.epsilon > 0, "epsilon", self.epsilon, "a number above 0")


@dataclass(frozen=True)
class CheckpointConfig(Checked):
    """When the run is saved, and what is kept. The best and the newest checkpoint always are."""

    checkpoint_minutes: float = 5.0
    """Save at each epoch's end, and in between whenever so many minutes have passed."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints to keep, besides the best."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.checkpoint_minutes > 0, "checkpoint_minutes", self.checkpoint_minutes, "above 0")
        _require(self.keep_checkpoints > 0, "keep_checkpoints", self.keep_checkpoints, "1 or more")


@dataclass(frozen=True)
class Config(Checked):
    """A training run. The defaults are the classic tutorial's numbers."""

    seed: int = 0
    """Decides the initial weights and the order of the data."""
    epochs: int = 10
    """How many times as many examples as the training set holds are seen."""
    batch_size: int = 64
    """Examples a step, over all devices."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295")
        _require(self.epochs > 0, "epochs", self.epochs, "1 or more")
        _require(self.batch_size > 0, "batch_size", self.batch_size, "1 or more")


@dataclass(frozen=True)
class Execution(Checked):
    """How to execute, on which devices. Changes no result beyond rounding."""

    devices: int | None = None
    """How many devices share a batch: CPU cores, GPUs or TPU cores. None chooses."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder, for a quick start the next time."""
    device_data_limit: float = 4.0
    """GiB. Training images that take more are not kept on the devices, but stream to them."""
    memory_limit: float | None = None
    """GiB of each device that many trainings at once may take. None is nearly all that is free."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.devices is None or self.devices > 0, "devices", self.devices, "1 or more, or None")
        memory = self.memory_limit
        _require(memory is None or memory > 0, "memory_limit", memory, "GiB, above 0, or None")
        _require(self.device_data_limit > 0, "device_data_limit", self.device_data_limit, "GiB, above 0")


@dataclass(frozen=True)
class Processes(Checked):
    """The processes that train together, on several machines or one. Under SLURM, Open MPI, in an indexed job of
    Kubernetes and on Cloud TPU they find each other; elsewhere each is told.
    """

    coordinator: str | None = None
    """HOST:PORT of process 0, which must be free there; the same for all."""
    num_processes: int | None = None
    """How many processes there are. 1 by itself trains alone, whatever the environment says."""
    process_id: int | None = None
    """Which of them this is, from 0."""
    join_timeout: float = 300.0
    """Seconds to wait at the start until all have come."""

    def __post_init__(self) -> None:
        super().__post_init__()
        told = {"coordinator": self.coordinator, "num_processes": self.num_processes, "process_id": self.process_id}
        missing = [name for name, value in told.items() if value is None]
        if self.num_processes == 1 and self.coordinator is None and not self.process_id:
            return  # alone, whatever the environment says
        if missing and len(missing) < len(told):
            raise ConfigError(
                f"{', '.join(missing)} must be given as well: either all of {', '.join(told)}, or none of them."
            )
        _require(self.join_timeout > 0, "join_timeout", self.join_timeout, "seconds, above 0")
        if self.coordinator is None or self.num_processes is None or self.process_id is None:
            return
        host, _, port = self.coordinator.rpartition(":")
        valid = bool(host) and port.isdecimal() and 0 < int(port) < 65536
        _require(valid, "coordinator", repr(self.coordinator), "HOST:PORT, with a port from 1 to 65535")
        _require(self.num_processes > 0, "num_processes", self.num_processes, "1 or more")
        in_range = 0 <= self.process_id < self.num_processes
        _require(in_range, "process_id", self.process_id, f"0 to {self.num_processes - 1}, of {self.num_processes}")


PRESETS: dict[str, Config] = {
    "tutorial": Config(),
    "smoke": Config(
        epochs=2,
        data=DataConfig(validation_examples=500, train_examples=6_000),
        model=ModelConfig(hidden_features=(16, 32)),
    ),
}
