"""All options and their defaults: the config of a run (`Config`, in its config.json), and how it is executed.

From a `Config` and the data a run can be repeated. How it is executed (devices, processes) is not part of the config
and changes no result beyond float32 rounding: see `Execution` and `Processes`.
"""

import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lstm_mnist_jax.config.json import ADDED, from_value
from lstm_mnist_jax.errors import ConfigError, did_you_mean


class Checked:
    """Gives each field its declared type, or raises ConfigError; then calls `check`."""

    def __new__(cls, *_: Any, **named: Any) -> "Checked":
        if unknown := sorted(named.keys() - typing.get_type_hints(cls).keys()):
            raise ConfigError(_unknown_field(cls, unknown[0], named))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self)).items():
            object.__setattr__(self, name, from_value(hint, getattr(self, name), name))
        self.check()

    def check(self) -> None:
        """Raises ConfigError where a value is impossible."""

    def require(self, condition: bool, name: str, expected: str) -> None:
        """Raises ConfigError unless the field `name` is as expected."""
        if not condition:
            raise ConfigError(f"{name} is {getattr(self, name)}, expected {expected}.")

    def require_positive(self, *names: str) -> None:
        """Raises ConfigError unless each field is a number above 0, or None if it may be."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value <= 0:
                kinds = typing.get_args(typing.get_type_hints(type(self))[name])
                expected = "1 or more" if isinstance(value, int) else "a number above 0"
                self.require(False, name, expected + ", or None" * (type(None) in kinds))

    def require_fraction(self, *names: str) -> None:
        """Raises ConfigError unless each field is at least 0 and below 1."""
        for name in names:
            self.require(0 <= getattr(self, name) < 1, name, "at least 0 and below 1")


def _unknown_field(cls: type, name: str, named: Collection[str]) -> str:
    """That a config has no field of this name, and where it is: in one of its parts, or under another name."""
    hints = typing.get_type_hints(cls)
    for part, kind in hints.items():
        if isinstance(kind, type) and issubclass(kind, Checked) and name in typing.get_type_hints(kind):
            example = f"{cls.__name__}({part}={kind.__name__}({name}=...))"
            if hints.keys() <= set(named):  # as `replace` names them
                example = f"replace(config, {part}=replace(config.{part}, {name}=...))"
            return f"{cls.__name__} has no field {name!r}, but its part {part} has: {example}."
    return f"{cls.__name__} has no field {name!r}; expected one of {', '.join(hints)}{did_you_mean(name, hints)}"


def _added(default: Any) -> Any:
    """A field that the config.json of older runs lacks; they have its default."""
    return field(default=default, metadata=ADDED)


@dataclass(frozen=True)
class ModelConfig(Checked):
    """The network: an image as a sequence, a stack of recurrent layers, pooling over time, and dense layers."""

    task: Literal["rows", "columns", "pixels", "permuted"] = "rows"
    """How an image is read: rows from the top, columns from the left, pixels row by row, or pixels in an order
    that permutation_seed draws once for all images."""
    sequence_length: int | None = None
    """Number of time steps, each with the same number of pixels; None is one row, column or pixel per step. With 28
    rows, 14 gives two rows per step, 56 half a row."""
    permutation_seed: int = 0
    """Seed of the order of permuted pixels, by NumPy's RandomState(seed).permutation."""
    cell: Literal["lstm", "gru", "layer_norm_lstm", "ur_lstm"] = "lstm"
    """The recurrent cell: LSTM, GRU, LSTM with layer normalization, or LSTM with refine gates (UR-LSTM)."""
    activation: Literal["tanh", "relu", "linear", "hard_sigmoid_keras2", "hard_sigmoid_keras3"] = _added("tanh")
    """Activation of the LSTM's candidate and output. Others than tanh run through Flax's scan, which is slower.
    hard_sigmoid_keras2 is clip(0.2 x + 0.5, 0, 1), as in Keras 1 and 2; hard_sigmoid_keras3 is relu6(x + 3) / 6, as in
    Keras 3, JAX and PyTorch."""
    recurrent_activation: Literal["sigmoid", "hard_sigmoid_keras2", "hard_sigmoid_keras3"] = _added("sigmoid")
    """Activation of the LSTM's gates. Others than sigmoid run through Flax's scan, which is slower."""
    recurrent_bias: bool = _added(False)
    """Give the GRU the second bias of PyTorch's and Keras's GRU: it is in the product with the hidden state, which the
    reset gate multiplies. Flax's GRU has none."""
    hidden_features: tuple[int, ...] = (32, 64)
    """Width of each recurrent layer, from the input to the output, in each direction."""
    bidirectional: bool = False
    """Read each sequence forwards and backwards."""
    pooling: Literal["last", "mean", "max", "attention", "all", "last_step"] = "last"
    """Pooling over time, between the last recurrent layer and the dense layers: the last hidden state (of each
    direction); mean pooling, max pooling or attention pooling over all steps; or all: no pooling, the outputs of all
    steps, flattened. last_step is for both directions: the outputs at the last step, of which the backward direction
    has read that step alone (outputs[:, -1] in PyTorch)."""
    dense_features: tuple[int, ...] = _added(())
    """Width of each hidden dense layer, between the pooling and the output layer."""
    dense_activation: Literal["relu", "tanh", "linear"] = _added("relu")
    """Activation of the hidden dense layers."""
    dropout_rate: float = 0.0
    """Dropout in training, between layers and before the output: the probability that a feature is dropped, for all
    time steps of a sequence."""
    forget_bias: float = 1.0
    """Initial bias of the forget gates, unless chrono_steps is set. (GRU and UR-LSTM have none.)"""
    chrono_steps: int | None = None
    """Chrono initialization (Tallec and Ollivier 2018): gate biases for dependencies of 1 to this many steps. None
    turns it off."""
    dense_stddev: float = 1.0
    """Standard deviation of the initial weights and biases of the output layer."""
    precision: Literal["default", "high", "highest"] = _added("default")
    """Precision of the network's float32 matrix products, as JAX names it. default is JAX's own setting
    (JAX_DEFAULT_MATMUL_PRECISION): if that is not set, GPUs round to TF32 and TPUs to bfloat16. high is TF32 on GPUs
    and three products of bfloat16 on TPUs. highest is float32. CPUs compute in float32 in any case."""

    def check(self) -> None:
        widths, chrono = self.hidden_features, self.chrono_steps
        for name in ("activation", "recurrent_activation"):
            usual = getattr(ModelConfig, name)
            self.require(
                self.cell == "lstm" or getattr(self, name) == usual, name, f"{usual} with the cell {self.cell}"
            )
        self.require(
            self.cell == "gru" or not self.recurrent_bias, "recurrent_bias", f"False with the cell {self.cell}"
        )
        self.require(
            self.bidirectional or self.pooling != "last_step", "pooling", "last in one direction, which is the same"
        )
        self.require_positive("sequence_length")
        self.require(0 <= self.permutation_seed < 2**32, "permutation_seed", "0 to 4294967295")
        self.require(len(widths) > 0 and min(widths) > 0, "hidden_features", "one or more widths, each 1 or more")
        self.require(all(width > 0 for width in self.dense_features), "dense_features", "widths, each 1 or more")
        self.require_fraction("dropout_rate")
        self.require(chrono is None or chrono > 2, "chrono_steps", "3 or more, or None")
        self.require(
            chrono is None or self.cell != "ur_lstm", "chrono_steps", "None with ur_lstm, which initializes its gates"
        )
        self.require(self.dense_stddev >= 0, "dense_stddev", "at least 0")


