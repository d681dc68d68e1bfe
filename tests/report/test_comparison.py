"""Comparison of runs and sweeps: entries, intervals, order, figures and pages."""

import base64
import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from runs import DIVERGING, FIRST_OF_MNIST, TINY
from scipy.stats import binomtest, t

from lstm_mnist_jax import load_run, space_of, sweep, train
from lstm_mnist_jax.cli.report import report
from lstm_mnist_jax.config import Config, OptimizerConfig
from lstm_mnist_jax.config.json import from_dict
from lstm_mnist_jax.data import load
from lstm_mnist_jax.errors import RunError, UserError
from lstm_mnist_jax.report.comparison import CURVES, comparison_pictures, draw_accuracies, draw_curves, read_entries
from lstm_mnist_jax.report.page import build
from lstm_mnist_jax.training.metrics import read_metrics


@pytest.fixture(scope="module")
def folders(tiny_run, diverging_sweep, tmp_path_factory):
    root = tmp_path_factory.mktemp("compared")
    shutil.copytree(tiny_run, root / "one")
    train(dataclasses.replace(TINY, epochs=1, seed=7), root / "two")
    shutil.copytree(diverging_sweep, root / "sweep")
    return root


@pytest.fixture
def figures_are_ids(monkeypatch):
    """Pages have no more of a figure than its id: to convert all of them takes seconds."""
    monkeypatch.setattr(build, "themed_svg", lambda figure, prefix, label="": f'<svg id="{prefix}"/>')


@pytest.mark.slow
def test_single_runs_have_wilson_intervals_and_three_seeds_students_t(folders, tiny_sweep):
    entries, notes = read_entries([folders / "one", folders / "two", folders / "sweep"])
    assert notes == []
    by_label = {entry.label: entry for entry in entries}
    assert set(by_label) == {"one", "two", "sweep: learning_rate 0.01", "sweep: learning_rate 3e+38"}
    best = max(read_metrics(folders / "one" / "metrics.jsonl"), key=lambda epoch: epoch.validation_accuracy)
    for split, examples in (("validation", 200), ("test", 1_100)):
        result, accuracy = by_label["one"].result(split), getattr(best, f"{split}_accuracy")
        expected = binomtest(round(accuracy * examples), examples).proportion_ci(method="wilson")
        assert result.value == pytest.approx(accuracy)
        assert (result.low, result.high) == pytest.approx((expected.low, expected.high))
        assert result.kind == "binomial"
    assert (str(by_label["sweep: learning_rate 0.01"].result("test"))[5:]) == "%"  # of two seeds
    ((seeds,), _) = read_entries([tiny_sweep])
    of_setting = [read_metrics(tiny_sweep / "metrics.jsonl", member) for member in (0, 1, 2)]
    bests = [max(epochs, key=lambda metrics: metrics.validation_accuracy) for epochs in of_setting]
    accuracies = np.array([metrics.test_accuracy for metrics in bests])
    half_width = t.ppf(0.975, 2) * accuracies.std(ddof=1) / np.sqrt(3)
    result = seeds.result("test")
    assert (result.value, result.kind) == (pytest.approx(accuracies.mean()), "Student's t")
    assert result.high - result.value == pytest.approx(half_width)
    assert result.value - result.low == pytest.approx(half_width)
    np.testing.assert_allclose(
        seeds.curves["validation"], [[metrics.validation_accuracy for metrics in epochs] for epochs in of_setting]
    )


def test_the_best_on_validation_comes_first_and_the_diverged_last(folders):
    entries, _ = read_entries([folders / "two", folders / "sweep", folders / "one"])
    values = [entry.result("validation").value for entry in entries[:-1]]
    assert values == sorted(values, reverse=True)
    last = entries[-1]
    assert (last.label, last.diverged, last.best_epochs) == ("sweep: learning_rate 3e+38", 2, ())
    assert str(last.result("test")) == "-"


