"""The network of a run: how it reads an image, and what of it is trained."""

from dataclasses import dataclass
from typing import Literal

from lstm_mnist_jax.config.checked import Checked, require


@dataclass(frozen=True)
class ModelConfig(Checked):
    """The network: an image as a sequence, a stack of recurrent layers, and a dense output layer."""

    task: Literal["rows", "columns", "pixels", "permuted"] = "rows"
    """How an image is read: rows from the top, columns from the left, pixels row by row, or pixels in an order
    that permutation_seed draws once for all images."""
    sequence_length: int | None = None
    """Time steps of a sequence, each of as many pixels; None is a row, a column or a pixel each. Of 28 rows, 14 steps
    read two each, 56 half a one."""
    permutation_seed: int = 0
    """Decides the order of permuted pixels, by NumPy's RandomState(seed).permutation."""
    cell: Literal["lstm", "gru", "layer_norm_lstm", "ur_lstm"] = "lstm"
    """What recurs: LSTM, GRU, LSTM with layer normalisation, or LSTM with refine gates (UR-LSTM)."""
    hidden_features: tuple[int, ...] = (32, 64)
    """Width of each recurrent layer, from the input to the output, in each direction."""
    bidirectional: bool = False
    """Read each sequence forwards and backwards."""
    pooling: Literal["last", "mean", "max", "attention"] = "last"
    """What the dense layer sees of the last recurrent layer: the last hidden state, or the mean, the greatest or a
    learnt weighted mean of those of all steps."""
    dropout_rate: float = 0.0
    """Probability that a feature is dropped in training, for a whole sequence: between layers, before the output."""
    forget_bias: float = 1.0
    """Initial bias of the forget gates, where chrono_steps does not decide it. (GRU and UR-LSTM have none.)"""
    chrono_steps: int | None = None
    """Chrono initialisation: the gates' biases for memories of 1 to so many steps. None leaves it."""
    dense_stddev: float = 1.0
    """Standard deviation of the initial weights and biases of the dense layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        widths, chrono = self.hidden_features, self.chrono_steps
        length = self.sequence_length
        require(length is None or length > 0, "sequence_length", length, "1 or more, or None")
        require(0 <= self.permutation_seed < 2**32, "permutation_seed", self.permutation_seed, "0 to 4294967295")
        require(len(widths) > 0 and min(widths) > 0, "hidden_features", widths, "one or more widths, each 1 or more")
        require(0 <= self.dropout_rate < 1, "dropout_rate", self.dropout_rate, "at least 0 and below 1")
        require(chrono is None or chrono > 2, "chrono_steps", chrono, "3 or more, or None")
        require(
            chrono is None or self.cell != "ur_lstm", "chrono_steps", chrono, "None with ur_lstm, which has its own"
        )
        require(self.dense_stddev >= 0, "dense_stddev", self.dense_stddev, "at least 0")
