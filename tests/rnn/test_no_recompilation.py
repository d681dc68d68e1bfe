"""Calls outside `jit` compile once: the second call, on arrays of the same shapes, compiles nothing."""

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from own_cell import RotatedCell
from parameters import drawn_module

from lstm_mnist_jax import model
from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.rnn import (
    GRU,
    LSTM,
    RNN,
    CoupledLSTMCell,
    LayerNormLSTMCell,
    PeepholeLSTMCell,
    ProjectedLSTMCell,
    StackedRNN,
    URLSTMCell,
    gated,
    lstm,
    native,
)

INPUTS = np.random.default_rng(0).normal(size=(3, 3, 5)).astype(np.float32)
LENGTHS = np.array([3, 1, 2])

needs_kernel = pytest.mark.skipif(
    native.unavailable() is not None, reason=f"no compiled kernel: {native.unavailable()}"
)


@pytest.fixture
def compilations():
    """A list that grows with each program that is compiled, or taken from the compilation cache."""
    events = []

    def note(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            events.append(duration)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield events
    jax.monitoring.unregister_event_duration_listener(note)


def assert_second_calls_compile_nothing(compilations, calls):
    for name, call in calls.items():
        call()
        before = len(compilations)
        jax.block_until_ready(call())
        assert len(compilations) == before, f"the second call of {name} compiled {len(compilations) - before} programs"


def test_compilations_are_counted(compilations):
    """Also those that the compilation cache on disk spares."""
    for _ in range(2):
        before = len(compilations)
        jax.jit(lambda x: 3 * x + 1)(INPUTS)
        assert len(compilations) == before + 1


def drawn_lstm(hidden_features=(5,), **options):
    return drawn_module(lambda: LSTM(5, hidden_features, rngs=nnx.Rngs(0), **options))


def loss(layer, **options):
    return jnp.sum(jax.tree.leaves(layer(INPUTS, **options))[0])


def calls(layer, *names):
    """What is called of a layer outside `jit`. Every call makes its functions anew, as programs do."""
    graph, params, rest = nnx.split(layer, nnx.Param, ...)

    def merged(params):
        return nnx.merge(graph, params, rest, copy=True)

    every = {
        "a layer": lambda: layer(INPUTS),
        "a layer with lengths": lambda: layer(INPUTS, seq_lengths=LENGTHS),
        "nnx.grad": lambda: nnx.grad(lambda layer: loss(layer))(layer),
        "nnx.grad with lengths": lambda: nnx.grad(lambda layer: loss(layer, seq_lengths=LENGTHS))(layer),
        "jax.grad": lambda: jax.grad(lambda params: loss(merged(params)))(params),
        "vmap": lambda: jax.vmap(lambda inputs: merged(params)(inputs))(INPUTS[:, None]),
    }
    return {name: every[name] for name in names or every}


def test_an_lstm(compilations):
    assert_second_calls_compile_nothing(compilations, calls(drawn_lstm()))


@pytest.mark.parametrize("backend", ["xla", "flax"])
def test_an_lstm_on_another_backend(compilations, backend):
    layer = drawn_lstm(backend=backend)
    assert_second_calls_compile_nothing(compilations, calls(layer, "a layer with lengths", "nnx.grad", "vmap"))


def test_a_gru(compilations):
    layer = drawn_module(lambda: GRU(5, (5,), rngs=nnx.Rngs(0)))
    assert_second_calls_compile_nothing(compilations, calls(layer, "a layer with lengths", "nnx.grad", "vmap"))


OPTIONS = {
    "bidirectional": {"bidirectional": True},
    "remat": {"remat": 2},
    "dropout": {"hidden_features": (5, 5), "dropout_rate": 0.5},
    "recurrent dropout and zoneout": {"recurrent_dropout_rate": 0.5, "zoneout_rates": 0.5},
    "bfloat16": {"dtype": jnp.bfloat16},
    "projection": {"projection_features": 5},
    "time major, unrolled": {"time_major": True, "unroll": 2},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_lstm_with_options(compilations, name):
    options = {"hidden_features": (5,)} | OPTIONS[name]
    has_noise = any("rate" in option for option in options)  # from random numbers, which are not parameters
    layer = LSTM(5, rngs=nnx.Rngs(0), **options) if has_noise else drawn_lstm(**options)
    assert_second_calls_compile_nothing(compilations, calls(layer, "a layer with lengths", "nnx.grad"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "cell_type",
    [
        ProjectedLSTMCell, CoupledLSTMCell, PeepholeLSTMCell, LayerNormLSTMCell, URLSTMCell, RotatedCell,
        nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.LSTMCell, nnx.SimpleCell,
    ],
)  # fmt: skip
def test_every_cell(compilations, cell_type):
    layer = RNN(drawn_module(lambda: cell_type(5, 5, rngs=nnx.Rngs(0))), reverse=True, keep_order=True)
    assert_second_calls_compile_nothing(compilations, calls(layer, "a layer", "nnx.grad with lengths"))


def test_a_stack_of_any_cell_with_expected_zoneout(compilations):
    stack = StackedRNN(CoupledLSTMCell, 5, (5, 5), zoneout_rates=(0.5, 0.1), rngs=nnx.Rngs(0))
    stack.eval()
    assert_second_calls_compile_nothing(compilations, calls(stack, "a layer", "jax.grad"))


@pytest.mark.parametrize("backend", [pytest.param("native", marks=needs_kernel), "xla"])
def test_the_lstm_recurrence_over_arrays(compilations, backend):
    rng = np.random.default_rng(0)
    inputs, *weights = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 3, 5), (5, 20), (5, 20), (20,)))
    carry = (np.zeros((3, 5), np.float32),) * 2

    def total(inputs, *weights):
        return jnp.sum(jnp.sin(lstm(inputs, *weights, carry, backend=backend).h))

    def gradient_of_gradient():
        return jax.grad(lambda inputs: jnp.sum(jax.grad(total)(inputs, *weights) ** 2))(inputs)

    some = {
        "lstm": lambda: lstm(inputs, *weights, carry, backend=backend),
        "its gradient": lambda: jax.grad(lambda *args: total(*args), argnums=(0, 1, 2, 3))(inputs, *weights),
        "its second derivative": gradient_of_gradient,
        "vmap": lambda: jax.vmap(lambda x: lstm(x, *weights, carry, backend=backend))(np.stack([inputs, inputs])),
    }
    assert_second_calls_compile_nothing(compilations, some)


