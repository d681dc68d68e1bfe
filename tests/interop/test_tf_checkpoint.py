"""TensorFlow's checkpoint files: against what TensorFlow wrote, published checksums, real Snappy, and damage."""

import random
import re
import shutil
from pathlib import Path

import cramjam
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rewriting import rewrite

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.tf_checkpoint import bundle, find_prefix, read_checkpoint, sstable, write_checkpoint
from lstm_mnist_jax.interop.tf_checkpoint.messages import Malformed, decode_tensor, new
from lstm_mnist_jax.interop.tf_checkpoint.sstable import (
    MASK_DELTA,
    decompress_snappy,
    masked_crc32c,
    read_varint,
    varint,
)

TF1 = Path(__file__).parents[1] / "fixtures" / "tf1"
DT_FLOAT = 1
FORMATS = ["tutorial", "v1", "partitioned", "two_shards"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [  # RFC 3720, appendix B.4, and the check value of the CRC catalogues
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_checksums_equal_the_published_ones(data, expected):
    rotated = masked_crc32c(data) - MASK_DELTA & 0xFFFFFFFF
    assert (rotated >> 17 | rotated << 15) & 0xFFFFFFFF == expected


@given(st.binary(max_size=500), st.integers(1, 60))
def test_snappy_round_trips(data, times):
    data *= times
    assert decompress_snappy(bytes(cramjam.snappy.compress_raw(data))) == data


@pytest.mark.parametrize("data", [b"", b"\5", b"\5\0a", b"\xff\xff\xff\xff\x0f\0a", b"\4\5\1", b"\1\0ab"])
def test_damaged_compressed_data_are_refused(data):
    with pytest.raises(Malformed):
        decompress_snappy(data)


@given(st.integers(0, 2**64 - 1))
def test_varints_round_trip(value):
    assert read_varint(b"x" + varint(value), 1) == (value, 1 + len(varint(value)))


@given(st.dictionaries(st.binary(max_size=40), st.binary(max_size=40), max_size=60))
def test_tables_round_trip(items):
    assert dict(sstable.read_table(sstable.write_table(sorted(items.items())))) == items


def test_a_table_of_many_blocks_and_of_compressed_ones(monkeypatch):
    items = [(f"name/{number:05d}".encode(), bytes(50)) for number in range(500)]
    monkeypatch.setattr(sstable, "BLOCK_SIZE", 1000)
    table = sstable.write_table(items)
    assert list(sstable.read_table(table)) == items
    assert list(sstable.read_table(compressed(table))) == items


def compressed(table):
    """The same table with all its blocks compressed by Snappy."""
    footer = table[-sstable.FOOTER_SIZE :]
    output = bytearray()

    def move(data, position):
        offset, size, _ = sstable._read_handle(data, position)
        return append(bytes(table[offset : offset + size]))

    def append(block):
        block = bytes(cramjam.snappy.compress_raw(block))
        handle = varint(len(output)) + varint(len(block))
        output.extend(block + b"\x01" + masked_crc32c(block + b"\x01").to_bytes(4, "little"))
        return handle

    _, _, position = sstable._read_handle(footer, 0)
    offset, size, _ = sstable._read_handle(footer, position)
    entries = [(key, move(handle, 0)) for key, handle in sstable._entries(table[offset : offset + size])]
    metaindex = move(footer, 0)
    index = bytearray()
    sstable._append_block(index, entries)
    handles = metaindex + append(bytes(index[: -sstable.TRAILER_SIZE]))
    return bytes(output) + handles.ljust(sstable.FOOTER_SIZE - 8, b"\0") + sstable.MAGIC


def test_a_checkpoint_with_a_compressed_index(tmp_path):
    shutil.copytree(TF1 / "tutorial", tmp_path, dirs_exist_ok=True)
    index = tmp_path / "model.ckpt.index"
    index.write_bytes(compressed(index.read_bytes()))
    assert_equal(read_checkpoint(tmp_path / "model.ckpt"), read_checkpoint(TF1 / "tutorial" / "model.ckpt"))


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(expected[name]), strict=True)


DTYPES = ["float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "bool", "complex64"]


def test_types_and_shapes_round_trip(tmp_path, rng):
    arrays = {f"a/{dtype}": rng.integers(0, 2, (2, 3)).astype(dtype) for dtype in DTYPES}
    arrays |= {"b": np.ones(4, ml_dtypes.bfloat16), "empty": np.zeros((0, 3), np.float32), "c": np.array(-1.5)}
    arrays["ümlaut"] = np.asfortranarray(rng.standard_normal((300, 70)))
    write_checkpoint(tmp_path / "new" / "model.ckpt-7", arrays)
    assert_equal(read_checkpoint(tmp_path / "new"), dict(sorted(arrays.items())))
    assert find_prefix(tmp_path / "new").name == "model.ckpt-7"


def test_written_files_equal_tensorflows(tmp_path):
    variables = read_checkpoint(TF1 / "tutorial" / "model.ckpt")
    write_checkpoint(tmp_path / "model.ckpt", {name: np.asarray(array) for name, array in variables.items()})
    data = "model.ckpt.data-00000-of-00001"
    assert (tmp_path / data).read_bytes() == (TF1 / "tutorial" / data).read_bytes()
    ours, theirs = (
        dict(sstable.read_table((folder / "model.ckpt.index").read_bytes())) for folder in (tmp_path, TF1 / "tutorial")
    )
    assert ours == theirs


@pytest.mark.parametrize("ending", ["", ".index", ".meta", ".data-00000-of-00001"])
def test_find_prefix_accepts_any_file_of_a_checkpoint(ending):
    assert find_prefix(TF1 / "tutorial" / f"model.ckpt{ending}") == TF1 / "tutorial" / "model.ckpt"
    assert find_prefix(TF1 / "v1_sharded" / "model.ckpt-00000-of-00001") == TF1 / "v1_sharded" / "model.ckpt"


def test_find_prefix_of_a_folder_is_its_latest_checkpoint(tmp_path):
    assert find_prefix(TF1 / "tutorial") == TF1 / "tutorial" / "model.ckpt"
    for step in (1, 20, 3):
        write_checkpoint(tmp_path / f"model.ckpt-{step}", {"a": np.zeros(1)})
    assert find_prefix(tmp_path).name == "model.ckpt-1"  # the name in the folder's file
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/gone/since/model.ckpt-20"\n')
    assert find_prefix(tmp_path).name == "model.ckpt-20"
    (tmp_path / "checkpoint").unlink()
    with pytest.raises(WeightsError, match=r"Name one: model.ckpt-1, model.ckpt-20, model.ckpt-3"):
        find_prefix(tmp_path)


@pytest.mark.parametrize(
    "named",
    [
        r"C:\\Users\\me\\model.ckpt-2",
        r"C:\Users\me\model.ckpt-2",
        "/another/machine/model.ckpt-2",
        "./model.ckpt-2",
        "gone/model.ckpt-2",
        r"model\056ckpt-2",
        "{other}/model.ckpt-2",  # the folder is a copy of this one
    ],
)
def test_the_path_in_a_checkpoint_file_may_be_foreign(tmp_path, named):
    here, other = tmp_path / "here", tmp_path / "other"
    for folder in (here, other):
        for step in (1, 2):
            write_checkpoint(folder / f"model.ckpt-{step}", {"a": np.zeros(1)})
    (here / "checkpoint").write_text(f'model_checkpoint_path: "{named.format(other=other)}"\n')
    assert find_prefix(here) == here / "model.ckpt-2"
    (here / "checkpoint").write_text(f'model_checkpoint_path: "{other}/other.ckpt-7"\n')
    with pytest.raises(WeightsError, match=r"names .*other.ckpt-7, which is not there. Name one: model.ckpt-1, model"):
        find_prefix(here)


def test_a_wrong_prefix_is_refused_with_the_checkpoints_there(tmp_path):
    for file in ("v1/model.ckpt", "v1_sharded/model.ckpt-00000-of-00001", "tutorial/model.ckpt.index"):
        shutil.copy(TF1 / file, tmp_path / file.replace("/", "-"))
    (tmp_path / "other.txt").write_text("no checkpoint")
    with pytest.raises(WeightsError, match=r"There are tutorial-model.ckpt, v1-model.ckpt, v1_sharded-model.ckpt in"):
        find_prefix(tmp_path / "v1-model")
    with pytest.raises(WeightsError, match=r"other.txt is no TensorFlow checkpoint, or cut short. There are tutorial"):
        find_prefix(tmp_path / "other.txt")
    data = tmp_path / "lost.data-00000-of-00001"
    data.write_bytes(b"1234")
    with pytest.raises(WeightsError, match=r"is a part without its lost.index. There are tutorial-model"):
        find_prefix(data)


def test_missing_files_are_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"no model.ckpt.index. There is none in"):
        read_checkpoint(tmp_path / "model.ckpt")
    with pytest.raises(WeightsError, match=r"There are model.ckpt in .*with the step that it added"):
        read_checkpoint(TF1 / "tutorial" / "model.ckpt-10")
    shutil.copy(TF1 / "two_shards" / "model.ckpt.index", tmp_path)
    shutil.copy(TF1 / "two_shards" / "model.ckpt.data-00000-of-00002", tmp_path)
    with pytest.raises(WeightsError, match=r"cell_1.*its file model.ckpt.data-00001-of-00002 is missing"):
        read_all(tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "no header"),
        ({b"": b"\x10\x01"}, "big-endian"),
        ({b"": b"\x1a\x02\x10\x09"}, "needs a reader of version 9"),
        ({b"": b"\x08\x01", b"a": b"\x08\x07\x12\x00"}, "type string, which holds no numbers"),
        ({b"": b"\x08\x01", b"a": b"\x08\x63\x12\x00"}, "TensorFlow type 99, which holds no numbers"),
        ({b"": b"\x08\x01", b"a": b"\x08\x01\x12\x0d\x12\x0b\x08" + b"\xff" * 9 + b"\x01"}, "makes no sense"),
        ({b"": b"\x08\x01", b"a": b"\x08\x01\x12\x04\x12\x02\x08\x05\x28\x07"}, "has 7 bytes"),
        ({b"": b"\x08\x01", b"a": b"\x08\x01\x12\x00\x28\x04"}, "data-00000-of-00001 is missing"),
        ({b"": b"\x08\x01", b"\xc3": b""}, "is no text"),
        ({b"": b"\x08\x01", b"a": b"\x0b"}, "cannot be parsed"),
    ],
)
def test_unsupported_files_are_refused(tmp_path, entries, message):
    (tmp_path / "model.ckpt.index").write_bytes(sstable.write_table(sorted(entries.items())))
    with pytest.raises(WeightsError, match=message):
        read_all(tmp_path / "model.ckpt")