@dataclass(frozen=True)
class OptimizerConfig(Checked):
    """Adam, as TensorFlow 1 computes it (the paper's "epsilon hat" form); with weight decay, AdamW."""

    learning_rate: float = 0.01
    """Learning rate; with a schedule, its peak."""
    b1: float = 0.9
    """Adam's decay of the first moment."""
    b2: float = 0.999
    """Adam's decay of the second moment."""
    epsilon: float = 1e-8
    """Adam's epsilon hat: added to the root of the second moment before bias correction, as in TensorFlow."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW), of the matrices."""
    ema_decay: float = 0.0
    """Decay of the exponential moving average (EMA) of the weights, which is then evaluated and used. 0 is none."""
    clip_norm: float | None = None
    """Gradient clipping: the largest global norm."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning-rate schedule after the warm-up, from the peak to final_fraction of it."""
    warmup_epochs: float = 0.0
    """Epochs, or fractions of one, of linear warm-up from 0 to the peak. (A linear schedule with a warm-up of about a
    third of the run is the one-cycle schedule.)"""
    final_fraction: float = 0.0
    """The learning rate at the end of the schedule, one step after the last, as a fraction of the peak."""

    def check(self) -> None:
        self.require_positive("learning_rate", "epsilon", "clip_norm")
        self.require_fraction("b1", "b2", "ema_decay")
        self.require(self.weight_decay >= 0, "weight_decay", "at least 0")
        self.require(self.warmup_epochs >= 0, "warmup_epochs", "at least 0")
        self.require(0 <= self.final_fraction <= 1, "final_fraction", "0 to 1")


