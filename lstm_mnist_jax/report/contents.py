"""The pictures of a run's report, in their order: what each is called, what it says in words, and the figure."""

from collections.abc import Mapping

import numpy as np

from lstm_mnist_jax.data import Dataset
from lstm_mnist_jax.inference import TrainedRun
from lstm_mnist_jax.report.diagnosis import Diagnosis
from lstm_mnist_jax.report.diagnosis_figures import (
    MAX_CLASSES,
    draw_by_class,
    draw_calibration,
    draw_confusion,
    draw_history,
    draw_mistakes,
    shown_mistakes,
    sureness,
)
from lstm_mnist_jax.report.knowing import Knowing, draw_knowing, read_many
from lstm_mnist_jax.report.reading import draw_reading_of
from lstm_mnist_jax.report.style import Picture
from lstm_mnist_jax.statistics import Share


def run_pictures(
    run: TrainedRun, columns: Mapping[str, np.ndarray], diagnosis: Diagnosis, dataset: Dataset
) -> list[Picture]:
    """The pictures of a run. Those of which there is nothing to be seen are left out: curves where no epoch was
    finished, mistakes where there are none, how soon it knows where that would take too long to find out.

    Args:
      run: whose.
      columns: its `history`.
      diagnosis: of a split of `dataset`.
      dataset: what it was trained on.
    """
    examples = dataset.splits[diagnosis.split]
    images = examples.images
    pictures = [_history(run, columns)] if len(columns["epoch"]) else []
    pictures += [_confusion(diagnosis), _by_class(diagnosis), _calibration(diagnosis)]
    if len(diagnosis.mistakes):
        pictures.append(_mistakes(diagnosis, images))
    if (knowing := read_many(run, examples)) is not None:
        pictures.append(_knowing(run, diagnosis.split, knowing))
    return pictures + [_reading(run, diagnosis, images, *example) for example in telling_examples(diagnosis)]


def _history(run: TrainedRun, columns: Mapping[str, np.ndarray]) -> Picture:
    at_step = np.flatnonzero(columns["step"] == run.step)
    best = int(columns["epoch"][at_step[0]]) if len(at_step) else None
    last = {name: values[-1] for name, values in columns.items()}
    caption = (
        f"After {_count(len(columns['epoch']), 'epoch')} the loss is {last['train_loss']:.4f} in training, "
        f"{last['validation_loss']:.4f} on validation and {last['test_loss']:.4f} on test; the accuracy "
        f"{last['train_accuracy']:.2%}, {last['validation_accuracy']:.2%} and {last['test_accuracy']:.2%}. "
    )
    if best is not None:
        caption += f"This report is of the weights after epoch {best}. "
    low, high = columns["learning_rate"].min(), columns["learning_rate"].max()
    rate = f"{low:.3g}" if low == high else f"between {low:.3g} and {high:.3g}"
    norms = columns["gradient_norm"]
    caption += (
        f"The learning rate is {rate}, the gradient's norm in the mean of an epoch {norms.min():.3g} to "
        f"{norms.max():.3g}."
    )
    return Picture("curves", "How it learned", caption, draw_history(columns, best))


def _confusion(diagnosis: Diagnosis) -> Picture:
    names, total = diagnosis.class_names, diagnosis.accuracy
    wrong = len(diagnosis.mistakes)
    caption = f"Of {total.count:,} {diagnosis.split} examples, "
    caption += f"{wrong:,} {'is' if wrong == 1 else 'are'}" if wrong else "none is"
    caption += " taken for another class"
    if wrong:
        pairs = [f"{names[is_]} for {names[said]} ({count:,})" for is_, said, count in diagnosis.confused[:3]]
        caption += f", most often {_listed(pairs)}"
    caption += "."
    return Picture("confusion", "What is taken for what", caption + _of_classes(diagnosis), draw_confusion(diagnosis))


def _by_class(diagnosis: Diagnosis) -> Picture:
    total = diagnosis.accuracy
    known = [
        (share, name) for share, name in zip(diagnosis.by_class, diagnosis.class_names, strict=True) if share.count
    ]
    (worst, worst_name), (best, best_name) = (choose(known, key=lambda pair: pair[0].value) for choose in (min, max))
    caption = (
        f"{total.value:.2%} of the {diagnosis.split} examples are right, {interval(total)}: from {worst.value:.2%} of "
        f"class {worst_name} to {best.value:.2%} of class {best_name}. A class has fewer examples than all, so its "
        "interval is wider."
    )
    return Picture("classes", "Class by class", caption + _of_classes(diagnosis), draw_by_class(diagnosis))


