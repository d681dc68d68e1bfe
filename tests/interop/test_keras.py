"""Keras: against Keras 3, live, and files that Keras 2 wrote."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")


import jax
import numpy as np
import pytest
from parameters import drawn
from stacks import FIXTURES, LABELS, apply, assert_close, keras_outputs, logits_and_gradient

from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop import files, formats, keras
from lstm_mnist_jax.interop.inputs import Inputs
from lstm_mnist_jax.model import describe_layers

AGES = FIXTURES / "keras_ages"


pytestmark = pytest.mark.usefixtures("keras_draws_by_numpy")

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
    np.testing.assert_allclose(keras_outputs(network, images), apply(params, images, config), rtol=0, atol=1e-5)
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
    expected = keras_outputs(network, pixels.astype(np.float32))
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
    theirs = keras_outputs(network, (pixels / np.float32(255) - 0.5) / 0.25)
    np.testing.assert_allclose(apply(normalized.params, pixels, imported.config), theirs, rtol=0, atol=1e-5)
    theirs = keras_outputs(network, pixels / np.float32(255))
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
