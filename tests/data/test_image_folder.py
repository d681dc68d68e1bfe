"""Folders of pictures, one a class, in the arrangements and with the litter that people have."""

import itertools
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lstm_mnist_jax.config import Config
from lstm_mnist_jax.data import load
from lstm_mnist_jax.data.cache import cache_folder
from lstm_mnist_jax.errors import DataError
from lstm_mnist_jax.inference import TrainedRun
from lstm_mnist_jax.rnn.native.build import user_cache_folder
from lstm_mnist_jax.training.run_folder import DataFacts, RunFolder

GLYPH = np.zeros((28, 28), np.uint8)
GLYPH[4:24, 6:10] = 255  # an L: no rotation and no mirror image is the same
GLYPH[20:24, 6:22] = 200
BAR = np.zeros((28, 28), np.uint8)
BAR[3:25, 12:16] = 255


def write(folder, names, count=3, mode="L", ending=".png", image=GLYPH):
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for n in range(count):
            Image.fromarray(image).convert(mode).save(folder / name / f"{n}{ending}")


def small(path, **options):
    return load(path, **{"validation_examples": 2, "test_fraction": 0.34} | options)


@pytest.mark.parametrize("names", [("train", "test"), ("training_set", "test_set"), ("Training", "TESTING", "valid")])
@pytest.mark.parametrize("wrapped", [False, True])
def test_folders_for_each_split(tmp_path, names, wrapped):
    root = tmp_path / "digits" if wrapped else tmp_path
    for count, split in zip((4, 2, 3), names, strict=False):
        write(root / split, ["10", "9", "2"], count)
    found = small(tmp_path)
    assert found.class_names == ("2", "9", "10")  # as people sort
    assert len(found.test) == 6
    assert (len(found.train), len(found.validation)) == ((10, 2) if len(names) == 2 else (12, 9))
    for split in found.splits.values():
        np.testing.assert_array_equal(split.images, [GLYPH] * len(split))  # upright, and not a bit changed


