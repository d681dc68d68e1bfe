"""The figures of a run's report, with their captions."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lstm_mnist_jax.data import Dataset
from lstm_mnist_jax.inference import TrainedRun
from lstm_mnist_jax.report.diagnosis import MAX_CLASSES, SPLITS, Diagnosis, StepAccuracy, step_accuracy
from lstm_mnist_jax.report.reading import draw_reading_of
from lstm_mnist_jax.report.style import (
    BLUE,
    FAINT,
    INK,
    VERMILION,
    WIDTH,
    Picture,
    draw_image,
    epoch_axis,
    error_axis,
    log_axis,
    log_scaled,
    marker,
    new_figure,
    series_style,
    shown,
)
from lstm_mnist_jax.report.terminal import percent
from lstm_mnist_jax.statistics import Share

COLUMNS, ROWS = 6, 4
"""Of the grid of errors."""

POINTS: dict[str, Any] = {"fmt": "o", "color": BLUE, "capsize": 3, "markersize": 5}
"""Points with error bars."""


def run_pictures(
    run: TrainedRun, columns: Mapping[str, np.ndarray], diagnosis: Diagnosis, dataset: Dataset
) -> list[Picture]:
    """The figures of a run. Left out are curves of a run without a finished epoch, errors where there are none, and
    the accuracy after each step where it would take too long to compute.

    Args:
      run: of `lstm_mnist_jax.load_run`.
      columns: its `history`.
      diagnosis: of a split of `dataset`.
      dataset: the data of the run.
    """
    examples = dataset.splits[diagnosis.split]
    pictures = [_curves(run, columns)] if len(columns["epoch"]) else []
    pictures += [_confusion(diagnosis), _by_class(diagnosis), _calibration(diagnosis)]
    if len(diagnosis.mistakes):
        pictures.append(_mistakes(diagnosis, examples.images))
    if (by_step := step_accuracy(run, examples)) is not None:
        pictures.append(_by_step(run.step_name, diagnosis.split, by_step))
    right = np.flatnonzero(diagnosis.predictions == diagnosis.labels)
    right = right[np.argsort(diagnosis.confidences[right], kind="stable")]
    for name, title, chosen in (
        ("reading-usual", "Step by step: a typical correct prediction", right[len(right) // 2 :][:1]),
        ("reading-unsure", "Step by step: the least confident correct prediction", right[:1] if len(right) > 1 else ()),
        ("reading-mistake", "Step by step: the most confident error", diagnosis.mistakes[:1]),
    ):
        pictures += [_reading(run, diagnosis, examples.images, name, title, int(example)) for example in chosen]
    return pictures


def _curves(run: TrainedRun, columns: Mapping[str, np.ndarray]) -> Picture:
    epochs, at_step = columns["epoch"], np.flatnonzero(columns["step"] == run.step)
    best = int(epochs[at_step[0]]) if len(at_step) else None
    last = {name: values[-1] for name, values in columns.items()}
    low, high, norms = columns["learning_rate"].min(), columns["learning_rate"].max(), columns["gradient_norm"]
    caption = (
        f"After {_count(len(epochs), 'epoch')} the loss is {last['train_loss']:.4f} in training, "
        f"{last['validation_loss']:.4f} on validation and {last['test_loss']:.4f} on test; the accuracy "
        f"{last['train_accuracy']:.2%}, {last['validation_accuracy']:.2%} and {last['test_accuracy']:.2%}. "
        + (f"This report is of the weights after epoch {best}. " if best is not None else "")
        + f"The learning rate is {f'{low:.3g}' if low == high else f'between {low:.3g} and {high:.3g}'}, the mean "
        f"gradient norm of an epoch {norms.min():.3g} to {norms.max():.3g}."
    )
    with new_figure(5.6) as figure:
        (loss, accuracy), (rate, norm) = figure.subplots(2, 2, sharex=True)
        for number, split in enumerate(("train", "validation", "test")):
            options: dict[str, Any] = {"label": split, **series_style(number), **marker(epochs)}
            loss.plot(epochs, columns[f"{split}_loss"], **options)
            accuracy.plot(epochs, 100 * (1 - columns[f"{split}_accuracy"]), **options)
        rate.plot(epochs, columns["learning_rate"], color=BLUE, **marker(epochs))
        norm.plot(epochs, columns["gradient_norm"], color=BLUE, **marker(epochs))
        for axes, title in ((loss, "loss"), (accuracy, "accuracy"), (rate, "learning rate"), (norm, "gradient norm")):
            axes.set_title(title)
            epoch_axis(axes, epochs, label=axes in (rate, norm))
            if best is not None:
                line = axes.axvline(best, color=INK, linewidth=1, linestyle=(0, (1, 2)), zorder=0)
        error_axis(accuracy, np.concatenate([100 * (1 - columns[f"{split}_accuracy"]) for split in SPLITS]))
        losses = np.concatenate([columns[f"{split}_loss"] for split in SPLITS])
        for axes, values in ((loss, losses), (rate, columns["learning_rate"]), (norm, norms)):
            if log_scaled(values):
                log_axis(axes)
            else:
                axes.set_ylim(0, 1.08 * values.max() or 1)
        loss.set_ylabel("cross-entropy, nats")
        norm.set_ylabel("mean over the epoch's steps")
        handles, labels = loss.get_legend_handles_labels()
        if best is not None:
            handles, labels = [*handles, line], [*labels, f"epoch {best}, whose weights are reported"]
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return Picture("curves", "Training curves", caption, figure)


def _confusion(diagnosis: Diagnosis) -> Picture:
    """Errors are coloured, so that one in a thousand is visible."""
    from matplotlib.patches import Rectangle

    class_names, wrong = diagnosis.class_names, len(diagnosis.mistakes)
    caption = f"Of {diagnosis.accuracy.count:,} {diagnosis.split} examples, "
    caption += f"{wrong:,} {'is' if wrong == 1 else 'are'} misclassified" if wrong else "none is misclassified"
    if wrong:
        caption += ", most often " + ", ".join(
            f"{class_names[true]} as {class_names[predicted]} ({count:,})"
            for true, predicted, count in diagnosis.confused[:3]
        )
    chosen = diagnosis.shown_classes
    counts = diagnosis.confusion[np.ix_(chosen, chosen)]
    size, names = len(chosen), [shown(class_names[label]) for label in chosen]
    most = max(1, (counts - np.diag(counts.diagonal())).max())
    side = max(WIDTH, 0.23 * size + 1.5)
    with new_figure(side * 0.92, side) as figure:
        axes = figure.subplots()
        for row, column in np.argwhere(counts):
            count, right = int(counts[row, column]), row == column
            color, opacity = (INK, FAINT / 2) if right else (VERMILION, 0.1 + 0.5 * np.sqrt(count / most))
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=color, alpha=opacity, lw=0))
            if size <= 20 or not right:
                font_size = 10 if size <= 12 and count < 10_000 else 8
                axes.text(column, row, str(count), ha="center", va="center", fontsize=font_size)
        axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal")
        axes.set_xticks(range(size), names, rotation=90 if size > 20 or max(map(len, names)) > 2 else 0)
        axes.set_yticks(range(size), names)
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
        axes.grid(which="minor", linewidth=0.5)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
    return Picture("confusion", "Confusion matrix", f"{caption}.{_of_classes(diagnosis)}", figure)


def _by_class(diagnosis: Diagnosis) -> Picture:
    total, names, by_class = diagnosis.accuracy, diagnosis.class_names, diagnosis.by_class
    known = [label for label, share in enumerate(by_class) if share.count]
    worst, best = (choose(known, key=lambda label: by_class[label].value) for choose in (min, max))
    low, high = total.interval
    caption = (
        f"{total.value:.2%} of the {diagnosis.split} examples are right, with a 95 % confidence interval from "
        f"{low:.2%} to {high:.2%}: from {by_class[worst].value:.2%} of class {names[worst]} to "
        f"{by_class[best].value:.2%} of class {names[best]}. A class has fewer examples than all, so its interval is "
        "wider."
    )
    chosen = [label for label in diagnosis.shown_classes if by_class[label].count]
    shares = [by_class[label] for label in chosen]
    with new_figure(1.1 + 0.28 * len(chosen)) as figure:
        axes = figure.subplots()
        values, lengths = _error_bars(shares)
        axes.errorbar(values, range(len(chosen)), xerr=lengths, **POINTS)
        axes.axvspan(100 * low, 100 * high, color=INK, alpha=FAINT / 2, lw=0)
        axes.axvline(100 * total.value, color=INK, linewidth=1, linestyle="--", label=f"all: {total.value:.2%}")
        axes.set_yticks(range(len(chosen)), [shown(names[label]) for label in chosen])
        axes.set_ylim(len(chosen) - 0.4, -0.6)
        lowest = (values - lengths[0]).min()
        axes.set_xlim(lowest - 0.05 * (100 - lowest), 100 + 0.02 * (100 - lowest))
        axes.set_xlabel("accuracy, %, with its 95 % confidence interval")
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), borderaxespad=0)
    return Picture("classes", "Accuracy by class", caption + _of_classes(diagnosis), figure)


def _calibration(diagnosis: Diagnosis) -> Picture:
    calibration, value = diagnosis.calibration, diagnosis.accuracy.value
    gap = calibration.mean_confidence - value
    caption = (
        f"The mean confidence of the predictions is {calibration.mean_confidence:.2%}, and {value:.2%} of them are "
        f"right: the network is {'over' if gap > 0 else 'under'}confident by {100 * abs(gap):.2f} percentage points. "
        f"The expected calibration error over {len(calibration.count)} bins (Guo et al. 2017) is "
        f"{calibration.expected_error:.2%}."
    )
    filled = np.flatnonzero(calibration.count)
    with new_figure(5.4) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle="--", label="perfect calibration")
        values, lengths = _error_bars([calibration.shares[number] for number in filled])
        label = "predictions of one bin, with 95 % confidence intervals"
        above.errorbar(100 * calibration.confidence[filled], values, yerr=lengths, label=label, **POINTS)
        above.set(ylabel="accuracy, %", ylim=(-3, 103))
        above.grid()
        above.legend(loc="upper left")
        edges = 100 * calibration.edges
        below.bar(edges[:-1], calibration.count, width=np.diff(edges), align="edge", color=BLUE, alpha=0.75, lw=0)
        below.set(xlabel="confidence, %", ylabel="predictions")
        start = 100 / len(diagnosis.class_names)  # no most probable class has less
        below.set_xlim(max(0, min(start, edges[filled[0]]) - 2), 102)
        below.set_ylim(bottom=0.7)
        log_axis(below)
        below.grid(axis="y")
    return Picture("calibration", "Calibration", caption, figure)


def _mistakes(diagnosis: Diagnosis, images: np.ndarray) -> Picture:
    chosen, count, names = diagnosis.mistakes[: COLUMNS * ROWS], len(diagnosis.mistakes), diagnosis.class_names
    rows = -(-len(chosen) // COLUMNS)
    errors = [
        (names[diagnosis.labels[n]], names[diagnosis.predictions[n]], percent(float(diagnosis.confidences[n]), 1))
        for n in chosen
    ]
    with new_figure(1.72 * rows) as figure:
        grid = figure.subplots(rows, COLUMNS, squeeze=False)
        for axes in grid.flat[len(chosen) :]:
            axes.set_axis_off()
        for axes, example, (true, predicted, probability) in zip(grid.flat, chosen, errors, strict=False):
            draw_image(axes, images[example])
            title = f"is {shown(true, 12)}\npredicted {shown(predicted, 9)}\n{probability}"
            axes.set_title(title, fontsize=8, fontweight="normal", loc="center")
    which = f"The {len(chosen)} most confident of {count:,} errors" if len(chosen) < count else f"All {count} errors"
    true, predicted, probability = errors[0]
    caption = (
        f"{which if count > 1 else 'The only error'}. The first, example {chosen[0]} of the {diagnosis.split} split, "
        f"is {true} and was predicted as {predicted}, with probability {probability}."
    )
    return Picture("mistakes", "The most confident errors", caption, figure)


def _by_step(step_name: str, split: str, found: StepAccuracy) -> Picture:
    steps, accuracy = len(found.correct), found.accuracy
    caption = (
        f"Of the predictions for {found.examples:,} {split} examples, {accuracy[max(0, steps // 2 - 1)]:.1%} are right "
        f"when half of the {step_name}s are read, and {accuracy[-1]:.1%} at the end. Nine tenths of this is reached "
        f"after {step_name} {found.first_step(0.9 * accuracy[-1])} of {steps}."
    )
    with new_figure(3.4) as figure:
        axes, at = figure.subplots(), np.arange(1, steps + 1)
        axes.plot(at, 100 * accuracy, label="accuracy", **series_style(0))
        axes.plot(at, 100 * found.given, label="mean probability of the true class", **series_style(1))
        axes.set(xlabel=f"{step_name}s read", ylabel="%", ylim=(0, 102), xlim=(0, steps + 0.5))
        axes.grid()
        axes.legend(loc="upper left")
    return Picture("accuracy-by-step", f"Accuracy after each {step_name}", caption, figure)


def _reading(run: TrainedRun, diagnosis: Diagnosis, images: np.ndarray, name: str, title: str, example: int) -> Picture:
    label, names, step_name = int(diagnosis.labels[example]), diagnosis.class_names, run.step_name
    along = run.read_along(images[example : example + 1])[0]
    predictions = along.argmax(axis=-1)
    changes = np.flatnonzero(np.diff(predictions)) + 1
    final = int(predictions[-1])
    caption = (
        f"Example {example} of the {diagnosis.split} split is {names[label]}. Read {step_name} by {step_name}, the "
        f"prediction changes {_count(len(changes), 'time')}, and is {names[final]} from {step_name} "
        f"{changes[-1] + 1 if len(changes) else 1} of {len(along)} on, at the end with probability "
        f"{percent(float(along[-1, final]), 1)}."
    )
    return Picture(name, title, caption, draw_reading_of(run, images[example], true_label=label))


def _error_bars(shares: list[Share]) -> tuple[np.ndarray, np.ndarray]:
    """Shares in percent, [n], and the lengths of their error bars, [2, n]."""
    values = 100 * np.array([share.value for share in shares])
    return values, np.abs(100 * np.array([share.interval for share in shares]).T - values)


def _of_classes(diagnosis: Diagnosis) -> str:
    classes = len(diagnosis.class_names)
    return f" Shown are the {MAX_CLASSES} of {classes} classes with the most errors." if classes > MAX_CLASSES else ""


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("s" if number != 1 else "")
