"""`lstm-mnist report` of a run: text, JSON, figures, and errors."""

import dataclasses
import io
import json
import re
import runpy
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from parameters import drawn
from rich.console import Console
from runs import FIRST_OF_MNIST, TINY

from lstm_mnist_jax import load_run, train
from lstm_mnist_jax.cli.report import report
from lstm_mnist_jax.config import PRESETS, Config, ModelConfig
from lstm_mnist_jax.data import Dataset, Examples
from lstm_mnist_jax.errors import ConfigError, DataError, RunError, UserError
from lstm_mnist_jax.inference import TrainedRun, load_data
from lstm_mnist_jax.report import figures
from lstm_mnist_jax.report.diagnosis import Diagnosis, diagnose, step_accuracy
from lstm_mnist_jax.report.figures import run_pictures
from lstm_mnist_jax.report.page.build import themed_svg, write_page
from lstm_mnist_jax.report.style import file_bytes, styled
from lstm_mnist_jax.report.terminal import BLANK, curve
from lstm_mnist_jax.report.text import print_run
from lstm_mnist_jax.training.run_folder import DataFacts, RunFolder, read_run

ROOT = Path(__file__).parents[2]
NAMES = ["curves", "confusion", "classes", "calibration", "mistakes", "accuracy-by-step"]
NAMES += ["reading-usual", "reading-unsure", "reading-mistake"]


@pytest.fixture
def run_dir(tiny_run, tmp_path):
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def load(run_dir):
    return load_data(load_run(run_dir).folder)


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def untrained(tmp_path, shape, class_names, rng, **config):
    """A run with drawn parameters, and 60 images of noise for it."""
    network = ModelConfig(hidden_features=(4,), **config)
    params = drawn(network, shape, len(class_names))
    splits = [
        Examples(
            rng.integers(0, 256, (60, *shape)).astype(np.uint8),
            rng.integers(0, len(class_names), 60).astype(np.int32),
            len(class_names),
        )
        for _ in range(3)
    ]
    dataset = Dataset(*splits, class_names, "noise")
    folder = RunFolder(tmp_path, Config(model=network), DataFacts.of(dataset), {})
    return TrainedRun(folder, 0, params, None), dataset


NO_EPOCHS = {"epoch": np.zeros(0, int), "step": np.zeros(0, int)}


def test_figures_text_and_captions_of_a_run(run_dir, capsys, monkeypatch):
    before, drawn_pictures = contents(run_dir), []

    def noted(*arguments):
        drawn_pictures.extend(run_pictures(*arguments))
        return drawn_pictures

    monkeypatch.setattr(figures, "run_pictures", noted)
    assert report([str(run_dir)]) == 0
    printed = capsys.readouterr().out
    files = contents(run_dir)
    assert {path: files[path] for path in before} == before  # nothing but plots/ is new
    new = {path.relative_to(run_dir).as_posix() for path in files.keys() - before.keys()}
    assert new == {f"plots/{name}.{kind}" for name in NAMES for kind in ("png", "svg")}
    run, dataset = load_run(run_dir), load(run_dir)
    diagnosis = diagnose(run, dataset)
    assert f"{diagnosis.accuracy.value:.2%} of 1,100 test examples" in printed
    assert "95 % confidence interval" in printed
    assert any(BLANK < character < chr(0x2900) for character in printed)  # a curve
    is_, said, count = diagnosis.confused[0]
    assert f"  {is_} predicted as {said}: {count:,} of " in printed
    assert f"9 figures, each as PNG and SVG, in {run_dir / 'plots'}" in printed
    pictures = {picture.name: picture for picture in drawn_pictures}
    assert list(pictures) == NAMES
    captions_and_figures_have_the_same_numbers(pictures, run.history(), diagnosis, dataset)


