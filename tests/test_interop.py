"""Weights to and from PyTorch, Keras and Flax, and graphs for ONNX and StableHLO: against those programs."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import itertools
import subprocess
import sys
import zipfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from lstm_mnist_jax import model
from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop import export, files, flax, formats, keras, torch

STACKS = [(4,), (4, 7), (3, 3), (4, 2, 3)]
TORCH = Path(__file__).parent / "fixtures" / "torch"

keras_is_noisy = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(params=STACKS, ids=str)
def config(request):
    return ModelConfig(hidden_features=request.param)


@pytest.fixture
def params(config):
    """Drawn, with biases that differ from gate to gate."""
    drawn = model.init(config, jax.random.key(3), (6, 5), 3)
    keys = iter(jax.random.split(jax.random.key(4), 100))
    return jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape), drawn)


@pytest.fixture
def images(rng):
    return rng.random((4, 6, 5), np.float32)


LABELS = np.array([0, 2, 1, 1])


def logits_and_gradient(params, images, labels, config):
    def loss(params):
        logits = model.apply(params, images, config)
        return model.softmax_cross_entropy(logits, labels).mean(), logits

    gradient, logits = jax.grad(loss, has_aux=True)(params)
    return logits, gradient


def assert_close(found, expected, atol=1e-5):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), found, expected)


@pytest.mark.parametrize("stack", STACKS, ids=str)
def test_torchs_logits_and_gradients(stack):
    name, config = "-".join(map(str, stack)), ModelConfig(hidden_features=stack)
    params = torch.from_state_dict(load_file(TORCH / f"{name}.safetensors"))
    expected = load_file(TORCH / f"{name}.expected.safetensors")
    logits, gradient = logits_and_gradient(params, expected["images"], expected["labels"], config)
    assert_close(logits, expected["logits"])
    # Each of torch's two biases has the gradient of their sum.
    theirs = {
        name.removeprefix("gradient of "): np.zeros_like(array) if "bias_hh" in name else array
        for name, array in expected.items()
        if name.startswith("gradient of ")
    }
    assert_close(gradient, torch.from_state_dict(theirs))
    assert torch.to_state_dict(params).keys() == load_file(TORCH / f"{name}.safetensors").keys()


def test_torch_itself_computes_the_same(params, config, images):
    pytorch = pytest.importorskip("torch")
    sys.path.insert(0, str(TORCH.parent))
    from write_torch import Stack

    network = Stack(config.hidden_features)
    state_dict = {name: pytorch.from_numpy(array.copy()) for name, array in torch.to_state_dict(params).items()}
    network.load_state_dict(state_dict)
    logits, gradient = logits_and_gradient(params, images, LABELS, config)
    theirs = network(pytorch.from_numpy(images))
    assert_close(logits, theirs.detach().numpy())
    pytorch.nn.functional.cross_entropy(theirs, pytorch.from_numpy(LABELS)).backward()
    gradients = {name: p.grad * (0 if "bias_hh" in name else 1) for name, p in network.named_parameters()}
    assert_close(gradient, torch.from_state_dict(gradients))
    assert_close(torch.from_state_dict(dict(network.named_parameters())), params, atol=0)


@keras_is_noisy
def test_keras_computes_the_same(params, config, images, tmp_path):
    import keras as keras3

    network = keras.to_model(params, (6, 5))
    logits, gradient = logits_and_gradient(params, images, LABELS, config)
    variables, seeds = (
        [variable.value for variable in group]
        for group in (network.trainable_variables, network.non_trainable_variables)
    )

    def loss(variables):
        theirs, _ = network.stateless_call(variables, seeds, images)
        losses = keras3.losses.sparse_categorical_crossentropy(LABELS, theirs, from_logits=True)
        return keras3.ops.mean(losses), theirs

    their_gradient, theirs = jax.grad(loss, has_aux=True)(variables)
    assert_close(logits, theirs)
    their_weights = dict(zip(keras.to_arrays(params), their_gradient, strict=True))
    assert_close(gradient, keras.from_arrays(their_weights).params)
    assert_close(keras.from_model(network), params, atol=0)


@keras_is_noisy
def test_files_of_keras_both_ways(params, config, images, tmp_path):
    network = keras.to_model(params, (6, 5))
    network.compile("adam", "mse")
    network.optimizer.build(network.trainable_variables)
    for name in ("model.weights.h5", "model.keras", "model.h5"):
        network.save_weights(tmp_path / name) if "weights" in name else network.save(tmp_path / name)
        assert_close(formats.read("keras", tmp_path / name).params, params, atol=0)
    zeros = keras.to_model(jax.tree.map(jnp.zeros_like, params), (6, 5))
    files.write_hdf5(tmp_path / "ours.weights.h5", keras.to_arrays(params))
    zeros.load_weights(tmp_path / "ours.weights.h5")
    assert_close(keras.from_model(zeros), params, atol=0)


@pytest.mark.parametrize("name", ["model.h5", "weights.h5", "model.weights.h5", "model.keras"])
def test_files_that_keras_2_wrote(name):
    folder = TORCH.parent / "keras2"
    expected, imported = np.load(folder / "expected.npz"), formats.read("keras", folder / name)
    config = ModelConfig(hidden_features=imported.weights.hidden_features)
    assert_close(model.apply(imported.params, expected["images"], config), jnp.asarray(expected["logits"]))


@keras_is_noisy
def test_other_layers_of_keras_that_change_nothing(params, config, images, tmp_path):
    import keras as keras3

    layers = keras3.layers
    plain = keras.to_model(params, (6, 5))
    *lstms, dense = plain.layers
    around = [layers.Reshape((6, 5)), layers.Rescaling(1 / 255), *lstms, layers.Dropout(0.5), dense]
    network = keras3.Sequential([keras3.Input((30,)), *around, layers.Activation("softmax")])
    assert_close(keras.from_model(network), params, atol=0)
    network.save(tmp_path / "model.keras")
    network.save_weights(tmp_path / "model.weights.h5")
    for name in ("model.keras", "model.weights.h5"):
        assert_close(formats.read("keras", tmp_path / name).params, params, atol=0)


@keras_is_noisy
def test_what_keras_computes_otherwise_is_refused(tmp_path):
    import keras as keras3

    layers = keras3.layers
    for layer, message in [
        (layers.LSTM(4, activation="relu"), "has activation=relu, expected tanh"),
        (layers.LSTM(4, go_backwards=True), "has go_backwards=True, expected False"),
        (layers.LSTM(4, use_bias=False), "has 2 arrays; every layer must have its bias"),
        (layers.GRU(4), "is a GRU"),
        (layers.LSTM(4, return_sequences=True), "has return_sequences=True, expected False"),
        (keras3.Sequential([layers.LSTM(4), layers.Activation("softmax")]), "stands where this classifier has none"),
        (layers.Dense(4), "Expected LSTM layers, then one Dense layer; the model has Dense, Dense"),
        (layers.Bidirectional(layers.LSTM(4)), "is a Bidirectional"),
    ]:
        first = layer.layers if isinstance(layer, keras3.Sequential) else [layer]
        network = keras3.Sequential([keras3.Input((6, 5)), *first, layers.Dense(3)])
        with pytest.raises(WeightsError, match=message):
            keras.from_model(network)
        for name in ("model.keras", "model.h5"):
            network.save(tmp_path / name)
            with pytest.raises(WeightsError, match=message if "arrays" not in message else "lacks its bias"):
                formats.read("keras", tmp_path / name)
    network.save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(WeightsError, match="bidirectional/backward_layer/cell reads both directions"):
        formats.read("keras", tmp_path / "model.weights.h5")


class Linen(nn.Module):
    """Layers in Linen, in one of the ways in which people write them."""

    hidden_features: tuple[int, ...]
    cell: type = nn.OptimizedLSTMCell

    @nn.compact
    def __call__(self, outputs):
        for hidden in self.hidden_features:
            outputs = nn.RNN(self.cell(hidden))(outputs)
        return nn.Dense(3)(outputs[:, -1])


@pytest.mark.parametrize("cell", [nn.OptimizedLSTMCell, nn.LSTMCell])
def test_linen_computes_the_same(params, config, images, cell):
    network, tree = Linen(config.hidden_features, cell), flax.to_tree(params)
    if cell is nn.LSTMCell:
        tree = {"params": {name.removeprefix("Optimized"): branch for name, branch in tree["params"].items()}}
    assert jax.tree.structure(tree) == jax.tree.structure(network.init(jax.random.key(0), images))
    logits, gradient = logits_and_gradient(params, images, LABELS, config)
    assert_close(network.apply(tree, images), logits)
    loss = lambda tree: model.softmax_cross_entropy(network.apply(tree, images), LABELS).mean()  # noqa: E731
    assert_close(flax.from_tree(jax.grad(loss)(tree)), gradient)
    assert_close(flax.from_tree(tree), params, atol=0)


class Nnx(nnx.Module):
    """Layers in NNX, with cells that keep a matrix for each gate."""

    def __init__(self, hidden_features, rngs):
        widths = (5, *hidden_features)
        self.layers = nnx.List(nnx.RNN(nnx.LSTMCell(a, b, rngs=rngs)) for a, b in itertools.pairwise(widths))
        self.out = nnx.Linear(widths[-1], 3, rngs=rngs)

    def __call__(self, outputs):
        for layer in self.layers:
            outputs = layer(outputs)
        return self.out(outputs[:, -1])


def test_nnx_computes_the_same(config, images):
    network = Nnx(config.hidden_features, nnx.Rngs(0))
    params = flax.from_tree(nnx.to_pure_dict(nnx.state(network, nnx.Param)))
    assert_close(model.apply(params, images, config), network(images))
    assert_close(flax.from_tree(flax.to_tree(params, "nnx")), params, atol=0)


@pytest.mark.parametrize("format_name", ["torch", "keras", "flax", "safetensors", "tf1"])
def test_every_file_is_read_as_it_was_written(params, config, tmp_path, format_name):
    exported = formats.Exported(params, None, (6, 5), tuple("abc"), formats.Settings())
    path = tmp_path / "new folder" / f"model{formats.WRITERS[format_name][0]}"
    formats.write(format_name, path, exported)
    assert_close(formats.read(format_name, path).params, params, atol=0 if format_name != "tf1" else 1e-6)
    assert formats.list_arrays(format_name, path)
    with pytest.raises(WeightsError, match=r"exists already.*--overwrite"):
        formats.write(format_name, path, exported)
    formats.write(format_name, path, exported, overwrite=True)
    assert not list(path.parent.glob("*.partial"))


def test_a_flax_program_reads_and_writes_the_msgpack_file(params, config, images, tmp_path):
    from flax import serialization

    network = Linen(config.hidden_features)
    files.write_msgpack(tmp_path / "ours.msgpack", flax.to_tree(params))
    template = network.init(jax.random.key(0), images)
    tree = serialization.from_bytes(template, (tmp_path / "ours.msgpack").read_bytes())
    assert_close(network.apply(tree, images), model.apply(params, images, config))
    (tmp_path / "theirs.msgpack").write_bytes(serialization.to_bytes(template))
    assert_close(formats.read("flax", tmp_path / "theirs.msgpack").params, flax.from_tree(template), atol=0)


@pytest.mark.parametrize("image_shape", [(6, 5), (6, 5, 3)])
def test_onnxruntime_computes_the_same(config, rng, image_shape):
    onnxruntime = pytest.importorskip("onnxruntime")
    params = model.init(config, jax.random.key(3), image_shape, 3)
    data = export.to_onnx(params, image_shape, ("one", "two", "three"))
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["classes"].split("\n") == ["one", "two", "three"]
    for batch in (1, 4, 7):
        images = rng.integers(0, 256, (batch, *image_shape)).astype(np.uint8)
        probabilities, logits = session.run(["probabilities", "logits"], {"images": images})
        expected = model.apply(params, images, config)
        assert_close(logits, np.asarray(expected))
        assert_close(probabilities, np.asarray(jax.nn.softmax(expected)))


def test_onnx_files_hold_onnxs_own_lstms(params, config):
    import onnx

    graph = onnx.load_from_string(export.to_onnx(params, (6, 5))).graph
    assert [node.op_type for node in graph.node].count("LSTM") == len(config.hidden_features)


STABLEHLO_PROGRAM = """
import sys
import jax, numpy as np
exported = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
images = np.load(sys.argv[2])
for batch in (1, len(images)):
    outputs = exported.call(images[:batch])
