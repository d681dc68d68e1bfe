"""How a training went, as curves."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lstm_mnist_jax.report.axes import epoch_axis, error_axis, marker, plain_log, settled
from lstm_mnist_jax.report.style import BLUE, INK, WIDTH, series_style, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPREAD = 5
"""A measure whose largest value is so many times its smallest is drawn on a logarithmic axis."""


def draw_history(columns: Mapping[str, np.ndarray], epoch: int | None = None) -> "Figure":
    """Loss, accuracy, learning rate and gradient norm over the epochs.

    Args:
      columns: of `TrainedRun.history`, with an epoch or more.
      epoch: the epoch whose weights are reported of; it is marked.
    """
    from matplotlib.figure import Figure

    with styled():
        figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
        (loss, accuracy), (rate, norm) = figure.subplots(2, 2, sharex=True)
        epochs = columns["epoch"]
        for number, split in enumerate(("train", "validation", "test")):
            look: dict[str, Any] = {"label": split, **series_style(number), **marker(epochs)}
            loss.plot(epochs, columns[f"{split}_loss"], **look)
            accuracy.plot(epochs, 100 * (1 - columns[f"{split}_accuracy"]), **look)
        rate.plot(epochs, columns["learning_rate"], color=BLUE, **marker(epochs))
        norm.plot(epochs, columns["gradient_norm"], color=BLUE, **marker(epochs))
        for axes, title in ((loss, "loss"), (accuracy, "accuracy"), (rate, "learning rate"), (norm, "gradient norm")):
            axes.set_title(title)
            epoch_axis(axes, epochs, label=axes in (rate, norm))
            if epoch is not None:
                line = axes.axvline(epoch, color=INK, linewidth=1, linestyle=(0, (1, 2)), zorder=0)
        error_axis(accuracy, [100 * (1 - v) for s in ("train", "validation", "test") for v in columns[f"{s}_accuracy"]])
        _scale(loss, np.concatenate([columns[f"{split}_loss"] for split in ("train", "validation", "test")]))
        _scale(rate, columns["learning_rate"])
        _scale(norm, columns["gradient_norm"])
        loss.set_ylabel("cross-entropy, nats")
        norm.set_ylabel("mean over the epoch's steps")
        handles, labels = loss.get_legend_handles_labels()
        if epoch is not None:
            handles, labels = [*handles, line], [*labels, f"epoch {epoch}, whose weights the report is of"]
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        return settled(figure)


def _scale(axes: Any, values: np.ndarray) -> None:
    if values.min() > 0 and values.max() / values.min() > SPREAD:
        plain_log(axes)
    else:
        axes.set_ylim(0, 1.08 * values.max() or 1)
