"""`lstm-mnist predict`: pictures in, predictions out."""

import inspect
import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import programs
import pytest
from matplotlib.figure import Figure
from PIL import Image

from lstm_mnist_jax import inference, load_run
from lstm_mnist_jax.errors import DataError, RunError
from lstm_mnist_jax.inference import TrainedRun
from lstm_mnist_jax.report.reading import draw_reading_of
from lstm_mnist_jax.training import checkpoint
from lstm_mnist_jax.training.checkpoint import finished_steps


def test_table(predict, scans, run):
    folder, names = scans
    code, printed, errors = predict(folder)
    assert (code, errors) == (0, "")
    for name in names:
        [line] = [line for line in printed.splitlines() if name in line]  # none is folded
        assert line.count("%") == 3


def test_json_lines(predict, scans, run, unseen):
    folder, names = scans
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:300])
    np.save(folder / "more" / "even.npy", np.full((2, 9, 9), 0.5))
    code, printed, errors = predict(folder / "*.*", folder / "more" / "5.npy", folder / "more" / "even.npy", "--json")
    assert code == 1
    answers = {answer["file"]: answer for answer in map(json.loads, printed.splitlines())}
    unreadable = [str(folder / "broken.png"), str(folder / "notes.txt")]
    even = [f"{folder / 'more' / 'even.npy'}[{n}]" for n in range(2)]
    assert set(answers) == {*names, *unreadable, *even}
    _, probabilities = run.predict(unseen.images[:8])
    for n, name in enumerate(names):
        answer = answers[name]
        assert answer["label"] == answer["top"][0]["label"] == str(unseen.labels[n])
        assert answer["probability"] == answer["top"][0]["probability"]
        assert [one["probability"] for one in answer["top"]] == sorted(
            (one["probability"] for one in answer["top"]), reverse=True
        )
        assert len(answer["top"]) == 3
    exact = [answers[name]["probability"] for name in names[5:]]  # in MNIST's form already
    np.testing.assert_allclose(exact, probabilities[5:8].max(axis=-1), atol=0.01)
    told = errors.splitlines()
    assert len(told) == 4
    for name, why in (*((name, "damaged|no picture") for name in unreadable), *((name, "one colour") for name in even)):
        assert "label" not in answers[name]
        assert f"lstm-mnist: {answers[name]['error']}" in told
        assert any(word in answers[name]["error"] for word in why.split("|"))


@pytest.mark.slow
def test_runs_of_a_sweep(predict, tiny_sweep, unseen, tmp_path):
    np.save(tmp_path / "digit.npy", unseen.images[0])
    found = {}
    for name in ("0", "1", "2", "best"):
        code, printed, errors = predict(tmp_path / "digit.npy", "--json", run_dir=tiny_sweep / name)
        assert (code, errors) == (0, "")
        found[name] = json.loads(printed)["probability"]
        _, expected = load_run(tiny_sweep / name).predict(unseen.images[:1])
        assert found[name] == pytest.approx(expected.max(), abs=0.01)
    best = load_run(tiny_sweep / "best").folder.member
    assert found["best"] == found[str(best)]
    assert len(set(found.values())) == 3
    assert {path.name for path in tiny_sweep.iterdir()}.isdisjoint(found)


WITH_STANDARD_INPUT = """
import os, sys
from lstm_mnist_jax.cli.main import main

os.dup2(os.open(sys.argv[1], os.O_RDONLY), sys.stdin.fileno())
main(sys.argv[2:])
"""


@pytest.mark.slow
def test_standard_input(digits_run, scans):
    folder, _ = scans
    (folder / "empty").touch()
    for file, code, message in (("0.png", 0, ""), ("empty", 1, "lstm-mnist: standard input is empty.\n")):
        words = [folder / file, "predict", digits_run, "-", "--json"]
        done = programs.run(words, code=WITH_STANDARD_INPUT)
        assert (done.returncode, done.stderr) == (code, message)
        answer = json.loads(done.stdout)
        assert answer["file"] == ("standard input" if code == 0 else "-")
        assert answer.get("label") == ("7" if code == 0 else None)