def minimal_gru(params, carry, projected, recurrent):
    (h,) = carry
    z = nnx.sigmoid(projected[0] + recurrent[0])
    return (z * h + (1 - z) * jnp.tanh(params * projected[1] + recurrent[1]),)


def test_a_gated_recurrence_over_arrays(compilations):
    rng = np.random.default_rng(0)
    params, z, n, kernel = (rng.normal(size=shape).astype(np.float32) for shape in ((4,), (3, 2, 4), (3, 2, 4), (4, 8)))
    carry = (np.zeros((2, 4), np.float32),)

    def outputs(params, kernel):
        return gated(minimal_gru, params, (z, n), kernel, carry)[0][-1]

    some = {
        "gated": lambda: outputs(params, kernel),
        "its gradient": lambda: jax.grad(lambda *args: outputs(*args).sum(), argnums=(0, 1))(params, kernel),
        "vmap": lambda: jax.vmap(lambda kernel: outputs(params, kernel))(np.stack([kernel, kernel])),
    }
    assert_second_calls_compile_nothing(compilations, some)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(hidden_features=(5,), dropout_rate=0.5),
        ModelConfig(hidden_features=(5,), cell="gru", bidirectional=True, pooling="attention"),
    ],
    ids=["LSTM with dropout", "bidirectional GRU with attention"],
)
def test_the_classifier(compilations, config):
    images = np.zeros((3, 6, 5), np.uint8)
    classifier = drawn_module(lambda: model.Classifier(config, (6, 5), 2, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.state(classifier, nnx.Param))
    keys = jax.random.split(jax.random.key(1), 3)

    def total(params, keys):
        return model.apply(params, images, config, dropout_keys=keys).sum()

    some = {
        "apply": lambda: model.apply(params, images, config),
        "the gradient of apply": lambda: jax.grad(lambda params: total(params, keys))(params),
    }
    assert_second_calls_compile_nothing(compilations, some)