def captions_and_figures_have_the_same_numbers(pictures, columns, diagnosis, dataset):
    assert f"{columns['test_accuracy'][-1]:.2%}" in pictures["curves"].caption
    assert f"are misclassified, most often {diagnosis.confused[0][0]} as" in pictures["confusion"].caption
    low, high = diagnosis.accuracy.interval
    assert f"a 95 % confidence interval from {low:.2%} to {high:.2%}" in pictures["classes"].caption
    assert f"{diagnosis.calibration.expected_error:.2%}" in pictures["calibration"].caption
    counts = {text.get_text() for text in pictures["confusion"].figure.axes[0].texts}
    assert counts == {str(count) for count in diagnosis.confusion.flat if count}
    loss, accuracy, *_ = pictures["curves"].figure.axes
    np.testing.assert_array_equal(loss.lines[1].get_ydata(), columns["validation_loss"])
    np.testing.assert_allclose(accuracy.lines[2].get_ydata(), 100 * (1 - columns["test_accuracy"]))
    assert len(pictures["mistakes"].figure.axes) == 24
    first = pictures["mistakes"].figure.axes[0]
    np.testing.assert_array_equal(first.images[0].get_array(), dataset.test.images[diagnosis.mistakes[0]])
    assert f"predicted {diagnosis.predictions[diagnosis.mistakes[0]]}\n" in first.get_title()


@pytest.mark.slow
def test_report_of_a_run_of_a_sweep_which_can_be_resumed_after_it(tiny_sweep, tmp_path, capsys, empty_figures):
    sweep = Path(shutil.copytree(tiny_sweep, tmp_path / "sweep"))
    before, best = contents(sweep), load_run(sweep / "best").folder.member
    assert report([str(sweep / "best")]) == 0
    printed, files = capsys.readouterr().out, contents(sweep)
    assert {path: files[path] for path in before} == before
    new = {path.relative_to(sweep).as_posix() for path in files.keys() - before.keys()}
    assert new == {f"{best}/plots/{name}.{kind}" for name in NAMES for kind in ("png", "svg")}
    run = load_run(sweep / str(best))
    assert f"{diagnose(run, load(sweep / str(best))).accuracy.value:.2%} of 1,100 test examples" in printed
    assert f"in {sweep / str(best) / 'plots'}" in printed
    # With the figures in its folder, it is still a run of the sweep, and can be resumed alone.
    train(dataclasses.replace(run.folder.config, epochs=4), sweep / "best", resume=True)
    assert load_run(sweep / str(best)).folder.member is None
    assert load_run(sweep / "best").folder.path == sweep / str(best)
    assert not (sweep / "best").exists()
    assert {path: contents(sweep)[path] for path in before} == before


@pytest.mark.slow
def test_json_has_every_number(run_dir, tmp_path, capsys, empty_figures):
    page, into = tmp_path / "pages" / "page.html", tmp_path / "pictures"
    write_page(page, load_run(run_dir))  # a page is replaced
    words = ["--split", "validation", "--checkpoint", "last", "--into", str(into), "--html", str(page), "--json"]
    assert report([str(run_dir), *words]) == 0
    found = json.loads(capsys.readouterr().out)
    diagnosis = diagnose(load_run(run_dir, "last"), load(run_dir), "validation")
    assert (found["split"], found["examples"], found["step"]) == ("validation", 200, 45)
    assert found["accuracy"] == diagnosis.accuracy.value
    assert found["accuracy_interval_95"] == list(diagnosis.accuracy.interval)
    assert found["expected_calibration_error"] == diagnosis.calibration.expected_error
    assert found["confusion"] == diagnosis.confusion.tolist()
    assert [mistake["example"] for mistake in found["mistakes"]] == diagnosis.mistakes.tolist()
    first = diagnosis.mistakes[0]
    classes = str(diagnosis.labels[first]), str(diagnosis.predictions[first])
    assert (found["mistakes"][0]["class"], found["mistakes"][0]["predicted"]) == classes
    assert {Path(path).name for path in found["pictures"]} == {path.name for path in into.iterdir()}
    assert not (run_dir / "plots").exists()
    assert found["html"] == str(page)
    text = page.read_text("utf-8")
    assert all(f"picture-{name}-" in text for name in NAMES)
    assert f"{diagnosis.accuracy.value:.2%} of 200 validation examples" in text