@dataclass(frozen=True)
class AugmentationConfig(Checked):
    """Data augmentation of the training images, drawn for each image at each step. Zero is none."""

    rotation_degrees: float = 0.0
    """Rotate by up to this many degrees either way."""
    scaling: float = 0.0
    """Scale each axis by a factor of up to 1 + this."""
    shear: float = 0.0
    """Shear sideways by up to this many pixels per row."""
    shift_pixels: float = 0.0
    """Translate by up to this many pixels along each axis."""
    flip_probability: float = 0.0
    """Probability of a horizontal flip."""
    elastic_pixels: float = 0.0
    """Elastic deformation: standard deviation of the random displacements, in pixels."""
    elastic_spacing: float = 6.0
    """Elastic deformation: distance in pixels between independent displacements."""
    erasing_probability: float = 0.0
    """Random erasing: probability that a random rectangle of an image is set to 0."""
    erasing_size: float = 0.5
    """Random erasing: the longest side of the rectangle, as a fraction of the image's."""
    mixup_alpha: float = 0.0
    """Mixup: pairs of images and labels are mixed in proportions drawn from Beta(alpha, alpha)."""

    def check(self) -> None:
        self.require(0 <= self.rotation_degrees <= 180, "rotation_degrees", "0 to 180")
        for name in ("scaling", "shear", "shift_pixels", "elastic_pixels", "mixup_alpha"):
            self.require(getattr(self, name) >= 0, name, "at least 0")
        self.require(self.elastic_spacing >= 1, "elastic_spacing", "1 or more")
        for name in ("flip_probability", "erasing_probability"):
            self.require(0 <= getattr(self, name) <= 1, name, "0 to 1")
        self.require(0 < self.erasing_size <= 1, "erasing_size", "above 0, and at most 1")

    @property
    def moves_pixels(self) -> bool:
        """Whether images are resampled."""
        kinds = ("rotation_degrees", "scaling", "shear", "shift_pixels", "flip_probability", "elastic_pixels")
        return any(getattr(self, name) for name in kinds)


