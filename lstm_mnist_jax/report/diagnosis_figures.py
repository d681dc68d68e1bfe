"""Figures of a run: its curves, the confusion matrix, accuracy by class, calibration, and the errors."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lstm_mnist_jax.report.diagnosis import Diagnosis
from lstm_mnist_jax.report.style import (
    BLUE,
    FAINT,
    INK,
    VERMILION,
    WIDTH,
    draw_image,
    epoch_axis,
    error_axis,
    marker,
    plain_log,
    series_style,
    settled,
    shown,
    styled,
)
from lstm_mnist_jax.report.terminal import percent
from lstm_mnist_jax.statistics import Share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CLASSES = 50
"""Classes of a picture, at most: those with the most mistakes."""

COLUMNS, ROWS = 6, 4
"""Of the grid of mistakes."""


def drawn_classes(diagnosis: Diagnosis) -> list[int]:
    """The classes that pictures show, in their order: all, or where they are too many, those with the most mistakes."""
    wrong = diagnosis.confusion - np.diag(diagnosis.confusion.diagonal())
    most = np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")
    return sorted(int(label) for label in most[:MAX_CLASSES])


def draw_confusion(diagnosis: Diagnosis) -> "Figure":
    """How many of each class were taken for each. Mistakes have the colour, so that one in a thousand is seen."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    chosen = drawn_classes(diagnosis)
    counts = diagnosis.confusion[np.ix_(chosen, chosen)]
    size, names = len(chosen), [shown(diagnosis.class_names[label]) for label in chosen]
    wrong = counts - np.diag(counts.diagonal())
    most = max(1, wrong.max())
    side = max(WIDTH, 0.23 * size + 1.5)
    with styled():
        figure = Figure(figsize=(side, side * 0.92), layout="constrained")
        axes = figure.subplots()
        for row, column in np.argwhere(counts):
            count, right = int(counts[row, column]), row == column
            opacity = FAINT / 2 if right else 0.1 + 0.5 * np.sqrt(count / most)
            axes.add_patch(
                Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=INK if right else VERMILION, alpha=opacity, lw=0)
            )
            if size <= 20 or not right:
                axes.text(column, row, str(count), ha="center", va="center", fontsize=_cell_size(size, count))
        axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal")
        long = max(map(len, names)) > 2
        axes.set_xticks(range(size), names, rotation=90 if size > 20 or long else 0)
        axes.set_yticks(range(size), names)
        axes.tick_params(length=0)
        axes.set(xlabel="was taken for", ylabel="is")
        axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
        axes.grid(which="minor", linewidth=0.5)
        axes.tick_params(which="minor", length=0)
        axes.spines[:].set_visible(False)
        return settled(figure)


def _cell_size(size: int, count: int) -> float:
    """Points of a cell's number: what fits, and 8 or more."""
    return 10.0 if size <= 12 and count < 10_000 else 8.0


def draw_by_class(diagnosis: Diagnosis) -> "Figure":
    """Accuracy on each class, with 95 % confidence intervals, and on all."""
    from matplotlib.figure import Figure

    chosen = [label for label in drawn_classes(diagnosis) if diagnosis.by_class[label].count]
    shares, total = [diagnosis.by_class[label] for label in chosen], diagnosis.accuracy
    with styled():
        figure = Figure(figsize=(WIDTH, 1.1 + 0.28 * len(chosen)), layout="constrained")
        axes = figure.subplots()
        draw_shares(axes, list(range(len(chosen))), shares)
        low, high = (100 * end for end in total.interval)
        axes.axvspan(low, high, color=INK, alpha=FAINT / 2, lw=0)
        axes.axvline(100 * total.value, color=INK, linewidth=1, linestyle="--", label=f"all: {total.value:.2%}")
        axes.set_yticks(range(len(chosen)), [shown(diagnosis.class_names[label]) for label in chosen])
        axes.set_ylim(len(chosen) - 0.4, -0.6)
        lowest = 100 * min(share.interval[0] for share in shares)
        axes.set_xlim(lowest - 0.05 * (100 - lowest), 100 + 0.02 * (100 - lowest))  # how far from 100 it is, too
        axes.set_xlabel("accuracy, %, with its 95 % confidence interval")
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), borderaxespad=0)
        return settled(figure)


