"""Files of all formats: both ways, and what people get wrong."""

import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from stacks import apply, assert_close, state_dict

from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop import flax, formats, keras, torch


@pytest.mark.parametrize("format_name", ["torch", "keras", "flax", "safetensors", "tf1", "onnx"])
def test_files_round_trip(params, config, tmp_path, format_name):
    exported = formats.Exported(ModelConfig(), params, None, (6, 5), tuple("abc"), formats.Settings())
    path = tmp_path / "new folder" / f"model{formats.EXPORT_ENDINGS[format_name]}"
    formats.write(format_name, path, exported)
    assert_close(formats.read(format_name, path).params, params, atol=0 if format_name != "tf1" else 1e-6)
    assert formats.list_arrays(format_name, path)
    with pytest.raises(WeightsError, match=r"exists already.*--overwrite"):
        formats.write(format_name, path, exported)
    formats.write(format_name, path, exported, overwrite=True)
    assert not list(path.parent.glob("*.partial"))


@pytest.mark.parametrize("format_name", ["torch", "keras", "flax", "safetensors"])
def test_damaged_and_missing_files_are_refused(tmp_path, format_name):
    with pytest.raises(WeightsError, match=r"none.bin cannot be read: No such file"):
        formats.read(format_name, tmp_path / "none.bin")
    path = tmp_path / f"model{formats.EXPORT_ENDINGS[format_name]}"
    drawn = torch.from_state_dict(state_dict())
    formats.write(format_name, path, formats.Exported(ModelConfig(), drawn, None, (6, 5), ("a",), formats.Settings()))
    data = path.read_bytes()
    for cut in (0, 1, 7, 8, 9, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(WeightsError, match=r"cannot be read as|holds no tree"):
            formats.read(format_name, path)


def test_nothing_of_a_pickle_is_executed(tmp_path):
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(WeightsError, match=r"names os.system, .*Nothing of it was executed"):
        formats.read("torch", path)
    renamed = path.rename(tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"names os\.system"):
        formats.read("torch", renamed)
    with pytest.raises(WeightsError, match="looks like a file for: import torch"):
        formats.read("safetensors", renamed)


@pytest.mark.parametrize(("format_name", "name"), [("keras", "model.h5"), ("torch", "model.pt"), ("onnx", ".onnx")])
def test_wrong_endings_are_refused(tmp_path, format_name, name):
    exported = formats.Exported(
        ModelConfig(), torch.from_state_dict(state_dict()), None, (6, 5), ("a",), formats.Settings()
    )
    with pytest.raises(WeightsError, match=r"has another ending than files for|expected NAME"):
        formats.write(format_name, tmp_path / name, exported)
    with pytest.raises(WeightsError, match=r"Unknown format 'caffe'; expected one of tf1, torch"):
        formats.write("caffe", tmp_path / name, exported)


@pytest.mark.parametrize(
    ("format_name", "package"), [("tf1", "google_crc32c"), ("torch", "safetensors"), ("keras", "h5py")]
)
def test_a_missing_package_is_named_with_the_extra_that_has_it(monkeypatch, tmp_path, format_name, package):
    monkeypatch.setitem(sys.modules, package, None)
    path = Path(__file__).parents[1] / "fixtures" / "tf1" / "tutorial" / "model.ckpt"
    with pytest.raises(WeightsError, match=rf"needs the package {package}.* 'lstm-mnist-jax\[interop\] @ git\+"):
        formats.read(format_name, path if format_name == "tf1" else tmp_path / "model.safetensors")


def test_extra_arrays_can_be_ignored(tmp_path):
    save_file(state_dict(**{"head.weight": np.zeros((3, 7), "f4")}), tmp_path / "model.safetensors")
    assert formats.read("torch", tmp_path / "model.safetensors", ignore=["head.*"]).names[-1] == "dense"


@pytest.mark.parametrize(
    "shapes",
    [
        [(5, 12), (4, 16), (16,)], [(5, 16), (4, 16), (12,)], [(5, 1), (4, 16), (16,)], [(16,), (4, 16), (16,)],
        [(5, 16), (), (16,)], [(), (4, 16), (16,)], [(5, 16), (4, 16), ()], [(5, 16), (4, 12), (16,)],
    ],
)  # fmt: skip
def test_cells_whose_arrays_do_not_fit_together_are_refused(shapes):
    dense = {"kernel": np.zeros((4, 3), "f4"), "bias": np.zeros(3, "f4")}
    kernel, recurrent_kernel, bias = (np.zeros(shape, "f4") for shape in shapes)
    cell = {"dense_i": {"kernel": kernel}, "dense_h": {"kernel": recurrent_kernel, "bias": bias}}
    with pytest.raises(WeightsError, match="does not fit together"):
        flax.from_tree({"cell": cell, "dense": dense})
    arrays = {f"lstm/cell/vars/{place}": array for place, array in enumerate((kernel, recurrent_kernel, bias))}
    with pytest.raises(WeightsError, match="does not fit together"):
        keras.from_arrays(arrays | {f"dense/vars/{place}": array for place, array in enumerate(dense.values())})


@pytest.mark.parametrize("name", ["a" * 5000, "a\x1b[31m", "lstm" * 10_000 + "/kernel", "9" * 5000])
def test_absurd_names_are_refused(tmp_path, name):
    save_file({name: np.zeros((2, 2), "f4")}, tmp_path / "model.safetensors")
    for call in (formats.read, formats.list_arrays):
        with pytest.raises(WeightsError, match="which no program gives"):
            call("torch", tmp_path / "model.safetensors")


def test_options_that_a_format_has_no_use_for_are_refused():
    for name in formats.IMPORT_FORMATS[1:]:
        with pytest.raises(WeightsError, match=rf"files for {name} hold whole biases\. Leave it out"):
            formats.read(name, Path("model"), settings=formats.Settings(forget_bias=0.5))
    with pytest.raises(WeightsError, match=r"which importing tf1 does not support\. Leave it out"):
        formats.read("tf1", Path("model"), given=formats.Given(input_activation="linear"))


def test_unknown_formats_are_refused():
    for call in (formats.read, formats.list_arrays):
        with pytest.raises(WeightsError, match="Unknown format 'stablehlo'; expected one of tf1, torch"):
            call("stablehlo", Path("model.stablehlo"))


def test_errors_name_the_format_of_the_file(params, tmp_path):
    exported = formats.Exported(ModelConfig(), params, None, (6, 5), ("a",), formats.Settings())
    paths = {
        name: tmp_path / f"{name}{formats.EXPORT_ENDINGS[name]}" for name in ("torch", "keras", "flax", "safetensors")
    }
    for name, path in paths.items():
        formats.write(name, path, exported)
    for wrong, name, message in [
        ("tf1", "keras", "looks like a file for: import keras"),
        ("torch", "keras", "looks like a file for: import keras"),
        ("flax", "torch", "looks like a file for: import torch or safetensors"),
        ("torch", "safetensors", "has the names of this package, not of PyTorch: import safetensors"),
        ("keras", "flax", "cannot be read as Keras's weights"),
    ]:
        with pytest.raises(WeightsError, match=message) as error:
            formats.read(wrong, paths[name])
        assert str(error.value).count("looks like") == ("looks like" in message)


def test_a_file_gives_the_config_of_its_network(params, config, images, tmp_path):
    exported = formats.Exported(config, params, None, (6, 5), ("a",), formats.Settings())
    formats.write("safetensors", tmp_path / "model.safetensors", exported)
    imported = formats.read("safetensors", tmp_path / "model.safetensors")
    assert imported.config == config
    np.testing.assert_array_equal(apply(imported.params, images, imported.config), apply(params, images, config))