def _calibration(diagnosis: Diagnosis) -> Picture:
    calibration, value = diagnosis.calibration, diagnosis.accuracy.value
    gap = calibration.mean_confidence - value
    words = "surer than it is right" if gap > 0 else "less sure than it is right"
    caption = (
        f"In the mean the network is {calibration.mean_confidence:.2%} sure of its answers, and {value:.2%} of them "
        f"are right: it is {words}, by {100 * abs(gap):.2f} percentage points. The expected calibration error over "
        f"{len(calibration.count)} bins (Guo et al. 2017) is {calibration.expected_error:.2%}."
    )
    return Picture("calibration", "How sure, and how often right", caption, draw_calibration(diagnosis))


def _mistakes(diagnosis: Diagnosis, images: np.ndarray) -> Picture:
    chosen, names = shown_mistakes(diagnosis), diagnosis.class_names
    first = chosen[0]
    caption = (
        f"The {len(chosen)} mistakes of which the network was surest, of {len(diagnosis.mistakes):,}. "
        if len(chosen) < len(diagnosis.mistakes)
        else f"All {len(chosen)} mistakes. "
        if len(chosen) > 1
        else "The only mistake. "
    )
    caption += (
        f"The first, example {first} of the {diagnosis.split} split, is {names[diagnosis.labels[first]]} and was taken "
        f"for {names[diagnosis.predictions[first]]}, {sureness(float(diagnosis.confidences[first]))}."
    )
    return Picture("mistakes", "The surest mistakes", caption, draw_mistakes(diagnosis, images))


def _knowing(run: TrainedRun, split: str, knowing: Knowing) -> Picture:
    step_name = run.step_name
    steps = len(knowing.correct)
    half, end = knowing.accuracy[steps // 2 - 1] if steps > 1 else knowing.accuracy[0], knowing.accuracy[-1]
    soon = knowing.first_step(0.9 * end)
    caption = (
        f"The guesses of {knowing.examples:,} {split} examples, read {step_name} by {step_name}: when half of each is "
        f"read, {half:.1%} of them are right, and {end:.1%} in the end. Nine tenths of this is reached after "
        f"{step_name} {soon} of {steps}."
    )
    return Picture("knowing", "How soon it knows", caption, draw_knowing(knowing, step_name))


def telling_examples(diagnosis: Diagnosis) -> list[tuple[str, str, int]]:
    """(name, title, example): an answer as usual, the least sure of the right ones, the surest of the wrong ones."""
    right = np.flatnonzero(diagnosis.predictions == diagnosis.labels)
    by_confidence = right[np.argsort(diagnosis.confidences[right], kind="stable")]
    found = []
    if len(right):
        found.append(("reading-usual", "Reading along: an answer as usual", int(by_confidence[len(right) // 2])))
    if len(right) > 1:
        found.append(("reading-unsure", "Reading along: the least sure right answer", int(by_confidence[0])))
    if len(diagnosis.mistakes):
        found.append(("reading-mistake", "Reading along: the surest mistake", int(diagnosis.mistakes[0])))
    return found


def _reading(run: TrainedRun, diagnosis: Diagnosis, images: np.ndarray, name: str, title: str, example: int) -> Picture:
    image, label = images[example : example + 1], int(diagnosis.labels[example])
    along = run.read_along(image)[0]
    guesses = along.argmax(axis=-1)
    changes = [0, *(np.flatnonzero(np.diff(guesses)) + 1)]
    names, step_name = diagnosis.class_names, run.step_name
    final = int(guesses[-1])
    caption = (
        f"Example {example} of the {diagnosis.split} split is {names[label]}. Read {step_name} by {step_name}, the "
        f"network's guess changes {_count(len(changes) - 1, 'time')}, and is {names[final]} from {step_name} "
        f"{changes[-1] + 1} of {len(along)} on; in the end it is {sureness(float(along[-1, final]))}."
    )
    return Picture(name, title, caption, draw_reading_of(run, image[0], true_label=label))


def interval(share: Share) -> str:
    """A share's interval in words."""
    low, high = share.interval
    return f"with a 95 % confidence interval from {low:.2%} to {high:.2%}"


def _of_classes(diagnosis: Diagnosis) -> str:
    classes = len(diagnosis.class_names)
    return (
        "" if classes <= MAX_CLASSES else f" Drawn are the {MAX_CLASSES} of {classes} classes with the most mistakes."
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("s" if number != 1 else "")


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
