"""Keras: against Keras 3, live, and files that Keras 2 wrote."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")


import jax
import numpy as np
import pytest
from stacks import FIXTURES, LABELS, apply, assert_close, logits_and_gradient

from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop import files, formats, keras

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


@pytest.mark.parametrize("name", ["model.h5", "weights.h5", "model.weights.h5", "model.keras"])
def test_files_that_keras_2_wrote(name):
    folder = FIXTURES / "keras2"
    expected, imported = np.load(folder / "expected.npz"), formats.read("keras", folder / name)
    config = ModelConfig(hidden_features=imported.weights.hidden_features)
    assert_close(apply(imported.params, expected["images"], config), expected["logits"])


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


@keras_is_noisy
def test_other_keras_models_are_refused(tmp_path):
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


def test_hdf5_with_oversized_or_external_arrays_is_refused(tmp_path):
    import h5py

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


def test_a_gru_is_named_in_the_error():
    arrays = {"gru/cell/vars/0": (5, 12), "gru/cell/vars/1": (4, 12), "gru/cell/vars/2": (2, 12)}
    found = {name: np.zeros(shape, "f4") for name, shape in arrays.items()}
    with pytest.raises(WeightsError, match="The layer gru is that of a GRU, expected an LSTM"):
        keras.from_arrays(found | {"dense/vars/0": np.zeros((4, 3), "f4"), "dense/vars/1": np.zeros(3, "f4")})
