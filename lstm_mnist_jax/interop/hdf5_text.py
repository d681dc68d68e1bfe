"""Text of variable length in the attributes of HDF5 files, read from the bytes of the file.

The HDF5 library (2.0, as in h5py 3.16) crashes, loops without end or takes gigabytes where such a text is damaged, so
this module reads it instead. The format: "HDF5 File Format Specification", III.E (global heaps) and IV.A (object
headers, attribute messages).
"""

from collections.abc import Iterator

ATTRIBUTE, CONTINUATION = 0x0C, 0x10


def read_text(data: bytes, header: int, name: str, count: int) -> list[str]:
    """The texts of an attribute.

    Args:
      data: the file.
      header: the address of the header of the object that has the attribute.
      name: the name of the attribute.
      count: how many texts it has.

    Raises:
      ValueError: the file is damaged, or keeps the attribute elsewhere, as files of Keras do not.
    """
    for kind, message in _messages(data, header):
        if kind == ATTRIBUTE and (found := _attribute(message)) and found[0] == name.encode():
            texts = []
            for place in range(0, 16 * count, 16):
                element = _part(found[1], place, 16)
                length, heap, number = (_number(element, at, size) for at, size in ((0, 4), (4, 8), (12, 4)))
                texts.append(_object(data, heap, number, length).decode() if length else "")
            return texts
    raise ValueError(f"the attribute {name} cannot be found")


def _part(data: bytes, place: int, size: int) -> bytes:
    if not 0 <= place <= place + size <= len(data):
        raise ValueError(f"it points to byte {place + size} of {len(data)}")
    return data[place : place + size]


def _number(data: bytes, place: int, size: int) -> int:
    return int.from_bytes(_part(data, place, size), "little")


def _messages(data: bytes, header: int) -> Iterator[tuple[int, bytes]]:
    """The messages of an object header of version 1, which is what h5py writes unless it is asked for another."""
    if _number(data, header, 1) != 1:
        raise ValueError("it has object headers of another version than 1, which Keras does not write")
    blocks = [(header + 16, _number(data, header + 8, 4))]
    for place, size in blocks:
        block = _part(data, place, size)
        at = 0
        while at + 8 <= len(block):
            kind, length = _number(block, at, 2), _number(block, at + 2, 2)
            message = _part(block, at + 8, length)
            at += 8 + length
            if kind == CONTINUATION:
                blocks.append((_number(message, 0, 8), _number(message, 8, 8)))
                if len(blocks) > 1000:
                    raise ValueError("an object header has no end")
            yield kind, message


def _attribute(message: bytes) -> tuple[bytes, bytes] | None:
    """The name and the contents of an attribute message; None of one with a shared type."""
    version, flags = _number(message, 0, 1), _number(message, 1, 1)
    sizes = [_number(message, at, 2) for at in (2, 4, 6)]
    if version not in (1, 2, 3) or (version > 1 and flags):
        return None
    start = 9 if version == 3 else 8
    name = _part(message, start, sizes[0]).rstrip(b"\0")
    return name, message[start + sum((size + 7) // 8 * 8 if version == 1 else size for size in sizes) :]


def _object(data: bytes, heap: int, number: int, length: int) -> bytes:
    """The first bytes of an object in a global heap."""
    if _part(data, heap, 8) != b"GCOL\x01\0\0\0":
        raise ValueError(f"there is no global heap at byte {heap}")
    place, end = heap + 16, heap + _number(data, heap + 8, 8)
    while place + 16 <= end:
        found, size = _number(data, place, 2), _number(data, place + 8, 8)
        if found == number and length <= size:
            return _part(data, place + 16, length)
        if found in (0, number):
            break
        place += 16 + (size + 7) // 8 * 8
    raise ValueError(f"the global heap at byte {heap} is damaged")
