"""Keras: against Keras 3, live, and files that Keras 2 wrote."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")


import json
import shutil
import zipfile
from pathlib import Path

import h5py
import jax
import keras_mutations as mutations
import numpy as np
import pytest
from parameters import drawn
from stacks import FIXTURES, LABELS, apply, assert_close, logits_and_gradient

from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop import files, formats, keras
from lstm_mnist_jax.interop.inputs import Inputs
from lstm_mnist_jax.model import describe_layers

AGES = FIXTURES / "keras_ages"
WAYS = ("forward", "backward")

keras_is_noisy = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@keras_is_noisy
def test_keras_computes_the_same(params, config, images, tmp_path):
    import keras as keras3

    network = keras.to_model(params, (6, 5))
    logits, gradient = logits_and_gradient(params, images, LABELS, config)
    variables, seeds = (
        [variable.value for variable in group]
        for group in (network.trainable_variables, network.non_trainable_variables)
    )

    @jax.jit
    def gradient_and_logits(variables):
        return jax.grad(loss, has_aux=True)(variables)

    def loss(variables):
        theirs, _ = network.stateless_call(variables, seeds, images)
        losses = keras3.losses.sparse_categorical_crossentropy(LABELS, theirs, from_logits=True)
        return keras3.ops.mean(losses), theirs

    their_gradient, theirs = gradient_and_logits(variables)
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
    zeros = keras.to_model(jax.tree.map(np.zeros_like, params), (6, 5))
    files.write_hdf5(tmp_path / "ours.weights.h5", keras.to_arrays(params), "sequential")
    zeros.load_weights(tmp_path / "ours.weights.h5")
    assert_close(keras.from_model(zeros), params, atol=0)


OTHERS = [
    ModelConfig(cell="gru", recurrent_bias=True, hidden_features=(4, 3), bidirectional=True, pooling="mean"),
    ModelConfig(hidden_features=(3, 4), bidirectional=True, dense_features=(5,), dense_activation="tanh"),
    ModelConfig(cell="gru", recurrent_bias=True, hidden_features=(4,)),
]


@keras_is_noisy
@pytest.mark.parametrize("config", OTHERS, ids=describe_layers)
def test_other_networks_both_ways(config, images, tmp_path):
    params = drawn(config)
    network = keras.to_model(params, (6, 5), config)
    np.testing.assert_allclose(network(images), apply(params, images, config), rtol=0, atol=1e-5)
    given = {"pooling": config.pooling, "dense_activation": config.dense_activation if config.dense_features else None}
    for name, own in [("model.keras", {}), ("model.h5", {}), ("model.weights.h5", given)]:
        network.save_weights(tmp_path / name) if "weights" in name else network.save(tmp_path / name)
        imported = formats.read("keras", tmp_path / name, given=formats.Given(**own))
        assert imported.config == config
        assert_close(imported.params, params, atol=0)
    assert imported.notes[-1].startswith("of the Bidirectional layers") == config.bidirectional
    if config.bidirectional:
        with pytest.raises(WeightsError, match="which parameters alone do not hold"):
            keras.from_model(network)
    else:
        assert_close(keras.from_model(network), params, atol=0)
    zeros = keras.to_model(jax.tree.map(np.zeros_like, params), (6, 5), config)
    files.write_hdf5(tmp_path / "ours.weights.h5", keras.to_arrays(params), "sequential")
    zeros.load_weights(tmp_path / "ours.weights.h5")
    for theirs, ours in zip(zeros.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_array_equal(theirs, ours)


@keras_is_noisy
def test_layers_that_scale_features_are_folded(rng, tmp_path):
    import keras as keras3

    layers, pixels = keras3.layers, rng.integers(0, 256, (4, 6, 5)).astype(np.uint8)
    fixed = layers.Normalization(mean=rng.normal(size=5), variance=rng.uniform(0.1, 0.5, 5))
    network = keras3.Sequential(
        [
            keras3.Input((6, 5)), layers.Rescaling(1 / 127.5, offset=-1), fixed, layers.BatchNormalization(),
            layers.Bidirectional(layers.GRU(4, return_sequences=True)), layers.BatchNormalization(scale=False),
            layers.Flatten(), layers.BatchNormalization(), layers.Dense(5), layers.BatchNormalization(), layers.ReLU(),
            layers.BatchNormalization(center=False), layers.Dense(3), layers.BatchNormalization(),
        ]
    )  # fmt: skip
    network.set_weights([rng.uniform(0.2, 1, array.shape) for array in network.get_weights()])
    expected = network(pixels.astype(np.float32))
    for name in ("model.keras", "model.h5"):
        network.save(tmp_path / name)
        imported = formats.read("keras", tmp_path / name)
        np.testing.assert_allclose(apply(imported.params, pixels, imported.config), expected, rtol=1e-5, atol=1e-5)
        assert imported.input_note.startswith("the inputs are taken to be 0 to 255, as rescaling")

    def read(*first):
        network = keras3.Sequential([keras3.Input((6, 5)), *first, layers.Dense(3)])
        for variable in network.trainable_variables:
            variable.assign(rng.uniform(-1, 1, variable.shape))
        network.save(tmp_path / "model.keras")
        return network, formats.read("keras", tmp_path / "model.keras")

    adapted = layers.Normalization(axis=None)
    adapted.adapt(pixels / np.float32(255))
    network, imported = read(adapted, layers.LSTM(4))
    normalized = formats.read("keras", tmp_path / "model.keras", inputs=Inputs(0.5, 0.25))
    theirs = network((pixels / np.float32(255) - 0.5) / 0.25)
    np.testing.assert_allclose(apply(normalized.params, pixels, imported.config), theirs, rtol=0, atol=1e-5)
    theirs = network(pixels / np.float32(255))
    np.testing.assert_allclose(apply(imported.params, pixels, imported.config), theirs, rtol=0, atol=1e-5)
    sequences, pooling = layers.LSTM(4, return_sequences=True), layers.GlobalMaxPooling1D()
    for first, message in [
        (
            [layers.Rescaling(1 / 30), layers.LSTM(4)],
            "multiplies the inputs by 0.0333, so that it is not clear whether",
        ),
        ([sequences, layers.BatchNormalization(axis=1), pooling], "axis=1, expected -1: one number for each feature"),
        ([sequences, layers.BatchNormalization(), pooling], "the maximum becomes the minimum"),
        (
            [layers.BatchNormalization(), layers.Reshape((10, 3)), layers.LSTM(4)],
            r"the numbers to scale them are \[5\]",
        ),
    ]:
        with pytest.raises(WeightsError, match=message):
            read(*first)


@pytest.mark.parametrize("name", ["model.h5", "weights.h5", "model.weights.h5", "model.keras"])
def test_files_that_keras_2_wrote(name):
    folder = FIXTURES / "keras2"
    expected, imported = np.load(folder / "expected.npz"), formats.read("keras", folder / name)
    config = ModelConfig(hidden_features=imported.weights.hidden_features)
    assert_close(apply(imported.params, expected["images"], config), expected["logits"])


@pytest.mark.filterwarnings("ignore:warning. the file holds no activations:UserWarning")
def test_files_of_keras_1_and_2_give_what_keras_gives():
    expected = np.load(AGES / "expected.npz")
    for name in expected.keys() - {"images"}:
        imported = formats.read("keras", AGES / f"{name}.h5")
        assert_close(apply(imported.params, expected["images"], imported.config), expected[name])
        assert imported.time_steps == (None if "weights" in name else 6)


def test_weights_of_an_age_with_hard_sigmoid_ask_for_the_activation():
    for name, version in [("keras1_weights", "1"), ("keras2_weights", "2.2.4")]:
        message = f"It is by Keras {version}; before Keras 2.3 .* --recurrent-activation sigmoid"
        with pytest.warns(UserWarning, match=message):
            imported = formats.read("keras", AGES / f"{name}.h5")
        assert any(note.startswith("warning: the file holds no activations") for note in imported.describe())
        for activation in ("sigmoid", "hard_sigmoid_keras2"):  # no warning, which would raise
            given = formats.Given(recurrent_activation=activation)
            imported = formats.read("keras", AGES / f"{name}.h5", given=given)
            assert imported.config.recurrent_activation == activation
    with pytest.raises(WeightsError, match="is hard_sigmoid_keras2, but the network of the file has sigmoid"):
        formats.read("keras", AGES / "keras2_model.h5", given=given)
    assert not any("activations" in note for note in formats.read("keras", AGES / "cudnn_weights.h5").notes)


def test_configs_of_other_models_are_refused(tmp_path):
    def first(config):
        return config["config"][0]["config"]

    def nodes(config):
        return config["config"]["layers"][2]

    def backward(**settings):
        def change(config):
            layer = first(config)["layer"]
            first(config)["backward_layer"] = layer | {"config": layer["config"] | {"go_backwards": True} | settings}

        return change

    def one_way(config):
        config["config"][0] = first(config)["layer"]

    for name, change, message in [
        ("keras1_model", lambda c: first(c).update(inner_activation="softmax"), "inner_activation=softmax, expected"),
        ("keras1_model", lambda c: first(c).update(inner_activation="hard_sigmoid"), "differ in recurrent_activation"),
        ("keras2_model", lambda c: first(c).update(use_bias=False), "lacks its bias, or has one that its config"),
        ("keras2_no_bias", lambda c: first(c).update(use_bias=True), "The LSTM layer lstm_1 lacks its bias"),
        ("gru_model", lambda c: first(c).update(use_bias=False), "The GRU layer gru_2 lacks its bias"),
        ("gru_model", lambda c: first(c).pop("reset_after"), "reset_after=False, expected True: its reset gate"),
        ("gru_model", lambda c: first(c).update(recurrent_activation="hard_sigmoid"), "GRU only tanh and sigmoid"),
        ("gru_model", lambda c: [part.update(class_name="LSTM") for part in c["config"][:2]], "gru_2 is a LSTM with"),
        ("gru_model", lambda c: c["config"][0].update(class_name="CuDNNGRU"), "a CuDNNGRU, but its arrays are not"),
        ("gru_model", lambda c: c["config"][0].update(class_name="LSTM"), "gru_2 is a LSTM with weights"),
        ("bidirectional_keras1_model", lambda c: first(c).update(merge_mode="ave"), "merge_mode=ave, expected concat"),
        ("bidirectional_keras1_model", lambda c: first(c).update(merge_mode=None), "merge_mode=None, expected concat"),
        ("bidirectional_keras1_model", backward(activation="relu"), "The two directions of .* bidirectional_1 differ"),
        ("bidirectional_keras1_model", backward(go_backwards=False), "an LSTM or a GRU and the same backwards"),
        (
            "bidirectional_keras1_model",
            lambda c: first(c)["layer"].update(class_name="RNN"),
            "bidirectional_1 has a RNN",
        ),
        ("bidirectional_keras1_model", one_way, "The LSTM layer bidirectional_1 has the arrays U_c"),
        ("keras2_model", lambda c: first(c).update(return_state=True), "return_state=True, expected False"),
        ("keras2_model", lambda c: first(c).update(name="lstm_8"), "names the layers lstm_8, lstm_3, dense_1, but"),
        ("keras2_model", lambda c: c["config"].pop(0), "names the layers lstm_3, dense_1, but the file has the arrays"),
        ("keras2_model", lambda c: c["config"].pop(2), "Expected LSTM or GRU layers, then Dense"),
        ("keras2_model", lambda c: c.update(config=3), "not as Keras writes it"),
        ("cudnn_model", lambda c: first(c).update(go_backwards=True), "The CuDNNLSTM layer .* has go_backwards=True"),
        ("keras2_model", lambda c: c["config"][0].update(class_name="CuDNNLSTM"), "CuDNNLSTM, but its arrays are not"),
        ("keras2_functional", lambda c: nodes(c).update(inbound_nodes=[[["input_1", 0, 0, {}]]]), "is not in a chain"),
        ("keras2_functional", lambda c: nodes(c)["inbound_nodes"].append([["lstm_7", 0, 0, {}]]), "is not in a chain"),
        ("keras2_functional", lambda c: nodes(c).update(inbound_nodes=[]), "is not in a chain"),
        ("keras2_functional", lambda c: c["config"].update(output_layers=[["lstm_3", 0, 0]]), "outputs of the model"),
    ]:
        path = shutil.copy(AGES / f"{name}.h5", tmp_path / "model.h5")
        with h5py.File(path, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            change(config)
            file.attrs["model_config"] = json.dumps(config)
        with pytest.raises(WeightsError, match=message):
            formats.read("keras", Path(path))


def test_the_config_of_a_subclass_with_layers_counts(tmp_path):
    path = Path(shutil.copy(AGES / "keras2_functional.h5", tmp_path / "model.h5"))
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"]) | {"class_name": "Reader"}
        file.attrs["model_config"] = json.dumps(config)
    imported = formats.read("keras", path)
    assert imported.names == ("lstm_7", "lstm_3", "dense_1")
    assert imported.notes == ("the model is of the class Reader: it is assumed to compute what its layers say",)
    config["config"]["layers"][2]["config"]["recurrent_activation"] = "elu"
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(WeightsError, match="lstm_3 has recurrent_activation=elu"):
        formats.read("keras", path)


def test_arrays_of_other_recurrent_layers_are_refused(tmp_path):
    def write(**layers):
        with h5py.File(tmp_path / "weights.h5", "w") as file:
            file.attrs["layer_names"] = list(layers)
            for name, shapes in (layers | {"dense": {"kernel:0": (4, 3), "bias:0": (3,)}}).items():
                group = file.create_group(name)
                group.attrs["weight_names"] = list(shapes)
                for part, shape in shapes.items():
                    group[part] = np.zeros(shape, "f4")

    lstm = {"kernel:0": (5, 16), "recurrent_kernel:0": (4, 16), "bias:0": (16,)}
    dense = {"kernel:0": (4, 3), "bias:0": (3,)}
    for layers, message in [
        ({"gru": {"kernel:0": (5, 12), "recurrent_kernel:0": (4, 12), "bias:0": (12,)}}, "GRU with reset_after=False"),
        ({"gru": {"kernel:0": (5, 12), "recurrent_kernel:0": (4, 12)}}, "a GRU without biases, of which weights alone"),
        ({"gru": {"kernel:0": (5, 12), "recurrent_kernel:0": (4, 12), "bias:0": (3, 12)}}, "does not fit together"),
        ({"gru": {f"gru_{kind}_{gate}": (4, 4) for kind in "WU" for gate in "zrh"}}, "is a GRU of Keras 1: its reset"),
        ({"rnn": {"kernel:0": (5, 4), "recurrent_kernel:0": (4, 4), "bias:0": (4,)}}, "that of a simple RNN"),
        ({"lstm": lstm | {"peephole:0": (4,)}}, "has more than an LSTM or a GRU: peephole:0"),
        ({"rnn": {f"cell_{n}/{part}": shape for n in (1, 2) for part, shape in lstm.items()}}, "several layers in it"),
        ({"lstm": lstm, "one": {"kernel:0": (4, 3)}, "two": {"beta:0": (3,)}}, "there is more besides"),
        ({"both": {f"both/{way}_a/{part}": shape for way in WAYS for part, shape in lstm.items()}}, "gives 8 features"),
        ({"lstm": lstm, "hidden": dense}, "there is more besides the recurrent layers"),
    ]:
        write(**layers, dense=dense)
        with pytest.raises(WeightsError, match=message):
            formats.read("keras", tmp_path / "weights.h5")


def test_files_and_folders_of_tensorflow_are_named(tmp_path):
    for name, file, message in [
        ("saved", "saved/saved_model.pb", r"is a SavedModel, a folder.*load_model\(FOLDER\).*save\('model.keras'\)"),
        ("folder", "folder/readme", "is a folder; expected a file of Keras"),
        ("frozen.pb", "frozen.pb", "is a graph of TensorFlow"),
        ("weights", "weights.index", "is the prefix of a checkpoint of TensorFlow"),
    ]:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"")
        with pytest.raises(WeightsError, match=message):
            formats.read("keras", tmp_path / name)
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(WeightsError, match=r"this zip archive has no model\.weights\.h5"):
        formats.read("keras", tmp_path / "model.keras")
    with h5py.File(tmp_path / "keras0.h5", "w") as file:
        file.attrs["nb_layers"] = 3
    with pytest.raises(WeightsError, match="Keras 0 wrote it: load it in Keras 1"):
        formats.read("keras", tmp_path / "keras0.h5")


def test_damaged_texts_are_refused_on_which_hdf5_does_not_return(tmp_path):
    """With h5py 3.16, the first kind of damage took gigabytes, the second never ended."""
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.attrs["layer_names"] = ["lstm", "dense"]  # of variable length
    data = (tmp_path / "model.h5").read_bytes()
    heap = data.index(b"GCOL")
    reference = data.index(heap.to_bytes(8, "little") + bytes([2, 0, 0, 0])) - 4  # length, address, number
    free = heap + 16 + 2 * 24
    assert (data[reference : reference + 4], data[free : free + 2]) == (b"\x04\0\0\0", b"\0\0")
    for place, new, message in [
        (reference, b"\xff\xff\xff\x7f", "the global heap at byte .* is damaged"),
        (reference + 12, b"\x09", "the global heap at byte .* is damaged"),
        (reference + 4, b"\xff" * 8, "it points to byte"),
        (heap + 24, bytes(2), "the global heap at byte .* is damaged"),
    ]:
        (tmp_path / "model.h5").write_bytes(data[:place] + new + data[place + len(new) :])
        with pytest.raises(WeightsError, match=message):
            formats.read("keras", tmp_path / "model.h5")
    (tmp_path / "model.h5").write_bytes(data[: free + 8] + bytes(8) + data[free + 16 :])
    with pytest.raises(WeightsError, match="it lists the layer lstm, which is not there"):
        formats.read("keras", tmp_path / "model.h5")


@pytest.mark.filterwarnings("ignore:warning. the file holds no activations:UserWarning")
def test_mutated_files_give_a_model_or_an_error_for_people(tmp_path):
    files = [*sorted(AGES.glob("*.h5")), *sorted((FIXTURES / "keras2").glob("model.*"))]
    assert mutations.run(files, tmp_path / "mutated", count=80, seed=0)["WeightsError"] > 30


@keras_is_noisy
def test_keras_layers_without_effect_are_accepted(params, config, images, tmp_path):
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
    with pytest.raises(WeightsError, match="scaled by the network itself"):
        formats.read("keras", tmp_path / "model.keras", inputs=Inputs(scale=1.0))


@keras_is_noisy
def test_other_keras_models_are_refused(tmp_path):
    import keras as keras3

    layers = keras3.layers
    for layer, message in [
        (layers.LSTM(4, activation="elu"), "has activation=elu, expected tanh or relu or linear or hard_sigmoid: this"),
        (layers.LSTM(4, recurrent_activation="tanh"), "has recurrent_activation=tanh, expected sigmoid"),
        (layers.LSTM(4, go_backwards=True), "has go_backwards=True, expected False"),
        (layers.GRU(4, reset_after=False), "reset_after=False, expected True: its reset gate multiplies the state"),
        (layers.Bidirectional(layers.GRU(4), merge_mode="sum"), "bidirectional.* has merge_mode=sum, expected concat"),
        (layers.LSTM(4, return_sequences=True), "has return_sequences=True, expected False: the last output alone"),
        (
            keras3.Sequential([layers.LSTM(4), layers.Activation("softmax")]),
            "activation=softmax between the recurrent layers",
        ),
        (keras3.Sequential([layers.Masking(), layers.LSTM(4)]), "is a Masking.*skips the time steps"),
        (keras3.Sequential([layers.Reshape((30, 1)), layers.LSTM(4)]), "reads one number at a time, the pixels"),
        (keras3.Sequential([layers.LSTM(4), layers.Dense(3, "elu")]), "has activation=elu, expected relu or tanh"),
        (
            keras3.Sequential([layers.Dense(3, "relu"), layers.LSTM(4)]),
            "has activation=relu before the recurrent layers",
        ),
        (
            keras3.Sequential([layers.LSTM(4), layers.Dense(3, "relu"), layers.Dense(3, "tanh")]),
            "The hidden Dense layers have relu, tanh, expected one",
        ),
        (
            layers.Lambda(lambda outputs: outputs[:, -1]),
            "is a Lambda, .* of Bidirectional layers, with --pooling last_step",
        ),
        (layers.LayerNormalization(), "is a LayerNormalization, which this classifier does not have"),
    ]:
        first = layer.layers if isinstance(layer, keras3.Sequential) else [layer]
        network = keras3.Sequential([keras3.Input((6, 5)), *first, layers.Dense(3)])
        with pytest.raises(WeightsError, match=message):
            keras.from_model(network)
        for name in ("model.keras", "model.h5"):
            network.save(tmp_path / name)
            with pytest.raises(WeightsError, match=message):
                formats.read("keras", tmp_path / name)


@keras_is_noisy
def test_the_order_of_the_layers_is_that_of_the_model(tmp_path):
    import keras as keras3

    layers = keras3.layers

    class Subclass(keras3.Model):
        def __init__(self):
            super().__init__()
            self.second, self.first = layers.LSTM(5), layers.LSTM(5, return_sequences=True)
            self.head = layers.Dense(3)

        def call(self, images):
            return self.head(self.second(self.first(images)))

    inputs = keras3.Input((6, 5))
    outputs = layers.LSTM(5, return_sequences=True, name="lstm_10", use_bias=False)(inputs)
    outputs = layers.LSTM(5, return_sequences=True, name="lstm_9")(outputs)
    middle = layers.LSTM(5, name="excellent_cell")(outputs)
    chain = keras3.Model(inputs, layers.Dense(3, use_bias=False)(middle))
    expected = keras.from_model(chain)["rnn"]["layers"]
    recurrent_kernels = [weights for weights in chain.get_weights() if weights.shape == (5, 20)][1::2]
    for number, recurrent_kernel in enumerate(recurrent_kernels):
        np.testing.assert_array_equal(expected[number]["cell"]["dense_h"]["kernel"], recurrent_kernel)
    for name in ("model.keras", "model.h5", "model.weights.h5"):
        chain.save_weights(tmp_path / name) if "weights" in name else chain.save(tmp_path / name)
        imported = formats.read("keras", tmp_path / name)
        assert_close(imported.params["rnn"]["layers"], expected, atol=0)
        assert "has no bias: it is zero here" in imported.notes[-1]
    model = Subclass()
    model(np.zeros((1, 6, 5), np.float32))
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    given = ["first", "layers/lstm"]  # Keras's name of the second is that in the list of the model's layers
    for name in ("model.keras", "model.weights.h5"):
        with pytest.raises(WeightsError, match="Neither names nor widths determine the order of the recurrent layers"):
            formats.read("keras", tmp_path / name)
        imported = formats.read("keras", tmp_path / name, layers=given)
        first = np.asarray(imported.params["rnn"]["layers"][0]["cell"]["dense_h"]["kernel"])
        np.testing.assert_array_equal(first, model.first.get_weights()[1])
    with pytest.raises(WeightsError, match="of the class Subclass, whose program decides what it computes"):
        keras.from_model(model)


def test_a_dense_layer_that_the_list_of_layers_has_between_recurrent_ones_is_refused():
    shapes = {"lstm": [(5, 16), (4, 16), (16,)], "dense": [(4, 4), (4,)], "lstm_1": [(4, 16), (4, 16), (16,)]}
    shapes["dense_1"] = [(4, 3), (3,)]
    parts = ["kernel", "recurrent_kernel", "bias"]
    layers, arrays = {}, {}
    for layer, own in shapes.items():
        layers[layer] = [f"{layer}/{part}:0" for part in (parts if len(own) == 3 else parts[::2])]
        arrays |= zip(layers[layer], map(np.zeros, own), strict=True)
    with pytest.raises(WeightsError, match=r"has dense between its recurrent layers: lstm, dense, lstm_1, dense_1"):
        keras.from_file(files.KerasFile(arrays, layers, version="2.4.0"))
    order = ["lstm", "lstm_1", "dense", "dense_1"]
    assert keras.from_file(files.KerasFile(arrays, layers, version="2.4.0"), order=order).names == tuple(order)


def test_hdf5_with_oversized_or_external_arrays_is_refused(tmp_path):
    for number, options in enumerate([{"shape": (1 << 30,), "chunks": (1 << 20,)}, {"data": h5py.Empty("f4")}]):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file.create_dataset("lstm/cell/vars/0", **options, dtype="f4")
    with h5py.File(tmp_path / "2.h5", "w") as file:
        file.create_dataset("a", (16,), "u1", external=[("/etc/hostname", 0, 16)])
    with pytest.raises(WeightsError, match="has 4294967296 bytes"):
        formats.list_arrays("keras", tmp_path / "0.h5")
    assert formats.list_arrays("keras", tmp_path / "1.h5") == {}
    with pytest.raises(WeightsError, match="which are not in the file"):
        formats.list_arrays("keras", tmp_path / "2.h5")
