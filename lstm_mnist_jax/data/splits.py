"""Classes and splits: which classes a data set keeps, and how test and validation splits are cut from training
examples."""

import difflib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lstm_mnist_jax.config.options import DataConfig
from lstm_mnist_jax.data.dataset import Dataset, Examples, assembled
from lstm_mnist_jax.errors import DataError


def split(
    dataset: Dataset,
    *,
    validation_examples: int | None,
    train_examples: int | None,
    validation: str,
    test_fraction: float,
    split_seed: int,
    classes: str,
    of_run: bool = False,
) -> Dataset:
    """A data set with all three splits. The arguments are those of `load`.

    Those of a run are taken as older versions took them: too many validation examples were a tenth of them.

    Raises:
      DataError: a class has no training example, or there are too few examples.
    """
    whole = dataset
    asked = {"test_fraction": test_fraction != DataConfig.test_fraction, "validation_examples": validation_examples}
    for name, part in zip(asked, (dataset.test, dataset.validation), strict=True):
        if asked[name] and len(part) and not of_run:
            note = f"{name} has no effect: there is a {name.partition('_')[0]} split"
            dataset = replace(dataset, notes=(*dataset.notes, note))
    if classes == "present":
        dataset = _only_present(dataset)
    if len(dataset.class_names) < 2:
        only = ", ".join(dataset.class_names)
        raise DataError(f"{dataset.origin} has examples of one class only, {only!r}. Expected two or more.")
    if len(dataset.test) == 0:
        dataset = _with_test(dataset, test_fraction, split_seed)
    if len(dataset.validation) == 0:
        most = len(dataset.train)
        if validation_examples is None or (of_run and validation_examples >= most > 1):
            validation_examples = usual_validation_examples(most, train_examples)
        dataset = _with_validation(dataset, validation_examples, validation, split_seed)
    if train_examples is not None:
        dataset = _with_fewer(dataset, train_examples, validation, split_seed)
    counts = np.bincount(dataset.train.labels, minlength=dataset.train.num_classes)
    if missing := [name for name, count in zip(dataset.class_names, counts, strict=False) if not count]:
        raise DataError(
            f"Of the {len(dataset.train):,} training examples of {dataset.origin}, none is of class "
            f"{_listed(missing)}. {_why_missing(whole)}Train on more of them, fix the labels, or leave out the classes "
            "that have no training example at all with --classes present."
        )
    return dataset


