"""The classifier against a NumPy LSTM, its initial weights, and both forms of its loss."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import numpy_lstm
import pytest
from flax import nnx
from parameters import drawn, drawn_module

from lstm_mnist_jax import inference, model
from lstm_mnist_jax.config import Config, ModelConfig
from lstm_mnist_jax.data.tasks import Task
from lstm_mnist_jax.rnn import LayerNormLSTMCell, URLSTMCell

CONFIG = ModelConfig(hidden_features=(7, 9))


def test_logits_match_numpy(rng):
    params = model.init(ModelConfig(), jax.random.key(1))
    images = rng.integers(0, 256, (11, 28, 28), np.uint8)
    logits = jax.jit(lambda params: model.apply(params, images, ModelConfig()))(params)
    np.testing.assert_allclose(logits, numpy_lstm.classify(params, images), atol=3e-5)


HEADS = [
    ModelConfig(hidden_features=(4, 3), dense_features=(5, 4)),
    ModelConfig(hidden_features=(4,), pooling="all", dense_features=(5,), dense_activation="tanh"),
    ModelConfig(hidden_features=(4,), activation="relu", recurrent_activation="hard_sigmoid_keras2", pooling="all"),
    ModelConfig(hidden_features=(4,), activation="linear", recurrent_activation="hard_sigmoid_keras3"),
    ModelConfig(hidden_features=(4,), activation="hard_sigmoid_keras3", dense_features=(5,), dense_activation="linear"),
    ModelConfig(hidden_features=(4,), activation="hard_sigmoid_keras2", recurrent_activation="hard_sigmoid_keras3"),
]


def test_dense_layers_and_activations_match_numpy(rng):
    images = rng.integers(0, 256, (3, 6, 5), np.uint8)
    drawn_params = [drawn(config) for config in HEADS]
    apply = jax.jit(lambda every: [model.apply(params, images, c) for params, c in zip(every, HEADS, strict=True)])
    found = [*apply(drawn_params)]
    for config, params, logits in zip(HEADS, drawn_params, found, strict=True):
        np.testing.assert_allclose(logits, numpy_lstm.classify(params, images, config), atol=1e-5)
        blank = np.where(np.arange(6)[:, None] < 4, images, 0)
        if config.pooling == "all" and config.activation == "tanh":
            # The outputs of steps that are not read are zero: the logits of the first four rows alone.
            first = params["dense_hidden"][0]
            params = params | {"dense_hidden": {0: first | {"kernel": first["kernel"][:16]}}}
            expected = numpy_lstm.classify(params, images[:, :4], config)
            np.testing.assert_allclose(inference.logits_along(drawn(config), blank, config)[:, 3], expected, atol=1e-5)


def test_the_initial_weights_of_a_seed_stay_as_they_are():
    """Those of version 0.4, so that a seed's run can be repeated."""
    gru = ModelConfig(cell="gru", hidden_features=(4,), bidirectional=True, pooling="attention", dropout_rate=0.5)
    for config, last in (
        (ModelConfig(), [-0.88111162, 0.36045018, 0, 0.14383148, -0.03222247, 0, 0.08896342, -0.09602862]),
        (gru, [-0.18175034, 0.63897675, 0.45168251, 0.0407742, 0, 0.32918054, 0.18062639, 0, -0.08594804]),
    ):
        leaves = jax.tree.leaves(model.init(config, jax.random.key(0), (6, 5), 3))
        np.testing.assert_allclose([np.ravel(leaf)[-1] for leaf in leaves], last, atol=1e-6)
        if config.dropout_rate:
            keys = jax.random.split(jax.random.key(1), 2)
            (mask,) = model.Classifier(config, (6, 5), 3, rngs=nnx.Rngs(0))._masks(keys)
            assert (mask > 0).astype(int).tolist() == [[1, 1, 0, 0, 0, 0, 1, 0], [1, 0, 0, 1, 0, 0, 0, 1]]


def test_integers_are_scaled_and_floats_are_not(rng):
    params = drawn(CONFIG)
    images = rng.integers(0, 256, (4, 6, 5), np.uint8)
    pixels = images, images.astype(np.float32) / 255
    of_integers, of_floats = jax.jit(lambda params: [model.apply(params, each, CONFIG) for each in pixels])(params)
    np.testing.assert_allclose(of_integers, of_floats, atol=1e-6)


def test_channels_are_features_of_a_row(rng):
    images = rng.integers(0, 256, (4, 6, 5, 3), np.uint8)
    sequences = np.asarray(Task().read(images))
    assert sequences.shape == (6, 4, 15)
    np.testing.assert_array_equal(sequences[2, 1], images[1, 2].reshape(-1))
    params = drawn(CONFIG, (6, 5, 3))
    assert jax.jit(lambda params: model.apply(params, images, CONFIG))(params).shape == (4, 3)


