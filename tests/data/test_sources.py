"""The embedded MNIST against its published checksums; folders of IDX files as they are published, and damaged."""

import gzip
import hashlib
import inspect
import os
from dataclasses import replace

import numpy as np
import pytest
from idx_files import idx_bytes, write_folder
from runs import TINY

from lstm_mnist_jax.config import DataConfig
from lstm_mnist_jax.data import Dataset, load
from lstm_mnist_jax.data.sources import EMBEDDED_MNIST, absolute_source, load_again
from lstm_mnist_jax.errors import DataError, UserError

CHECKSUMS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@pytest.mark.parametrize("name", CHECKSUMS)
def test_the_embedded_files_are_mnist(name):
    packed = (EMBEDDED_MNIST / f"{name}.gz").read_bytes()
    assert hashlib.sha256(gzip.decompress(packed)).hexdigest() == CHECKSUMS[name]
    assert packed[4:8] == b"\0\0\0\0"  # gzip's time stamp


def test_mnist_is_split_as_read_data_sets_did():
    mnist = load()
    assert [len(split) for split in mnist.splits.values()] == [55_000, 5_000, 10_000]
    assert mnist.image_shape == (28, 28)
    assert mnist.class_names == tuple("0123456789")
    # The first labels of the training file, which become validation, and of the test file.
    assert mnist.validation.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert mnist.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert mnist.train.images.dtype == np.uint8
    assert (
        load(validation_examples=10, train_examples=20).train.labels.tolist()
        == load(validation_examples=10).train.labels[:20].tolist()
    )


def test_labels_as_one_hot():
    examples = load(train_examples=50).train
    assert examples.one_hot_labels.shape == (50, 10)
    np.testing.assert_array_equal(examples.one_hot_labels.sum(axis=1), 1)
    np.testing.assert_array_equal(examples.one_hot_labels.argmax(axis=1), examples.labels)


def test_the_fingerprint_sees_every_change():
    first = load(train_examples=100)
    assert first.fingerprint() == load(train_examples=100).fingerprint()
    assert first.fingerprint() != load(train_examples=99).fingerprint()
    images = first.test.images.copy()
    images[3, 14, 14] ^= 1
    changed = replace(first, test=replace(first.test, images=images))
    assert first.fingerprint() != changed.fingerprint()


@pytest.mark.parametrize(
    ("gzipped", "dot", "test"), [(True, False, "t10k"), (False, False, "test"), (False, True, "t10k")]
)
def test_folders_under_any_of_the_published_names(tmp_path, gzipped, dot, test):
    content = write_folder(tmp_path / "data", test=test, gzipped=gzipped, dot=dot)
    [folder] = os.scandir(tmp_path)  # path-like, with another str()
    found = load(folder, validation_examples=5)
    np.testing.assert_array_equal(found.validation.images, content["train-images-idx3-ubyte"][:5])
    np.testing.assert_array_equal(found.train.labels, content["train-labels-idx1-ubyte"][5:])
    np.testing.assert_array_equal(found.test.images, content[f"{test}-images-idx3-ubyte"])
    assert found.class_names == ("0", "1", "2")


def test_a_file_of_class_names(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "classes.txt").write_text("shirt\nbag\nboot\n")
    assert load(str(tmp_path), validation_examples=5).class_names == ("shirt", "bag", "boot")


