"""CSV, .npz and .npy files in the forms in which people have them, against the arrays that were written."""

import codecs
import gzip
import io
import zipfile

import numpy as np
import pytest

from lstm_mnist_jax.data import load
from lstm_mnist_jax.data.csv_table import read_csv
from lstm_mnist_jax.errors import DataError

COUNT = 24
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (COUNT, 6, 6), np.uint8)
IMAGES[:, 0, 0] = IMAGES[:, -1, -1] = 0  # corners are black
IMAGES[:, 2:5, 1] = 255  # and no image is the same turned or mirrored
LABELS = np.arange(COUNT) % 3
FLAT = IMAGES.reshape(COUNT, -1)
NAMES = np.array(["ant", "bee", "cat 10"])


def small(path, **options):
    return load(path, **{"validation_examples": 5, "test_fraction": 0.25} | options)


def joined(found):
    """All examples of a data set as {image: class name}."""
    return {
        image.tobytes(): found.class_names[label]
        for split in found.splits.values()
        for image, label in zip(split.images, split.labels, strict=True)
    }


EXPECTED = {image.tobytes(): str(label) for image, label in zip(IMAGES, LABELS, strict=True)}
NAMED = {image.tobytes(): NAMES[label] for image, label in zip(IMAGES, LABELS, strict=True)}


def text(cells, delimiter=",", end="\n", header=None):
    rows = [header] if header else []
    return end.join(delimiter.join(map(str, row)) for row in [*rows, *cells]) + end


FIRST, LAST = np.column_stack([LABELS, FLAT]), np.column_stack([FLAT, LABELS])
PIXELS = [f"pixel{n}" for n in range(36)]
BY_NAME = sorted(range(36), key=str)  # as text, 10 is before 2