def read_all(prefix):
    return {name: np.asarray(variable) for name, variable in read_checkpoint(prefix).items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_truncation_and_flipped_bits_are_always_detected(tmp_path, name):
    """Every byte of a file is under a checksum, but for the footer's padding and the place of the metaindex."""
    for file in (TF1 / name).iterdir():
        for other in (TF1 / name).iterdir():
            shutil.copy(other, tmp_path)
        data = file.read_bytes()
        random.seed(0)
        places = sorted(random.sample(range(len(data)), min(len(data), 60)))
        for place in places:
            rewrite(tmp_path / file.name, data[:place])
            with pytest.raises(WeightsError):
                read_all(tmp_path / "model.ckpt")
            if place < len(data) - sstable.FOOTER_SIZE or ".data-" in file.name:
                flipped = bytes([data[place] ^ 1 << random.randrange(8)])
                rewrite(tmp_path / file.name, data[:place] + flipped + data[place + 1 :])
                if not is_in_the_unused_metaindex(data, place):
                    with pytest.raises(WeightsError):
                        read_all(tmp_path / "model.ckpt")


def is_in_the_unused_metaindex(data, place):
    if not sstable.is_table(data):
        return False
    offset, size, _ = sstable._read_handle(data[-sstable.FOOTER_SIZE :], 0)
    return offset <= place < offset + size + sstable.TRAILER_SIZE


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_entries_with_valid_checksums_raise_only_weights_errors(tmp_path, name):
    """Thousands of changes to the contents of the tables, which no checksum finds."""
    for file in (TF1 / name).iterdir():
        shutil.copy(file, tmp_path)
    target = next(file for file in tmp_path.iterdir() if ".data-" not in file.name)
    items = list(sstable.read_table(target.read_bytes()))
    generator = random.Random(name)
    refused = 0
    for _ in range(500):
        changed = [(key, mutated(value, generator) if generator.random() < 0.3 else value) for key, value in items]
        if generator.random() < 0.3:
            changed[generator.randrange(len(items))] = (mutated(items[0][0] or b"abc", generator), b"\x08\x01")
        rewrite(target, sstable.write_table(sorted(dict(changed).items())))
        try:
            arrays = read_all(tmp_path / "model.ckpt")
            assert sum(array.nbytes for array in arrays.values()) < 1 << 20
        except WeightsError as error:
            assert re.match(r"The (checkpoint|variable) .* (is damaged|is not supported): ", str(error), re.DOTALL)
            refused += 1
    assert refused > 250


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tutorial", "v1"])
def test_damaged_blocks_with_valid_checksums_raise_only_weights_errors(tmp_path, name):
    for file in (TF1 / name).iterdir():
        shutil.copy(file, tmp_path)
    target = next(file for file in tmp_path.iterdir() if ".data-" not in file.name)
    tables = [data := target.read_bytes(), compressed(data)]
    generator = random.Random(0)
    refused = 0
    for number in range(600):
        table = tables[number % 2]
        offset, size, _ = sstable._read_handle(*place_of_a_block(table, generator))
        block = mutated(table[offset : offset + size], generator)[:size].ljust(size, b"\0") + table[offset + size :][:1]
        crc = masked_crc32c(block).to_bytes(4, "little")
        rewrite(target, table[:offset] + block + crc + table[offset + size + 5 :])
        try:
            read_all(tmp_path / "model.ckpt")
        except WeightsError:
            refused += 1
    assert refused > 250


def place_of_a_block(table, generator):
    """A handle of the index block or of the first data block."""
    footer = table[-sstable.FOOTER_SIZE :]
    _, _, position = sstable._read_handle(footer, 0)
    if generator.random() < 0.3:
        return footer, position
    offset, size, _ = sstable._read_handle(footer, position)
    return next(sstable._entries(sstable._read_block(table, offset, size)))[1], 0


def mutated(data, generator):
    """The bytes with some changed, cut, doubled or put in."""
    changed = bytearray(data)
    for _ in range(generator.randint(1, 3)):
        place = generator.randrange(len(changed) + 1)
        kind = generator.randrange(4)
        if kind == 0 and place < len(changed):
            changed[place] ^= 1 << generator.randrange(8)
        elif kind == 1:
            changed[place:] = changed[place:][generator.randint(0, 4) :]
        elif kind == 2:
            changed[place:place] = generator.choice([b"\xff" * 9 + b"\x01", b"\x00", b"\x80", changed[:5]])
        else:
            changed[place : place + 1] = bytes([generator.randrange(256)])
    return bytes(changed)


def test_a_state_file_that_names_its_own_folder_or_no_shards(tmp_path):
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "."\n')
    with pytest.raises(WeightsError, match="Name one: none"):
        find_prefix(tmp_path)
    (tmp_path / "m.ckpt-abcde-of-fghij").write_text("")
    with pytest.raises(WeightsError, match="is not a TensorFlow checkpoint"):
        find_prefix(tmp_path / "m.ckpt")


def test_keys_and_variables_that_claim_more_than_there_is_are_refused(tmp_path):
    # Each key shares all of the one before.
    keys = [varint(max(0, size - 1)) + varint(min(size, 1)) + varint(0) + b"k"[:size] for size in range(3000)]
    block = b"".join(keys) + bytes(4) + b"\1\0\0\0" + b"\0"
    output = bytearray(block + masked_crc32c(block).to_bytes(4, "little"))
    index = [(b"k", varint(0) + varint(len(block) - 1))]
    footer = sstable._append_block(output, []) + sstable._append_block(output, index)
    table = bytes(output) + footer.ljust(sstable.FOOTER_SIZE - 8, b"\0") + sstable.MAGIC
    assert len(table) < 20_000
    with pytest.raises(Malformed, match="keys are too long"):
        list(sstable.read_table(table))
    write_checkpoint(tmp_path / "model.ckpt", {"a": np.zeros(100, np.float32)})
    index = tmp_path / "model.ckpt.index"
    items = dict(sstable.read_table(index.read_bytes()))
    index.write_bytes(sstable.write_table(sorted((items | {b"b": items[b"a"]}).items())))
    with pytest.raises(WeightsError, match="its variables have 800 bytes, its data files 400"):
        read_checkpoint(tmp_path / "model.ckpt")


def test_a_slice_of_another_shape_without_values_is_not_taken_for_its_variable():
    part = ((0, 0), (0, 2)), lambda dtype, shape: np.empty(shape, dtype)
    variable = bundle._joined((0, 3), DT_FLOAT, [part])
    assert np.asarray(variable).shape == (0, 3)


def test_complex_numbers_of_the_older_format():
    values = np.array([1 + 2j, 3 - 4j], np.complex64)
    parts = values.view(np.float32)
    np.testing.assert_array_equal(decode_tensor(values.dtype, (2,), new("Tensor", complex64=parts)), values)
    with pytest.raises(Malformed, match="has 1 values, but its shape"):
        decode_tensor(values.dtype, (2,), new("Tensor", complex64=parts[:3]))
    with pytest.raises(Malformed, match="end within"):
        decode_tensor(values.dtype, (2,), new("Tensor", content=values.tobytes()[:12]))


@pytest.mark.parametrize("kind", ["<f4", ">f4", ">f8", ">i4"])
def test_arrays_of_either_byte_order_are_written(tmp_path, kind):
    array = np.array([1, 2, 3], kind)
    write_checkpoint(tmp_path / "model.ckpt", {"a": array})
    np.testing.assert_array_equal(np.asarray(read_checkpoint(tmp_path / "model.ckpt")["a"]), array)