def test_accuracy_after_each_step(tiny_run):
    run, test = load_run(tiny_run), load(tiny_run).test[:300]
    found = step_accuracy(run, test)
    along = run.read_along(test.images)
    np.testing.assert_allclose(found.accuracy, (along.argmax(axis=-1) == test.labels[:, None]).mean(axis=0))
    right = [along[n, :, label] for n, label in enumerate(test.labels)]
    np.testing.assert_allclose(found.given, np.mean(right, axis=0), rtol=1e-5)
    assert found.first_step(0.0) == 1
    assert found.first_step(1.01) is None


OF_THE_NETWORK = ("accuracy-by-step", "reading-mistake")
"""The figures that depend on the network; the others depend on its predictions, or are of another example."""


@pytest.mark.parametrize(
    ("config", "classes", "written"),
    [
        ({"bidirectional": True}, 60, ("confusion", "classes", "mistakes", *OF_THE_NETWORK)),
        ({"pooling": "mean", "cell": "gru", "task": "pixels"}, 5, OF_THE_NETWORK),
    ],
)
@pytest.mark.slow
def test_figures_of_other_networks_colours_and_many_classes(tmp_path, rng, config, classes, written):
    names = tuple(f"class $ & <{number}>, 猫, whose name is long" for number in range(classes))
    run, dataset = untrained(tmp_path, (8, 6, 3), names, rng, **config)
    pictures = run_pictures(run, NO_EPOCHS, diagnose(run, dataset), dataset)
    assert pictures[0].name == "confusion"
    assert ("the 50 of 60 classes with the most errors" in pictures[0].caption) == (classes == 60)
    chosen = [picture for picture in pictures if picture.name in written]
    assert len(chosen) == len(written)
    with styled():
        for picture in pictures:
            if picture not in chosen:
                picture.figure.draw_without_rendering()
    for number, picture in enumerate(chosen):
        assert file_bytes(picture.figure, "png").startswith(b"\x89PNG")
        texts = "".join(ElementTree.fromstring(themed_svg(picture.figure, f"p{number}")).itertext())
        assert ("class $ & <" in texts) == (picture.name != "accuracy-by-step"), picture.name


@pytest.mark.slow
def test_figures_without_an_error(tmp_path, rng):
    run, dataset = untrained(tmp_path, (5, 4), ("a", "b"), rng)
    probabilities = np.eye(2, dtype=np.float32)[dataset.test.labels] * 0.8 + 0.1
    diagnosis = Diagnosis("test", ("a", "b"), dataset.test.labels, probabilities)
    pictures = run_pictures(run, NO_EPOCHS, diagnosis, dataset)
    assert {picture.name for picture in pictures}.isdisjoint({"mistakes", "reading-mistake", "curves"})
    assert "Of 60 test examples, none is misclassified." in pictures[0].caption