@dataclass(frozen=True)
class DataConfig(Checked):
    """The images, and how they are split into training and validation."""

    source: str = "mnist"
    """mnist (embedded), fashion-mnist (where Debian installs it, or a folder of this name), tfds:NAME, a .csv, .npz or
    .zip file, or a folder: of IDX, .csv, .npz or .npy files, or with a folder of pictures for each class."""
    data_dir: str | None = None
    """Folder of prepared TFDS data; None is TFDS's own default."""
    validation_examples: int | None = None
    """Examples that are moved from training to validation, where the source has no validation split. None is a twelfth
    of those that are trained on, from 500 to 5000, and a tenth of all at most: of MNIST 5000, in smoke 500."""
    train_examples: int | None = None
    """The largest number of remaining examples to train on, from the first; None is all of them."""
    validation: Literal["auto", "front", "stratified"] = _added("auto")
    """How validation_examples are chosen: from the front, stratified (each class in proportion, at random), or auto:
    from the front unless classes would be lacking there, else stratified."""
    test_fraction: float = _added(0.1)
    """Where the source has no test split: the fraction of the training examples that become one, stratified."""
    split_seed: int = _added(0)
    """Seed of stratified splits."""
    classes: Literal["declared", "present"] = _added("declared")
    """present leaves out classes that have no training example, which declared refuses."""
    form: Literal["whole", "digit"] = _added("whole")
    """Pictures in class folders: whole scales the whole picture, digit finds the digit in it and brings it to MNIST's
    form. predict does the same."""
    image_size: tuple[int, ...] = _added(())
    """Height and width, perhaps channels, of pictures in class folders, or of the images in a table of pixels. Without
    it, pictures keep a common size up to 64, else become 28 x 28; images in tables are square."""

    def check(self) -> None:
        self.require_positive("validation_examples", "train_examples")
        self.require(0 < self.test_fraction < 1, "test_fraction", "above 0 and below 1")
        self.require(0 <= self.split_seed < 2**32, "split_seed", "0 to 4294967295")
        size = self.image_size
        fits = not size or (
            len(size) in (2, 3) and min(size) > 0 and max(size) <= 4096 and size[2:] in ((), (1,), (3,))
        )
        self.require(fits, "image_size", "height and width, each 1 to 4096, and perhaps 1 or 3 channels")


@dataclass(frozen=True)
class CheckpointConfig(Checked):
    """When checkpoints are saved, and how many are kept. Each holds the latest and the best weights."""

    checkpoint_minutes: float = 5.0
    """Save after each epoch, and also after this many minutes."""
    keep_checkpoints: int = 3
    """The number of the newest checkpoints to keep."""

    def check(self) -> None:
        self.require_positive("checkpoint_minutes", "keep_checkpoints")


@dataclass(frozen=True)
class Config(Checked):
    """The settings of a training run. The defaults are the classic tutorial's hyperparameters.

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
    """Seed of the initial weights, the order of the data, and everything else that is random."""
    epochs: int = 10
    """Passes over the training set."""
    batch_size: int = 64
    """Examples per step, over all devices together."""
    batch_doubling_epochs: tuple[int, ...] = ()
    """Batch-size schedule: epochs after which the effective batch size doubles, by gradient accumulation over two,
    four, ... steps."""
    label_smoothing: float = 0.0
    """Label smoothing: the fraction of each label that is spread evenly over all classes."""
    selection_metric: Literal["accuracy", "loss"] = "accuracy"
    """The metric for model selection on validation: the highest accuracy, or the lowest loss. Accuracy moves in steps
    of one example, so the highest of many can be luck; the loss distinguishes good networks more finely."""
    early_stopping_patience: int | None = None
    """Early stopping: stop after this many epochs without a better one on validation. None trains all epochs."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)

    def check(self) -> None:
        self.require(0 <= self.seed < 2**32, "seed", "0 to 4294967295")
        self.require_positive("epochs", "batch_size", "early_stopping_patience")
        self.require_fraction("label_smoothing")
        epochs = self.batch_doubling_epochs
        rising = all(0 < epoch < self.epochs for epoch in epochs) and tuple(sorted(set(epochs))) == epochs
        possible = f"rising epochs from 1 to {self.epochs - 1}" if self.epochs > 1 else "none in a run of one epoch"
        self.require(rising, "batch_doubling_epochs", possible)
        fits = self.optimizer.warmup_epochs <= self.epochs
        self.optimizer.require(fits, "warmup_epochs", f"at most epochs, which is {self.epochs}")


SWEEPABLE = (
    *OptimizerConfig.__dataclass_fields__,
    *ModelConfig.__dataclass_fields__,
    *AugmentationConfig.__dataclass_fields__,
    "batch_size",
    "label_smoothing",
)
"""The fields that a sweep may vary. Runs that differ in hyperparameters of the optimizer share one compiled program;
each other value takes one of its own."""