def draw_shares(axes: Any, places: list[int], shares: list[Share]) -> None:
    """Draws shares with their intervals, in percent, one above the other."""
    values = np.array([100 * share.value for share in shares])
    ends = np.array([[100 * end for end in share.interval] for share in shares]).T
    axes.errorbar(values, places, xerr=np.abs(ends - values), fmt="o", color=BLUE, capsize=3, markersize=5)


def draw_calibration(diagnosis: Diagnosis) -> "Figure":
    """How often answers are right that the network is so sure of, and how many answers those are."""
    from matplotlib.figure import Figure

    calibration = diagnosis.calibration
    filled = np.flatnonzero(calibration.count)
    shares = [calibration.shares[number] for number in filled]
    values = np.array([100 * share.value for share in shares])
    ends = np.array([[100 * end for end in share.interval] for share in shares]).T
    with styled():
        figure = Figure(figsize=(WIDTH, 5.4), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle="--", label="as sure as right")
        above.errorbar(
            100 * calibration.confidence[filled],
            values,
            yerr=np.abs(ends - values),
            fmt="o",
            color=BLUE,
            capsize=3,
            markersize=5,
            label="answers as sure as this, with 95 % confidence intervals",
        )
        above.set(ylabel="of them are right, %", ylim=(-3, 103))
        above.grid()
        above.legend(loc="upper left")
        edges = 100 * calibration.edges
        below.bar(edges[:-1], calibration.count, width=np.diff(edges), align="edge", color=BLUE, alpha=0.75, lw=0)
        below.set(xlabel="how sure the network is of its answer, %", ylabel="answers")
        start = 100 / len(diagnosis.class_names)  # no most probable class has less
        below.set_xlim(max(0, min(start, edges[filled[0]]) - 2), 102)
        below.set_ylim(bottom=0.7)
        plain_log(below)
        below.grid(axis="y")
        return settled(figure)


def shown_mistakes(diagnosis: Diagnosis) -> np.ndarray:
    """The mistakes that are drawn, the surest first."""
    return diagnosis.mistakes[: COLUMNS * ROWS]


def draw_mistakes(diagnosis: Diagnosis, images: np.ndarray) -> "Figure":
    """The mistakes that the network was surest of, each with what it is and what it was taken for.

    Args:
      diagnosis: with a mistake or more.
      images: of the split.
    """
    from matplotlib.figure import Figure

    chosen = shown_mistakes(diagnosis)
    rows = -(-len(chosen) // COLUMNS)
    with styled():
        figure = Figure(figsize=(WIDTH, 1.72 * rows), layout="constrained")
        grid = figure.subplots(rows, COLUMNS, squeeze=False)
        for axes in grid.flat[len(chosen) :]:
            axes.set_axis_off()
        for axes, example in zip(grid.flat, chosen.tolist(), strict=False):
            draw_image(axes, images[example])
            is_, said = (diagnosis.class_names[label] for label in _labels(diagnosis, example))
            sure = sureness(float(diagnosis.confidences[example]))
            axes.set_title(
                f"is {shown(is_, 12)}\nsaid {shown(said, 11)}\n{sure}", fontsize=8, fontweight="normal", loc="center"
            )
        return settled(figure)


def _labels(diagnosis: Diagnosis, example: int) -> tuple[int, int]:
    return int(diagnosis.labels[example]), int(diagnosis.predictions[example])


def sureness(probability: float) -> str:
    """A probability for people."""
    return f"{percent(probability, 1)} sure"


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