np.savez(sys.argv[3], **outputs)
assert not any(name.startswith(("lstm_mnist_jax", "flax")) for name in sys.modules)
assert exported.platforms == ("cpu", "cuda", "tpu")
"""


def test_a_program_with_jax_alone_runs_the_stablehlo_file(params, config, rng, tmp_path):
    images = rng.integers(0, 256, (5, 6, 5)).astype(np.uint8)
    (tmp_path / "model.stablehlo").write_bytes(export.to_stablehlo(params, (6, 5)))
    np.save(tmp_path / "images.npy", images)
    paths = [str(tmp_path / name) for name in ("model.stablehlo", "images.npy", "outputs.npz")]
    subprocess.run([sys.executable, "-c", STABLEHLO_PROGRAM, *paths], check=True, timeout=120)
    outputs, logits = np.load(tmp_path / "outputs.npz"), np.asarray(model.apply(params, images, config))
    assert_close(outputs["logits"], logits)
    assert_close(outputs["probabilities"], np.asarray(jax.nn.softmax(logits)))


def state_dict(**changes):
    drawn = model.init(ModelConfig(hidden_features=(4, 7)), jax.random.key(3), (6, 5), 3)
    arrays = torch.to_state_dict(drawn) | changes
    return {name: array for name, array in arrays.items() if array is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lstm.0.weight_ih_l0_reverse": np.zeros((16, 5))}, "weight_ih_l0_reverse reads both directions"),
        ({"lstm.0.weight_hr_l0": np.zeros((2, 4))}, "projects its outputs"),
        ({"lstm.0.bias_hh_l0": None}, "Layer 0 of the nn.LSTM 'lstm.0' lacks bias_hh_l0. Found: lstm.0.weight_ih_l0"),
        ({"lstm.0.bias_hh_l0": np.zeros(3)}, r"do not fit together: .*bias_hh_l0 \[3\]"),
        ({"lstm.0.weight_hh_l0": np.zeros((16, 3))}, r"lstm.0.l0 does not fit together: .* \[3, 16\] for its state"),
        ({"lstm.1.weight_ih_l0": np.zeros((28, 5))}, "lstm.1.l0 takes 5 features, but the layer before gives 4"),
        ({"dense.weight": np.zeros((3, 4))}, "dense has weights .* gives 7 features"),
        ({"dense.bias": None}, "The output layer is missing"),
        ({"head.weight": np.zeros((3, 7))}, "more besides the LSTM layers: dense.weight, dense.bias, head.weight"),
        ({"dense.bias": np.array([1, np.inf, 0])}, "dense holds values that are not finite"),
    ],
)
def test_state_dicts_of_other_networks_are_refused(changes, message):
    with pytest.raises(WeightsError, match=message):
        torch.from_state_dict(state_dict(**changes))
    with pytest.raises(WeightsError, match=r"There is no nn.LSTM: no weight_ih_l0"):
        torch.from_state_dict({"conv.weight": np.zeros((3, 3))})


def test_trees_of_other_networks_are_refused():
    tree = flax.to_tree(torch.from_state_dict(state_dict()))
    del tree["params"]["OptimizedLSTMCell_0"]["hf"]["bias"]
    with pytest.raises(WeightsError, match=r"OptimizedLSTMCell_0 lacks hf/bias. Found: "):
        flax.from_tree(tree)
    tree = flax.to_tree(torch.from_state_dict(state_dict()))
    tree["params"]["OptimizedLSTMCell_0"]["ii"]["kernel"] = np.zeros((5, 3))
    with pytest.raises(WeightsError, match="gates of the LSTM cell params/OptimizedLSTMCell_0 are of different shapes"):
        flax.from_tree(tree)
    with pytest.raises(WeightsError, match=r"There is no LSTM cell"):
        flax.from_tree({"params": {"Dense_0": {"kernel": np.zeros((2, 3))}}})


@pytest.mark.parametrize("format_name", ["torch", "keras", "flax", "safetensors"])
def test_damaged_and_missing_files_are_told(tmp_path, format_name):
    with pytest.raises(WeightsError, match=r"none.bin cannot be read: No such file"):
        formats.read(format_name, tmp_path / "none.bin")
    path = tmp_path / f"model{formats.WRITERS[format_name][0]}"
    drawn = torch.from_state_dict(state_dict())
    formats.write(format_name, path, formats.Exported(drawn, None, (6, 5), ("a",), formats.Settings()))
    data = path.read_bytes()
    for cut in (0, 1, 7, 8, 9, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(WeightsError, match=r"cannot be read as|holds no tree"):
            formats.read(format_name, path)


def test_pickles_are_never_opened(tmp_path):
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(WeightsError, match=r"is a pickle by its name.*safetensors.torch.save_file\(torch.load"):
        formats.read("torch", path)
    renamed = path.rename(tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        formats.read("torch", renamed)


@pytest.mark.parametrize(("format_name", "name"), [("keras", "model.h5"), ("torch", "model.pt"), ("onnx", ".onnx")])
def test_names_that_readers_would_not_take_are_refused(tmp_path, format_name, name):
    exported = formats.Exported(torch.from_state_dict(state_dict()), None, (6, 5), ("a",), formats.Settings())
    with pytest.raises(WeightsError, match=r"has another ending than files for|expected NAME"):
        formats.write(format_name, tmp_path / name, exported)
    with pytest.raises(WeightsError, match=r"Unknown format 'caffe'; expected one of tf1, torch"):
        formats.write("caffe", tmp_path / name, exported)


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(WeightsError, match=r"needs the package h5py.*pip install -e '\.\[interop\]'"):
        files.read_hdf5(tmp_path / "model.weights.h5")


def test_extra_arrays_can_be_ignored(tmp_path):
    save_file(state_dict(**{"head.weight": np.zeros((3, 7), "f4")}), tmp_path / "model.safetensors")
    assert formats.read("torch", tmp_path / "model.safetensors", ignore=["head.*"]).names[-1] == "dense"


def test_half_precision_is_read_and_other_types_are_named(tmp_path):
    pytorch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    arrays = state_dict()
    for dtype in (pytorch.float16, pytorch.bfloat16, pytorch.float64):
        tensors = {name: pytorch.from_numpy(array.copy()).to(dtype) for name, array in arrays.items()}
        save_file(tensors, tmp_path / "model.safetensors")
        found = formats.read("torch", tmp_path / "model.safetensors").params
        assert_close(found, torch.from_state_dict(arrays), atol=1e-2)
        assert found["dense"]["kernel"].dtype == np.float32
    save_file({"a": pytorch.zeros(2, dtype=pytorch.float8_e5m2)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="holds numbers of the type 'F8_E5M2'; expected floats"):
        formats.read("torch", tmp_path / "model.safetensors")


def named(widths):
    """A state_dict of one-layer LSTMs of these names and widths, the first of 5 features."""
    rng, arrays, features = np.random.default_rng(0), {}, 5
    for name, width in widths.items():
        shapes = {"weight_ih": (4 * width, features), "weight_hh": (4 * width, width), "bias_ih": 4 * width}
        shapes["bias_hh"] = shapes["bias_ih"]
        arrays |= {f"{name}.{kind}_l0": rng.standard_normal(shape, "f4") for kind, shape in shapes.items()}
        features = width
    head = {"head.weight": rng.standard_normal((3, features), "f4"), "head.bias": np.zeros(3, "f4")}
    return arrays | head


def test_the_order_of_layers_is_never_guessed(tmp_path):
    by_width = named({"rnn": 4, "middle": 6, "last": 3})
    assert torch.from_arrays(dict(sorted(by_width.items()))).names[:3] == ("rnn.l0", "middle.l0", "last.l0")
    by_number = named({f"lstm{number}": 5 for number in range(1, 12)})
    assert torch.from_arrays(dict(sorted(by_number.items()))).names[9:11] == ("lstm10.l0", "lstm11.l0")
    open_ = named({"lower": 5, "higher": 5})
    live = torch.from_state_dict(open_)["lstm"]["layers"][0]["cell"]["dense_i"]["kernel"]
    np.testing.assert_array_equal(live, open_["lower.weight_ih_l0"].T)
    path = tmp_path / "model.safetensors"
    save_file(open_, path)
    with pytest.raises(WeightsError, match=r"names nor their widths tell.*--layer higher.l0 --layer lower.l0"):
        formats.read("torch", path)
    assert formats.read("torch", path, layers=["lower.l0", "higher.l0"]).names[0] == "lower.l0"
    with pytest.raises(WeightsError, match=r"--layer names lower.l0; the LSTM layers are higher.l0, lower.l0"):
        formats.read("torch", path, layers=["lower.l0"])


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


def test_a_state_of_nnx_is_taken_as_it_is(config):
    network = Nnx(config.hidden_features, nnx.Rngs(0))
    state = nnx.state(network, nnx.Param)
    assert_close(flax.from_tree(state), flax.from_tree(nnx.to_pure_dict(state)), atol=0)


@pytest.mark.parametrize("name", ["a" * 5000, "a\x1b[31m", "lstm" * 10_000 + "/kernel", "9" * 5000])
def test_absurd_names_are_refused(tmp_path, name):
    save_file({name: np.zeros((2, 2), "f4")}, tmp_path / "model.safetensors")
    for call in (formats.read, formats.list_arrays):
        with pytest.raises(WeightsError, match="which no program gives"):
            call("torch", tmp_path / "model.safetensors")


def test_hdf5_that_claims_or_refers_to_what_is_not_in_it(tmp_path):
    import h5py

    for number, options in enumerate([{"shape": (1 << 30,), "chunks": (1 << 20,)}, {"data": h5py.Empty("f4")}]):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file.create_dataset("lstm/cell/vars/0", **options, dtype="f4")
    with h5py.File(tmp_path / "2.h5", "w") as file:
        file.create_dataset("a", (16,), "u1", external=[("/etc/hostname", 0, 16)])
    with pytest.raises(WeightsError, match="is said to have 4294967296 bytes"):
        formats.list_arrays("keras", tmp_path / "0.h5")
    assert formats.list_arrays("keras", tmp_path / "1.h5") == {}
    with pytest.raises(WeightsError, match="which are not in it"):
        formats.list_arrays("keras", tmp_path / "2.h5")


def test_unknown_formats_are_told():
    for call in (formats.read, formats.list_arrays):
        with pytest.raises(WeightsError, match="Unknown format 'onnx'; expected one of tf1, torch"):
            call("onnx", Path("model.onnx"))


def test_files_of_other_formats_are_recognised(params, tmp_path):
    exported = formats.Exported(params, None, (6, 5), ("a",), formats.Settings())
    paths = {name: tmp_path / f"{name}{formats.WRITERS[name][0]}" for name in ("torch", "keras", "flax", "safetensors")}
    for name, path in paths.items():
        formats.write(name, path, exported)
    for wrong, name, message in [
        ("tf1", "keras", "looks like a file for: import keras"),
        ("torch", "keras", "looks like a file for: import keras"),
        ("flax", "torch", "looks like a file for: import torch or safetensors"),
        ("torch", "safetensors", "has the names of this package, not of PyTorch: import safetensors"),
        ("keras", "flax", "cannot be read as Keras's weights"),
    ]:
        with pytest.raises(WeightsError, match=message):
            formats.read(wrong, paths[name])


def test_a_train_state_of_flax_gives_its_parameters(params, config, images, tmp_path):
    import optax
    from flax import serialization
    from flax.training.train_state import TrainState

    network = Linen(config.hidden_features)
    state = TrainState.create(apply_fn=network.apply, params=flax.to_tree(params)["params"], tx=optax.adam(0.01))
    (tmp_path / "state.msgpack").write_bytes(serialization.to_bytes(state))
    assert_close(formats.read("flax", tmp_path / "state.msgpack").params, params, atol=0)


def test_a_gru_is_called_one():
    arrays = {"gru/cell/vars/0": (5, 12), "gru/cell/vars/1": (4, 12), "gru/cell/vars/2": (2, 12)}
    found = {name: np.zeros(shape, "f4") for name, shape in arrays.items()}
    with pytest.raises(WeightsError, match="The layer gru is that of a GRU, expected an LSTM"):
        keras.from_arrays(found | {"dense/vars/0": np.zeros((4, 3), "f4"), "dense/vars/1": np.zeros(3, "f4")})


def test_the_config_can_be_left_to_the_parameters(params, config, images):
    np.testing.assert_array_equal(model.apply(params, images), model.apply(params, images, config))
