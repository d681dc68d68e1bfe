"""Stratified splits: proportions, seeds, sorted labels, classes with few examples."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lstm_mnist_jax.data import Dataset, Examples
from lstm_mnist_jax.data.splits import split, stratified, usual_validation_examples
from lstm_mnist_jax.errors import DataError

DEFAULTS = {
    "validation_examples": 10,
    "train_examples": None,
    "validation": "auto",
    "test_fraction": 0.1,
    "split_seed": 0,
    "classes": "declared",
}


def dataset(labels, test=(0, 1, 2), classes=3):
    """Image n of each split has the value n in all pixels."""

    def examples(labels):
        labels = np.array(labels, np.int32)
        return Examples(np.repeat(np.arange(len(labels)).astype(np.uint8), 4).reshape(-1, 2, 2), labels, classes)

    train = examples(labels)
    return Dataset(train, train[:0], examples(test), tuple("abcdefghij"[:classes]), "made up")


def numbers(examples):
    return examples.images[:, 0, 0].tolist()


MIXED, SORTED = np.arange(60) % 3, np.arange(60) // 20


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8), count=st.integers(0, 200), seed=st.integers(0, 99))
@example(sizes=[2, 2, 2, 2, 6], count=5, seed=0)
def test_stratified_takes_each_class_in_proportion(sizes, count, seed):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    chosen = stratified(labels, count, seed)
    sizes, taken = np.array(sizes), np.bincount(labels[chosen], minlength=len(sizes))
    most = np.maximum(sizes - 1, 0)
    assert chosen.sum() == min(count, most.sum())
    assert (taken <= most).all()
    if count >= (most > 0).sum():
        assert (taken[most > 0] > 0).all()
    ideal = count * sizes / max(1, len(labels))
    if (ideal <= most).all() and (ideal[sizes > 0] >= 1).all():
        assert (np.abs(taken - ideal) < 1).all()
    np.testing.assert_array_equal(chosen, stratified(labels, count, seed))


def test_mixed_labels_are_split_from_the_front():
    found = split(dataset(MIXED), **DEFAULTS)
    assert numbers(found.validation) == list(range(10))
    assert numbers(found.train) == list(range(10, 60))
    assert found.notes == ()


def test_sorted_labels_are_split_by_class():
    found = split(dataset(SORTED), **DEFAULTS)
    assert np.bincount(found.validation.labels).tolist() == [4, 3, 3]
    assert sorted(numbers(found.validation) + numbers(found.train)) == list(range(60))
    assert "stratified, seed 0 (the first 10 lack 2 of the classes)" in found.describe()
    other = split(dataset(SORTED), **DEFAULTS | {"split_seed": 1})
    assert numbers(found.validation) != numbers(other.validation)
    fewer = split(dataset(SORTED), **DEFAULTS | {"train_examples": 12})
    assert np.bincount(fewer.train.labels).tolist() == [4, 4, 4]
    assert "train_examples: stratified, seed 0" in fewer.describe()


@pytest.mark.parametrize(
    ("size", "train_examples", "expected"),
    [(60_000, None, 5_000), (240_000, None, 5_000), (60_000, 6_000, 500), (60_000, 100, 500), (60_000, 70_000, 5_000),
     (12_000, None, 1_000), (4_990, None, 499), (503, 6_000, 50), (2, None, 1)],
)  # fmt: skip
def test_the_number_of_validation_examples_where_none_is_asked_for(size, train_examples, expected):
    assert usual_validation_examples(size, train_examples) == expected


@pytest.mark.parametrize("count", [500, 5_000])
def test_too_many_validation_examples_are_refused_but_a_tenth_in_runs_of_older_versions(count):
    with pytest.raises(DataError, match=f"validation_examples is {count:,}, expected 1 to 59"):
        split(dataset(MIXED), **DEFAULTS | {"validation_examples": count})
    usual = split(dataset(MIXED), **DEFAULTS | {"validation_examples": None})
    of_run = split(dataset(MIXED), **DEFAULTS | {"validation_examples": count}, of_run=True)
    assert numbers(usual.validation) == numbers(of_run.validation) == list(range(6))


def test_options_of_splits_that_are_there_are_reported():
    there = split(dataset(MIXED, test=()), **DEFAULTS)
    found = split(there, **DEFAULTS | {"test_fraction": 0.2})
    for name in ("test_fraction", "validation_examples"):
        assert f"{name} has no effect: there is a {name.split('_')[0]} split" in found.notes
    assert split(there, **DEFAULTS | {"test_fraction": 0.2}, of_run=True).notes == there.notes


def test_the_way_can_be_chosen():
    asked = split(dataset(MIXED), **DEFAULTS | {"validation": "stratified"})
    assert np.bincount(asked.validation.labels).tolist() == [4, 3, 3]
    assert numbers(asked.validation) != list(range(10))
    assert "as it was asked for" in asked.describe()
    front = split(dataset(SORTED), **DEFAULTS | {"validation": "front"})
    assert numbers(front.validation) == list(range(10))
    with pytest.raises(DataError, match="none is of class a"):
        split(dataset(SORTED), **DEFAULTS | {"validation": "front", "validation_examples": 20})


def test_a_front_that_can_have_no_more_classes_stays():
    """Of two examples, no split has three classes."""
    found = split(dataset(MIXED), **DEFAULTS | {"validation_examples": 2})
    assert numbers(found.validation) == [0, 1]


def test_classes_with_one_example_are_trained_on_and_named():
    labels = [2, *MIXED[MIXED < 2]]  # the only one of class c is the first
    found = split(dataset(labels), **DEFAULTS)
    assert 0 in numbers(found.train)
    assert "classes with one example, which none is left of for validation: c" in found.describe()
    cut = split(dataset(labels, test=()), **DEFAULTS)
    assert 0 in numbers(cut.train)
    assert (len(cut.test), len(cut.validation), len(cut.train)) == (4, 10, 27)


def test_absent_classes_are_left_out_if_asked_for():
    labels = np.where(MIXED == 0, 1, 3)
    with pytest.raises(DataError, match=r"none is of class a, c.*--classes present"):
        split(dataset(labels, classes=4), **DEFAULTS)
    found = split(dataset(labels, (0, 1, 3), classes=4), **DEFAULTS | {"classes": "present"})
    assert (found.class_names, found.train.num_classes) == (("b", "d"), 2)
    assert numbers(found.test) == [1, 2]
    assert found.test.labels.tolist() == [0, 1]
    assert set(found.train.labels.tolist()) == {0, 1}
    with pytest.raises(DataError, match="no test example is of a class that has training examples"):
        split(dataset(labels, (0, 0), classes=4), **DEFAULTS | {"classes": "present"})


@pytest.mark.parametrize(
    ("labels", "changed", "message"),
    [
        ([0], {"validation_examples": 1}, "Add examples: a split takes two at least"),
        ([0, 1, 2], {"test": ()}, "no test split, and none can be cut.*at least one class needs two"),
        ([0, 1, 2], {"validation": "stratified", "validation_examples": 1}, "has one example of each class"),
        (
            MIXED,
            {"validation_examples": 60},
            "A tenth is usual: --validation-examples 6, with --batch-size 54",
        ),
    ],
)
def test_sets_too_small_to_split(labels, changed, message):
    test = changed.get("test", (0,))
    options = {name: value for name, value in changed.items() if name != "test"}
    with pytest.raises(DataError, match=message):
        split(dataset(labels, test), **DEFAULTS | options)
