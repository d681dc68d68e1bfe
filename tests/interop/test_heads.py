"""Classifiers with more than one dense layer, other activations, and the outputs of all steps: in every format."""

import itertools
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np
import numpy_lstm
import pytest
from parameters import drawn
from safetensors.numpy import save_file
from stacks import FIXTURES, apply, assert_close, keras_outputs

from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop import export, flax, formats, keras, tf1, torch
from lstm_mnist_jax.interop.imported import HOLDS, unusual

NETWORKS = [
    ModelConfig(hidden_features=(4, 3), dense_features=(5, 4)),
    ModelConfig(hidden_features=(4,), pooling="all", dense_features=(5,), dense_activation="tanh"),
    ModelConfig(hidden_features=(4,), pooling="all", activation="relu", recurrent_activation="hard_sigmoid_keras3"),
    ModelConfig(hidden_features=(4,), activation="linear", recurrent_activation="hard_sigmoid_keras2"),
    ModelConfig(hidden_features=(4,), activation="hard_sigmoid_keras2", dense_features=(4,), dense_activation="linear"),
    ModelConfig(hidden_features=(4,), pooling="mean", activation="hard_sigmoid_keras3"),
    ModelConfig(hidden_features=(4,), pooling="max"),
    ModelConfig(cell="gru", hidden_features=(4, 3)),
    ModelConfig(cell="gru", recurrent_bias=True, bidirectional=True, hidden_features=(4, 4), pooling="last_step"),
    ModelConfig(bidirectional=True, hidden_features=(3, 4), dense_features=(5,), pooling="last"),
    ModelConfig(cell="gru", recurrent_bias=True, hidden_features=(4,), pooling="attention"),
    ModelConfig(bidirectional=True, hidden_features=(4,), pooling="all", activation="relu"),
    ModelConfig(task="columns", hidden_features=(4,), sequence_length=10),
]
HELD = {
    "tf1": [],
    "torch": [0, 1, 6, 7, 8, 9, 10],
    "keras": [0, 1, 2, 5, 6, 7, 9, 11],
    "flax": range(12),
    "safetensors": range(13),
    "onnx": range(13),
}


TABLE = {
    "LSTM layers, the last": {},
    "hidden dense": {"dense_features": (4,), "dense_activation": "tanh"},
    "the outputs of all steps": {"pooling": "all"},
    "mean or max": {"pooling": "max"},
    "attention pooling": {"pooling": "attention"},
    "GRU layers (`--cell": {"cell": "gru"},
    "GRU layers with": {"cell": "gru", "recurrent_bias": True},
    "both directions, the final": {"bidirectional": True},
    "both directions, the outputs": {"bidirectional": True, "pooling": "last_step"},
    "`relu` or": {"activation": "relu"},
    "`hard_sigmoid_keras3`": {"activation": "hard_sigmoid_keras3", "recurrent_activation": "hard_sigmoid_keras3"},
    "`hard_sigmoid_keras2`": {"recurrent_activation": "hard_sigmoid_keras2"},
    "columns": {"task": "permuted", "permutation_seed": 3, "sequence_length": 2},
    "LSTM with layer": {"cell": "layer_norm_lstm"},
}


def test_the_table_of_the_docs_is_that_of_the_program():
    text = (FIXTURES.parents[1] / "docs" / "weights.md").read_text()
    first = text[text.index("| the model has") :].split("\n")
    names = [cell.strip(" `") for cell in first[0].split("|")[2:-1]]
    assert names == list(HOLDS)
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), first[2:]))
    assert len(rows) == len(TABLE)
    for row, (start, fields) in zip(rows, TABLE.items(), strict=True):
        _, what, *cells, _ = (cell.strip() for cell in row.split("|"))
        assert what.startswith(start)
        held = [not unusual(name, ModelConfig(**fields)) for name in names]
        assert cells == [("no", "yes")[each] for each in held], what