def test_figures_show_every_accuracy(folders):
    entries, _ = read_entries([folders / "one", folders / "two", folders / "sweep"])
    known = [entry for entry in entries if entry.best_epochs]
    figure = draw_accuracies(known)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [entry.label for entry in known]
    drawn = np.concatenate([line.get_xdata() for line in axes.lines]).astype(float)
    low, high = axes.get_xlim()
    for entry in known:
        for split in ("validation", "test"):
            for accuracy in (entry.result(split).value, *entry.accuracies[split]):
                assert np.isclose(drawn, 100 * accuracy).any()
                assert low <= 100 * accuracy <= high
    curves = draw_curves(known).axes[0]
    assert len(curves.lines) == len(known) <= CURVES
    np.testing.assert_allclose(curves.lines[0].get_ydata(), [100 * (1 - e.value) for e in known[0].along("validation")])
    colours = [to_rgba(line.get_color(), alpha=0) for line in curves.lines]
    assert len(set(colours)) == len(known)
    bands = [(*band.get_facecolor()[0][:3], 0) for band in curves.collections]  # of the confidence intervals
    np.testing.assert_allclose(bands, colours)
    pictures = comparison_pictures(entries)
    assert [picture.name for picture in pictures] == ["comparison", "comparison-curves"]
    for entry in known:
        assert f"{entry.label}: validation {entry.result('validation')}" in pictures[0].caption
    assert comparison_pictures([entry for entry in entries if not entry.best_epochs]) == []


def test_a_run_without_a_finished_epoch_is_listed_last(folders, tmp_path):
    shutil.copytree(folders / "one", tmp_path / "new")
    (tmp_path / "new" / "metrics.jsonl").unlink()
    entries, _ = read_entries([tmp_path / "new", folders / "one"])
    assert [entry.label for entry in entries] == ["one", "new"]
    assert str(entries[1].result("test")) == "-"
    assert len(comparison_pictures(entries)) == 2


def test_without_the_data_single_runs_have_no_interval(folders, tmp_path):
    shutil.copytree(folders / "one", tmp_path / "moved")
    file = tmp_path / "moved" / "config.json"
    file.write_text(file.read_text().replace(str(FIRST_OF_MNIST), "/gone/mnist"))
    entries, notes = read_entries([tmp_path / "moved", folders / "two"])
    (moved,) = [entry for entry in entries if entry.label == "moved"]
    assert moved.result("test").kind == ""
    assert len(notes) == 1
    assert "give its new place with --source" in notes[0]
    assert read_entries([tmp_path / "moved", folders / "two"], source=str(FIRST_OF_MNIST))[1] == []
    assert len(comparison_pictures(entries)) == 2


def test_labels_distinguish_folders_of_one_name(folders, tmp_path):
    shutil.copytree(folders / "one", tmp_path / "one")
    entries, _ = read_entries([folders / "one", tmp_path / "one"])
    assert {entry.label for entry in entries} == {f"{folders.name}/one", f"{tmp_path.name}/one"}
    with pytest.raises(UserError, match="is named twice"):
        read_entries([folders / "one", folders / "one"])
    with pytest.raises(RunError, match="is not a run folder"):
        read_entries([folders / "one", tmp_path])