@pytest.mark.parametrize(
    ("names", "message"), [("a\nb\na\n", "names several classes 'a'"), ("caf\xe9\nb\nc", "is not UTF-8")]
)
def test_invalid_class_names_are_refused(tmp_path, names, message):
    write_folder(tmp_path)
    (tmp_path / "classes.txt").write_bytes(names.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        load(tmp_path, validation_examples=5)


def test_emnist_is_transposed_and_named_by_its_mapping(tmp_path):
    content = write_folder(
        tmp_path, "emnist-letters-", "test",
        train_labels=np.arange(20, dtype=np.uint8) % 3 + 1, test_labels=np.arange(8, dtype=np.uint8) % 3 + 1,
    )  # fmt: skip
    (tmp_path / "emnist-letters-mapping.txt").write_text("1 65 97\n2 66 98\n3 67 99\n")
    found = load(str(tmp_path), validation_examples=5)
    assert found.class_names == ("A/a", "B/b", "C/c")
    assert found.train.labels.min() == 0
    np.testing.assert_array_equal(found.validation.images[2], content["emnist-letters-train-images-idx3-ubyte"][2].T)


def test_letters_of_emnist_without_a_mapping(tmp_path):
    images = np.zeros((60, 8, 6), np.uint8)
    images[:, :, 1] = 255  # an L, stored on its side and mirrored
    images[:, 7, 1:4] = 200
    labels = np.arange(60, dtype=np.uint8) % 26 + 1
    write_folder(
        tmp_path, "emnist-letters-", "test", train_images=images, train_labels=labels, test_images=images,
        test_labels=labels,
    )  # fmt: skip
    found = load(tmp_path, validation_examples=8)
    assert found.class_names == tuple("abcdefghijklmnopqrstuvwxyz")
    assert found.test.labels[:3].tolist() == [0, 1, 2]
    for image in found.test.images:
        assert image[1].tolist() == [255] * 7 + [200]
        assert image[:, 7].tolist() == [0, 200, 200, 200, 0, 0]


def test_a_folder_of_several_sets_is_refused_with_their_names(tmp_path):
    write_folder(tmp_path, "emnist-digits-", "test")
    write_folder(tmp_path, "emnist-mnist-", "test")
    with pytest.raises(DataError, match=r"holds several data sets; name one of them: .*emnist-digits, .*emnist-mnist"):
        load(str(tmp_path))
    named: Dataset = load(str(tmp_path / "emnist-digits"), validation_examples=5)
    assert len(named.test) == 8


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_images": np.arange(20, dtype=np.uint8)}, "Is it a file of labels under the name of images?"),
        ({"train_labels": np.zeros((20, 4, 3), np.uint8)}, "Is it a file of images under the name of labels?"),
        ({"train_labels": np.arange(19, dtype=np.uint8) % 3}, "has 20 images but train-labels-idx1-ubyte.gz 19 labels"),
        ({"t10k_labels": np.full(8, 3, np.uint8)}, "test labels: label 3 of example 0 is outside the classes 0 to 2"),
        ({"t10k_images": np.zeros((8, 3, 4), np.uint8)}, "training images are 4 x 3, test images 3 x 4"),
        ({"train_images": np.zeros((20, 4, 3), np.float32)}, "expected uint8 images"),
        ({"train_images": b"<html>404</html>"}, "is not an IDX file"),
        ({"train_images": idx_bytes(np.zeros((20, 4, 3), np.uint8))[:-7]}, "shorter than its header says"),
        ({"train_images": np.zeros((0, 4, 3), np.uint8), "train_labels": np.zeros(0, np.uint8)}, "at least one"),
    ],
)  # fmt: skip
def test_files_that_do_not_belong_together_are_refused(tmp_path, changed, message):
    write_folder(tmp_path, **changed)
    with pytest.raises(DataError) as caught:
        load(str(tmp_path), validation_examples=5)
    assert message in str(caught.value)


def test_missing_files_are_named(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"has no t10k-labels-idx1-ubyte or .*It holds: t10k-images"):
        load(str(tmp_path))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="It holds: nothing"):
        load(str(empty))
    (empty / "a.png").touch()
    with pytest.raises(DataError, match=r"no folder for each class. .* names the class: .*/empty/CLASS/a.png"):
        load(str(empty))


@pytest.mark.parametrize("source", ["fashion", "./nowhere", "data/nowhere", "", "**", "~nobody/x", "x" * 300])
def test_unknown_sources(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"Unknown data source|has no train-images"):
        load(source)