@pytest.mark.parametrize("format_name", HELD)
def test_every_format_holds_a_network_or_refuses_it(format_name, tmp_path):
    for number, config in enumerate(NETWORKS):
        params = drawn(config)
        exported = formats.Exported(config, params, None, (6, 5), tuple("abc"), formats.Settings())
        path = tmp_path / f"{number}{formats.EXPORT_ENDINGS[format_name]}"
        if number not in HELD[format_name]:
            with pytest.raises(WeightsError, match=r"cannot hold this model's .*exported to .*stablehlo"):
                formats.write(format_name, path, exported)
            continue
        formats.write(format_name, path, exported)
        if format_name != "onnx":
            said = {} if format_name == "safetensors" else {name: getattr(config, name) for name in formats.NETWORK}
            given = formats.Given(**said | ({} if config.dense_features else {"dense_activation": None}))
            imported = formats.read(format_name, path, given=given)
            assert imported.config == config
            # Linen's GRU has one bias of the gates r and z, which is the sum of two.
            rounded = format_name == "flax" and config.recurrent_bias
            images = np.random.default_rng(0).integers(0, 256, (3, 6, 5)).astype(np.uint8)
            if rounded:
                expected = apply(params, images, config)
                np.testing.assert_allclose(apply(imported.params, images, config), expected, atol=1e-6)
            else:
                assert_close(imported.params, params, atol=0)


def test_onnxruntime_computes_the_same_for_every_network(rng):
    onnxruntime = pytest.importorskip("onnxruntime")
    images = rng.integers(0, 256, (3, 6, 5)).astype(np.uint8)
    for config in [NETWORKS[number] for number in HELD["onnx"]]:
        params = drawn(config)
        data = export.to_onnx(params, (6, 5), config=config)
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        (logits,) = session.run(["logits"], {"images": images})
        np.testing.assert_allclose(logits, apply(params, images, config), atol=1e-5)


@pytest.mark.usefixtures("keras_draws_by_numpy")
def test_keras_computes_the_same_for_every_network_that_it_has(rng):
    pytest.importorskip("keras")
    images = rng.integers(0, 256, (3, 6, 5)).astype(np.uint8)  # the programs of the test with onnxruntime
    for number in HELD["keras"]:
        config = NETWORKS[number]
        found = keras_outputs(keras.to_model(drawn(config), (6, 5), config), images / np.float32(255))
        np.testing.assert_allclose(found, apply(drawn(config), images, config), atol=1e-5)