HAS_EFFECT: tuple[tuple[str, str, Callable[[Any], bool], str], ...] = (
    ("permutation_seed", "task", lambda task: task == "permuted", "the task permuted"),
    ("forget_bias", "cell", lambda cell: cell in ("lstm", "layer_norm_lstm"), "the cell lstm or layer_norm_lstm"),
    ("forget_bias", "chrono_steps", lambda steps: steps is None, "chrono_steps None"),
    ("dense_activation", "dense_features", bool, "hidden dense layers (dense_features)"),
    ("final_fraction", "schedule", lambda schedule: schedule != "constant", "a schedule, linear or cosine"),
    ("elastic_spacing", "elastic_pixels", lambda pixels: pixels > 0, "elastic_pixels above 0"),
    ("erasing_size", "erasing_probability", lambda probability: probability > 0, "erasing_probability above 0"),
)
"""Fields that have an effect with some values of another field only: both, the condition, and what it asks for."""


def refuse_without_effect(names: Collection[str], config: Config, axes: Mapping[str, Collection[Any]] = {}) -> None:
    """Raises ConfigError where one of the fields was asked for, but has no effect in the config.

    A config may have such a value, such as one of a preset or of an older version: it is not refused by `Config`.

    Args:
      names: the fields that were asked for.
      config: the config.
      axes: the values of those of its fields that have several, each with each of the others.
    """
    own = vars(config.model) | vars(config.optimizer) | vars(config.augmentation)
    for name, other, has_effect, needed in HAS_EFFECT:
        if name in names and not any(map(has_effect, axes.get(other, (own[other],)))):
            raise ConfigError(f"{name} has no effect here: it needs {needed}. Leave it out, or set that as well.")


@dataclass(frozen=True)
class Execution(Checked):
    """On which devices to run, and with how much of their memory. Changes no result beyond float32 rounding.

    Raises:
      ConfigError: a value is impossible.

    Examples:
      >>> from lstm_mnist_jax import Execution
      >>> Execution(devices=1).device_data_limit
      4.0
    """

    devices: int | None = None
    """The number of devices that share a batch: CPU cores, GPUs or TPU cores. None chooses it."""
    device_data_limit: float = 4.0
    """Limit in GiB: larger training sets stay in host memory and are streamed to the devices."""
    memory_limit: float | None = None
    """Memory in GiB per device for the runs of a sweep. None is 80 % of the free memory."""

    def check(self) -> None:
        self.require_positive("devices")
        self.require(self.memory_limit is None or self.memory_limit > 0, "memory_limit", "GiB, above 0, or None")
        self.require(self.device_data_limit > 0, "device_data_limit", "GiB, above 0")


@dataclass(frozen=True)
class Processes(Checked):
    """The processes of a distributed run, on several machines or one. SLURM, Open MPI, indexed jobs of Kubernetes and
    Cloud TPU provide these values; elsewhere pass them to each process.
    """

    coordinator: str | None = None
    """HOST:PORT of process 0, the same for all processes; the port must be free."""
    num_processes: int | None = None
    """The number of processes. 1 without the other options trains alone, even in a job of several."""
    process_id: int | None = None
    """The number of this process, from 0."""
    join_timeout: float = 300.0
    """Seconds to wait at the start until all have joined."""

    def check(self) -> None:
        names = ("coordinator", "num_processes", "process_id")
        missing = [name for name in names if getattr(self, name) is None]
        if self.num_processes == 1 and self.coordinator is None and not self.process_id:
            return  # a single process, even where the environment names others
        if missing and len(missing) < len(names):
            raise ConfigError(
                f"{', '.join(missing)} must be given as well: the coordinator, the number of processes and the "
                "number of this process belong together."
            )
        self.require(self.join_timeout > 0, "join_timeout", "seconds, above 0")
        if self.coordinator is None or self.num_processes is None or self.process_id is None:
            return
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            expected = "HOST:PORT, with a port from 1 to 65535"
            raise ConfigError(f"coordinator is {self.coordinator!r}, expected {expected}.")
        self.require_positive("num_processes")
        in_range = 0 <= self.process_id < self.num_processes
        self.require(in_range, "process_id", f"0 to {self.num_processes - 1}, of {self.num_processes}")