def test_initial_weights_of_the_tutorial():
    params = model.init(ModelConfig(), jax.random.key(0))
    sizes = jax.tree.map(np.shape, params)
    first, second = (sizes["rnn"]["layers"][n]["cell"] for n in (0, 1))
    assert first == {"dense_h": {"bias": (128,), "kernel": (32, 128)}, "dense_i": {"kernel": (28, 128)}}
    assert second == {"dense_h": {"bias": (256,), "kernel": (64, 256)}, "dense_i": {"kernel": (32, 256)}}
    assert sizes["dense"] == {"bias": (10,), "kernel": (64, 10)}
    many = [model.init(ModelConfig(), jax.random.key(seed)) for seed in range(20)]
    for name in ("kernel", "bias"):
        values = np.stack([params["dense"][name] for params in many])
        assert abs(values.std() - 1) < 0.1
        assert abs(values.mean()) < 0.15


def test_init_depends_on_the_key_only():
    one, same, other = (model.init(ModelConfig(), jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert np.abs(np.asarray(one["dense"]["kernel"]) - np.asarray(other["dense"]["kernel"])).max() > 0.1


def test_both_forms_of_labels_give_the_same_loss(rng):
    logits = rng.normal(size=(20, 10)).astype(np.float32) * 10
    labels = rng.integers(0, 10, 20)
    sparse = model.softmax_cross_entropy(logits, labels)
    dense = model.softmax_cross_entropy(logits, np.eye(10, dtype=np.float32)[labels])
    np.testing.assert_allclose(sparse, dense, rtol=1e-6)
    np.testing.assert_array_equal(model.softmax_cross_entropy(logits, np.eye(10, dtype=np.int32)[labels]), dense)
    np.testing.assert_allclose(sparse.mean(), numpy_lstm.cross_entropy(logits, labels), rtol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_loss_is_nan_for_a_label_outside_the_classes(rng, compiled):
    logits = rng.normal(size=(5, 3)).astype(np.float32)
    loss = jax.jit(model.softmax_cross_entropy) if compiled else model.softmax_cross_entropy
    losses = loss(logits, np.array([-1, 0, 2, 3, 1000]))
    np.testing.assert_array_equal(np.isnan(losses), [True, False, False, True, True])
    np.testing.assert_array_equal(np.asarray(losses)[1:3], np.asarray(loss(logits, np.array([0, 0, 2, 1, 1])))[1:3])
    assert np.isnan(loss(logits, np.array([0, 1, 2, 3, 0], np.uint8)).mean())  # so that training stops


def test_loss_of_large_logits_is_finite():
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32)
    np.testing.assert_allclose(model.softmax_cross_entropy(logits, np.array([1, 1])), [2e4, 0])


def test_parameters_of_another_config_are_refused():
    params = drawn(CONFIG, (28, 28), 10)
    with pytest.raises(ValueError, match=r"lstm layers \(32, 64\): dense.kernel is \(9, 10\), expected \(64, 10\)"):
        model.apply(params, np.zeros((1, 28, 28), np.uint8), model.ModelConfig())
    with pytest.raises(ValueError, match=r"images of 28 x 27 .*dense_i.kernel is \(28, 28\), expected \(27, 28\)"):
        model.apply(params, np.zeros((1, 28, 27), np.uint8), CONFIG)
    attention = ModelConfig(hidden_features=(7, 9), pooling="attention")
    with pytest.raises(ValueError, match=r"attention.kernel is missing, expected \(9, 1\)"):
        model.apply(params, np.zeros((1, 28, 28), np.uint8), attention)
    with pytest.raises(ValueError, match=r"attention.kernel is \(9, 1\), expected none"):
        model.apply(drawn(attention, (28, 28), 10), np.zeros((1, 28, 28), np.uint8), CONFIG)


def test_logits_without_the_config_are_refused():
    apply, bind = inspect.unwrap(model.apply), inspect.unwrap(model.bind)  # without the tests' type checks
    params = drawn(CONFIG, (28, 28), 10)
    with pytest.raises(TypeError, match=r"apply\(\) missing 1 required positional argument: 'config'"):
        apply(params, np.zeros((1, 28, 28), np.uint8))
    for config, name in ((None, "NoneType"), (Config(), "Config")):
        with pytest.raises(TypeError) as error:
            bind(params, config, (28, 28))
        assert str(error.value) == (
            f"Expected the ModelConfig that made the parameters, got {name}. It is the model of a Config, "
            "load_run(...).folder.config.model of a run, and formats.read(...).config of a file of weights."
        )


FLAX_CELLS = {
    "lstm": nnx.OptimizedLSTMCell,
    "gru": nnx.GRUCell,
    "layer_norm_lstm": LayerNormLSTMCell,
    "ur_lstm": URLSTMCell,
}


IMAGES = np.random.default_rng(0).integers(0, 256, (4, 6, 5), np.uint8)


def outputs_of_flax_layers(classifier, cell, bidirectional):
    """The outputs of the last layer in each direction, [batch, time, features]."""
    graph, params = nnx.split(classifier.rnn.layers)

    @jax.jit
    def run(params, outputs):
        for layer in nnx.merge(graph, params):
            cells = [layer.forward_rnn.cell, layer.backward_rnn.cell] if bidirectional else [layer.cell]
            assert {*map(type, cells)} == {FLAX_CELLS[cell]}
            parts = [nnx.RNN(cell, reverse=n == 1, keep_order=True)(outputs) for n, cell in enumerate(cells)]
            outputs = jnp.concatenate(parts, axis=-1)
        return parts

    return [*map(np.asarray, run(params, np.swapaxes(IMAGES, 1, 2).astype(np.float32) / 255))]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    "cell", ["lstm", *(pytest.param(name, marks=pytest.mark.slow) for name in FLAX_CELLS if name != "lstm")]
)
def test_logits_match_flax_layers(cell, bidirectional):
    """Of every pooling; all in one program."""
    config = ModelConfig(
        cell=cell, hidden_features=(4, 3), bidirectional=bidirectional, pooling="attention", task="columns"
    )
    classifier = drawn_module(lambda: model.Classifier(config, (6, 5), 3, rngs=nnx.Rngs(0)))
    parts = outputs_of_flax_layers(classifier, cell, bidirectional)
    params = nnx.to_pure_dict(nnx.state(classifier, nnx.Param))
    outputs = np.concatenate(parts, axis=-1)
    weights = np.exp(outputs @ np.asarray(params["attention"]["kernel"]))
    pooled = {
        "last": np.concatenate([parts[0][:, -1], *(part[:, 0] for part in parts[1:])], axis=-1),
        "mean": outputs.mean(axis=1),
        "max": outputs.max(axis=1),
        "attention": (outputs * weights).sum(axis=1) / weights.sum(axis=1),
    }

    @jax.jit
    def apply(params):
        without = {name: part for name, part in params.items() if name != "attention"}
        return {
            pooling: model.apply(
                params if pooling == "attention" else without, IMAGES, dataclasses.replace(config, pooling=pooling)
            )
            for pooling in pooled
        }

    for pooling, logits in apply(params).items():
        expected = pooled[pooling] @ np.asarray(params["dense"]["kernel"]) + np.asarray(params["dense"]["bias"])
        np.testing.assert_allclose(logits, expected, atol=2e-5, err_msg=pooling)


@pytest.mark.slow
def test_dropout_mask_of_an_image_depends_on_its_key(rng):
    config = ModelConfig(hidden_features=(50, 60), dropout_rate=0.4)
    params = drawn(config)
    images, keys = rng.integers(0, 256, (20, 6, 5), np.uint8), jax.random.split(jax.random.key(1), 20)
    classifier = drawn_module(lambda: model.Classifier(config, (6, 5), 3, rngs=nnx.Rngs(0)))

    @jax.jit
    def logits_and_masks(params, keys):
        dropped = model.apply(params, images, config, dropout_keys=keys)
        again = model.apply(params, images[7:9], config, dropout_keys=keys[7:9])
        return model.apply(params, images, config), dropped, again, classifier._masks(keys)

    plain, dropped, again, masks = jax.tree.map(np.asarray, logits_and_masks(params, keys))
    assert np.abs(dropped - plain).min(axis=1).max() > 0
    np.testing.assert_allclose(again, dropped[7:9], atol=1e-5)
    for mask, width in zip(masks, (50, 60), strict=True):
        assert mask.shape == (20, width)
        assert set(np.unique(mask)) == {0, np.float32(1 / 0.6)}
        assert abs((mask > 0).mean() - 0.6) < 0.06


@pytest.mark.slow
def test_chrono_biases_spread_time_constants_over_the_steps():
    config = ModelConfig(hidden_features=(500,), chrono_steps=784)

    def bias_of(config, layer):  # alone: to draw a large kernel takes long
        init = jax.jit(lambda key: model.init(config, key)["rnn"]["layers"][0]["cell"][layer]["bias"])
        return np.asarray(init(jax.random.key(0)))

    i, f, g, o = np.split(bias_of(config, "dense_h"), 4)
    np.testing.assert_array_equal(i, -f)
    assert not g.any()
    assert not o.any()
    lengths = np.sort(np.exp(f))
    np.testing.assert_allclose(lengths, np.linspace(1, 783, 500), atol=60)
    r, z, n = np.split(bias_of(dataclasses.replace(config, cell="gru"), "dense_i"), 3)
    assert z.min() > 0
    assert not np.any([r, n])


def test_layers_and_pooling_are_described():
    assert model.describe_layers(ModelConfig()) == "LSTM 32 -> LSTM 64"
    config = ModelConfig(cell="gru", hidden_features=(8,), bidirectional=True, pooling="mean")
    assert model.describe_layers(config) == "bidirectional GRU 8 -> mean over time"
    config = ModelConfig(hidden_features=(8,), activation="relu", pooling="all", dense_features=(16, 4))
    assert model.describe_layers(config) == "LSTM 8 (relu, sigmoid) -> all steps -> dense 16 (relu) -> dense 4 (relu)"