@pytest.mark.slow
def test_report_after_one_epoch_and_before_it_with_moved_data(run_dir, capsys, empty_figures):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text(lines[0])
    assert report([str(run_dir), "--checkpoint", "15"]) == 0
    assert (run_dir / "plots" / "curves.png").exists()
    assert "epoch 1 of 3, step 15" in capsys.readouterr().out
    (run_dir / "metrics.jsonl").unlink()
    # And its data have moved.
    file = run_dir / "config.json"
    file.write_text(file.read_text().replace(str(FIRST_OF_MNIST), "/gone/mnist"))
    for read in (lambda: report([str(run_dir)]), lambda: train(read_run(run_dir).config, run_dir, resume=True)):
        with pytest.raises(DataError, match="If it has moved, give its new place with --source"):
            read()
    assert report([str(run_dir), "--source", str(FIRST_OF_MNIST), "--into", str(run_dir / "other")]) == 0
    assert "No epoch was finished: there are no curves." in capsys.readouterr().out
    assert not (run_dir / "other" / "curves.png").exists()
    assert (run_dir / "other" / "confusion.png").exists()


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ([], UserError, "No run folder is given. Give one"),
        (["nowhere"], RunError, "nowhere is not a run folder"),
        (["RUN", "--split", "tset"], ConfigError, "split is 'tset', expected one of test, validation, train"),
        (["RUN", "--checkpoint", "7"], RunError, "has no checkpoint '7'; expected best, last"),
        (["RUN", "--source", "fashion"], DataError, "Unknown data source 'fashion'"),
        (["RUN", "--into", "RUN/config.json"], RunError, "is a file, expected a folder.*Choose another --into"),
        (["RUN", "--into", "RUN/config.json/in"], RunError, "config.json is a file, expected a folder.*Choose another"),
        (["RUN", "--html", "RUN/checkpoints"], RunError, "checkpoints is a folder. Name a file, such as"),
        (["RUN", "--html", "RUN/config.json"], RunError, "config.json is there already and no page of a run"),
    ],
)
def test_wrong_arguments(run_dir, words, error, message, empty_figures):
    with pytest.raises(error, match=message):
        report([word.replace("RUN", str(run_dir)) for word in words])


def test_an_ascii_terminal_gets_no_curves(tiny_run):
    run, output = load_run(tiny_run), io.BytesIO()
    assert repr(run) == f"TrainedRun({str(tiny_run)!r}, step={run.step})"
    console = Console(file=io.TextIOWrapper(output, "ascii", write_through=True), width=60)
    print_run(console, run, run.history(), diagnose(run, load(tiny_run)))  # anything else cannot be encoded
    assert b"most confused:" in output.getvalue()


def test_curves_in_braille():
    assert curve([1.0, 2.0, 3.0], 2, 2) == ["3 ┤" + BLANK + "⣸", "1 ┤⣰⠃"]
    flat = curve([5.0] * 300, 10, 3)
    assert flat == ["  ┤", "  ┤", "5 ┤" + "⣀" * 10]
    assert curve([0.5], 4, 2)[-1].endswith("⡀")
    by_ratio, straight = curve([1.0, 10.0, 100.0], 9, 3, logarithmic=True), curve([0.0, 1.0, 2.0], 9, 3)
    assert [line.split("┤")[1] for line in by_ratio] == [line.split("┤")[1] for line in straight]
    assert by_ratio[0].startswith("100 ┤")


@pytest.mark.slow
def test_the_lesson_runs(tmp_path, monkeypatch, capsys):
    program = ROOT / "scripts" / "look_inside.py"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PRESETS, "smoke", TINY)  # compiled already
    monkeypatch.setattr(sys, "argv", [str(program)])
    runpy.run_path(str(program), run_name="__main__")
    printed = capsys.readouterr().out
    run_dir = tmp_path / "runs" / "look-inside"
    assert {path.name for path in (run_dir / "plots").iterdir()} == {"curves.png", "confusion.png"}
    along = re.findall(r"^(.{56}) +(\d+)  (\d) +([\d.]+)%", printed, re.MULTILINE)
    assert [int(step) for _, step, _, _ in along] == list(range(1, 29))
    diagnosis = diagnose(load_run(run_dir), load(run_dir))
    assert int(along[-1][2]) == diagnosis.predictions[diagnosis.mistakes[0]]
    assert f"{diagnosis.accuracy.value:.2%} of 1,100 are classified correctly" in printed
    monkeypatch.setattr(sys, "argv", [str(program), str(tmp_path)])
    with pytest.raises(SystemExit, match="is not a run folder"):
        runpy.run_path(str(program), run_name="__main__")
