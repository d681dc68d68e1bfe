"""The stack of layers: against Flax's layers one by one, its initialisation, and what it refuses."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax.nn.initializers import glorot_uniform

from lstm_mnist_jax.rnn import LSTM, LSTMCarry

INPUTS = np.random.default_rng(0).normal(size=(3, 7, 5)).astype(np.float32)


def test_outputs_and_carries_are_those_of_flax_layer_by_layer():
    stack = LSTM(5, (4, 6, 3), rngs=nnx.Rngs(0))
    outputs, carries = stack(INPUTS)
    expected = INPUTS
    for layer, carry in zip(stack.layers, carries, strict=True):
        (c, h), expected = nnx.RNN(layer.cell, return_carry=True)(expected)
        np.testing.assert_allclose(carry.c, c, atol=1e-6)
        np.testing.assert_allclose(carry.h, h, atol=1e-6)
    np.testing.assert_allclose(outputs, expected, atol=1e-6)


def test_the_last_output_is_the_last_hidden_state():
    outputs, carries = LSTM(5, (4, 6), rngs=nnx.Rngs(0))(INPUTS)
    assert outputs.shape == (3, 7, 6)
    np.testing.assert_array_equal(outputs[:, -1], carries[-1].h)


def test_time_major_is_a_transposition():
    stack = LSTM(5, (4, 6), rngs=nnx.Rngs(0))
    outputs, carries = stack(INPUTS)
    swapped, swapped_carries = stack(np.swapaxes(INPUTS, 0, 1), time_major=True)
    np.testing.assert_array_equal(np.swapaxes(swapped, 0, 1), outputs)
    jax.tree.map(np.testing.assert_array_equal, swapped_carries, carries)


def test_a_sequence_can_be_read_in_two_pieces():
    stack = LSTM(5, (4, 6), rngs=nnx.Rngs(0))
    whole, carries = stack(INPUTS)
    first, middle = stack(INPUTS[:, :3])
    second, last = stack(INPUTS[:, 3:], initial_carries=middle)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), last, carries)
    assert all(isinstance(carry, LSTMCarry) for carry in last)


def test_the_fused_initialiser_sees_the_whole_kernel_and_the_forget_bias_its_gate():
    stack = LSTM(50, (40, 30), fused_kernel_init=glorot_uniform(), forget_bias=1.0, rngs=nnx.Rngs(0))
    for layer, (fan_in, width) in zip(stack.layers, [(50, 40), (40, 30)], strict=True):
        limit = np.sqrt(6 / (fan_in + width + 4 * width))
        for kernel in (layer.cell.dense_i.kernel[...], layer.cell.dense_h.kernel[...]):
            assert 0.97 * limit < np.abs(kernel).max() <= limit
            assert abs(np.std(kernel) / (limit / np.sqrt(3)) - 1) < 0.05
        bias = np.asarray(layer.cell.dense_h.bias[...]).reshape(4, width)
        np.testing.assert_array_equal(bias, np.array([0, 1, 0, 0])[:, None] * np.ones(width))
    first = stack.layers[0].cell
    assert np.isin(first.dense_h.kernel[...], first.dense_i.kernel[...]).mean() < 0.01  # drawn apart


@pytest.mark.parametrize("dtype", [np.float16, np.int32, np.uint8])
def test_inputs_of_other_types_run_through_flax(dtype):
    stack = LSTM(5, (4, 6), rngs=nnx.Rngs(0))
    inputs = (INPUTS * 3).astype(dtype)
    outputs, carries = stack(inputs)
    exact, _ = stack(inputs.astype(np.float32))
    np.testing.assert_allclose(outputs, exact, atol=2e-2)
    np.testing.assert_array_equal(outputs[:, -1], carries[-1].h)


@pytest.mark.parametrize("arguments", [(5, ()), (0, (4,)), (5, (4, 0)), (5, (-1,))])
def test_impossible_widths_are_refused(arguments):
    with pytest.raises(ValueError, match="at least one layer width"):
        LSTM(*arguments, rngs=nnx.Rngs(0))


def test_wrong_shapes_are_refused():
    stack = LSTM(5, (4, 6), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"expected inputs \[\.\.\., time, 5\], got shape \(3, 7, 4\)"):
        stack(INPUTS[..., :4])
    with pytest.raises(ValueError, match="expected initial carries"):
        stack(INPUTS, initial_carries=stack.zero_carries((2,)))
    with pytest.raises(ValueError, match="expected initial carries"):
        stack(INPUTS, initial_carries=stack.zero_carries((3,))[:1])
