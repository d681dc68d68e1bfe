"""Where the digits of a picture are: boxes, warnings, and what `predict --show` and `--explain` draw."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from lstm_mnist_jax import inference
from lstm_mnist_jax.data.normal_form import UNREAD, normalise
from lstm_mnist_jax.report.terminal import percent


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
    assert [digit["marks"] for digit in answer["digits"]] == [[], [], []]
    picture[45:52, 158:176] = 0  # a minus between the first two
    Image.fromarray(picture).save(tmp_path / "minus.png")
    answer = json.loads(predict(tmp_path / "minus.png", "--json")[1])
    assert len(answer["digits"]) == 3
    [(top, left, tall, wide)] = [mark for digit in answer["digits"] for mark in digit["marks"]]
    np.testing.assert_allclose([200 * top, 310 * left, 200 * tall, 310 * wide], [45, 158, 7, 18], atol=2)
    assert UNREAD in answer["warning"]
    assert f"{UNREAD}" in predict(tmp_path / "minus.png")[1]


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


def test_warnings(predict, unseen, run, digits_run, tmp_path, rng, monkeypatch):
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
    assert answers["blot"]["warning"] in (inference.UNLIKE, f"{inference.UNLIKE}: {run.pair}")
    assert answers["pair"]["digits"][0]["warning"].endswith(run.pair)
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
    assert found.warning.endswith(run.pair)
    assert run.warnings(unseen.images[:3]) == [None] * 3
    with monkeypatch.context() as patch:  # the images of its training were in another form
        patch.setattr(inference.TrainedRun, "form", "whole")
        for words, advice in (((), "; --form digit finds digits on pictures"), (("--form", "whole"), "")):
            assert json.loads(predict(files[0], "--json", *words)[1])["warning"] == inference.UNLIKE + advice
    shutil.copytree(digits_run, tmp_path / "run")
    (tmp_path / "run" / "novelty.npz").unlink()  # as of an older version
    _, printed, _ = predict(*files[1:2], "--json", run_dir=tmp_path / "run")
    assert json.loads(printed)["warning"] is None
    (tmp_path / "run" / "novelty.npz").write_bytes(b"none")
    code, printed, errors = predict(*files[1:2], run_dir=tmp_path / "run")
    assert (code, printed) == (2, "")
    assert "novelty.npz is damaged" in errors


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
