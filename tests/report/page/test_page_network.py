"""The network in JavaScript against JAX: probabilities, also after each step, of all kinds of networks."""

import base64

import numpy as np
import pytest
from parameters import drawn
from scipy.special import softmax

from lstm_mnist_jax import inference
from lstm_mnist_jax.config import Config, ModelConfig
from lstm_mnist_jax.errors import RunError
from lstm_mnist_jax.report.page.build import describe, make_page


def small(*words, **options):
    return ModelConfig(*words, **options), (6, 5), 3


NETWORKS = {
    "the tutorial's": (ModelConfig(), (28, 28), 10),
    "one layer": small(hidden_features=(7,)),
    "three layers of columns": small("columns", hidden_features=(7, 9, 4)),
    "gru": small(cell="gru", hidden_features=(7, 9)),
    "layer norm": small(cell="layer_norm_lstm", hidden_features=(7, 9)),
    "refine gates": small(cell="ur_lstm", hidden_features=(7, 9)),
    "pixels": (ModelConfig("pixels", cell="ur_lstm", hidden_features=(9,)), (8, 7), 12),
    "permuted": (ModelConfig("permuted", permutation_seed=3, hidden_features=(9,)), (8, 7), 12),
    "784 pixels": (ModelConfig("permuted", cell="ur_lstm", hidden_features=(16,)), (28, 28), 10),
    "two rows a step": (ModelConfig(sequence_length=14, hidden_features=(9,)), (28, 28), 10),
    "columns in halves": small("columns", sequence_length=10, hidden_features=(9,)),
    "permuted in fours": (ModelConfig("permuted", sequence_length=14, hidden_features=(9,)), (8, 7), 12),
    "colours": (ModelConfig(hidden_features=(9,)), (8, 7, 3), 5),
    "colours, permuted": (ModelConfig("permuted", cell="gru", hidden_features=(9,)), (8, 7, 3), 5),
    "colours, columns": (ModelConfig("columns", hidden_features=(9,)), (8, 7, 3), 5),
    "CIFAR's": (ModelConfig(hidden_features=(32, 32), bidirectional=True, pooling="attention"), (32, 32, 3), 10),
    "mean": small(hidden_features=(7,), pooling="mean"),
    "max": small(cell="gru", hidden_features=(7,), pooling="max"),
    "attention": small(cell="ur_lstm", hidden_features=(7,), pooling="attention"),
    "dense": small(hidden_features=(7,), dense_features=(16, 12)),
    "all steps, dense tanh": small(hidden_features=(7,), pooling="all", dense_features=(6,), dense_activation="tanh"),
    "all steps, both ways": small(hidden_features=(7,), bidirectional=True, pooling="all"),
    "relu": small(hidden_features=(7,), activation="relu", recurrent_activation="hard_sigmoid_keras2"),
    "linear": small(hidden_features=(7,), activation="linear", recurrent_activation="hard_sigmoid_keras3"),
    "both ways": small(hidden_features=(7, 9), bidirectional=True),
    "both ways, gru": small(
        cell="gru", recurrent_bias=True, hidden_features=(7, 9), bidirectional=True, pooling="last_step"
    ),
    "both ways, layer norm, mean": small(
        cell="layer_norm_lstm", hidden_features=(7, 5), bidirectional=True, pooling="mean"
    ),
    "both ways, refine gates, max": small(cell="ur_lstm", hidden_features=(7, 5), bidirectional=True, pooling="max"),
    "both ways, attention": small("permuted", hidden_features=(7,), bidirectional=True, pooling="attention"),
}

ASK = """([spec, weights, images]) => {
  const network = lstm.network(spec, weights);
  return images.map((pixels) => [network.predict(pixels), network.along(pixels)]);
}"""


@pytest.fixture(scope="module")
def page(open_page, untrained):
    return open_page(make_page(untrained(Config())))


QUICK = ("the tutorial's", "gru", "layer norm", "refine gates", "permuted", "attention", "both ways",
         "all steps, dense tanh", "relu")  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NETWORKS])
def test_javascript_matches_jax(name, page, rng):
    config, shape, classes = NETWORKS[name]
    params = drawn(config, shape, classes)
    images = rng.integers(0, 256, (3, *shape), np.uint8)
    images[0, : shape[0] // 2] = 0
    spec, weights = describe(config, params, shape, tuple(map(str, range(classes))))
    pixels = (images.reshape(3, -1) / 255).tolist()
    found = page.evaluate(ASK, [spec, base64.b64encode(weights.tobytes()).decode(), pixels])
    expected = softmax(np.asarray(inference.logits_along(params, images, config)), axis=-1)
    assert np.ptp(expected[:, -1], axis=0).max() > 1e-3  # images are distinguished
    np.testing.assert_allclose([probabilities for probabilities, _ in found], expected[:, -1], atol=1e-5)
    np.testing.assert_allclose([along for _, along in found], expected, atol=1e-5)


def test_an_unknown_pooling_is_refused(page):
    spec, weights = describe(ModelConfig(), drawn(ModelConfig(), (28, 28), 10), (28, 28), tuple("0123456789"))
    words = [spec | {"pooling": "median"}, base64.b64encode(weights.tobytes()).decode(), [[0.5] * 784]]
    with pytest.raises(Exception, match="unknown pooling median"):
        page.evaluate(ASK, words)


def test_weights_that_are_not_finite_are_refused(untrained):
    run = untrained(Config())
    run.params["dense"]["bias"] = np.full(10, np.nan, np.float32)
    with pytest.raises(RunError, match=r"not finite.*diverged"):
        make_page(run)
