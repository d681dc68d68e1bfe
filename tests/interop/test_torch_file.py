"""PyTorch's own files: against what PyTorch wrote and loads, and against files that it would not write.

Where a pickle is written by hand, its opcodes are those of Lib/pickletools.py.
"""

import doctest
import io
import pickle
import pickletools
import random
import struct
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from stacks import FIXTURES

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop import formats, torch_file

FILES = FIXTURES / "torch_files"
WEIGHT = b"X\x11\0\0\0lstm.weight_ih_l0"
STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu"


def expected(name):
    """What PyTorch saved in a file, by name."""
    arrays = load_file(FILES / "expected.safetensors")
    key = name if any(place.startswith(f"{name} ") for place in arrays) else "state_dict.pt"
    return {place.partition(" ")[2]: array for place, array in arrays.items() if place.startswith(f"{key} ")}


def assert_equal(found, right):
    assert found.keys() == right.keys()
    for name, array in found.items():
        assert (array.dtype, array.shape) == (right[name].dtype, right[name].shape), name
        np.testing.assert_array_equal(array, right[name], err_msg=name)


READABLE = {
    "state_dict.pt": "", "protocol5.pt": "", "legacy.pt": "", "legacy_protocol4.pt": "", "no_checksums.pt": "",
    "training.ckpt": "", "parts.pt": "", "shared.pt": "", "shared_legacy.pt": "", "float16.pt": "", "bfloat16.pt": "",
    "float64.pt": "", "lightning.ckpt": "model.", "wrapped.pth": "module._orig_mod.",
}  # fmt: skip


@pytest.mark.parametrize("name", READABLE)
def test_arrays_are_those_that_pytorch_saved(name):
    found = formats.list_arrays("torch", FILES / name)
    right = {READABLE[name] + key: array for key, array in expected(name).items()}
    assert_equal(found, right)
    assert formats.read("torch", FILES / name).weights.hidden_features == (4, 3)


def test_pytorch_itself_loads_the_same(tmp_path):
    pytorch = pytest.importorskip("torch")
    arrays, generator = expected("state_dict.pt"), np.random.default_rng(0)
    for number in range(8):
        base = pytorch.from_numpy(generator.standard_normal(400, "f4"))
        tensors = {name: base[: array.size].view(array.shape) for name, array in arrays.items()}
        tensors["dense.weight"] = base[5:14].view(3, 3).T
        pytorch.save(
            {"state_dict": tensors},
            tmp_path / "model.pt",
            pickle_protocol=2 + number % 4,
            _use_new_zipfile_serialization=number < 4,
        )
        loaded = pytorch.load(tmp_path / "model.pt", weights_only=False)["state_dict"]
        right = {name: tensor.numpy() for name, tensor in loaded.items()}
        assert_equal(formats.list_arrays("torch", tmp_path / "model.pt"), right)


def test_whatever_the_file_is_called(tmp_path):
    for name in ("state_dict.pt", "legacy.pt"):
        for other in ("pytorch_model.bin", "model.safetensors", "checkpoint.pth.tar", "model"):
            (tmp_path / other).write_bytes((FILES / name).read_bytes())
            assert_equal(formats.list_arrays("torch", tmp_path / other), expected(name))
    (tmp_path / "model.pt").write_bytes((FILES / "expected.safetensors").read_bytes())
    assert formats.list_arrays("torch", tmp_path / "model.pt")
    for other in ("keras", "flax", "safetensors", "tf1"):
        for name in ("training.ckpt", "legacy.pt"):
            with pytest.raises(WeightsError, match=r"looks like a file for: import torch\.$"):
                formats.read(other, FILES / name)


def repacked(name, change=lambda key, content: content, **options):
    """An archive with the same entries, each with what `change` makes of its contents."""
    packed = io.BytesIO()
    with zipfile.ZipFile(FILES / name) as archive, zipfile.ZipFile(packed, "w", **options) as copy:
        for key in archive.namelist():
            copy.writestr(key, change(key, archive.read(key)))
    return packed.getvalue()


