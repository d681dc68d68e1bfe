"""IDX files against bytes written by hand, and everything that can be wrong with one."""

import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from idx_files import CODES, idx_bytes
from rewriting import rewrite

from lstm_mnist_jax.data.idx import read_idx, write_idx
from lstm_mnist_jax.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of the tests that draw hundreds of files."""
    return tmp_path_factory.mktemp("drawn")


def test_known_bytes(tmp_path):
    file = tmp_path / "labels"
    file.write_bytes(bytes.fromhex("00000801 00000003 05 00 ff"))
    np.testing.assert_array_equal(read_idx(file), np.array([5, 0, 255], np.uint8))
    file.write_bytes(bytes.fromhex("00000c02 00000001 00000002 00000102 fffffffe"))
    np.testing.assert_array_equal(read_idx(file), np.array([[258, -2]], np.int32))


@settings(max_examples=80, deadline=None)
@given(data=st.data(), kind=st.sampled_from(sorted(CODES)), gzipped=st.booleans())
def test_arrays_round_trip(folder, data, kind, gzipped):
    array = data.draw(arrays.arrays(np.dtype(kind), arrays.array_shapes(min_dims=1, max_dims=4, min_side=0)))
    file = folder / "file"
    content = idx_bytes(array)
    rewrite(file, gzip.compress(content) if gzipped else content)
    found = read_idx(file)
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype
    for name, unpacked in (("plain", bytes), ("packed.gz", gzip.decompress)):
        write_idx(file.with_name(name), array)
        assert unpacked(file.with_name(name).read_bytes()) == content


def test_unsupported_arrays_and_paths_are_refused(tmp_path):
    with pytest.raises(DataError, match="cannot hold int64; expected one of uint8"):
        write_idx(tmp_path / "a", np.zeros(3, np.int64))
    with pytest.raises(DataError, match="cannot be written"):
        write_idx(tmp_path / "no folder" / "a", np.zeros(3, np.uint8))


@settings(max_examples=300, deadline=None)
@given(data=st.data(), gzipped=st.booleans())
def test_damage_gives_a_clear_error_or_the_same_array(folder, data, gzipped):
    array = np.arange(60, dtype=np.uint8).reshape(5, 4, 3)
    content = bytearray(gzip.compress(idx_bytes(array), mtime=0) if gzipped else idx_bytes(array))
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:position]
    else:
        content[position] ^= data.draw(st.integers(1, 255))
    file = folder / "file"
    rewrite(file, content)
    try:
        found = read_idx(file)
    except DataError as error:
        assert str(file) in str(error)
    else:
        assert found.size == array.size


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file: it starts with the bytes (none)"),
        (b"\x89PNG\r\n\x1a\n", "not an IDX file: it starts with the bytes 89 50 4e 47"),
        (bytes.fromhex("00000901"), "ends within its header"),
        (bytes.fromhex("00000846") + bytes.fromhex("00000001") * 70 + b"x", "its header gives 70 dimensions"),
        (bytes.fromhex("00000803 00000000 ffffffff ffffffff"), "its header gives 3 dimensions"),
        (bytes.fromhex("00000801 00000003 05"), "shorter than its header says: 3 elements need 3 bytes, found only 1"),
        (bytes.fromhex("00000801 00000001 0505"), "longer than its header says"),
        (bytes.fromhex("00000803 ffffffff ffffffff ffffffff 05"), "shorter than its header says"),
        (
            gzip.compress(bytes.fromhex("00000803 ffffffff ffffffff ffffffff 05"), mtime=0),
            "shorter than its header says",
        ),
        (gzip.compress(idx_bytes(np.arange(9)[:, None].astype("u1")), mtime=0)[:-9], "damaged or truncated gzip"),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, message):
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_idx(file)
    assert message in str(caught.value)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_idx(tmp_path / "nothing")
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path)