def state_dict(rng, *, bias=True, dense=(), embedding=None, steps=1, width=5):
    """PyTorch's arrays, and the same weights as parameters of the classifier."""
    arrays, hidden = {}, 4
    sizes = [steps * hidden, *dense, 3]

    def linear(name, in_width, out_width):
        arrays[f"{name}.weight"] = rng.normal(size=(out_width, in_width)).astype("f4") / in_width**0.5
        if bias:
            arrays[f"{name}.bias"] = rng.normal(size=out_width).astype("f4")

    if embedding:
        linear("embed", width, embedding)
    shapes = {"weight_ih": (16, embedding or width), "weight_hh": (16, 4)}
    shapes |= {"bias_ih": (16,), "bias_hh": (16,)} if bias else {}
    arrays |= {f"lstm.{name}_l0": 0.5 * rng.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    for number, pair in enumerate(itertools.pairwise(sizes)):
        linear(f"fc.{2 * number}", *pair)
    return arrays


def logits_of(arrays, images, config):
    """In NumPy, float64, from PyTorch's arrays; images are floats."""
    sequence = np.swapaxes(images.astype(np.float64), 0, 1)
    if "embed.weight" in arrays:
        sequence = sequence @ arrays["embed.weight"].T.astype(np.float64) + arrays.get("embed.bias", 0)
    bias = np.zeros(16) + arrays.get("lstm.bias_ih_l0", 0) + arrays.get("lstm.bias_hh_l0", 0)
    zeros = np.zeros((len(images), 4))
    outputs, _ = numpy_lstm.lstm(
        sequence, arrays["lstm.weight_ih_l0"].T, arrays["lstm.weight_hh_l0"].T, bias, zeros, zeros
    )
    features = np.concatenate(list(outputs), axis=-1) if config.pooling == "all" else outputs[-1]
    names = [name.removesuffix(".weight") for name in arrays if name.startswith("fc.") and name.endswith("weight")]
    for name in names:
        features = features @ arrays[f"{name}.weight"].T.astype(np.float64) + arrays.get(f"{name}.bias", 0)
        features = features if name == names[-1] else numpy_lstm.ACTIVATIONS[config.dense_activation](features)
    return features


def test_state_dicts_of_other_networks_give_their_logits(rng, tmp_path):
    images = rng.random((3, 6, 5), np.float32)
    for options, said, notes in [
        ({"dense": (7, 6)}, {"dense_activation": "relu"}, 0),
        ({"dense": (4, 4)}, {"dense_activation": "tanh"}, 0),  # fc.0, fc.2, fc.4: in the order of their numbers
        ({"steps": 6, "dense": (4,)}, {"dense_activation": "linear"}, 0),
        ({"bias": False, "dense": (7,)}, {"dense_activation": "relu"}, 3),
        ({"embedding": 9, "dense": (8,)}, {"dense_activation": "relu", "input_activation": "linear"}, 1),
        ({"embedding": 9, "bias": False}, {"input_activation": "linear"}, 4),
    ]:
        arrays = state_dict(rng, **options)
        save_file(arrays, tmp_path / "model.safetensors")
        imported = formats.read("torch", tmp_path / "model.safetensors", given=formats.Given(**said))
        found = apply(imported.params, images, imported.config)
        np.testing.assert_allclose(found, logits_of(arrays, images, imported.config), atol=1e-5)
        assert len(imported.notes) == notes
        assert sum("has no bias" in note for note in imported.notes) == notes - ("embedding" in options)
        from_python = torch.from_state_dict(arrays, input_activation=said.get("input_activation"))
        assert_close(from_python, imported.params, atol=0)


def test_a_dense_layer_between_the_lstm_layers_is_refused_or_noted(rng, tmp_path):
    one = state_dict(rng, width=4)
    lstms = [
        {name.replace("lstm", f"lstm{number}"): array for name, array in one.items() if "lstm" in name}
        for number in (1, 2)
    ]
    middle = {"fc1.weight": np.ones((4, 4), "f4"), "fc1.bias": np.ones(4, "f4")}
    output = {name.replace("fc.0", "fc2"): array for name, array in one.items() if "fc" in name}
    found = lstms[0] | middle | lstms[1] | output
    with pytest.raises(WeightsError, match=r"has fc1 between its recurrent layers: lstm1.l0, fc1, lstm2.l0, fc2"):
        torch.from_state_dict(found)
    with pytest.raises(WeightsError, match=r"name all layers .*: --layer lstm1.l0 --layer lstm2.l0 --layer fc1 --la"):
        torch.from_arrays(found, as_stored=True)
    right = torch.from_state_dict(lstms[0] | lstms[1] | middle | output)
    assert_close(torch.from_state_dict(found, ["lstm1.l0", "lstm2.l0", "fc1", "fc2"]), right, atol=0)
    save_file(found, tmp_path / "model.safetensors")
    given = formats.Given(dense_activation="relu")
    (note,) = formats.read("torch", tmp_path / "model.safetensors", given=given).notes
    assert "fc1 is assumed to follow all recurrent layers, and not to stand between lstm1.l0 and lstm2.l0" in note
    one_module = {name.replace("lstm1", "lstm"): array for name, array in lstms[0].items()}
    one_module |= {name.replace("lstm2", "lstm").replace("l0", "l1"): array for name, array in lstms[1].items()}
    assert torch.from_arrays(one_module | middle | output).notes == ()


def test_all_layers_can_be_named_where_widths_do_not_give_their_order(rng, tmp_path):
    arrays = state_dict(rng, dense=(4, 4))
    renamed = {name.replace("fc.0", "b").replace("fc.2", "a").replace("fc.4", "z"): a for name, a in arrays.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    given = formats.Given(dense_activation="relu")
    with pytest.raises(WeightsError, match=r"Name all layers .*: --layer lstm.l0 --layer a --layer b --layer z"):
        formats.read("torch", tmp_path / "model.safetensors", given=given)
    for wrong, message in [
        (
            ["lstm.l0", "b", "z"],
            "names lstm.l0, b, z; the recurrent layers are lstm.l0, the dense layers a, b, z",
        ),
        (["b", "lstm.l0", "z", "a"], "before its recurrent layers: b"),
    ]:
        with pytest.raises(WeightsError, match=message):
            formats.read("torch", tmp_path / "model.safetensors", layers=wrong, given=given)
    imported = formats.read("torch", tmp_path / "model.safetensors", layers=["lstm.l0", "b", "a", "z"], given=given)
    assert_close(imported.params, torch.from_state_dict(arrays), atol=0)
    assert imported.names == ("lstm.l0", "b", "a", "z")
    assert "dense 4 -> 4, relu: b" in imported.describe()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, r"hidden dense layers: fc.0. The file does not hold .*give --dense-activation relu, tanh or linear"),
        ({"dense_activation": "relu", "activation": "relu"}, "--activation is relu, but .* has tanh. Leave it out"),
        ({"dense_activation": "relu", "recurrent_activation": "hard_sigmoid_keras2"}, "has sigmoid. Leave it out"),
        ({"dense_activation": "relu", "pooling": "max"}, "--pooling is max, but the network of the file has all"),
    ],
)
def test_what_is_unknown_is_asked_for_and_what_contradicts_is_refused(rng, tmp_path, said, message):
    save_file(state_dict(rng, dense=(7,), steps=6), tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=message):
        formats.read("torch", tmp_path / "model.safetensors", given=formats.Given(**said))
    save_file(state_dict(rng), tmp_path / "plain.safetensors")
    with pytest.raises(WeightsError, match=r"of which the file has none. Leave it out"):
        formats.read("torch", tmp_path / "plain.safetensors", given=formats.Given(dense_activation="relu"))
    with pytest.raises(WeightsError, match=r"--pooling is all, but the dense layers .* take the features of one step"):
        formats.read("torch", tmp_path / "plain.safetensors", given=formats.Given(pooling="all"))
    for given, line in [
        (formats.Given(), "the last output (assumed, as the file does not hold it: see --pooling)"),
        (formats.Given(pooling="mean"), "mean pooling over all steps"),
    ]:
        assert line in formats.read("torch", tmp_path / "plain.safetensors", given=given).describe()


