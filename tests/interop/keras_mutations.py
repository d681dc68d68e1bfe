"""Damages Keras's files in ways that their structure allows, and reads them.

Prints the outcomes, the time and the peak memory:

    PYTHONPATH=.:tests python tests/interop/keras_mutations.py 20000 [FILE]
"""

import contextlib
import io
import json
import random
import resource
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
from rewriting import rewrite

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop import formats

VALUES = [
    *(None, True, False, -1, 0, 1, 3, 2**70, 1e400, "", "lstm", "LSTM", "Dense", "softmax", "x" * 5000, "nested"),
    *("\x1b[31m", "é"),
    *([], {}, [[]], [None, -1, 5], {"config": 3}, [["lstm_1", 0, 0]], ["lstm_1", 0, 0, {}], {"class_name": "LSTM"}),
    *("sequential", "Model", "kernel:0", "../lstm", "/", "lstm_1/kernel:0"),
    *("GRU", "Bidirectional", "Rescaling", "Normalization", "BatchNormalization", "GlobalMaxPooling1D", "concat"),
]
DTYPES = ["i4", "u1", "f2", "f8", "?", "c8", "S3", h5py.string_dtype(), np.dtype([("a", "f4")]), ">f4"]
SHAPES = [(), (0,), (1,), (4,), (16,), (5, 16), (4, 16), (16, 4), (3, 4, 4), (4, 0), (1 << 20,), (12,), (32,)]


def change_json(rng: random.Random, node: object) -> object:
    """Replaces, removes or repeats a part of decoded JSON."""
    if isinstance(node, dict | list) and node and rng.random() < 0.85:
        items = dict(node) if isinstance(node, dict) else list(node)
        keys = list(items) if isinstance(items, dict) else range(len(items))
        key = rng.choice(list(keys))
        kind = rng.random()
        if kind < 0.1:
            del items[key]
        elif kind < 0.2 and isinstance(items, list):
            items.insert(rng.randrange(len(items) + 1), items[key])
        else:
            items[key] = change_json(rng, items[key])
        return items
    return rng.choice(VALUES)


def changed_json(rng: random.Random, text: bytes | str) -> str:
    """JSON with one change, which may be lists nested more deeply than Python reads them."""
    nested = "[" * 100_000 + "]" * 100_000
    return json.dumps(change_json(rng, json.loads(text))).replace('"nested"', nested)


def change_hdf5(rng: random.Random, data: bytes) -> bytes:
    """One to three changes of attributes, names, shapes, types, values and links."""
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        for _ in range(rng.randint(1, 3)):
            with contextlib.suppress(LookupError, OSError, RuntimeError, TypeError, ValueError):  # not all are possible
                change_item(rng, file)
    return buffer.getvalue()


def change_item(rng: random.Random, file: h5py.File) -> None:
    items: list[str] = [""]
    file.visit(items.append)
    name = rng.choice(items)
    item = file[name] if name else file
    kind = rng.random()
    if kind < 0.25 and "model_config" in file.attrs:
        config = changed_json(rng, file.attrs["model_config"])
        file.attrs.create("model_config", config if rng.random() < 0.95 else config[: len(config) // 2])
    elif kind < 0.55:
        holders = [holder for holder in (file, *(file[path] for path in items[1:])) if len(holder.attrs)]
        attributes = rng.choice(holders).attrs
        change_attribute(rng, attributes, rng.choice(list(attributes)))
    elif kind < 0.62:
        change_attribute(rng, item.attrs, rng.choice(["layer_names", "weight_names", "layer_names0", "name"]))
    elif kind < 0.7 and name:
        del file[name]
    elif kind < 0.78 and name:
        file.move(name, rng.choice(items[1:]) + rng.choice(["_1", "/x", "/vars/0", ":0", "0"]))
    elif kind < 0.82:
        links = [h5py.SoftLink("/" + rng.choice(items)), h5py.ExternalLink("/etc/hostname", "/"), item]
        file[rng.choice(items) + "/link"] = rng.choice(links)
    elif isinstance(item, h5py.Dataset):
        change_dataset(rng, file, name)


def change_attribute(rng: random.Random, attributes: h5py.AttributeManager, name: str) -> None:
    texts = [text for text in np.ravel(attributes.get(name, [])).tolist() if isinstance(text, bytes | str)]
    rng.shuffle(texts)
    other = [b"lstm", b"dense_1", b"\xff\xfe", b"x" * 3000, b"lstm_1/kernel:0", b"2.3", b"-tf", b"a\nb"]
    value = rng.choice(
        [texts, texts[1:], texts * 2, [*texts, rng.choice(other)], rng.choice(other), 3, [1.5, 2.5], "é"]
    )
    kind = rng.random()
    if kind < 0.1:
        del attributes[name]
    else:
        attributes[name] = h5py.Empty("f4") if kind < 0.2 else value


def change_dataset(rng: random.Random, file: h5py.File, name: str) -> None:
    array = file[name][()]
    kind = rng.random()
    if kind < 0.3 and array.size and array.dtype.kind == "f" and array.shape:
        array.flat[rng.randrange(array.size)] = rng.choice([np.nan, np.inf, 1e30, -1e30])
        file[name][...] = array
        return
    del file[name]
    dtype, shape = rng.choice([*DTYPES, "f4", "f4"]), rng.choice(SHAPES)
    options = {"chunks": True, "compression": "gzip"} if shape and 0 not in shape and rng.random() < 0.3 else {}
    file.create_dataset(name, shape, dtype, **options)


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] = rng.choice([0, 1, 0x7F, 0xFF, rng.randrange(256)])
    return bytes(changed) if rng.random() < 0.8 else bytes(changed[: rng.randrange(len(changed))])


def change(rng: random.Random, data: bytes) -> bytes:
    """A damaged file of Keras: HDF5, or a .keras archive."""
    if rng.random() < 0.2:
        return change_bytes(rng, data)
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return change_hdf5(rng, data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(members))
    if rng.random() < 0.05:
        del members[name]
    elif name.endswith(".json"):
        members[name] = changed_json(rng, members[name]).encode()
    else:
        members[name] = change_hdf5(rng, members[name])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def run(files: list[Path], path: Path, count: int, seed: int, max_seconds: float = 5.0) -> Counter[str]:
    """Reads damaged files. Counts the outcomes; any other error, or a slow one, goes through.

    Args:
      files: files of Keras.
      path: where to write the damaged ones; the last one stays there.
      count: how many.
      seed: of the changes.
      max_seconds: the longest that one may take.
    """
    rng, outcomes = random.Random(seed), Counter[str]()
    contents = [file.read_bytes() for file in files]
    for _ in range(count):
        rewrite(path, change(rng, rng.choice(contents)))
        start = time.perf_counter()
        try:
            imported = formats.read("keras", path)
            outcomes["model"] += 1
            assert np.isfinite(imported.params["dense"]["bias"]).all()
        except WeightsError as error:
            outcomes["WeightsError"] += 1
            text = str(error)
            assert len(text) < 20_000
            assert text.isprintable(), repr(text)
        assert time.perf_counter() - start < max_seconds, f"{path} took too long"
    return outcomes


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    fixtures = Path(__file__).parents[1] / "fixtures"
    paths = [*sorted((fixtures / "keras_ages").glob("*.h5")), *sorted((fixtures / "keras2").glob("model.*"))]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        print(run(paths, Path(sys.argv[2] if len(sys.argv) > 2 else folder + "/file"), int(sys.argv[1]), seed=1))
        print(f"{time.perf_counter() - start:.0f} s, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")