def usual_validation_examples(count: int, train_examples: int | None) -> int:
    """How many of so many training examples become the validation split where no number was asked for."""
    used = min(count, train_examples or count)
    return max(1, min(5000, max(500, used // 12), count // 10))


def _why_missing(dataset: Dataset) -> str:
    """A sentence on a label that is far above the others, or on classes that only one split has; "" without these."""
    names = dataset.class_names
    counts = {split: np.bincount(part.labels, minlength=len(names)) for split, part in dataset.splits.items()}
    present = np.flatnonzero(sum(counts.values()))
    if names == tuple(map(str, range(len(names)))) and len(present) > 1:  # of labels without names
        most, below = int(present[-1]), int(present[-2])
        if most == below + 1:
            return ""
        where = next(name for name, count in counts.items() if count[most])
        first = int(np.flatnonzero(dataset.splits[where].labels == most)[0])
        number = sum(int(count[most]) for count in counts.values())
        examples = f"example{'s' * (number > 1)}"
        return (
            f"The largest label is {most}, of {number:,} {examples} (first: example {first} of the {where} split); "
            f"the next smaller one is {below}. "
        )
    for split_name in ("test", "validation"):
        only = [names[label] for label in np.flatnonzero((counts[split_name] > 0) & (counts["train"] == 0))]
        if only:
            trained = [names[label] for label in np.flatnonzero(counts["train"])]
            lacking = [names[label] for label in np.flatnonzero((counts["train"] > 0) & (counts[split_name] == 0))]
            by_case = {name.casefold(): name for name in trained}
            nearest = difflib.get_close_matches(only[0].casefold(), by_case, 1)
            other = f"; the nearest class of train is {by_case[nearest[0]]!r}" if nearest else ""
            if lacking and not nearest:
                other = f"; only in train: {_listed(list(map(repr, lacking)))}"
            what = "Classes {} are" if len(only) > 1 else "Class {} is"
            return f"{what.format(_listed(list(map(repr, only))))} only in the {split_name} split{other}. "
    return ""


def stratified(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Chooses examples of each class in proportion, at random.

    Of each class at least one example is left, and where `count` allows at least one is chosen.

    Args:
      labels: integers [n], 0 or more.
      count: the number of examples to choose.
      seed: of NumPy's RandomState, whose results NumPy promises never to change (NEP 19).

    Returns:
      bool [n], True for the chosen. Fewer than `count` are, where all classes but one example each are less.
    """
    sizes = np.bincount(labels)
    ideal = count * sizes / max(1, len(labels))
    most = np.maximum(sizes - 1, 0)
    chosen = np.minimum(np.maximum(np.floor(ideal).astype(int), 1), most)
    while (excess := chosen.sum() - count) > 0:  # first of classes with more than their share, then of small ones
        several = np.flatnonzero(chosen > 1)
        if several.size:
            chosen[several[np.argmax((chosen - ideal)[several])]] -= 1
        else:
            chosen[sorted(np.flatnonzero(chosen), key=lambda c: sizes[c])[:excess]] -= 1
    while (missing := count - chosen.sum()) > 0 and (room := np.flatnonzero(chosen < most)).size:
        chosen[sorted(room, key=lambda c: chosen[c] - ideal[c])[:missing]] += 1
    random, is_chosen = np.random.RandomState(seed), np.zeros(len(labels), bool)
    for label in np.flatnonzero(sizes):
        is_chosen[random.permutation(np.flatnonzero(labels == label))[: chosen[label]]] = True
    return is_chosen


def _only_present(dataset: Dataset) -> Dataset:
    """Without the classes that have no training example, and without their examples in the other splits."""
    present = np.unique(dataset.train.labels)
    absent = [name for label, name in enumerate(dataset.class_names) if label not in present]
    if not absent:
        return dataset
    numbers = np.full(len(dataset.class_names), -1, np.int32)
    numbers[present] = np.arange(len(present))
    parts = {}
    for name, examples in dataset.splits.items():
        labels, images = numbers[examples.labels], examples.images
        if (labels < 0).any():
            images, labels = images[labels >= 0], labels[labels >= 0]
        parts[name] = images, labels
    if len(dataset.test) and not len(parts["test"][1]):
        raise DataError(f"{dataset.origin}: no test example is of a class that has training examples.")
    names = tuple(dataset.class_names[label] for label in present)
    what = f"{len(absent)} of {len(dataset.class_names)} classes left out, which have no training example"
    notes = (*dataset.notes, f"{what}: {_listed(absent)}")
    return assembled(parts, names, dataset.origin, notes, dataset.form)


def _with_test(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    wanted = max(round(fraction * len(dataset.train)), 1)
    is_test = stratified(dataset.train.labels, wanted, seed)
    if not is_test.any():
        raise DataError(
            f"{dataset.origin} has no test split, and none can be cut from its {len(dataset.train):,} training "
            "examples: at least one class needs two. Add examples."
        )
    return replace(
        dataset,
        train=_selected(dataset.train, ~is_test),
        test=_selected(dataset.train, is_test),
        notes=(*dataset.notes, f"test split: {fraction:.3g} of each class, seed {seed}", *_alone(dataset, "test")),
        cut_splits=("test",),
    )


def _with_validation(dataset: Dataset, count: int, how: str, seed: int) -> Dataset:
    train, dataset = dataset.train, replace(dataset, validation_examples=count)
    if not 0 < count < len(train):
        tenth = max(1, len(train) // 10)
        advice = f"A tenth is usual: --validation-examples {tenth}, with --batch-size {len(train) - tenth} or less."
        raise DataError(
            f"validation_examples is {count:,}, expected 1 to {len(train) - 1:,}: {dataset.origin} has {len(train):,} "
            f"training examples. {advice if len(train) > 1 else 'Add examples: a split takes two at least.'}"
        )
    front = np.arange(len(train)) < count
    chosen, cut = _chosen(train.labels, front, how, seed), (*dataset.cut_splits, "validation")
    if chosen is front:
        return replace(dataset, validation=train[:count], train=train[count:], cut_splits=cut)
    if not chosen.any():
        raise DataError(
            f"{dataset.origin} has one example of each class: none is left for validation. Add examples, or use "
            "--validation front and --classes present, which give the first ones to validation."
        )
    lacking = len(np.unique(train.labels)) - len(np.unique(train.labels[:count]))
    why = f"the first {count:,} lack {lacking} of the classes" if lacking else "as it was asked for"
    if how == "auto" and not lacking:
        why = f"after the first {count:,}, the others lack classes"
    note = f"validation split: stratified, seed {seed} ({why})"
    return replace(
        dataset,
        train=_selected(train, ~chosen),
        validation=_selected(train, chosen),
        notes=(*dataset.notes, note, *_alone(dataset, "validation")),
        cut_splits=cut,
    )


def _with_fewer(dataset: Dataset, count: int, how: str, seed: int) -> Dataset:
    train = dataset.train
    if count < 1:
        raise DataError(f"train_examples is {count:,}, expected 1 or more. --train-examples None takes all.")
    if count >= len(train):
        note = f"train_examples is {count:,}: all that are left are used"
        return dataset if count == len(train) else replace(dataset, notes=(*dataset.notes, note))
    front = np.arange(len(train)) < count
    present = len(np.unique(train.labels))
    if how == "front" or len(np.unique(train.labels[:count])) == present:
        return replace(dataset, train=train[:count])
    chosen = stratified(train.labels, count, seed)
    if len(np.unique(train.labels[chosen])) <= len(np.unique(train.labels[front])) or chosen.sum() < count:
        return replace(dataset, train=train[:count])
    note = f"train_examples: stratified, seed {seed} (the first {count:,} lack classes)"
    return replace(dataset, train=_selected(train, chosen), notes=(*dataset.notes, note))


def _chosen(labels: np.ndarray, front: np.ndarray, how: str, seed: int) -> np.ndarray:
    """The validation examples: `front`, where that was asked for or has as many classes as a stratified choice."""
    classes = len(np.unique(labels))
    if how == "front":
        return front
    if how == "auto" and all(len(np.unique(labels[part])) == classes for part in (front, ~front)):
        return front
    chosen = stratified(labels, int(front.sum()), seed)
    if how == "stratified":
        return chosen
    found, better = ([len(np.unique(labels[part])) for part in (part, ~part)] for part in (front, chosen))
    return chosen if chosen.any() and (better[1], better[0]) > (found[1], found[0]) else front


def _alone(dataset: Dataset, part: str) -> tuple[str, ...]:
    """A note on the classes of which one example cannot be in two splits."""
    counts = np.bincount(dataset.train.labels, minlength=len(dataset.class_names))
    alone = [name for name, count in zip(dataset.class_names, counts, strict=False) if count == 1]
    return (f"classes with one example, which none is left of for {part}: {_listed(alone)}",) if alone else ()


def _selected(examples: Examples, which: np.ndarray) -> Examples:
    return Examples(examples.images[which], examples.labels[which], examples.num_classes)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + " ..." * (len(names) > 10)
