"""Statistics of a run's predictions, against their definitions."""

import dataclasses
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from runs import TINY
from scipy.stats import binomtest

from lstm_mnist_jax import load_run
from lstm_mnist_jax.errors import ConfigError, DataError, RunError
from lstm_mnist_jax.inference import load_data
from lstm_mnist_jax.report.diagnosis import BINS, Diagnosis, diagnose
from lstm_mnist_jax.statistics import Share
from lstm_mnist_jax.training.metrics import read_metrics


@pytest.fixture
def made_up(rng):
    """300 answers of 4 classes, some of them wrong; none of the examples is of the last class."""
    probabilities = rng.dirichlet(np.full(4, 0.3), 300).astype(np.float32)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    labels = np.where(rng.random(300) < 0.7, probabilities[:, :3].argmax(axis=1), rng.integers(0, 3, 300))
    return Diagnosis("test", ("a", "b", "c", "d"), labels.astype(np.int32), probabilities)


@pytest.fixture(scope="module")
def run(tiny_run):
    return load_run(tiny_run)


def test_wilson_interval_matches_scipy():
    for correct, count in [(0, 1), (1, 1), (0, 12), (12, 12), (7, 12), (9_858, 10_000), (9_999, 10_000)]:
        expected = binomtest(correct, count).proportion_ci(method="wilson")
        assert Share(correct, count).interval == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert Share(correct, count).value == correct / count
    assert Share(5, 5).interval[1] == 1
    assert Share(0, 5).interval[0] == 0
    assert math.isnan(Share(0, 0).value)
    assert all(map(math.isnan, Share(0, 0).interval))


def test_confusion_counts_every_example(made_up):
    expected = np.zeros((4, 4), int)
    for label, given in zip(made_up.labels, made_up.probabilities, strict=True):
        expected[label, max(range(4), key=lambda k: given[k])] += 1
    np.testing.assert_array_equal(made_up.confusion, expected)
    assert made_up.accuracy == Share(int(expected.trace()), 300)
    assert made_up.by_class[1] == Share(int(expected[1, 1]), int(expected[1].sum()))
    assert made_up.by_class[3] == Share(0, 0)
    pairs = {(i, j): expected[i, j] for i in range(4) for j in range(4) if i != j and expected[i, j]}
    assert {(i, j): count for i, j, count in made_up.confused} == pairs
    counts = [count for *_, count in made_up.confused]
    assert counts == sorted(counts, reverse=True)


def test_mistakes_are_sorted_by_confidence(made_up):
    wrong = [n for n in range(300) if made_up.probabilities[n].argmax() != made_up.labels[n]]
    assert sorted(made_up.mistakes.tolist()) == wrong
    sure = made_up.probabilities[made_up.mistakes].max(axis=1)
    assert (np.diff(sure) <= 0).all()


def test_calibration_matches_guo_et_al(made_up):
    confidence = made_up.probabilities.max(axis=1).astype(float)
    right = made_up.probabilities.argmax(axis=1) == made_up.labels
    error, counts = 0.0, []
    for number in range(BINS):
        inside = (confidence > number / BINS) & (confidence <= (number + 1) / BINS)
        counts.append(inside.sum())
        if inside.any():
            error += inside.sum() / 300 * abs(right[inside].mean() - confidence[inside].mean())
    assert made_up.calibration.count.tolist() == counts
    assert made_up.calibration.expected_error == pytest.approx(error)
    assert made_up.calibration.mean_confidence == pytest.approx(confidence.mean())
    assert [share.count for share in made_up.calibration.shares] == counts


def test_calibration_error_of_known_cases():
    probabilities = np.tile(np.array([[0.75, 0.25]], np.float32), (400, 1))
    labels = np.repeat([0, 1], [300, 100]).astype(np.int32)
    assert Diagnosis("test", ("a", "b"), labels, probabilities).calibration.expected_error == pytest.approx(0)
    assert Diagnosis("test", ("a", "b"), 1 - labels, probabilities).calibration.expected_error == pytest.approx(0.5)