@pytest.mark.slow
def test_many_pictures_are_classified_in_order_and_in_small_batches(predict, unseen, run, tmp_path, monkeypatch):
    np.save(tmp_path / "many.npy", unseen.images[:150])
    (tmp_path / "broken.png").write_bytes(b"none")
    sizes, unwatched = [], type(run).predict
    monkeypatch.setattr(type(run), "predict", lambda run, images: sizes.append(len(images)) or unwatched(run, images))
    code, printed, _ = predict(tmp_path / "many.npy", tmp_path / "broken.png", tmp_path / "many.npy", "--json")
    assert code == 1
    answers = [json.loads(line) for line in printed.splitlines()]
    many = [f"{tmp_path / 'many.npy'}[{n}]" for n in range(150)]
    assert [answer["file"] for answer in answers] == [*many, str(tmp_path / "broken.png"), *many]
    assert sum(sizes) - sizes.count(1) == 300  # and alone those that may be turned
    assert 8 < max(sizes) <= 64
    assert answers[:150] == answers[151:]


def test_python_functions(run, unseen, rng):
    image = unseen.images[0]
    figure = draw_reading_of(run, image, true_label=7, title="the first")
    assert isinstance(figure, Figure)
    assert run.step_name == "row"
    along = run.read_along(image[None])
    np.testing.assert_allclose(along[:, -1], run.predict(image[None])[1], atol=1e-5)
    with pytest.raises(DataError, match=r"got \[28, 28\]. Add an axis: images\[None\]"):
        run.predict(image)
    with pytest.raises(DataError, match=r"got \[1, 30, 30\]. normalise\(\) converts pictures to it"):
        run.predict(rng.uniform(size=(1, 30, 30)))
    pictures = [np.pad(image, 40), 1 - np.repeat(np.kron(image, np.ones((3, 3)))[..., None], 3, axis=-1) / 255]
    normal = run.normalise(pictures)
    np.testing.assert_array_equal(run.predict(normal)[0], [7, 7])
    for other in (
        image.astype(int),
        image.astype(np.uint16) * 257,
        np.asarray(jax.numpy.asarray(image / 255, "bfloat16")),
    ):
        np.testing.assert_allclose(
            run.predict(np.stack([other, other]))[1][0], run.predict(image[None])[1][0], atol=0.01
        )
    with pytest.raises(
        DataError, match=r"array of images is of type uint8, .* If that is white, multiply by 255, or use bool."
    ):
        run.predict(image[None] // 255)
    with pytest.raises(DataError, match=r"nothing is above 15\. If that is white, multiply by 17"):
        run.predict(image[None] // 16)
    with pytest.warns(
        UserWarning, match=r"brightest pixel of the images is 31, and white is 255\. If 31 should be white"
    ):
        run.predict(image[None] // 8)
    np.testing.assert_array_equal(run.normalise(pictures[0]), normal[:1])
    with pytest.raises(DataError, match=r"The picture is 3 pictures, of shape \[3, 28, 28\]; give one"):
        run.find_digits(unseen.images[:3])
    for labels in ([10], [-1], [1, 2]):
        with pytest.raises(DataError, match=r"expected integers \[1\] from 0 to 9, the class of each image"):
            run.saliency(image[None], np.array(labels))
    assert run.normalise(unseen.images[:3]).shape == (3, 28, 28)
    assert run.normalise([]).shape == (0, 28, 28)


def test_normalise_takes_one_picture_or_several(run, unseen):
    image = unseen.images[0]
    pictures = [np.pad(image, 40), np.stack([np.pad(255 - image, 30, constant_values=255)] * 3, axis=-1)]
    normal = run.normalise(pictures)
    unchecked = inspect.unwrap(TrainedRun.normalise)  # without the tests' type checks
    objects = np.array([None, None])
    objects[:] = pictures
    for given, expected in (
        *zip(pictures, normal[:, None], strict=True),
        *((picture.tolist(), image[None]) for picture, image in zip(pictures, normal, strict=True)),
        (Image.fromarray(pictures[0]), normal[:1]),
        ([picture.tolist() for picture in pictures[:1]], normal[:1]),
        (objects, normal),
        (np.stack([pictures[1]] * 2), normal[[1, 1]]),
    ):
        np.testing.assert_array_equal(unchecked(run, given), expected)
    for given, message in (
        (np.array(0.5), r"has shape \[\]"),
        ([np.stack([pictures[0]] * 2)], r"A picture is 2 pictures, of shape \[2, 108, 108\]; give one"),
        ([picture.tolist() for picture in pictures], "is a list whose parts differ in shape; give an array, or a list"),
        ([["0", "255"]], "is of type <U3; expected integers"),
        ("digit.png", "is the text 'digit.png', expected an array. For a file"),
        (["digit.png"], "is the text 'digit.png', expected an array. For a file"),
        (Path("digit.png"), "is the text 'digit.png', expected an array. For a file"),
    ):
        with pytest.raises(DataError, match=message):
            unchecked(run, given)
    with pytest.raises(DataError, match="The picture is 2 pictures; give one"):
        inspect.unwrap(TrainedRun.find_digits)(run, pictures)


def test_a_second_single_image_compiles_nothing(run, unseen, caplog):
    config = run.folder.config
    config = replace(config, model=replace(config.model, forget_bias=0.5))  # which no test has compiled before
    run = replace(run, folder=replace(run.folder, config=config))
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        run.predict(unseen.images[:1])
        assert "Compiling" in caplog.text
        caplog.clear()
        run.predict(unseen.images[1:2])
        assert caplog.text == ""


def test_a_run_that_diverged_is_refused(predict, run, scans, monkeypatch):
    folder, _ = scans
    diverged = replace(run, params=jax.tree.map(lambda leaf: leaf * np.nan, run.params))
    monkeypatch.setattr(inference, "load_run", lambda *_: diverged)
    code, printed, errors = predict(folder / "0.png", "--json")
    assert (code, printed) == (2, "")
    assert "no numbers (NaN): its training diverged" in errors


@pytest.mark.slow
def test_file_names_with_markup_control_characters_and_invalid_bytes(predict, digits_run, scans, tmp_path):
    folder, _ = scans
    names = ["[bold]a.png", "\x1b[31mb.png", "c\udcff.png", "数字 \n.png", "-d.png"]
    for name in names:
        shutil.copy(folder / "0.png", tmp_path / name)
    pictures = [tmp_path / name for name in names]
    for encoding in ("utf-8", "ascii"):
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        done = programs.run(["predict", digits_run, *pictures, "--show"], env=environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert "\x1b" not in done.stdout
        assert "[bold]a.png" in done.stdout
        assert r"\x1b[31mb.png" in done.stdout
    _, printed, _ = predict(*pictures, "--json")
    assert [json.loads(line)["file"] for line in printed.splitlines()] == [*map(str, pictures)]


def test_errors_take_one_line(predict, digits_run, tiny_sweep, scans, tmp_path):
    folder, _ = scans
    picture, run_dir = folder / "0.png", tmp_path / "runs" / "digits"
    shutil.copytree(digits_run, run_dir)
    (tmp_path / "new").mkdir()
    shutil.copy(run_dir / "config.json", tmp_path / "new")
    for where, words, code, message in (
        (run_dir, [], 2, "No image is given"),
        (tmp_path / "none", [picture], 2, "is not a run folder: there is no such folder"),
        (picture, [], 2, "Name the folder of a run before the pictures"),
        (run_dir.parent, [picture], 2, f"It holds runs: {run_dir}"),
        (picture, [run_dir], 2, f"The run comes first, the pictures after it: lstm-mnist predict {run_dir}"),
        (folder, [picture], 2, "it has no config.json"),
        (tmp_path / "new", [picture], 2, "has no checkpoint"),
        (tiny_sweep, [picture], 2, f"is a sweep of 3 runs. Name one of them: {tiny_sweep}/best"),
        (tiny_sweep / "99", [picture], 2, f"{tiny_sweep} has no run 99, expected 0 to 2."),
        (run_dir, [picture, "--checkpoint", "17"], 2, f"{run_dir / 'checkpoints'} has no checkpoint '17'"),
        (run_dir, [picture, "--json", "--show"], 2, "leave out --json"),
        (run_dir, [tmp_path / "none.png"], 1, "There is no file"),
        (run_dir, [folder / "*.tiff"], 1, "There is no file that matches"),
        (run_dir, [tmp_path / "new"], 1, "holds no pictures"),
        (run_dir, [picture, "--form", "plain"], 1, "has to be 28 x 28"),
    ):
        ended, printed, errors = predict(*words, run_dir=where)
        assert (ended, printed) == (code, "")
        assert message in errors
        assert errors.count("\n") == 1


def test_loading_while_training_replaces_the_checkpoint(digits_run, tmp_path, monkeypatch):
    shutil.copytree(digits_run, tmp_path / "run")
    steps = finished_steps(tmp_path / "run" / "checkpoints")
    read, tried = checkpoint.load_state, []

    def read_too_late(path, like):
        tried.append(int(path.name))
        if len(tried) == 1:
            shutil.rmtree(path)
        return read(path, like)

    monkeypatch.setattr(checkpoint, "load_state", read_too_late)
    assert load_run(tmp_path / "run", "last").step == steps[-2]
    assert tried == [steps[-1], steps[-2]]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"{steps[-2]:08d}" / "state")
    with pytest.raises(RunError, match="lacks the file"):
        load_run(tmp_path / "run", "last")
