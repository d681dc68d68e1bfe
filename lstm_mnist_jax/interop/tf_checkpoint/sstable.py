"""Sorted tables of keys and values in a file: LevelDB's table format, as TensorFlow's checkpoints use it.

    data block ... data block, metaindex block, index block, footer (48 bytes, the last 8 a magic number)

A block holds entries (the number of bytes shared with the previous key, of other bytes of the key, and of the value;
then the other bytes and the value), the positions of entries with a whole key, and their number; after it come its
compression and its checksum. The values of the index block are the positions and sizes of the data blocks. See
https://github.com/google/leveldb, doc/table_format.md.
"""

from collections.abc import Iterable, Iterator

from lstm_mnist_jax.interop.files import require
from lstm_mnist_jax.interop.tf_checkpoint.messages import Malformed, Unsupported

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
FOOTER_SIZE = 48
TRAILER_SIZE = 5
UNCOMPRESSED, SNAPPY = 0, 1
BLOCK_SIZE = 1 << 18
MAX_KEYS = 100
"""The largest size of all keys, in sizes of the table. Keys may share their beginnings."""

MASK_DELTA = 0xA282EAD8
"""TensorFlow stores rotated checksums plus this, so that a checksum of data that contain checksums is still good."""

MAX_EXPANSION = 22
"""The largest ratio of sizes by Snappy: an element of 3 bytes makes 64."""


def is_table(data: bytes) -> bool:
    """Whether the bytes end as those of a table do."""
    return len(data) >= FOOTER_SIZE and data.endswith(MAGIC)


def read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a table, ascending by key.

    Raises:
      Malformed: the bytes are no table, or damaged: every block is checked against its checksum.
    """
    if not is_table(data):
        raise Malformed("it does not end as a table of TensorFlow's does; it may be cut short")
    footer = data[-FOOTER_SIZE:]
    _, _, position = _read_handle(footer, 0)  # the metaindex, which TensorFlow does not use
    offset, size, _ = _read_handle(footer, position)
    read_until, last_key, key_bytes = 0, None, 0
    for _, handle in _entries(_read_block(data, offset, size)):
        offset, size, _ = _read_handle(handle, 0)
        if offset < read_until:
            raise Malformed("its blocks overlap")
        read_until = offset + size
        for key, value in _entries(_read_block(data, offset, size)):
            if last_key is not None and key <= last_key:
                raise Malformed("its keys are not in order")
            key_bytes += len(key)
            if key_bytes > MAX_KEYS * len(data):
                raise Malformed("its keys are too long")
            yield key, value
            last_key = key


def write_table(items: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A table of these keys and values, which must ascend by key. Uncompressed, as TensorFlow writes checkpoints."""
    output = bytearray()
    index, pending, size = [], [], 0
    for key, value in items:
        pending.append((key, value))
        size += len(key) + len(value)
        if size >= BLOCK_SIZE:
            index.append((key, _append_block(output, pending)))
            pending, size = [], 0
    if pending:
        index.append((pending[-1][0], _append_block(output, pending)))
    footer = _append_block(output, []) + _append_block(output, index)
    return bytes(output) + footer.ljust(FOOTER_SIZE - len(MAGIC), b"\0") + MAGIC


def _read_handle(data: bytes, position: int) -> tuple[int, int, int]:
    """Offset and size of a block, and the position behind them."""
    offset, position = read_varint(data, position)
    size, position = read_varint(data, position)
    return offset, size, position


def _read_block(data: bytes, offset: int, size: int) -> bytes:
    end = offset + size
    if end + TRAILER_SIZE > len(data):
        raise Malformed("a block lies outside the file; it may be cut short")
    if masked_crc32c(data[offset : end + 1]) != int.from_bytes(data[end + 1 : end + TRAILER_SIZE], "little"):
        raise Malformed(f"the block at byte {offset} does not agree with its checksum")
    compression = data[end]
    if compression == UNCOMPRESSED:
        return data[offset:end]
    if compression == SNAPPY:
        return decompress_snappy(data[offset:end])
    raise Unsupported(f"the block at byte {offset} is compressed in the unknown way {compression}")


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * restarts
    if len(block) < 4 or end < 0:
        raise Malformed("a block is shorter than its header says")
    position, key = 0, b""
    while position < end:
        shared, position = read_varint(block, position)
        own, position = read_varint(block, position)
        size, position = read_varint(block, position)
        if shared > len(key) or own + size > end - position:
            raise Malformed("a block has an entry that does not fit into it")
        key = key[:shared] + block[position : position + own]
        position += own + size
        yield key, block[position - size : position]


def _append_block(output: bytearray, entries: list[tuple[bytes, bytes]]) -> bytes:
    """Appends a block to the output, in which all keys are whole; gives its handle."""
    block, restarts = bytearray(), []
    for key, value in entries:
        restarts.append(len(block))
        block += varint(0) + varint(len(key)) + varint(len(value)) + key + value
    for position in restarts or [0]:
        block += position.to_bytes(4, "little")
    block += max(1, len(restarts)).to_bytes(4, "little")
    handle = varint(len(output)) + varint(len(block))
    block.append(UNCOMPRESSED)
    output += block + masked_crc32c(bytes(block)).to_bytes(4, "little")
    return handle


def masked_crc32c(data: bytes) -> int:
    """The CRC-32C (Castagnoli) of `data`, masked as TensorFlow stores it."""
    crc = require("google_crc32c").value(data)
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF


def decompress_snappy(data: bytes) -> bytes:
    """Decompresses Snappy's raw format. Raises Malformed."""
    cramjam = require("cramjam")
    try:
        size = cramjam.snappy.decompress_raw_len(data)
        if size > MAX_EXPANSION * len(data):  # before that much memory is taken
            raise Malformed(f"{len(data)} compressed bytes cannot hold {size}")
        return bytes(cramjam.snappy.decompress_raw(data))
    except cramjam.DecompressionError as error:
        raise Malformed(str(error)) from error


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """The unsigned number at `position` in base 128, least digit first, and the position after it. Raises Malformed."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise Malformed("the data end within a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, position
    raise Malformed("a number has more than 64 bits")


def varint(value: int) -> bytes:
    """A number from 0 to 2^64 - 1 in base 128, least digit first."""
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(digits) + bytes([value])