def test_networks_that_a_function_cannot_hold_are_refused():
    pytest.importorskip("keras")
    cells = [("cell", "ur_lstm"), ("cell", "layer_norm_lstm")]
    others = [("pooling", "attention"), ("task", "columns")]
    for name, write, fields in [("onnx", export.to_onnx, cells), ("keras", keras.to_model, others)]:
        for field, value in fields:
            config = ModelConfig(hidden_features=(4,), **{field: value})
            with pytest.raises(WeightsError, match=f"Files for {name} cannot hold this model's {field} {value}"):
                write(drawn(config), (6, 5), config=config)
            if name == "onnx":
                with pytest.raises(WeightsError, match="not those of LSTM or GRU layers"):
                    write(drawn(config), (6, 5))
            elif field != "task":
                with pytest.raises(WeightsError, match=f"Files for {name} cannot hold this model's {field} {value}"):
                    write(drawn(config), (6, 5))
    config = ModelConfig(bidirectional=True, pooling="last_step")
    with pytest.raises(WeightsError, match="this model's pooling last_step"):
        keras.to_model(drawn(config), (6, 5), config)


def test_networks_that_a_file_cannot_hold_are_refused(tmp_path):
    params = drawn(NETWORKS[0])
    with pytest.raises(WeightsError, match="one dense layer, of the last output"):
        tf1.to_variables(formats.from_params(params))
    for config, network, message in [
        (NETWORKS[0], "[" * 200_000, "a network that this version or the file does not have: maximum recursion"),
        (
            NETWORKS[0],
            '{"pooling": "attention"}',
            "the pooling attention, but the weights are those .* the pooling last",
        ),
        (NETWORKS[0], '{"pooling": "all"}', "the pooling all, but the weights are those .* the pooling last"),
        (NETWORKS[1], '{"pooling": "mean"}', "the pooling mean, but the weights are those .* the pooling all"),
        (NETWORKS[1], '{"pooling": "last"}', "the pooling last, but weights of the pooling all"),
        (NETWORKS[1], '{"cell": "gru"}', "not have: unknown fields cell"),
    ]:
        arrays = flax.flatten(flax.to_tree(drawn(config), "nnx"), ".")
        save_file(arrays, tmp_path / "ours.safetensors", {"network": network})
        with pytest.raises(WeightsError, match=message):
            formats.read("safetensors", tmp_path / "ours.safetensors")
    tree = flax.to_tree(params)["params"]
    assert list(tree)[-3:] == ["Dense_0", "Dense_1", "Dense_2"]
    assert tree["Dense_2"]["bias"].shape == (3,)