def test_files_of_big_endian_machines(tmp_path):
    def turned(key, content):
        if key.endswith("byteorder"):
            return b"big"
        is_storage = "/data/" in key and "serialization" not in key
        return np.frombuffer(content, "<f4").astype(">f4").tobytes() if is_storage else content

    for name in ("state_dict.pt", "shared.pt"):
        (tmp_path / "big.pt").write_bytes(repacked(name, turned))
        assert_equal(formats.list_arrays("torch", tmp_path / "big.pt"), expected(name))


def archive(content, size=16):
    """A file of torch.save with this pickle and one storage."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("model/data.pkl", content)
        file.writestr("model/data/0", np.arange(size // 4, dtype="<f4").tobytes())
    return packed.getvalue()


def legacy(content, keys=b"](X\x01\0\0\x000e."):
    """The same in the older format."""
    magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."
    return magic + content + b"\x80\x02" + keys + struct.pack("<q4f", 4, *range(4))


def integer(value):
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def tensor(shape, stride, offset=0, numel=4, view=b""):
    sizes = (b"(" + b"".join(map(integer, values)) + b"t" for values in (shape, stride))
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + (STORAGE + integer(numel) + view + b"tQ" + integer(offset) + b"".join(sizes))
        + b"\x89NtR"
    )


def a_dict(*items):
    return b"\x80\x02}(" + b"".join(items) + b"u."


def read(data, ignore=(), choose=True):
    return torch_file.from_bytes(data, Path("model.pt"), ignore, choose=choose)


def test_dictionaries_of_python_2_and_views_of_storages():
    """PyTorch 0.1.10 to 0.4 wrote such files."""
    pair = b"]U\x11lstm.weight_ih_l0a" + tensor([2], [1], view=b"(U\x01aK\x01K\x02t") + b"a"
    unused = b"c__builtin__\nset\n]\x85R0" + "cmön module\nNetz\n0".encode()
    content = b"\x80\x02ccollections\nOrderedDict\n]" + pair + b"a\x85R" + unused + b"."
    np.testing.assert_array_equal(read(legacy(content))["lstm.weight_ih_l0"], [1, 2])


def test_tensors_that_were_on_a_gpu():
    content = a_dict(WEIGHT, tensor([2, 2], [1, 2])).replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0")
    for storage in (b"ctorch\nFloatStorage\n", b"ctorch.cuda\nFloatStorage\n"):
        changed = content.replace(b"ctorch\nFloatStorage\n", storage)
        for data in (archive(changed), legacy(changed)):
            np.testing.assert_array_equal(read(data)["lstm.weight_ih_l0"], [[0, 2], [1, 3]])


def test_one_of_several_sets_of_weights_is_chosen(tmp_path):
    path = FILES / "two_sets.pt"
    both = {f"{place}.{name}" for place in ("model", "ema") for name in expected("state_dict.pt")}
    assert formats.list_arrays("torch", path).keys() == both
    with pytest.raises(WeightsError, match=r"two_sets.pt holds several sets of weights: model, ema\. .*--ignore 'ema"):
        formats.read("torch", path)
    for other, kept, right in (("ema", "model", "state_dict.pt"), ("model", "ema", "two_sets.pt")):
        found = formats.read("torch", path, ignore=[f"{other}.*"])
        assert found.names[0] == f"{kept}.lstm.0.l0"
        np.testing.assert_array_equal(found.weights.dense[-1].bias, expected(right)["dense.bias"])
    values = (b"}(" + WEIGHT + tensor([1], [1]) + b"U\x01d" + tensor([1], [1], offset) + b"u" for offset in (0, 0, 1))
    one, copy, other = values
    assert read(archive(a_dict(b"U\x01a", one, b"U\x01b", copy))).keys() == {"lstm.weight_ih_l0", "d"}
    with pytest.raises(WeightsError, match="several sets of weights: a, b"):
        read(archive(a_dict(b"U\x01a", one, b"U\x01b", other)))
    with pytest.raises(WeightsError, match=r"two of its dictionaries have one name"):
        read(archive(a_dict(b"U\x03a.b", one, b"U\x01a", b"}U\x01b" + other + b"s")))


def test_tensors_of_other_kinds_are_named_and_can_be_ignored():
    path, reasons = FILES / "unsupported.pt", {
        "quantized": "is quantized", "sparse": "is sparse", "meta": "is on the device 'meta'", "numpy": "NumPy array",
        "complex": "has the type complex64", "float8": "has the type float8_e5m2", "packed": "is a tuple of tensors",
        "subclass": "is of the class __main__.Weight",
    }  # fmt: skip
    for name, reason in reasons.items():
        with pytest.raises(WeightsError, match=rf"cannot be read: other.{name} .*{reason}"):
            formats.read("torch", path, ignore=[f"other.{other}" for other in reasons if other != name])
    assert_equal(formats.list_arrays("torch", path, ["other.*"]), expected("state_dict.pt"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "module.pt",
            r"a whole object of the class write_torch.Stack, .*torch.load\('module.pt', map_location='cpu', "
            r"weights_only=False\); torch.save\(model.state_dict\(\), 'weights.pt'\)",
        ),
        ("module_within.pt", r"write_torch.Stack in \['model'\], .*weights_only=False\)\['model'\]; torch.save"),
        ("script.pt", r"is TorchScript .*torch.jit.load\(FILE, map_location='cpu'\); torch.save\(model.state_dict"),
        ("exported.pt2", "is a program of torch.export"),
    ],
)
def test_programs_are_refused_with_the_way_to_save_their_weights(name, message):
    for call in (formats.read, formats.list_arrays):
        with pytest.raises(WeightsError, match=message):
            call("torch", FILES / name)


def zipped(**contents):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for name, content in contents.items():
            file.writestr(name.replace("__", "/"), content)
    return packed.getvalue()


def saved(save, *arguments, **options):
    file = io.BytesIO()
    save(file, *arguments, **options)
    return file.getvalue()


def a_tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (a_tar(), r"is a tar archive\. .*a PyTorch before 0\.1\.10 wrote it"),
        (saved(np.savez, a=np.zeros(2)), "is NumPy's .npz"),
        (saved(np.save, np.zeros(2)), r"is an array of NumPy \(.npy\)"),
        (zipped(model__code__a="x", model__data="y"), "is TorchScript"),
        (zipped(notes="x"), "is a zip archive without PyTorch's data.pkl; it holds 'notes'"),
        (pickle.dumps({"a": 1}), r"is a pickle that torch.save did not write \(but pickle.dump, or joblib\)"),
        (b"\x1f\x8b" + bytes(50), "is compressed with gzip; unpack it first"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (b"<!DOCTYPE html>", "is a web page"),
        (b"some text that begins with c or (", "is neither a file of torch.save .* nor .safetensors"),
        (b"c, a table\n1, 2\n", "is neither a file of torch.save .* nor .safetensors"),
        (b"", "is neither a file of torch.save"),
        (repacked("state_dict.pt", compression=zipfile.ZIP_DEFLATED), r"compressed or encrypted, .*\(zip -0\)"),
        ((FILES / "state_dict.pt").read_bytes()[:3000], "its table of contents is not at its end .*it is cut short"),
        ((FILES / "legacy.pt").read_bytes()[:2700], "a storage of 9 values ends after the file, which is cut short"),
        (archive(a_dict(b"U\x01a", b"K\x01")), "holds no dictionary of tensors by name"),
        (archive(b"\x80\x02" + tensor([2], [1]) + b"."), "holds one tensor; expected the state_dict"),
        (legacy(b"\x80\x02(U\x06modulecmine\nNet\nNNtQ)\x81.", b"]."), "a whole object of the class mine.Net"),
        (archive(b"\x80\x02cos\nsystem\n(U\x04exittR."), r"names os.system, .*Nothing of it was executed"),
        (archive(b"cbuiltins\nprint\n(S'executed'\ntR."), "names builtins.print"),
        (archive(b"\x80\x04\x8c\x05posix\x8c\x06system\x93."), "names posix.system"),
        (b"\x80\x02cos\nsystem\n(U\x04exittR.", "names os.system"),
        (archive(b"\x80\x02ctorch.storage\n_load_from_bytes\nB\0\0\0\0\x85R."), "pickle.dump wrote its tensors"),
    ],
)
def test_other_files_are_named_for_what_they_are(data, message, tmp_path):
    (tmp_path / "model.pt").write_bytes(data)
    with pytest.raises(WeightsError, match=message) as error:
        formats.read("torch", tmp_path / "model.pt")
    assert "damaged" not in str(error.value)


def test_a_wrong_checksum_is_an_error():
    data = (FILES / "state_dict.pt").read_bytes()
    place = data.index(expected("state_dict.pt")["dense.bias"].tobytes())
    with pytest.raises(WeightsError, match=r"data/9' is damaged: the checksum is another"):
        read(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


LARGE = 10**11


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (a_dict(WEIGHT, tensor([LARGE], [1], numel=LARGE)), "the storage of lstm.weight_ih_l0 has 100,000,000,000"),
        (a_dict(WEIGHT, tensor([8], [1], numel=8)), "has 16 bytes, expected 32"),
        (a_dict(WEIGHT, tensor([2, 2], [LARGE, 1])), "reaches to value 100000000001 of a storage that has 4"),
        (a_dict(WEIGHT, tensor([4], [1], offset=1)), "reaches to value 4 of a storage that has 4"),
        (a_dict(WEIGHT, tensor([LARGE, 9], [0, 0])), "holds expanded tensors, .*3,600,000,000,000 bytes"),
        (a_dict(WEIGHT, tensor([-1], [1])), "not made of a storage, an offset, a shape and strides"),
        (a_dict(WEIGHT, tensor([1], [1, 1])), "not made of a storage, an offset, a shape and strides"),
        (a_dict(WEIGHT, tensor([0, LARGE, LARGE], [1, 1, 1])), r"has the shape \[0, 100000000000, 100000000000\]"),
        (a_dict(WEIGHT, tensor([1] * 33, [1] * 33)), "has 33 dimensions"),
        (a_dict(WEIGHT, tensor([2], [1]).replace(b"0X\x03", b"1X\x03")), "the storage '1' of .* is missing"),
        (b"\x80\x02" + b"}" * 10_001, "has more than 10,000 opcodes"),
        (b"\x80\x02" + b"]" * 4_000 + b"a" * 3_999 + b".", "holds no dictionary of tensors"),
        (b"\x80\x02})" + b"\x85" * 4_000 + b"Ns.", "holds no dictionary of tensors"),
        (a_dict(b"X\x11\x27\0\0" + b"a" * 10_001, b"N"), "has a key of 10,001 characters"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f.", "the pickle cannot be read at byte 8: not enough data in .* long4"),
        (b"\x80\x02\x8d" + b"\xff" * 8, "the pickle cannot be read at byte 11: .* 18446744073709551615"),
        (b"\x80\x06N.", "has protocol 6, expected 2 to 5"),
        (b"\x80\x02h\x05.", "refers to object 5"),
        (b"\x80\x02R.", "takes more from its stack than there is"),
        (b"\x80\x02K\x01)R.", "calls something that is no class"),
        (b"\x80\x02P0\n.", "opcode b'P' at byte 2 is in no file of torch.save"),
        (b"\x80\x02Ione\n.", "opcode b'I' at byte 2 is in no file of torch.save"),
        (b"\x80\x02\xfe.", r"opcode b'\\xfe' at byte 2 is in no file of torch.save"),
        (b"\x80\x02\x8b\x01\x01\0\0" + b"\1" * 257 + b".", "has an integer of more than 256 bytes"),
        (b"\x80\x02ca", "a name of the pickle does not end"),
        (b"\x80\x02c\xff\na\n.", "cannot be read at byte 5: 'utf-8' codec"),
        (b"\x80\x02N", "its pickle does not end"),
    ],
)
def test_files_that_claim_more_than_they_hold_are_refused(content, message, monkeypatch):
    monkeypatch.setattr(torch_file.pickles, "MAX_OPCODES", 10_000)
    with pytest.raises(WeightsError, match=rf"^model.pt .*{message}"):
        read(archive(content))


def test_two_entries_of_one_name_are_refused():
    packed = io.BytesIO(archive(a_dict(WEIGHT, tensor([4], [1]))))
    with zipfile.ZipFile(packed, "a") as file:
        file.writestr("other/data.pkl", b"\x80\x02N.")
    with pytest.raises(WeightsError, match=r"more than one data\.pkl"):
        read(packed.getvalue())
    with zipfile.ZipFile(packed, "a") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.writestr("model/data/0", bytes(16))
    with pytest.raises(WeightsError, match="two entries of its archive have one name"):
        read(packed.getvalue())


OPCODES = [
    *(b"()]}0125abestuQRN.", b"\x81\x85\x86\x87\x88\x8f\x90\x91\x92\x93\x94"),
    *(b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n"),
    *(b"ccollections\nOrderedDict\n", b"ctorch._tensor\n_rebuild_from_type_v2\n", WEIGHT, b"X\x04\0\0\0meta"),
    *(b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f", integer(2**63 - 1), integer(2**40), b"K\0", b"K\x01", b"h\0", b"q\0"),
    *(b"r\xff\xff\xff\xff", b"X\xff\xff\xff\xff", b"\x8d" + b"\xff" * 8, b"\x8b\xff\xff\xff\x7f", b"U\x03abc"),
]  # fmt: skip


def changed_pickle(content, generator):
    """The pickle with some opcodes left out, doubled, exchanged or put in."""
    starts = [position for _, _, position in pickletools.genops(content)]
    parts = [content[start:end] for start, end in zip(starts, [*starts[1:], len(content)], strict=True)]
    for _ in range(generator.randint(1, 3)):
        place, other = generator.randrange(len(parts)), generator.randrange(len(parts))
        match generator.randrange(4):
            case 0:
                parts[place : place + 1] = []
            case 1:
                parts[place : place + 1] = [generator.choice(OPCODES)]
            case 2:
                parts[place], parts[other] = parts[other], parts[place]
            case 3:
                parts[place:place] = parts[other : other + 5]
        parts = parts or [b"."]
    return b"".join(parts)


def changed_bytes(content, generator):
    changed = bytearray(content)
    for _ in range(generator.randint(1, 3)):
        place = generator.randrange(len(changed))
        changed[place : place + generator.randint(0, 2)] = generator.choice([b"", b"\xff", b"\0\0", changed[:9]])
    return bytes(changed)


def test_the_example_in_the_docstring_runs():
    assert doctest.testmod(torch_file) == (0, 5)


EVENTS = []


def test_changed_files_are_read_or_refused_and_nothing_is_executed():
    """Python reports every import, compilation, open file and process as an event."""
    watched = ("compile", "exec", "import", "open", "os", "subprocess", "pickle", "ctypes", "socket", "marshal")
    reading = False

    def note(event, _):
        if reading and event.partition(".")[0] in watched:
            EVENTS.append(event)

    sys.addaudithook(note)
    "".encode("cp437")  # zipfile imports it
    names, counts = ("state_dict.pt", "shared_legacy.pt", "lightning.ckpt", "protocol5.pt", "two_sets.pt"), [0, 0]
    for number in range(300):
        generator, name = random.Random(number), names[number % len(names)]
        data = (FILES / name).read_bytes()
        if number % 3 == 0:
            data = changed_bytes(data, generator)
        elif "legacy" in name:
            start = data.index(b"\x80\x02", data.index(b"type_sizes"))
            end = data.index(b"\x80\x02]", start)
            data = data[:start] + changed_pickle(data[start:end], generator) + data[end:]
        else:
            data = repacked(
                name, lambda key, old, g=generator: changed_pickle(old, g) if key.endswith("data.pkl") else old
            )
        reading = True
        try:
            arrays = read(data, choose=False)
            assert sum(array.nbytes for array in arrays.values()) <= 8 * len(data) + (1 << 20)
            counts[0] += 1
        except WeightsError as error:
            assert str(error).startswith("model.pt ")
            assert str(error).isprintable()
            counts[1] += 1
        finally:
            reading = False
    assert EVENTS == []
    assert counts[0] > 20
    assert counts[1] > 200
