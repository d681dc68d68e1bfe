"""`lstm-mnist predict`: pictures in, predictions out."""

import json
import logging
import os
import shutil
from dataclasses import replace

import jax
import numpy as np
import programs
import pytest
from matplotlib.figure import Figure
from PIL import Image

from lstm_mnist_jax import inference, load, load_run
from lstm_mnist_jax.data.normal_form import normalise
from lstm_mnist_jax.errors import DataError, RunError
from lstm_mnist_jax.report.reading import draw_reading_of
from lstm_mnist_jax.report.terminal import percent
from lstm_mnist_jax.training import checkpoint
from lstm_mnist_jax.training.checkpoint import finished_steps


@pytest.fixture(scope="module")
def run(digits_run):
    return load_run(digits_run)


@pytest.fixture(scope="module")
def unseen():
    return load().test


@pytest.fixture
def predict(digits_run, command_line):
    """(exit code, standard output, standard error) of the command."""

    def predict(*words, run_dir=digits_run):
        done = command_line("predict", run_dir, *words)
        return done.returncode, done.stdout, done.stderr

    return predict


@pytest.fixture
def scans(tmp_path, unseen):
    """A folder of pictures of digits, of all kinds, with their names and digits; and a file that is none."""
    folder = tmp_path / "scans"
    (folder / "more").mkdir(parents=True)
    images = [Image.fromarray(np.kron(255 - image, np.ones((6, 6), np.uint8))) for image in unseen.images[:5]]
    for n, kind in enumerate(("png", "jpg", "bmp", "gif", "webp")):
        images[n].save(folder / f"{n}.{kind}")
    np.save(folder / "more" / "5.npy", unseen.images[5:8])
    (folder / "notes.txt").write_text("none")
    names = [*(str(folder / f"{n}.{kind}") for n, kind in enumerate(("png", "jpg", "bmp", "gif", "webp")))]
    return folder, [*names, *(f"{folder / 'more' / '5.npy'}[{n}]" for n in range(3))]


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


def test_several_digits_on_a_picture(predict, unseen, run, tmp_path):
    """On a sheet on a table, in two lines."""
    sheet = np.full((200, 280), 255, np.uint8)
    for image, top, left in zip(unseen.images[:3], (5, 15, 105), (40, 150, 60), strict=True):
        sheet[top : top + 84, left : left + 84] -= np.asarray(Image.fromarray(image).resize((84, 84)))
    picture = np.pad(sheet, ((0, 0), (30, 0)), constant_values=60)
    Image.fromarray(picture).save(tmp_path / "three.png")
    code, printed, errors = predict(tmp_path / "three.png", "--json")
    assert (code, errors) == (0, "")
    answer = json.loads(printed)
    found = "".join(run.class_names[label] for label in run.predict(run.normalise(unseen.images[:3]))[0])
    assert answer["label"] == "".join(digit["label"] for digit in answer["digits"])
    assert sum(a == b for a, b in zip(answer["label"], found, strict=True)) >= 2  # other greys, and a model of 90 %
    boxes = np.array([digit["box"] for digit in answer["digits"]]) * [200, 310, 200, 310]
    for (top, left, tall, wide), (row, column) in zip(boxes, ((5, 70), (15, 180), (105, 90)), strict=True):
        assert row <= top < top + tall <= row + 84
        assert column <= left < left + wide <= column + 84
    assert answer["probability"] == pytest.approx(np.prod([digit["probability"] for digit in answer["digits"]]))
    _, printed, _ = predict(tmp_path / "three.png", "--show")
    assert f"3 digits: {' '.join(answer['label'])}" in printed
    assert "digit 3 of 3, as the network reads it" in printed
    drawn = printed[printed.index("three.png, its digits in boxes:") : printed.index("digit 1 of 3")]
    for digit in answer["digits"]:
        assert f"┌{digit['label']} {percent(digit['probability'], 0)}" in drawn
    assert drawn.count("└") == 3