def test_report_of_several_runs_compares_them(folders, tmp_path, capsys):
    words = [str(folders / name) for name in ("one", "two", "sweep")]
    assert report(words) == 0
    printed = capsys.readouterr().out
    assert "For figures of the comparison, name a folder with --into" in printed
    assert "sweep: learning_rate 0.01" in printed
    assert "binomial (Wilson)" in printed
    assert "none of two seeds: a confidence interval needs three seeds" in printed
    assert report([*words, "--into", str(tmp_path / "pictures"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {file.name for file in (tmp_path / "pictures").iterdir()} == {
        f"comparison{which}.{kind}" for which in ("", "-curves") for kind in ("png", "svg")
    }
    assert [entry["diverged"] for entry in found["compared"]] == [0, 0, 0, 2]
    assert found["compared"][-1]["test"] == {"accuracy": None, "interval_95": None, "kind": None, "each": []}


@pytest.mark.slow
def test_report_of_a_sweep_that_diverged(tmp_path, capsys):
    diverging = dataclasses.replace(TINY, epochs=1, optimizer=OptimizerConfig(learning_rate=DIVERGING))
    sweep(diverging, space_of({}, seeds=3), tmp_path / "diverged")
    assert report([str(tmp_path / "diverged")]) == 0
    printed = capsys.readouterr().out
    assert "3 diverged" in printed
    assert "There is nothing to draw" in printed
    assert not (tmp_path / "diverged" / "plots").exists()


def test_notes_name_the_splits_that_differ(tiny_run, tmp_path):
    def copy(name, config, known=True):
        shutil.copytree(tiny_run, tmp_path / name)
        file = tmp_path / name / "config.json"
        contents = json.loads(file.read_text())
        contents["config"]["data"] |= config
        data = from_dict(Config, contents["config"]).data
        contents["data"]["fingerprint"] = load(**vars(data)).fingerprint() if known else "unknown"
        file.write_text(json.dumps(contents))
        return tmp_path / name

    fewer = copy("fewer", {"train_examples": 900})
    validation = copy("validation", {"validation_examples": 300})
    missing = copy("missing", {"source": "nowhere"}, known=False)
    assert read_entries([tiny_run, fewer])[1] == [
        "The runs were trained on different images; their validation and test images are the same."
    ]
    assert read_entries([tiny_run, validation])[1] == [
        "The runs have different validation images: accuracies on these are not comparable."
    ]
    assert read_entries([tiny_run, missing])[1][-1] == (
        "The runs used different data, or different parts of it: compare their accuracies with care."
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["one", "two", "--checkpoint", "last"], "leave out --checkpoint"),
        (["one", "two", "--split", "test"], "or name one run"),
        (["sweep", "--checkpoint", "last"], "leave out --checkpoint"),
        (["sweep", "sweep/4"], "has no run 4, expected 0 to 3"),
    ],
)
def test_wrong_arguments_of_a_comparison(folders, words, message):
    names = [str(folders / word) if word.startswith(("one", "two", "sweep")) else word for word in words]
    with pytest.raises(UserError, match=message):
        report(names)


def test_a_run_of_a_sweep_is_compared_as_a_run(folders):
    entries, _ = read_entries([folders / "sweep" / "1", folders / "sweep" / "2", folders / "two"])
    by_label = {entry.label: entry for entry in entries}
    assert set(by_label) == {"1", "2", "two"}
    best = max(read_metrics(folders / "sweep" / "metrics.jsonl", 1), key=lambda epoch: epoch.validation_accuracy)
    assert by_label["1"].best_epochs == (best.epoch,)
    assert by_label["1"].accuracies["test"] == (best.test_accuracy,)
    assert by_label["1"].result("test").kind == "binomial"
    assert (by_label["2"].diverged, by_label["2"].best_epochs) == (1, ())
    assert {entry.folder for entry in entries} == {folders / "sweep" / "1", folders / "sweep" / "2", folders / "two"}
    assert not (folders / "sweep" / "1").exists()


@pytest.mark.slow
def test_a_page_of_a_comparison_has_the_network_of_the_best_run(folders, tmp_path, capsys, figures_are_ids):
    page = tmp_path / "page.html"
    assert report([*(str(folders / name) for name in ("two", "sweep", "one")), "--html", str(page)]) == 0
    entries, _ = read_entries([folders / "two", folders / "one"])
    assert f"the network of {entries[0].label}" in capsys.readouterr().out
    text = page.read_text("utf-8")
    assert "picture-comparison-curves" in text
    assert "picture-confusion" in text
    assert not (folders / entries[0].label / "plots").exists()  # no pictures were asked for


@pytest.mark.slow
def test_report_and_page_of_a_sweep_compare_its_settings_and_have_the_network_of_its_best_run(
    folders, tmp_path, capsys, figures_are_ids
):
    page = tmp_path / "page.html"
    assert report([str(folders / "sweep"), "--html", str(page)]) == 0
    printed = capsys.readouterr().out
    assert re.search("^. learning_rate 0.01 ", printed, re.MULTILINE)
    assert "The page has the comparison, and the network of learning_rate 0.01" in printed
    assert (folders / "sweep" / "plots" / "comparison.svg").exists()
    shutil.rmtree(folders / "sweep" / "plots")
    results = {member: read_metrics(folders / "sweep" / "metrics.jsonl", member) for member in (0, 1)}
    best = max(results, key=lambda member: max(epoch.validation_accuracy for epoch in results[member]))
    run = load_run(folders / "sweep" / "best")
    assert (run.folder.member, run.folder.config.seed) == (best, best)
    weights = re.search('id="weights">(.*?)<', page.read_text("utf-8"))
    assert weights is not None
    found = np.frombuffer(base64.b64decode(weights[1]), "<f4")
    expected = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(run.params)])
    np.testing.assert_array_equal(found, expected)
    assert "picture-comparison" in page.read_text("utf-8")
    assert not (folders / "sweep" / str(best)).exists()  # no pictures in the folder of the run were asked for