def test_torch_itself_computes_the_same(rng):
    pytorch = pytest.importorskip("torch")
    nn = pytorch.nn
    images = rng.random((3, 6, 5), np.float32)
    lstm, fc = nn.LSTM(5, 4, bias=False, batch_first=True), nn.Sequential(nn.Linear(24, 7), nn.Tanh(), nn.Linear(7, 3))
    module = nn.ModuleDict({"lstm": lstm, "fc": fc})
    config = ModelConfig(hidden_features=(4,), pooling="all", dense_features=(7,), dense_activation="tanh")
    params = torch.from_state_dict(module.state_dict())
    theirs = fc(lstm(pytorch.from_numpy(images))[0].flatten(1)).detach().numpy()
    np.testing.assert_allclose(apply(params, images, config), theirs, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.usefixtures("keras_draws_by_numpy")
def test_models_of_keras_come_in_with_what_their_config_says(rng, tmp_path):
    keras3 = pytest.importorskip("keras")
    layers, images = keras3.layers, rng.random((3, 6, 5), np.float32)
    for stack, expected, fields in [
        ([layers.LSTM(4), layers.Dense(7, "relu"), layers.Dropout(0.5), layers.Dense(7, "relu")], (7, 7), ""),
        ([layers.LSTM(4), layers.Dense(4), layers.Activation("tanh")], (4,), "dense_activation tanh"),
        (
            [layers.LSTM(4, activation="relu", return_sequences=True), layers.Flatten(), layers.Dense(4, "tanh")],
            (4,),
            "activation relu, dense_activation tanh",
        ),
        (
            [layers.LSTM(4, recurrent_activation="hard_sigmoid"), layers.Flatten()],
            (),
            "recurrent_activation.hard_sigmoid",
        ),
        ([layers.LSTM(4, return_sequences=True), layers.GlobalMaxPooling1D()], (), "pooling max"),
        (
            [layers.LSTM(4, return_sequences=True), layers.GlobalAveragePooling1D(), layers.Dense(4, "relu")],
            (4,),
            "pooling mean",
        ),
        ([layers.Dense(9), layers.Dense(4, use_bias=False), layers.LSTM(4), layers.Dense(4, "relu")], (4,), ""),
    ]:
        network = keras3.Sequential([keras3.Input((6, 5)), *stack, layers.Dense(3)])
        network.set_weights([rng.normal(0, 0.5, array.shape) for array in network.get_weights()])
        theirs = keras_outputs(network, images)
        if fields:
            with pytest.raises(WeightsError, match=rf"{fields}.*, which (parameters alone|differs)"):
                keras.from_model(network)
        else:
            assert_close(
                apply(keras.from_model(network), images, ModelConfig(hidden_features=(4,), dense_features=expected)),
                theirs,
            )
        for name in ("model.keras", "model.h5"):
            network.save(tmp_path / name)
            imported = formats.read("keras", tmp_path / name)
            assert imported.config.dense_features == expected
            found = apply(imported.params, images, imported.config)
            np.testing.assert_allclose(found, theirs, atol=1e-5)