@pytest.mark.slow
def test_pictures_with_boxes_as_figures(predict, unseen, tmp_path):
    """Of several digits, and of one on a large sheet; not of a digit that is cut out."""
    digit = 255 - np.asarray(Image.fromarray(unseen.images[0]).resize((112, 112)))
    for name, picture in (
        ("two", np.pad(np.hstack([digit, digit]), 40, constant_values=255)),
        ("one", np.pad(digit, 90, constant_values=255)),
        ("cut", digit),
    ):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    pictures = [tmp_path / f"{name}.png" for name in ("two", "one", "cut")]
    code, printed, errors = predict(*pictures, "--explain-into", tmp_path / "figures", "--json")
    assert (code, errors) == (0, "")
    answers = [json.loads(line) for line in printed.splitlines()]
    boxes = [str(tmp_path / "figures" / f"{name}-digits.png") for name in ("two", "one")]
    assert [answer.get("overview") for answer in answers] == [*boxes, None]
    assert [len(answer.get("figures", [answer.get("figure")])) for answer in answers] == [2, 1, 1]
    for path in boxes:
        with Image.open(path) as image:
            blue = (np.abs(np.asarray(image.convert("RGB"), int) - [0x00, 0x72, 0xB2]) < 8).all(axis=-1)
            assert blue.sum() > 500
    assert len(list((tmp_path / "figures").iterdir())) == 6


def test_warnings(predict, unseen, run, digits_run, tmp_path, rng):
    """Of what is no digit, of a pair that touches and of a turned page; none of digits."""

    def sheet(*images):
        return np.pad(255 - np.concatenate([np.kron(image, np.ones((5, 5), np.uint8)) for image in images], 1), 30,
                      constant_values=255)  # fmt: skip

    left, right = (image[:, image.max(axis=0) > 99] for image in (unseen.images[3], unseen.images[10]))
    pair = np.maximum(np.pad(left, ((0, 0), (0, right.shape[1] - 3))), np.pad(right, ((0, 0), (left.shape[1] - 3, 0))))
    blot = np.full((200, 200), 255, np.uint8)
    blot[60:140, 50:150] = rng.integers(0, 60, (80, 100))
    pictures = {
        "digits": sheet(*unseen.images[:3]),
        "blot": blot,
        "pair": sheet(pair),
        "turned": np.rot90(sheet(*unseen.images[:3])),
        "upside": np.rot90(sheet(*unseen.images[:3]), 2),
    }
    for name, picture in pictures.items():
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    frames = [Image.fromarray(picture) for picture in (pictures["digits"], blot)]
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    files = [*(tmp_path / f"{name}.png" for name in pictures), tmp_path / "pages.tif"]
    code, printed, errors = predict(*files, "--json")
    assert (code, errors) == (0, "")
    answers = {name: json.loads(line) for name, line in zip([*pictures, "pages"], printed.splitlines(), strict=True)}
    assert answers["digits"]["warning"] is None
    assert [digit["warning"] for digit in answers["digits"]["digits"]] == [None] * 3
    assert answers["blot"]["warning"] == answers["blot"]["digits"][0]["warning"]
    assert answers["blot"]["warning"] in (inference.UNLIKE, run.pair)
    assert answers["pair"]["digits"][0]["warning"] == run.pair
    assert answers["pair"]["warning"].endswith(run.pair)  # turned, two that touch may read as an 8
    upright = " ".join(answers["digits"]["label"])
    assert answers["turned"]["warning"].startswith("it reads better turned by 90 degrees to the right: ")
    read = answers["turned"]["warning"].split(";")[0].split(": ")[1]
    assert sum(a == b for a, b in zip(read, upright, strict=True)) >= 4  # a picture turned exactly
    assert answers["upside"]["warning"].startswith("it reads better turned upside down: ")
    assert answers["pages"]["warning"] == "the file holds several pictures, of which the first is read"
    assert answers["pages"]["label"] == answers["digits"]["label"]
    _, printed, _ = predict(*files)
    for name in ("pair", "turned", "pages"):
        assert f"warning: {tmp_path / name}." in printed
    assert f"{tmp_path / 'digits'}.png:" not in printed
    [found] = run.find_digits(pictures["pair"])
    assert found.warning == run.pair
    assert run.warnings(unseen.images[:3]) == [None] * 3
    shutil.copytree(digits_run, tmp_path / "run")
    (tmp_path / "run" / "novelty.npz").unlink()  # as of an older version
    _, printed, _ = predict(*files[1:2], "--json", run_dir=tmp_path / "run")
    assert json.loads(printed)["warning"] is None
    (tmp_path / "run" / "novelty.npz").write_bytes(b"none")
    code, printed, errors = predict(*files[1:2], run_dir=tmp_path / "run")
    assert (code, printed) == (2, "")
    assert "novelty.npz is damaged" in errors


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
    np.save(tmp_path / "many.npy", unseen.images[:300])
    (tmp_path / "broken.png").write_bytes(b"none")
    sizes, unwatched = [], type(run).predict
    monkeypatch.setattr(type(run), "predict", lambda run, images: sizes.append(len(images)) or unwatched(run, images))
    code, printed, _ = predict(tmp_path / "many.npy", tmp_path / "broken.png", tmp_path / "many.npy", "--json")
    assert code == 1
    answers = [json.loads(line) for line in printed.splitlines()]
    many = [f"{tmp_path / 'many.npy'}[{n}]" for n in range(300)]
    assert [answer["file"] for answer in answers] == [*many, str(tmp_path / "broken.png"), *many]
    assert sum(sizes) - sizes.count(1) == 600  # and alone those that may be turned
    assert 8 < max(sizes) <= 64
    assert answers[:300] == answers[301:]


