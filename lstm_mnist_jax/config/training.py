"""What a run is: one frozen dataclass of others.

Every default stands here, or beside, and nowhere else. A run folder's `config.json` holds one `Config`; from it, and
the data, the run can be repeated. How a run is *executed* (devices, caches) is not part of it: see `Execution`.
"""

from dataclasses import dataclass, field
from typing import Literal

from lstm_mnist_jax.config.augmentation import AugmentationConfig
from lstm_mnist_jax.config.checked import Checked, require
from lstm_mnist_jax.config.network import ModelConfig
from lstm_mnist_jax.config.optimization import OptimizerConfig


@dataclass(frozen=True)
class DataConfig(Checked):
    """The images, and which of them train and validate."""

    source: str = "mnist"
    """mnist (embedded), fashion-mnist (where Debian installs it, or a folder of this name), a folder of IDX files, or
    tfds:NAME."""
    data_dir: str | None = None
    """Folder of prepared TFDS data; None is TFDS's own default."""
    validation_examples: int = 5000
    """Examples that are taken from the front of the training examples for validation."""
    train_examples: int | None = None
    """Train on the first so many of the remaining examples; None is all of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.validation_examples > 0, "validation_examples", self.validation_examples, "1 or more")
        require(
            self.train_examples is None or self.train_examples > 0,
            "train_examples",
            self.train_examples,
            "1 or more, or None for all",
        )


@dataclass(frozen=True)
class CheckpointConfig(Checked):
    """When the run is saved, and what is kept. The best and the newest checkpoint always are."""

    checkpoint_minutes: float = 5.0
    """Save at each epoch's end, and in between whenever so many minutes have passed."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints to keep, besides the best."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.checkpoint_minutes > 0, "checkpoint_minutes", self.checkpoint_minutes, "above 0")
        require(self.keep_checkpoints > 0, "keep_checkpoints", self.keep_checkpoints, "1 or more")


@dataclass(frozen=True)
class Config(Checked):
    """The settings of a training run. The defaults are those of the classic tutorial.

    Raises:
      ConfigError: a value is impossible, alone or together with another.

    Examples:
      >>> from dataclasses import replace
      >>> from lstm_mnist_jax import PRESETS, Config
      >>> config = Config(epochs=3, batch_size=128)
      >>> config = replace(config, optimizer=replace(config.optimizer, learning_rate=0.003))
      >>> config.model.hidden_features, config.optimizer.learning_rate
      ((32, 64), 0.003)
      >>> PRESETS["tutorial"] == Config()
      True
    """

    seed: int = 0
    """Decides the initial weights, the order of the data, and all else that is drawn."""
    epochs: int = 10
    """How many times as many examples as the training set holds are seen."""
    batch_size: int = 64
    """Examples a step, over all devices."""
    batch_ramp: tuple[int, ...] = ()
    """Epochs after which the batch is twice as large: from then on, an update has the mean gradient of two, four, ...
    steps."""
    label_smoothing: float = 0.0
    """The share of each label that is given to all classes evenly."""
    best_by: Literal["accuracy", "loss"] = "accuracy"
    """What makes an epoch the best: the highest validation accuracy, or the least validation loss. Accuracy moves in
    steps of one example, so that the highest of many can be luck; the loss tells good networks apart more finely."""
    early_stop_epochs: int | None = None
    """Stop once so many epochs have brought nothing better on validation. None trains all epochs."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295")
        require(self.epochs > 0, "epochs", self.epochs, "1 or more")
        require(self.batch_size > 0, "batch_size", self.batch_size, "1 or more")
        ramp, patience, warmup = self.batch_ramp, self.early_stop_epochs, self.optimizer.warmup_epochs
        rising = all(0 < epoch < self.epochs for epoch in ramp) and tuple(sorted(set(ramp))) == ramp
        possible = f"rising epochs from 1 to {self.epochs - 1}" if self.epochs > 1 else "none in a run of one epoch"
        require(rising, "batch_ramp", ramp, possible)
        require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "at least 0 and below 1")
        require(patience is None or patience > 0, "early_stop_epochs", patience, "1 or more, or None")
        require(warmup <= self.epochs, "warmup_epochs", warmup, f"at most epochs, which is {self.epochs}")


SWEEPABLE = (
    *OptimizerConfig.__dataclass_fields__,
    *ModelConfig.__dataclass_fields__,
    *AugmentationConfig.__dataclass_fields__,
    "batch_size",
    "label_smoothing",
)
"""The fields that a sweep may vary. The optimizer's numbers share one compiled program, the others take one each."""
