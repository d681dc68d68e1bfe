"""The optimizer of a run."""

from dataclasses import dataclass
from typing import Literal

from lstm_mnist_jax.config.checked import Checked, require


@dataclass(frozen=True)
class OptimizerConfig(Checked):
    """Adam, as TensorFlow 1 computes it (the paper's "epsilon hat" form); with weight decay, AdamW."""

    learning_rate: float = 0.01
    """Step size; with a schedule, the largest."""
    b1: float = 0.9
    """Decay of the running mean of the gradient."""
    b2: float = 0.999
    """Decay of the running mean of its square."""
    epsilon: float = 1e-8
    """Epsilon hat: added to the root of the uncorrected second moment."""
    weight_decay: float = 0.0
    """Shrinks the matrices by learning rate x this at each step, apart from the gradient (AdamW)."""
    ema_decay: float = 0.0
    """Decay of a running mean of the parameters (EMA), which is then what is evaluated and used. 0 is none."""
    clip_norm: float | None = None
    """Scale the gradient down to this norm, over all parameters, where it is longer."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls after the warm-up, from its largest to final_share of that."""
    warmup_epochs: float = 0.0
    """Epochs, or parts of one, over which the learning rate rises from 0 to its largest. (Linear with a warm-up of
    about a third of the run is the one-cycle schedule.)"""
    final_share: float = 0.0
    """What the learning rate falls towards, and would have one step after the last, as a share of the largest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "a number above 0")
        require(0 <= self.b1 < 1, "b1", self.b1, "at least 0 and below 1")
        require(0 <= self.b2 < 1, "b2", self.b2, "at least 0 and below 1")
        require(self.epsilon > 0, "epsilon", self.epsilon, "a number above 0")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "at least 0 and below 1")
        require(self.clip_norm is None or self.clip_norm > 0, "clip_norm", self.clip_norm, "above 0, or None")
        require(self.warmup_epochs >= 0, "warmup_epochs", self.warmup_epochs, "at least 0")
        require(0 <= self.final_share <= 1, "final_share", self.final_share, "0 to 1")
