"""What `lstm_mnist_jax.rnn` exports: the names, their signatures, and their docstrings with the examples."""

import doctest
import inspect
import re

import numpy as np
import pytest
from flax import nnx

from lstm_mnist_jax import rnn
from lstm_mnist_jax.rnn import GRU, LSTM, RNN, LayerNormLSTMCell, StackedRNN, URLSTMCell

LAYERS = ["GRU", "LSTM", "RNN", "RecurrentNoise", "StackedRNN"]
CELLS = [
    "CoupledLSTMCell",
    "GRUCell",
    "GatedCell",
    "LayerNormLSTMCell",
    "PeepholeLSTMCell",
    "ProjectedLSTMCell",
    "URLSTMCell",
]
TUPLES = ["LSTMCarry", "LSTMStates"]
FUNCTIONS = ["chrono", "gated", "load_keras", "load_torch", "lstm", "to_keras", "to_torch", "uniform_gates"]
METHODS = ["__init__", "__call__", "initialize_carry", "project", "update", "zero_carries"]


def public_callables():
    """(name, function) for each function, and for each public method that is this package's own."""
    for name in FUNCTIONS:
        yield name, getattr(rnn, name)
    for name in LAYERS + CELLS:
        for method in METHODS:
            function = getattr(getattr(rnn, name), method, None)
            if function is not None and function.__module__.startswith("lstm_mnist_jax.rnn"):
                yield f"{name}.{method}", function


CALLABLES = dict(public_callables())


def test_the_exported_names():
    """A change of this list is a change of the public surface: note it in CHANGELOG.md."""
    assert sorted(rnn.__all__) == sorted(LAYERS + CELLS + TUPLES + FUNCTIONS)
    assert all(hasattr(rnn, name) for name in rnn.__all__)


@pytest.mark.parametrize("name", CALLABLES)
def test_every_argument_is_named_and_typed_and_has_its_own_entry_in_the_docstring(name):
    docstring = inspect.getdoc(CALLABLES[name])  # of the base class, where a method has none of its own
    for argument in inspect.signature(CALLABLES[name]).parameters.values():
        if argument.name == "self":
            continue
        assert argument.kind not in (argument.VAR_KEYWORD, argument.VAR_POSITIONAL), argument
        assert argument.annotation is not argument.empty, argument
        assert re.search(rf"^  {argument.name}: \S", docstring, re.MULTILINE), argument


@pytest.mark.parametrize("name", rnn.__all__)
def test_every_docstring_has_an_example(name):
    assert ">>> " in inspect.getdoc(getattr(rnn, name))


@pytest.mark.slow
@pytest.mark.parametrize("name", rnn.__all__)
def test_the_example_in_the_docstring_runs(name):
    exported = getattr(rnn, name)
    (example,) = doctest.DocTestFinder(recurse=False).find(exported, name, globs={})
    results = doctest.DocTestRunner().run(example)
    assert results.failed == 0
    assert results.attempted >= 3


def parameters(function):
    return {name: argument.default for name, argument in inspect.signature(function).parameters.items()}


def test_rnn_has_every_argument_of_flaxs_rnn_with_the_same_default():
    for method in ("__init__", "__call__"):
        assert parameters(getattr(nnx.RNN, method)).items() <= parameters(getattr(RNN, method)).items()


def test_the_stacks_share_their_arguments_and_defaults():
    shared = parameters(StackedRNN.__init__)
    for stack in (LSTM, GRU):
        own = parameters(stack.__init__)
        assert shared.keys() - own.keys() <= {"cell", "use_bias", "projection_features", "forget_bias"}
        assert own.keys() - shared.keys() <= {"fused_kernel_init", "reset_after"}
        for name in own.keys() & shared.keys() - {"hidden_features"}:
            of_the_cell = name.endswith(("_init", "_bias"))  # which has its own defaults
            assert of_the_cell or own[name] == shared[name], name
        assert parameters(stack.__call__) == parameters(StackedRNN.__call__)


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: RNN(nnx.OptimizedLSTMCell(3, 4, rngs=nnx.Rngs(0)), **options),
        lambda **options: LSTM(3, 4, rngs=nnx.Rngs(0), **options),
        lambda **options: GRU(3, 4, rngs=nnx.Rngs(0), **options),
        lambda **options: StackedRNN(LayerNormLSTMCell, 3, 4, rngs=nnx.Rngs(0), **options),
        lambda **options: LayerNormLSTMCell(3, 4, rngs=nnx.Rngs(0), **options),
        lambda **options: URLSTMCell(3, 4, rngs=nnx.Rngs(0), **options),
        lambda **options: LSTM(3, 4, rngs=nnx.Rngs(0))(np.ones((2, 5, 3), np.float32), **options),
    ],
)
def test_a_mistyped_argument_is_a_type_error(make):
    with pytest.raises(TypeError, match="argument 'time_mayor'"):
        make(time_mayor=True)


def test_an_argument_that_the_cell_does_not_have_is_a_type_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'use_bias'"):
        StackedRNN(nnx.GRUCell, 3, 4, use_bias=False, rngs=nnx.Rngs(0))