TABLES = {
    "label first": text(FIRST),
    "label last": text(LAST),
    "Kaggle's header": text(FIRST, header=["label", *PIXELS]),
    "OpenML's header": text(LAST, header=[*PIXELS, "class"]),
    "rows x columns": text(FIRST, header=["label", *(f"{n // 6 + 1}x{n % 6 + 1}" for n in range(36))]),
    "quoted": text(FIRST, header=[f'"{name}"' for name in ["Label", *PIXELS]]),
    "quoted cells": text([[f'"{cell}"' for cell in row] for row in FIRST]),
    "semicolons": text(FIRST, ";"),
    "tabs": text(FIRST, "\t"),
    "spaces": text(FIRST, " "),
    "Windows": text(FIRST, end="\r\n", header=["label", *PIXELS]),
    "old Mac": text(FIRST, end="\r"),
    "byte order mark": codecs.BOM_UTF8.decode() + text(FIRST, header=["label", *PIXELS]),
    "UTF-16": text(FIRST).encode("utf-16"),
    "gzip": gzip.compress(text(FIRST).encode()),
    "as numpy.savetxt": text(FIRST, header=["# label", *PIXELS]),
    "floats": text([[f"{cell}.0" for cell in row] for row in FIRST]),
    "0 to 1": text([[row[0], *(f"{cell / 255:.6f}" for cell in row[1:])] for row in FIRST]),
    "0,5": text([[row[0], *(f"{cell / 255:.6f}".replace(".", ",") for cell in row[1:])] for row in FIRST], ";"),
    "pandas' index": text(np.column_stack([np.arange(COUNT), FIRST]), header=["", "label", *PIXELS]),
    "pandas without names": text(FIRST, header=range(37)),
    "pandas' index without names": text(np.column_stack([np.arange(COUNT), LAST]), header=["", *range(37)]),
    "numbers and a name": text(FIRST, header=["lettr", *range(36)]),
    "pixels by name": text(
        np.column_stack([LABELS, FLAT[:, BY_NAME]]), header=["label", *(PIXELS[n] for n in BY_NAME)]
    ),
    "empty lines": "\n" + text(FIRST).replace("\n", "\n\n"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_of_text(tmp_path, kind):
    content = TABLES[kind]
    (tmp_path / "digits.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    found = small(tmp_path / "digits.csv")
    assert joined(found) == EXPECTED
    assert [len(split) for split in found.splits.values()] == [13, 5, 6]
    assert "labels in" in found.describe()
    assert ("; column 1 '' left out" in found.describe()) == kind.startswith("pandas' index")
    assert joined(small(tmp_path)) == EXPECTED  # the folder of the file


@pytest.mark.parametrize("last", [False, True])
def test_names_as_labels(tmp_path, last):
    cells = [[*row, NAMES[label]] if last else [NAMES[label], *row] for row, label in zip(FLAT, LABELS, strict=True)]
    (tmp_path / "a.csv").write_text(text(cells))
    found = small(tmp_path / "a.csv")
    assert (found.class_names, joined(found)) == (tuple(NAMES), NAMED)


def npz_of(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


ONE_HOT = np.eye(3)[LABELS]
X, Y = IMAGES, LABELS
ARCHIVES = {
    "Keras": {"x_train": X[:16], "y_train": Y[:16], "x_test": X[16:], "y_test": Y[16:]},
    "MedMNIST": {
        "train_images": X[:10], "train_labels": Y[:10, None], "val_images": X[10:16], "val_labels": Y[10:16, None],
        "test_images": X[16:], "test_labels": Y[16:, None],
    },
    "capitals": {"X_train": X[:16], "Y_train": Y[:16], "X_test": X[16:], "Y_test": Y[16:]},
    "words together": {"trainX": X[:16], "trainY": Y[:16], "testX": X[16:], "testY": Y[16:]},
    "x and y": {"x": X, "y": Y},
    "images and labels": {"images": X, "labels": Y, "remark": np.array("of 2026")},
    "data and target": {"data": X.reshape(COUNT, -1), "target": Y.astype(float)},
    "flat": {"x": FLAT, "y": Y},
    "channel first": {"x": X[:, None], "y": Y},
    "channel last": {"x": X[..., None], "y": Y},
    "one-hot": {"x": X, "y": ONE_HOT},
    "0 to 1": {"x": (X / 255).astype(np.float32), "y": Y},
    "0 to nearly 1": {"x": (X / 255 * 1.000001).astype(np.float32), "y": Y},
    "16 bits": {"x": X.astype(np.uint16) * 257, "y": Y},
    "int64": {"x": X.astype(">i8"), "y": Y.astype(np.uint8)},
    "Fortran": {"x": np.asfortranarray(X), "y": Y},
}  # fmt: skip


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives_of_arrays(tmp_path, kind):
    (tmp_path / "a.npz").write_bytes(npz_of(**ARCHIVES[kind]))
    found = small(tmp_path / "a.npz")
    assert joined(found) == EXPECTED
    assert found.train.images.dtype == np.uint8
    np.testing.assert_array_equal(found.test.images[-1], IMAGES[-1]) if "x_test" in ARCHIVES[kind] else None
    assert ("not read: a.npz: remark" in found.describe()) == ("remark" in ARCHIVES[kind])


def test_names_and_colours_in_archives(tmp_path):
    colour = np.stack([X, X // 2, X // 3], axis=1)
    for labels in (NAMES[Y], NAMES[Y].astype(bytes)):
        np.savez(tmp_path / "a.npz", x=colour, y=labels)
        found = small(tmp_path / "a.npz")
        assert (found.class_names, found.image_shape) == (tuple(NAMES), (6, 6, 3))
        assert "channels moved from the second axis to the last" in found.describe()
        assert all((image[..., 1] == image[..., 0] // 2).all() for image in found.train.images)


def test_folders_of_files(tmp_path):
    """As KMNIST is published; arrays one a file; and tables one a split, as of Kaggle."""
    for name, array in {
        "train-imgs": X[:16],
        "train-labels": Y[:16],
        "test-imgs": X[16:],
        "test-labels": Y[16:],
    }.items():
        (tmp_path / "kmnist").mkdir(exist_ok=True)
        np.savez(tmp_path / "kmnist" / f"kmnist-{name}.npz", array)
        (tmp_path / "npy").mkdir(exist_ok=True)
        np.save(tmp_path / "npy" / f"{name}.npy", array)
    (tmp_path / "npy" / "classes.txt").write_text("ant\nbee\ncat 10\n")
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "train.csv").write_text(text(FIRST[:16], header=["label", *PIXELS]))
    (tmp_path / "csv" / "mnist_test.csv").write_text(text(FIRST[16:], header=["label", *PIXELS]))
    (tmp_path / "csv" / "sample_submission.csv").write_text("ImageId,Label\n1,0\n")
    for name, expected in {"kmnist": EXPECTED, "npy": NAMED, "csv": EXPECTED}.items():
        found = small(tmp_path / name)
        assert joined(found) == expected
        np.testing.assert_array_equal(found.test.images, IMAGES[16:])
    (tmp_path / "csv" / "mnist_test.csv").write_text(text(FLAT, header=PIXELS))  # without labels, as of Kaggle
    found = small(tmp_path / "csv")
    assert len(found.test) == 4
    assert "mnist_test.csv without labels: not used" in found.describe()
    assert "not read: sample_submission.csv" in found.describe()


def test_what_is_assumed_is_said(tmp_path):
    np.savez(tmp_path / "a.npz", x=X // 16, y=Y)
    found = small(tmp_path / "a.npz")
    assert "pixels from 0 to 15, scaled to 255" in found.describe()
    assert set(joined(found)) == {(image // 16 * 17).tobytes() for image in IMAGES}
    np.savez(tmp_path / "a.npz", x=X // 4, y=Y)
    assert "the brightest pixel is 63 of 255" in small(tmp_path / "a.npz").describe()
    np.savez(tmp_path / "a.npz", x=X // 255, y=Y)
    assert "pixels from 0 to 1, times 255" in small(tmp_path / "a.npz").describe()
    np.savez(tmp_path / "a.npz", x=X, y=Y + 1)
    assert small(tmp_path / "a.npz", classes="present").class_names == ("1", "2", "3")
    np.savez(tmp_path / "a.npz", x=X, y=Y, class_names=NAMES)
    assert "not read: a.npz: class_names" in small(tmp_path / "a.npz").describe()
    np.savez(tmp_path / "a.npz", x=FLAT, y=Y)
    assert small(tmp_path / "a.npz", image_size=(4, 9)).image_shape == (4, 9)
    np.savez(tmp_path / "a.npz", x=np.pad(255 - X, ((0, 0), (9, 9), (9, 9)), constant_values=250), y=Y)
    assert "dark on a light background" in small(tmp_path / "a.npz").describe()
    np.savez(tmp_path / "a.npz", x=FLAT, y=Y)
    colours = small(tmp_path / "a.npz", image_size=(4, 3, 3))
    assert "the three channels of a pixel stand together in a row, which is assumed" in colours.describe()
    names = np.array(["ant", "b", "B", "Ant"])[Y + (np.arange(COUNT) > 20)]
    np.savez(tmp_path / "a.npz", x=X, y=names)
    assert "classes whose names differ only in case: 'Ant' and 'ant'\n" in small(tmp_path / "a.npz").describe() + "\n"
    corner = FIRST.copy()
    corner[:, -1] = LABELS[::-1]
    (tmp_path / "b.csv").write_text(text(corner))
    assert "labels in the first column, which is assumed" in small(tmp_path / "b.csv").describe()


def test_emnist_as_a_table_is_transposed(tmp_path):
    """A file that is named, and the two files of a folder; other tables beside them are not of one orientation."""
    cells = FIRST + np.eye(1, 37, dtype=int)
    (tmp_path / "emnist-letters-train.csv").write_text(text(cells))
    one = small(tmp_path / "emnist-letters-train.csv", classes="present")
    (tmp_path / "emnist-letters-train.csv").write_text(text(cells[:16]))
    (tmp_path / "EMNIST-letters-test.csv").write_text(text(cells[16:]))
    for found in (one, small(tmp_path, classes="present")):
        assert found.class_names == ("a", "b", "c")
        assert set(joined(found)) == {np.ascontiguousarray(image.T).tobytes() for image in IMAGES}
        assert "transposed, as EMNIST is published" in found.describe()
    (tmp_path / "EMNIST-letters-test.csv").rename(tmp_path / "test.csv")
    with pytest.raises(DataError, match=r"several sets, or of EMNIST and others: emnist-letters-train.csv, test.csv"):
        small(tmp_path)


PANDAS_HEADER = [0, *(f"0.{n}" for n in range(1, 36)), 1]
BY_COLUMN = ["label", *(f"x{x}y{y}" for y in range(6) for x in range(6))]

BAD_TABLES = {
    "": "is empty",
    "a\nb\n": "row 1: it has 1 column, expected a label and pixels",
    text(FIRST) + "1,2,3\n": "row 25: it has 3 columns, the first row 37",
    text(FIRST)[:-20]: "row 24: it has .* columns, the first row 37",
    text(FIRST).replace("\n2,", "\n2,x", 1): "row 3, column 2: 'x.*' is no pixel",
    text(FIRST, header=["label", *PIXELS]).replace("\n2,", "\n2,nan,", 1): "row 4: it has 38 columns",
    text([[1, "nan", *[3] * 35]] * 3): "row 1, column 2: 'nan' is no pixel",
    text([[1, -1, *[3] * 35]] * 3): "row 1, column 2: '-1' is no pixel",
    text([[n % 2, 256, *[3] * 35] for n in range(9)]): "row 1, column 2: '256' is no pixel",
    text([[n % 2, *[3] * 35] for n in range(9)]): "an image has 35 pixels; it is no square: give height and width",
    text(np.column_stack([range(24), FIRST])): "37 pixels; without one .* 6 x 6. The column taken for labels counts",
    text(np.column_stack([range(24), LAST])): "24 and 3 values.* Its first column counts the rows",
    text([[n, n % 3, *[0] * 36] for n in range(1200)]): "nor its last column can be labels .* Its first column counts",
    text(FIRST, header=["label", *PIXELS]).replace("\n1,", "\n1.5,", 1): "row 3: the label is '1.5', but nearly all",
    text(FIRST.T): "no square.*or is the table transposed",
    text(FIRST, header=["label", *PIXELS[:-1], "remark"]): "neither labels nor pixels: remark",
    text(FIRST, header=["label", "class", *PIXELS[1:]]): "several columns could be the labels: label, class",
    text(FIRST, header=PANDAS_HEADER): "its first row is an image that pandas took for a header",
    text(FIRST, header=BY_COLUMN): "its header has x0y0 before x1y0",
    text(FIRST, header=["label", *PIXELS]).replace("\n1,", "\nnan,", 1): "row 3: the label is 'nan'",
    text(FIRST, header=["label", *PIXELS]).replace("\n1,", "\n,", 1): "row 3: its label has no characters",
    text([[n % 7 * 2, *range(1, 36), n % 30] for n in range(60)]): "its first or its last column.*7 and 30 values",
    text([["ab"[n % 2], 7.8, n, 3.1, 2] for n in range(9)]): "a pixel is 8, and none is brighter|a pixel is 7.8",
    text(FIRST[LABELS == 0]): "neither its first nor its last",
    text(FLAT, header=PIXELS): "of the train split, the labels are missing",
    text([[7, *[0] * 36]] * 9): "neither its first nor its last column can be labels",
    "label," + ",".join(PIXELS): "has a header, but no images",
    '"' + text(FIRST): "row 1: ",
    b"\xff\xfa\x00" * 30: "is not text",
    gzip.compress(text(FIRST).encode())[:-12]: "damaged or truncated gzip",
    b"\x89PNG\r\n\x1a\n" + bytes(50): "is not text|row",
    "7" * (1 << 24) + "7": "row 1: it has more than 16,777,216 characters",
    gzip.compress((text([[1, *[0] * 784]]) * 2_000).encode()): "would take",
}  # fmt: skip


def test_damaged_tables_of_text(tmp_path, monkeypatch):
    monkeypatch.setattr("lstm_mnist_jax.data.idx.FREE_BYTES", 1 << 20)
    for content, message in BAD_TABLES.items():
        (tmp_path / "a.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(DataError, match=f"(?s)a.csv.*{message}"):
            small(tmp_path / "a.csv")


def absurd_header():
    """An archive whose member says that it is 8 TB."""
    file, content = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(
        content, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 2800, 2800)}
    )
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", content.getvalue() + bytes(1000))
        archive.writestr("y.npy", content.getvalue())
    return file.getvalue()


def bomb():
    file, content = io.BytesIO(), io.BytesIO()
    np.save(content, np.zeros((4, 1024, 1024), np.uint8))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content.getvalue())
        archive.writestr("y.npy", content.getvalue()[:200])
    return file.getvalue()


BAD_ARCHIVES = {
    "pickles": (lambda: npz_of(x=X, y=NAMES[Y].astype(object)), "array 'y', holds Python objects"),
    "cut": (lambda: npz_of(x=X, y=Y)[:-80], "cannot be read.*Is it damaged"),
    "checksum": (lambda: npz_of(x=X, y=Y)[:200] + b"????" + npz_of(x=X, y=Y)[204:], "array 'x'.*(damaged|cannot)"),
    "header": (absurd_header, "array 'x', is damaged: its header gives uint8 of shape"),
    "bomb": (bomb, "array 'x', has .* bytes and would take 4,194"),
    "no archive": (lambda: b"x" * 100, "cannot be read"),
    "no labels": (lambda: npz_of(x=X), "the labels are missing; found: a.npz: x"),
    "counts": (lambda: npz_of(x=X, y=Y[:-1]), "24 images but 23 labels"),
    "no names": (lambda: npz_of(arr_0=X, arr_1=Y), "a.npz: arr_0.*numpy.savez.file, x_train=..., y_train=...."),
    "a stray label": (
        lambda: npz_of(x=X, y=np.where(np.arange(COUNT) == 5, 37, Y)),
        "of class 3, 4, .* The largest label is 37, of 1 example .first: example 5 of the train split.; .* is 2. Train",
    ),
    "a stray label in test": (
        lambda: npz_of(x=X, y=Y, x_test=X, y_test=np.where(np.arange(COUNT) > 20, 7, Y)),
        "The largest label is 7, of 3 examples .first: example 21 of the test split.; the next smaller one is 2",
    ),
    "no one-hot": (lambda: npz_of(x=X, y=ONE_HOT + ONE_HOT[::-1]), "are not one-hot"),
    "negative label": (lambda: npz_of(x=X, y=Y - 1), "label -1 of example 0 is no class"),
    "large label": (lambda: npz_of(x=X, y=Y * 10**6), "label 2000000 is too large"),
    "half label": (lambda: npz_of(x=X, y=Y / 2), "label 0.5 of example 1 is no class"),
    "normalized": (lambda: npz_of(x=X / 127.5 - 1, y=Y), r"pixel \[0, 0\] of image 0 is -1.0.*Undo a n.*docs/layers"),
    "NaN": (lambda: npz_of(x=np.where(X[3, 3, 3] == X, np.nan, X), y=Y), "is nan; expected 0 to 255"),
    "too large": (lambda: npz_of(x=X.astype(int) * 2, y=Y), "a pixel is 510"),
    "two scales": (lambda: npz_of(x_train=X, y_train=Y, x_test=X / 255, y_test=Y), "255 in train, 1 in test"),
    "divided by the deviation": (lambda: npz_of(x=X / 78.5, y=Y), "a pixel is 3.24841, and none is brighter"),
    "12 bits": (lambda: npz_of(x=X.astype(np.uint16) * 16, y=Y), "a pixel is 4080, and none is brighter"),
    "one class": (lambda: npz_of(x=X, y=Y * 0), "examples of one class only, '0'"),
    "two": (lambda: npz_of(x=X, images=X, y=Y), "both a.npz: x and a.npz: images could be the train split"),
    "two sizes": (lambda: npz_of(x_train=X, y_train=Y, x_test=X[:, 1:], y_test=Y), "images of several sizes: 5 x 6"),
    "text": (lambda: npz_of(x=NAMES[Y][:, None], y=Y), "the images are of type <U6"),
    "from 1": (lambda: npz_of(x=X, y=Y + 1), "none is of class 0.*--classes present"),
}  # fmt: skip


def test_damaged_archives(tmp_path, monkeypatch):
    monkeypatch.setattr("lstm_mnist_jax.data.idx.FREE_BYTES", 1 << 20)
    for make, message in BAD_ARCHIVES.values():
        (tmp_path / "a.npz").write_bytes(make())
        with pytest.raises(DataError, match=f"(?s)a.npz.*{message}"):
            small(tmp_path / "a.npz")
    np.save(tmp_path / "x_train.npy", NAMES.astype(object))
    np.save(tmp_path / "y_train.npy", Y)
    (tmp_path / "a.npz").unlink()
    with pytest.raises(DataError, match=r"x_train.npy holds Python objects, which are not read"):
        small(tmp_path)
    with pytest.raises(DataError, match=r"is one array. Name its folder"):
        small(tmp_path / "y_train.npy")


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_csv(tmp_path / "none.csv")