def test_a_run_and_its_files_are_no_source(tiny_run, tiny_sweep):
    checkpoint = next((tiny_run / "checkpoints").iterdir())
    for path in (tiny_run, tiny_sweep, checkpoint, tiny_run / "metrics.jsonl", tiny_sweep / "results.csv"):
        with pytest.raises(DataError) as caught:
            load(path)
        of_run = f"is a file or folder of the run {tiny_sweep if tiny_sweep in path.parents else tiny_run}"
        kind = "is a run folder" if path in (tiny_run, tiny_sweep) else of_run
        assert f"{path} {kind}, but a source is images with labels" in str(caught.value)
        assert f"was trained on the source '{TINY.data.source}'" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_examples": 20}, "validation_examples is 20, expected 1 to 19"),
        ({"validation_examples": 0}, "validation_examples is 0, expected 1 or more"),
        ({"validation_examples": 5, "train_examples": -1}, "train_examples is -1"),
        ({"validation": "random"}, "validation is 'random', expected one of auto, front, stratified"),
        ({"classes": "all"}, "classes is 'all', expected one of declared, present"),
        ({"validation_examples": 5, "image_size": (14, 14)}, "only pictures in class folders are scaled"),
        ({"validation_examples": 5, "image_size": (4, 3, 3)}, "image_size is 4x3x3, but the images .* are 4x3;"),
        ({"image_size": 28}, r"image_size is 28, expected \(height, width\) or \(height, width, channels\)"),
        ({"data_dir": "there"}, r"data_dir is there, .* for tfds:NAME alone; leave it out \(--data-dir None\)"),
        ({"validation_examples": 5, "form": "digit"}, "form is digit, which is for pictures in class folders"),
    ],
)
def test_impossible_options_are_refused(tmp_path, options, message):
    write_folder(tmp_path)
    with pytest.raises(UserError, match=message):
        inspect.unwrap(load)(str(tmp_path), **options)  # without the tests' type checks


@pytest.mark.parametrize(("split", "file", "count"), [("train", "train", 20), ("test", "t10k", 8)])
def test_images_of_0_and_1_in_bytes_are_refused(tmp_path, split, file, count):
    ones = np.eye(4, 3, dtype=np.uint8)[None].repeat(count, 0)
    write_folder(tmp_path, **{f"{file}_images": 0 * ones})  # black
    load(tmp_path, validation_examples=5)
    write_folder(tmp_path, **{f"{file}_images": ones})
    with pytest.raises(DataError, match=rf"array of {split} images .* nothing is above 1. If that is white"):
        load(tmp_path, validation_examples=5)


def test_older_runs_have_data_and_options_that_load_refuses(tmp_path):
    write_folder(tmp_path, train_images=np.eye(4, 3, dtype=np.uint8)[None].repeat(20, 0))
    was = DataConfig(str(tmp_path), "there", validation_examples=500, form="digit", image_size=(9, 9))
    found = load_again(was, was)
    assert (found.train.images.max(), len(found.validation)) == (1, 2)
    with pytest.raises(DataError, match="data_dir is elsewhere, but it is for tfds:NAME alone"):
        load_again(replace(was, data_dir="elsewhere"), was)


def test_fewer_training_examples_than_asked_for_are_all_used(tmp_path):
    write_folder(tmp_path)
    found = load(str(tmp_path), validation_examples=5, train_examples=16)
    assert len(found.train) == 15
    assert "train_examples is 16: all that are left are used" in found.describe()


def test_a_class_without_training_examples_is_refused(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "classes.txt").write_text("a\nb\nc\nnever\n")
    with pytest.raises(DataError, match=r"Of the 18 training examples of .*, none is of class never. Train on more"):
        load(tmp_path, validation_examples=2)


def test_fashion_mnist_in_debians_folder_or_a_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lstm_mnist_jax.data.sources.SYSTEM_FASHION_MNIST", tmp_path / "none")
    with pytest.raises(DataError, match=r"Fashion-MNIST is not here.* dataset-fashion-mnist .*--source"):
        load("fashion-mnist")
    monkeypatch.setattr("lstm_mnist_jax.data.sources.SYSTEM_FASHION_MNIST", tmp_path / "system")
    write_folder(tmp_path / "system")
    assert load("fashion-mnist", validation_examples=1).class_names[9] == "Ankle boot"
    assert absolute_source("fashion-mnist") == "fashion-mnist"
    write_folder(tmp_path / "fashion-mnist")
    assert load("fashion-mnist", validation_examples=1).origin == "IDX files fashion-mnist"
    assert absolute_source("fashion-mnist") == str(tmp_path / "fashion-mnist")
    (tmp_path / "digits.csv").write_text("")
    assert absolute_source("digits.csv") == str(tmp_path / "digits.csv")