def test_one_folder_a_class_is_split_with_a_seed(tmp_path):
    write(tmp_path, ["ant", "bee"], 10)
    for n, file in enumerate(sorted(tmp_path.rglob("*.png"))):
        Image.fromarray(GLYPH // 2 + np.uint8(n)).save(file)
    found = [load(tmp_path, validation_examples=4, split_seed=seed) for seed in (0, 0, 1)]
    assert [len(split) for split in found[0].splits.values()] == [14, 4, 2]
    for split in found[0].splits.values():
        assert set(np.bincount(split.labels)) == {len(split) // 2}
    values = [[split.images[:, 0, 0].tolist() for split in one.splits.values()] for one in found]
    assert values[0] == values[1] != values[2]
    assert sorted(itertools.chain(*values[0])) == list(range(20))  # each picture once
    assert "pictures in" in found[0].describe()
    assert "test split: 0.1 of each class, seed 0" in found[0].describe()


def test_a_class_may_be_called_train_station(tmp_path):
    write(tmp_path, ["airport", "train_station"])
    assert small(tmp_path).class_names == ("airport", "train_station")


def test_litter_is_left_out_and_named(tmp_path):
    write(tmp_path, ["a", "b", "__MACOSX/a", ".thumbnails"])
    write(tmp_path / "a", ["nested"])
    (tmp_path / "a" / "empty").mkdir()
    for name in (".DS_Store", "Thumbs.db", "._0.png", "notes.txt", "photo.heic"):
        (tmp_path / "a" / name).write_bytes(b"x")
    Image.fromarray(BAR).save(tmp_path / "cover.png")
    (tmp_path / "b" / "circle").symlink_to(tmp_path / "b", target_is_directory=True)
    found = small(tmp_path)
    assert (found.class_names, sum(map(len, found.splits.values()))) == (("a", "b"), 9)
    assert "1 pictures outside of class folders left out" in found.describe()
    assert "other files left out: 1 .txt, 1 .heic" in found.describe()


def test_linked_and_accented_folders(tmp_path):
    write(tmp_path / "elsewhere", ["x"])
    write(tmp_path / "data" / "train", ["cafe\u0301", "b\u00e4r"])
    write(tmp_path / "data" / "test", ["caf\u00e9", "ba\u0308r"])  # the same letters, composed otherwise
    os.symlink(tmp_path / "elsewhere" / "x", tmp_path / "data" / "train" / "x")
    os.symlink(tmp_path / "elsewhere" / "x", tmp_path / "data" / "test" / "x")
    assert small(tmp_path / "data").class_names == ("b\u00e4r", "caf\u00e9", "x")


@pytest.mark.parametrize(
    ("ending", "mode"),
    [(".PNG", "RGB"), (".png", "P"), (".png", "1"), (".bmp", "L"), (".gif", "L"), (".webp", "RGB"), (".JPEG", "RGB")],
)
def test_formats_and_modes(tmp_path, ending, mode):
    write(tmp_path, ["a", "b"], 3, mode, ending, np.where(GLYPH, np.uint8(255), GLYPH))
    found = small(tmp_path)
    assert found.image_shape == (28, 28)  # grey in the mode of colours is grey
    assert ((found.train.images > 127) == (GLYPH > 0)).mean() > 0.98  # lossy formats change some pixels


def test_colours_sizes_and_forms(tmp_path):
    write(tmp_path, ["a", "b"], 3)
    large = np.full((90, 60, 3), 255, np.uint8)
    large[20:70, 20:30] = large[60:70, 20:45] = (0, 0, 200)  # a blue L on white paper
    Image.fromarray(large).save(tmp_path / "a" / "large.png")
    whole = small(tmp_path)
    assert whole.image_shape == (28, 28, 3)
    assert "28 x 28 x 3 pixels" in whole.describe()
    assert small(tmp_path, image_size=(20, 24)).image_shape == (20, 24, 3)
    grey = small(tmp_path, image_size=(28, 28, 1))
    assert grey.image_shape == (28, 28)
    assert np.median(np.concatenate([split.images for split in grey.splits.values()])[:, 0]) == 0  # white on black
    digit = small(tmp_path, form="digit")
    assert (digit.image_shape, digit.form) == ((28, 28), "digit")
    for image in np.concatenate([split.images for split in digit.splits.values()]):
        rows, columns = np.nonzero(image > 30)
        assert rows.max() - rows.min() == 19  # MNIST's form: 20 pixels high
        assert (image[:, columns.min() : columns.min() + 2] > 30).sum() > 30  # the long stroke is on the left


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: write(path, ["a"]), "the folder of one class only, 'a'"),
        (lambda path: write(path, ["a/train", "a/test", "b/train"]), "a folder 'test' within a class"),
        (lambda path: write(path, ["train/a", "Training/a", "train/b"]), "several folders for one split"),
        (lambda path: write(path, ["train/a", "test/b"]), r"none is of class b\..*--classes present"),
        (lambda path: write(path, ["train/a", "train/seven", "test/a", "test/Seven"]),
         "none is of class Seven. Class 'Seven' is only in the test split; the nearest class of train is 'seven'"),
        (lambda path: write(path, ["train/a", "train/7", "test/a", "test/seven"]), "only in train: '7'"),
        (lambda path: (write(path, ["a", "b"]), (path / "c").mkdir()), "none is of class c.*--classes present"),
        (lambda path: (write(path, ["a", "b"]), (path / "a/0.png").write_bytes(b"x")), "a/0.png is no picture"),
        (lambda path: (write(path, ["a", "b"]), os.truncate(path / "b/1.png", 60)), "b/1.png is damaged"),
        (lambda path: (write(path / "test", ["a", "b"]), (path / "train").mkdir()), "no pictures for training"),
        (lambda path: write(path, ["a", "b"], 1), "one of its training examples|has no test split"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(tmp_path, change, message):
    change(tmp_path)
    with pytest.raises(DataError, match=message):
        small(tmp_path)


def test_empty_classes_can_be_left_out(tmp_path):
    write(tmp_path / "train", ["a", "b"])
    write(tmp_path / "test", ["a", "b", "c"])
    (tmp_path / "train" / "c").mkdir()
    found = small(tmp_path, classes="present")
    assert (found.class_names, len(found.test)) == (("a", "b"), 6)
    assert "1 of 3 classes left out, which have no training example: c" in found.describe()


def test_an_archive_of_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("lstm_mnist_jax.data.idx.FREE_BYTES", 1 << 20)
    write(tmp_path / "in" / "digits", ["a", "b", "__MACOSX/a"], 4)
    with zipfile.ZipFile(tmp_path / "digits.zip", "w") as archive:
        for file in (tmp_path / "in").rglob("*.png"):
            archive.write(file, file.relative_to(tmp_path / "in"))
    found = load(tmp_path / "digits.zip", validation_examples=2)
    assert sum(map(len, found.splits.values())) == 8
    assert found.origin == f"pictures in {tmp_path / 'digits.zip'}"
    (tmp_path / "digits.zip").write_bytes((tmp_path / "digits.zip").read_bytes()[:-30])
    with pytest.raises(DataError, match=r"digits.zip cannot be read.*Is it damaged\?"):
        load(tmp_path / "digits.zip")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/0.png", bytes(3 << 20))
    with pytest.raises(DataError, match=r"bomb.zip has .* bytes and would take 3,145,728"):
        load(tmp_path / "bomb.zip")


def test_predict_prepares_pictures_as_training_did():
    data = DataFacts("pictures", (28, 28), ("nought", "one"), "", form="digit")
    run = TrainedRun(RunFolder(Path("run"), Config(), data, {}), 0, {}, None)
    assert run.form == "digit"
    photograph = np.full((90, 60), 255, np.uint8)
    photograph[20:70, 20:30] = 0
    (seen,) = run.normalise([photograph])
    assert np.nonzero(seen.max(axis=1) > 0.1)[0].size == 20


def test_the_cache_is_beside_the_other_ones():
    assert cache_folder() == user_cache_folder() / "data"


class TestCache:
    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr("lstm_mnist_jax.data.cache.LEAST_SECONDS", 0.0)
        monkeypatch.setattr("sys.platform", "linux")
        write(tmp_path / "data", ["a", "b"], 4)
        return tmp_path / "data"

    @pytest.fixture
    def reads(self, monkeypatch):
        """The pictures that are decoded."""
        from lstm_mnist_jax.data import image_folder

        found, read = [], image_folder.read_pictures
        monkeypatch.setattr(image_folder, "read_pictures", lambda name: found.append(name) or read(name))
        return found

    def test_a_second_start_decodes_nothing(self, folder, reads):
        first, count = small(folder), len(reads)
        assert count == 8
        second = small(folder)
        assert len(reads) == count
        assert first.fingerprint() == second.fingerprint()
        assert first.describe() == second.describe()
        assert (first.class_names, first.form) == (second.class_names, second.form)

    def test_what_changed_or_is_damaged_is_read_again(self, folder, reads):
        small(folder)
        small(folder, form="digit")
        assert len(reads) == 16
        Image.fromarray(BAR).save(folder / "a" / "0.png")
        os.utime(folder / "a" / "0.png", ns=(1, 1))
        assert any((image == BAR).all() for split in small(folder).splits.values() for image in split.images)
        assert len(reads) == 24
        for file in folder.parent.glob("cache/lstm_mnist_jax/data/*.npz"):
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1  # within an array: its checksum finds it
            file.write_bytes(content)
        small(folder)
        assert len(reads) == 32

    def test_the_oldest_are_removed(self, folder, monkeypatch):
        monkeypatch.setattr("lstm_mnist_jax.data.cache.MAX_TOTAL_BYTES", 25_000)
        for seconds, size in enumerate([(28, 28), (27, 27), (26, 26), (25, 25)]):
            small(folder, image_size=size)
            for file in folder.parent.glob("cache/lstm_mnist_jax/data/*.npz"):
                os.utime(file, (seconds + file.stat().st_mtime % 1000,) * 2) if seconds == 0 else None
        files = list(folder.parent.glob("cache/lstm_mnist_jax/data/*"))
        assert 1 <= len(files) < 4
        assert sum(file.stat().st_size for file in files) <= 25_000
