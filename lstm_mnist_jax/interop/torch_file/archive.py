"""Opens a file of `torch.save`, of either format, and names files of other kinds for what they are."""

import io
import zipfile
import zlib
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.torch_file.pickles import Malformed, load
from lstm_mnist_jax.interop.torch_file.tensors import ITEM_SIZES, Contents, Storage, call, to_storage

ZIP = b"PK\x03\x04"

MAGIC = 0x1950A86A20F9469CFC6C
"""What the older format begins with, pickled."""

LEGACY_VERSION = 1001
MAX_ARCHIVE_VERSION = 10
MAX_ENTRIES = 100_000
"""The most files in an archive: each takes about 600 bytes of memory."""

OTHER_FILES = {
    b"\x89HDF": "is HDF5, as Keras writes it",
    b"\x93NUMPY": "is an array of NumPy (.npy), not PyTorch's",
    b"\x1f\x8b": "is compressed with gzip; unpack it first",
    b"BZh": "is compressed with bzip2; unpack it first",
    b"\xfd7zXZ": "is compressed with xz; unpack it first",
    b"7z\xbc\xaf": "is a 7-Zip archive; unpack it first",
    b"Rar!": "is a RAR archive; unpack it first",
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself; fetch that with git lfs pull",
    b"<!DOCTYPE": "is a web page, not the file itself; download that",
    b"<html": "is a web page, not the file itself; download that",
}
"""What other files begin with."""

SAVE = "in PyTorch: torch.save(model.state_dict(), 'weights.pt')."
OTHER_ARCHIVES = {
    ("archive_format", "serialized_exported_program.json"): "is a program of torch.export (.pt2). Save the weights of "
    f"the original module {SAVE}",
    ("code", "constants.pkl", "bytecode.pkl"): "is TorchScript (torch.jit.save), a program and not weights alone. In "
    "PyTorch: model = torch.jit.load(FILE, map_location='cpu'); torch.save(model.state_dict(), 'weights.pt').",
    ("extern_modules",): f"is a package of torch.package. Save the weights of its module {SAVE}",
}
"""What other archives of PyTorch contain."""


def is_torch(start: bytes) -> bool:
    """Whether a file with these first 32 bytes is one of `torch.save` in the older format."""
    return start[:1] == b"\x80" and MAGIC.to_bytes(10, "little") in start


