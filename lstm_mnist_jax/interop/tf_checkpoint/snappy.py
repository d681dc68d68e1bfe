"""Snappy's raw format, decompressed: https://github.com/google/snappy/blob/main/format_description.txt."""

from lstm_mnist_jax.interop.tf_checkpoint.wire import Malformed, read_varint

MAX_EXPANSION = 22
"""No element makes more of its bytes: 64 of 3."""


def decompress(data: bytes) -> bytes:
    """What was compressed.

    Raises:
      Malformed: the data are damaged.
    """
    size, position = read_varint(data, 0)
    if size > MAX_EXPANSION * len(data):
        raise Malformed(f"{len(data)} compressed bytes cannot hold {size}")
    output = bytearray()
    while position < len(data):
        tag = data[position]
        position += 1
        if tag & 3 == 0:
            length, position = _literal_length(data, position, tag >> 2)
            if length > len(data) - position:
                raise Malformed("compressed data end within a literal")
            output += data[position : position + length]
            position += length
        else:
            length, offset, position = _copy(data, position, tag)
            if not 0 < offset <= len(output):
                raise Malformed("compressed data refer to what is before their start")
            if offset >= length:
                output += output[len(output) - offset : len(output) - offset + length]
            else:  # the copy reads what it writes
                output += (bytes(output[-offset:]) * (length // offset + 1))[:length]
        if len(output) > size:
            break
    if len(output) != size:
        raise Malformed(f"compressed data hold another number of bytes than the {size} they announce")
    return bytes(output)


def _literal_length(data: bytes, position: int, code: int) -> tuple[int, int]:
    if code < 60:
        return code + 1, position
    return _little_endian(data, position, code - 59) + 1, position + code - 59


def _copy(data: bytes, position: int, tag: int) -> tuple[int, int, int]:
    """Length, offset and the position behind the element."""
    if tag & 3 == 1:
        return (tag >> 2 & 7) + 4, tag >> 5 << 8 | _little_endian(data, position, 1), position + 1
    width = 2 if tag & 3 == 2 else 4
    return (tag >> 2) + 1, _little_endian(data, position, width), position + width


def _little_endian(data: bytes, position: int, width: int) -> int:
    if position + width > len(data):
        raise Malformed("compressed data end within an element")
    return int.from_bytes(data[position : position + width], "little")
