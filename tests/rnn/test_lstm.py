"""`LSTM`: how it is called, its initialisation, and what it refuses. Its numbers: test_stack.py."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.nn.initializers import glorot_uniform
from parameters import drawn_module

from lstm_mnist_jax.rnn import LSTM, LSTMCarry

INPUTS = np.random.default_rng(0).normal(size=(3, 7, 5)).astype(np.float32)


def two_layers():
    return drawn_module(lambda: LSTM(5, (4, 6), rngs=nnx.Rngs(0)))


def test_the_last_output_is_the_last_hidden_state():
    outputs, carries = two_layers()(INPUTS)
    assert outputs.shape == (3, 7, 6)
    np.testing.assert_array_equal(outputs[:, -1], carries[-1].h)


def test_time_major_is_a_transposition():
    stack = two_layers()
    outputs, carries = stack(INPUTS)
    swapped, swapped_carries = stack(np.swapaxes(INPUTS, 0, 1), time_major=True)
    np.testing.assert_array_equal(np.swapaxes(swapped, 0, 1), outputs)
    jax.tree.map(np.testing.assert_array_equal, swapped_carries, carries)


def test_a_sequence_can_be_read_in_two_pieces():
    stack = two_layers()
    whole, carries = stack(INPUTS)
    first, middle = stack(INPUTS[:, :3])
    second, last = stack(INPUTS[:, 3:], initial_carries=middle)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), last, carries)
    assert all(isinstance(carry, LSTMCarry) for carry in last)


def test_the_fused_initialiser_sees_the_whole_kernel_and_the_forget_bias_its_gate():
    init = partial(LSTM, 50, (40, 30), fused_kernel_init=glorot_uniform(), forget_bias=1.0)
    stack = nnx.jit(lambda: init(rngs=nnx.Rngs(0)))()
    for layer, (fan_in, width) in zip(stack.layers, [(50, 40), (40, 30)], strict=True):
        limit = np.sqrt(6 / (fan_in + width + 4 * width))
        for kernel in map(np.asarray, (layer.cell.dense_i.kernel[...], layer.cell.dense_h.kernel[...])):
            assert 0.97 * limit < np.abs(kernel).max() <= limit
            assert abs(np.std(kernel) / (limit / np.sqrt(3)) - 1) < 0.05
        bias = np.asarray(layer.cell.dense_h.bias[...]).reshape(4, width)
        np.testing.assert_array_equal(bias, np.array([0, 1, 0, 0])[:, None] * np.ones(width))
    first = stack.layers[0].cell
    assert np.isin(first.dense_h.kernel[...], first.dense_i.kernel[...]).mean() < 0.01  # drawn apart


def test_float16_runs_through_flax():
    stack = two_layers()
    inputs = (INPUTS * 3).astype(np.float16)
    outputs, carries = stack(inputs)
    exact, _ = stack(inputs.astype(np.float32))
    np.testing.assert_allclose(outputs, exact, atol=2e-2)
    np.testing.assert_array_equal(outputs[:, -1], carries[-1].h)


@pytest.mark.parametrize("arguments", [(5, ()), (0, (4,)), (5, (4, 0)), (5, (-1,))])
def test_impossible_widths_are_refused(arguments):
    with pytest.raises(ValueError, match="at least one layer width"):
        LSTM(*arguments, rngs=nnx.Rngs(0))


def test_wrong_shapes_are_refused():
    stack = two_layers()
    with pytest.raises(ValueError, match=r"expected inputs \[\.\.\., time, 5\], got shape \(3, 7, 4\)"):
        stack(INPUTS[..., :4])
    with pytest.raises(ValueError, match="expected initial carries"):
        stack(INPUTS, initial_carries=stack.zero_carries((2,)))
    with pytest.raises(ValueError, match="expected initial carries"):
        stack(INPUTS, initial_carries=stack.zero_carries((3,))[:1])
    with pytest.raises(
        ValueError, match=r"expected initial carries, one for each layer, of shapes .* got \(\(3, 4\), \(3"
    ):
        stack(INPUTS, initial_carries=stack.zero_carries((3,))[0])
    with pytest.raises(ValueError, match=r"got \(7,\). If the inputs are \[time, ...\], use time_major=True."):
        stack(INPUTS, seq_lengths=np.full(7, 3))


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, bool, np.complex64])
def test_inputs_that_are_no_floats_are_refused(dtype):
    with pytest.raises(ValueError, match=rf"LSTM expected inputs of floats, got {np.dtype(dtype)}; convert them"):
        LSTM(5, 4, rngs=nnx.Rngs(0))(INPUTS.astype(dtype))


def test_float64_inputs_are_computed_in_float32_unless_jax_has_float64():
    stack = LSTM(5, 4, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(stack(INPUTS.astype(np.float64))[0], stack(INPUTS.astype(np.float32))[0])


def test_inputs_without_a_time_axis_are_refused():
    with pytest.raises(ValueError, match=r"LSTM expected inputs \[\*batch, time, features\], got shape \(5,\)"):
        LSTM(5, 4, rngs=nnx.Rngs(0))(np.ones(5, np.float32))


def test_a_learned_carry_is_repeated_for_every_sequence():
    stack = two_layers()
    values = [tuple(np.full(width, value, np.float32) for value in (0.5, -0.25)) for width in (4, 6)]
    learned = [tuple(nnx.Param(jax.device_put(part)) for part in carry) for carry in values]
    repeated = jax.tree.map(lambda part: np.broadcast_to(part, (len(INPUTS), *part.shape)), values)
    found, wanted = stack(INPUTS, initial_carries=learned), stack(INPUTS, initial_carries=repeated)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert not any(
        isinstance(leaf, nnx.Variable) for leaf in jax.tree.leaves(found, is_leaf=lambda x: isinstance(x, nnx.Variable))
    )


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
def test_lengths_of_any_integer_dtype(dtype, as_array):
    lengths = np.resize([100, 0, 7, 127], len(INPUTS))
    stack = LSTM(5, 4, rngs=nnx.Rngs(0))
    inputs = np.resize(INPUTS, (len(INPUTS), 128, 5)).astype(np.float32)
    found = stack(inputs, seq_lengths=as_array(lengths.astype(dtype)))
    jax.tree.map(np.testing.assert_array_equal, found, stack(inputs, seq_lengths=lengths))


@pytest.mark.parametrize("lengths", [[2**40, -(2**40)], [300, -1]])
def test_lengths_beyond_the_steps_are_clipped(lengths):
    stack = LSTM(5, 4, rngs=nnx.Rngs(0))
    inputs = INPUTS[:2]
    found = stack(inputs, seq_lengths=lengths)
    jax.tree.map(np.testing.assert_array_equal, found, stack(inputs, seq_lengths=[inputs.shape[1], 0]))


def test_a_mask_in_place_of_lengths_is_refused():
    with pytest.raises(ValueError, match=r"LSTM expected seq_lengths to be integers, got booleans.*mask\.sum\(-1\)"):
        LSTM(5, 4, rngs=nnx.Rngs(0))(INPUTS, seq_lengths=np.ones(INPUTS.shape[:2], bool))


@pytest.mark.parametrize(
    ("name", "meant"),
    [("num_layers", "Here it is hidden_features"), ("batch_first", "Here it is time_major"),
     ("dropout", "Here it is dropout_rate"), ("hidden_size", "Here it is hidden_features"),
     ("bidirectionl", "Here it is bidirectional"), ("return_state", "A call returns the outputs of all steps and the")],
)  # fmt: skip
def test_arguments_of_other_libraries_are_named(name, meant):
    with pytest.raises(TypeError, match=f"LSTM has no argument '{name}'. {meant}"):
        LSTM(5, 4, rngs=nnx.Rngs(0), **{name: 2})


@pytest.mark.parametrize(
    ("name", "meant"),
    [("seq_length", "Here it is seq_lengths"), ("initial_carry", "Here it is initial_carries"),
     ("mask", "Here it is seq_lengths, of a mask"), ("training", r"layer\.train\(\) and layer\.eval\(\) switch"),
     ("xyz", "It has inputs, initial_carries, seq_lengths")],
)  # fmt: skip
def test_arguments_of_calls_are_named(name, meant):
    with pytest.raises(TypeError, match=f"A call of LSTM has no argument '{name}'. {meant}"):
        LSTM(5, 4, rngs=nnx.Rngs(0))(INPUTS, **{name: 2})