def names_in_zip(path: Path) -> list[str]:
    """The names in a zip archive; none if it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception:  # zipfile raises many types
        return []


def open_file(data: bytes) -> Contents:
    """What is in a file. Raises Malformed; WeightsError for a file of another kind."""
    if data.startswith(ZIP):
        return _open_zip(data)
    if is_torch(data[:32]):
        return _open_legacy(data)
    for start, what in OTHER_FILES.items():
        if data.startswith(start):
            raise WeightsError(f"{what}.")
    if data[257:262] == b"ustar":
        raise WeightsError(
            "is a tar archive. If its members are pickle, storages and tensors, a PyTorch before 0.1.10 wrote it: save "
            "it again with a later one. Otherwise unpack it first."
        )
    _refuse_pickle(data)
    raise WeightsError(
        "is neither a file of torch.save (a zip archive, or the older format) nor .safetensors, by its first bytes."
    )


def _refuse_pickle(data: bytes) -> None:
    """Refuses a pickle that is no file of `torch.save`; by the name of what it wants to call, if that is refused."""
    try:
        load(io.BytesIO(data), call, lambda _: None)
    except Malformed:
        if data[:2] not in (b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5"):
            return
    raise WeightsError(
        "is a pickle that torch.save did not write (but pickle.dump, or joblib). Where the program is installed that "
        "wrote it, save its weights with torch.save(model.state_dict(), 'weights.pt')."
    )


def _entry(data: memoryview, entries: Mapping[str, zipfile.ZipInfo], name: str) -> memoryview:
    """The bytes of an entry of an archive, which is not compressed. Its checksum is verified."""
    entry = entries[name]
    name = ascii(name[:100])
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise WeightsError(
            f"is an archive whose entry {name} is compressed or encrypted, which torch.save does not write. Unpack "
            "it and pack it without compression (zip -0), or load it and save it again in PyTorch."
        )
    header = data[entry.header_offset : entry.header_offset + 30]
    if len(header) < 30 or header[:4] != ZIP:
        raise Malformed(f"its entry {name} is not where the archive has it")
    start = entry.header_offset + 30 + int.from_bytes(header[26:28], "little")
    start += int.from_bytes(header[28:30], "little")
    found = data[start : start + entry.file_size]
    if len(found) < entry.file_size:
        raise Malformed(f"its entry {name} ends too early")
    # 0 stands for no checksum: torch.serialization.set_crc32_options(False).
    if entry.CRC and zlib.crc32(found) != entry.CRC:
        raise Malformed(f"its entry {name} is damaged: the checksum is another")
    return found


def _open_zip(data: bytes) -> Contents:
    try:
        if data.count(b"PK\x01\x02") > MAX_ENTRIES:
            raise Malformed(f"it has more than {MAX_ENTRIES:,} entries")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
    except Malformed:
        raise
    except Exception as error:  # zipfile raises many types
        raise Malformed(
            f"it begins as a zip archive does, but its table of contents is not at its end ({error}): it is cut short, "
            "or more was added"
        ) from error
    entries = {info.filename: info for info in infos}
    if len(entries) < len(infos):
        raise Malformed("two entries of its archive have one name")
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    parts = entries.keys() | {part for name in entries for part in name.split("/")[1:3]}
    for marks, what in OTHER_ARCHIVES.items():
        if not parts.isdisjoint(marks):
            raise WeightsError(what)
    if not pickles:
        names = sorted(entries)
        if names and all(name.endswith(".npy") for name in names):
            raise WeightsError("is NumPy's .npz, not PyTorch's.")
        shown = ascii(", ".join(names[:5])[:200]) if names else "nothing"
        raise WeightsError(
            f"is a zip archive without PyTorch's data.pkl; it holds {shown}. If the file is in it, unpack it."
        )
    if len(pickles) > 1:
        raise Malformed("its archive has more than one data.pkl")
    prefix = pickles[0].removesuffix("data.pkl")
    read, order = partial(_entry, memoryview(data), entries), "<"
    if f"{prefix}byteorder" in entries:
        word = bytes(read(f"{prefix}byteorder"))
        if word not in (b"little", b"big"):
            raise Malformed(f"its byte order is {word[:20]!r}, expected little or big")
        order = "<" if word == b"little" else ">"
    if f"{prefix}version" in entries:
        version = bytes(read(f"{prefix}version"))[:20].strip()
        if not version.isdigit() or not 1 <= int(version) <= MAX_ARCHIVE_VERSION:
            raise Malformed(f"its archive has version {version!r}, expected 1 to {MAX_ARCHIVE_VERSION}")
    root = load(io.BytesIO(read(pickles[0])), call, to_storage)
    return Contents(root, cache(lambda key: read(f"{prefix}data/{key}")), order)  # a checksum is verified once


def _open_legacy(data: bytes) -> Contents:
    stream, seen = io.BytesIO(data), dict[str, Storage]()
    parts = [load(stream, call, partial(_noted, seen)) for _ in range(5)]
    magic, version, _, root, keys = parts
    if (type(magic), magic) != (int, MAGIC) or (type(version), version) != (int, LEGACY_VERSION):
        raise Malformed("it has another magic number or version than PyTorch's older format")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(seen):
        raise Malformed("the storages that it lists are not those of its tensors")
    storages: dict[str, memoryview] = {}
    for key in keys:
        size = int.from_bytes(stream.read(8), "little")
        start, item_size = stream.tell(), ITEM_SIZES[seen[key].dtype]
        if size != seen[key].whole:
            raise Malformed(f"a storage has {size} values, expected {seen[key].whole}")
        if stream.seek(size * item_size, io.SEEK_CUR) > len(data):
            raise Malformed(f"a storage of {size} values ends after the file, which is cut short")
        storages[key] = memoryview(data)[start : stream.tell()]
    return Contents(root, storages.__getitem__)  # little-endian on every machine


def _noted(seen: dict[str, Storage], identity: Any) -> Any:
    """The object of a persistent id; if it is a storage, `seen` has it by its key."""
    storage = to_storage(identity)
    if isinstance(storage, Storage):
        seen.setdefault(storage.key, storage)
    return storage