def test_show_prints_the_input_of_the_network(predict, scans):
    folder, _ = scans
    _, printed, _ = predict(folder / "0.png", "--show")
    rows = printed.splitlines()[-28:]
    assert {len(row) for row in rows} == {56}
    image = normalise(1 - np.asarray(Image.open(folder / "0.png"), np.float32) / 255, (28, 28), "digit")
    seen = np.array([[" ░▒▓█".index(letter) for letter in row[::2]] for row in rows])
    np.testing.assert_array_equal(seen, np.minimum(4, (image * 5).astype(int)))


def test_explain_prints_the_prediction_after_each_row(predict, scans, run, unseen):
    folder, names = scans
    _, printed, _ = predict(folder / "more" / "5.npy", "--explain")
    start = next(n for n, line in enumerate(printed.splitlines()) if f"{names[5]}, read as 28 rows of 28" in line)
    lines = printed.splitlines()[start + 1 : start + 29]
    along = run.read_along(run.normalise([unseen.images[5]]))[0]
    for step, line in enumerate(lines):
        number, label, *_ = line[56:].split()
        assert int(number) == step + 1
        assert int(label) == along[step].argmax()


@pytest.mark.slow
def test_figures_replace_no_file(predict, scans, tmp_path):
    folder, _ = scans
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    shutil.copy(folder / "0.png", folder / "more" / "0.png")
    code, printed, _ = predict(folder / "0.png", folder / "more" / "0.png", "--explain-into", folder, "--json")
    assert code == 0
    drawn = [folder / "0-reading.png", folder / "0-2-reading.png"]
    assert [json.loads(line)["figure"] for line in printed.splitlines()] == [*map(str, drawn)]
    for path in drawn:
        with Image.open(path) as image:
            assert image.size[0] > 800
            assert len(np.unique(np.asarray(image.convert("L")))) > 100
    assert {path: path.read_bytes() for path in before} == before
    code, _, errors = predict(folder / "0.png", "--explain-into", folder / "0.png")
    assert code == 2
    assert "is a file; name a folder" in errors


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
    assert run.normalise(unseen.images[:3]).shape == (3, 28, 28)
    assert run.normalise([]).shape == (0, 28, 28)


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