def test_predictions_of_probability_1_have_a_bin_and_a_finite_loss():
    wrong = Diagnosis("test", ("a", "b"), np.array([1], np.int32), np.array([[1, 0]], np.float32))
    assert wrong.calibration.count.tolist() == [0] * (BINS - 1) + [1]
    assert wrong.loss == pytest.approx(-math.log(np.finfo(np.float32).tiny))


@pytest.mark.parametrize("split", ["test", "validation", "train"])
def test_diagnosis_matches_evaluation(run, split):
    diagnosis, evaluation = diagnose(run, load_data(run.folder), split), run.evaluate()[split]
    assert diagnosis.accuracy.value == evaluation.accuracy
    assert [share.correct for share in diagnosis.by_class] == evaluation.correct.tolist()
    assert diagnosis.loss == pytest.approx(evaluation.loss, rel=1e-4)
    assert (diagnosis.split, len(diagnosis.labels)) == (split, evaluation.count.sum())


def test_history_has_a_column_for_each_metric(run):
    history = run.history()
    lines = [dataclasses.asdict(metrics) for metrics in read_metrics(run.folder.metrics)]
    assert list(history) == [name for name in lines[0] if name != "member"]
    for name, values in history.items():
        assert values.tolist() == [line[name] for line in lines]
        assert values.dtype == (np.int64 if name in ("epoch", "step") else np.float64)


def test_history_of_a_run_of_a_sweep(tiny_sweep):
    history = load_run(tiny_sweep / "2").history()
    of_sweep = read_metrics(tiny_sweep / "metrics.jsonl")
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["train_loss"].tolist() == [metrics.train_loss for metrics in of_sweep if metrics.member == 2]


def test_history_of_a_run_without_an_epoch_is_empty(run, tmp_path):
    (tmp_path / "config.json").write_bytes((run.folder.path / "config.json").read_bytes())
    fresh = dataclasses.replace(run, folder=dataclasses.replace(run.folder, path=tmp_path))
    assert {len(values) for values in fresh.history().values()} == {0}
    assert fresh.history()["epoch"].dtype == np.int64


def test_errors_name_the_wrong_split_divergence_and_missing_data(run, monkeypatch):
    dataset = load_data(run.folder)
    with pytest.raises(ConfigError, match="split is 'tset', expected one of test, validation, train"):
        diagnose(run, dataset, "tset")
    params = {**run.params, "dense": {name: value * np.nan for name, value in run.params["dense"].items()}}
    with pytest.raises(RunError, match=r"predicts no numbers \(NaN\): its training diverged"):
        diagnose(dataclasses.replace(run, params=params), dataset)
    gone = dataclasses.replace(TINY, data=dataclasses.replace(TINY.data, source="/gone/mnist"))
    folder = dataclasses.replace(run.folder, config=gone)
    with pytest.raises(DataError, match="If it has moved, give its new place with --source"):
        load_data(folder)
    assert load_data(folder, source=TINY.data.source).fingerprint() == dataset.fingerprint()
    config = dataclasses.replace(TINY, data=dataclasses.replace(TINY.data, data_dir="/gone"))
    folder = dataclasses.replace(run.folder, config=config)
    assert load_data(folder).fingerprint() == dataset.fingerprint()
    with monkeypatch.context() as patch:
        tfds = SimpleNamespace(load_tfds=lambda name, data_dir: (name, data_dir) == ("mnist", "/gone") and dataset)
        patch.setitem(sys.modules, "lstm_mnist_jax.data.tfds", tfds)
        assert load_data(folder, source="tfds:mnist").fingerprint() == dataset.fingerprint()
    fewer = dataclasses.replace(TINY, data=dataclasses.replace(TINY.data, train_examples=600))
    with pytest.raises(RunError, match=r"The data are not those that .*give their place now with --source"):
        load_data(dataclasses.replace(run.folder, config=fewer))
