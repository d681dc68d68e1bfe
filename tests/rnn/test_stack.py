"""Stacks: both directions, lengths, rematerialisation, bfloat16, and JAX's transformations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest
from flax import nnx
from parameters import drawn_module

from lstm_mnist_jax.rnn import GRU, LSTM, RNN, LayerNormLSTMCell, ProjectedLSTMCell, StackedRNN

INPUTS = np.random.default_rng(0).normal(size=(4, 9, 5)).astype(np.float32)
LENGTHS = np.array([9, 4, 1, 0])

STACKS = {
    "lstm": LSTM,
    "projected": partial(LSTM, projection_features=3),
    "gru": GRU,
    "layer norm": partial(StackedRNN, LayerNormLSTMCell),
    "flax's scan": partial(StackedRNN, nnx.LSTMCell),
}


def make(name, widths=(4,), **options):
    if name == "layer norm":
        options["param_dtype"] = jnp.result_type(float)
    return drawn_module(lambda: STACKS[name](5, widths, rngs=nnx.Rngs(0), **options))


def precision_for(name):
    """Normalised, a state that hardly varies (the first h is 0) magnifies rounding a thousandfold: then float64."""
    return jax.enable_x64(name == "layer norm")


def assert_close(ours, theirs, atol=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-5), ours, theirs)


@partial(jax.jit, static_argnums=0)
def _gradients(graph, params, rest, inputs, options):
    def loss(params, inputs):
        outputs, carries = nnx.merge(graph, params, rest, copy=True)(inputs, **options)
        total = jnp.sin(2 * outputs).sum() + sum(jnp.cos(part).sum() for part in jax.tree.leaves(carries))
        return total, (outputs, carries)

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, inputs)


def gradients(stack, inputs, **options):
    """What a stack gives, a loss of it, and the gradient of that by the parameters and the inputs."""
    values, (d_params, d_inputs) = _gradients(*nnx.split(stack, nnx.Param, ...), inputs, options)
    return values, nnx.to_pure_dict(d_params), d_inputs


@partial(jax.jit, static_argnums=0)
def _step(graph, state, carry, inputs):
    return nnx.merge(graph, state, copy=True)(carry, inputs)


def read_alone(cell, carry, sequence):
    """The outputs for one sequence [time, features], by calling the cell for each step; and its last carry."""
    graph, state = nnx.split(cell)
    carry, outputs = tuple(carry) if isinstance(carry, tuple) else carry, []
    for inputs in sequence:
        carry, output = _step(graph, state, carry, inputs[None])
        outputs.append(output)
    return np.concatenate(outputs), jax.tree.map(lambda part: np.asarray(part)[0], carry)


def assert_read_alone(stack, outputs, carries):
    """The outputs and last carries of a batch are those of its sequences, each read by the cells step by step."""
    outputs, carries = jax.tree.map(np.asarray, (outputs, carries))
    zeros = jax.tree.map(
        lambda part: np.zeros(part.shape, part.dtype), jax.eval_shape(lambda: stack.zero_carries((1,)))
    )
    for n, length in enumerate(LENGTHS):
        if length:
            alone, alone_carries = INPUTS[n, :length], []
            for layer, zero in zip(stack.layers, zeros, strict=True):
                if isinstance(layer, RNN):
                    alone, carry = read_alone(layer.cell, zero, alone)
                    alone_carries.append(carry)
                else:
                    forward, forward_carry = read_alone(layer.forward_rnn.cell, zero[0], alone)
                    backward, backward_carry = read_alone(layer.backward_rnn.cell, zero[1], alone[::-1])
                    alone = np.concatenate([forward, backward[::-1]], axis=-1)
                    alone_carries.append((forward_carry, backward_carry))
            assert_close(outputs[n, :length], alone)
            for part, expected in zip(jax.tree.leaves(carries), jax.tree.leaves(alone_carries), strict=True):
                assert_close(part[n], expected)
        assert not outputs[n, length:].any()
    assert not any(part[3].any() for part in jax.tree.leaves(carries))  # nothing read: as at the start


@partial(jax.jit, static_argnums=0)
def _all_read(graph, state, inputs, lengths):
    return [stack(inputs, seq_lengths=lengths) for stack in nnx.merge(graph, state, copy=True)]


@pytest.mark.parametrize("name", STACKS)
def test_a_padded_batch_is_its_sequences_one_by_one(name):
    """Two layers, in one direction and in both, compiled as one program."""
    with precision_for(name):
        stacks = nnx.List([make(name, (4, 6), bidirectional=both) for both in (False, True)])
        for stack, read in zip(stacks, _all_read(*nnx.split(stacks), INPUTS, LENGTHS), strict=True):
            assert_read_alone(stack, *read)


@pytest.mark.parametrize("name", STACKS)
def test_padding_reaches_no_output_and_no_gradient(name):
    padding = np.arange(9) >= LENGTHS[:, None]
    dirty = np.where(padding[..., None], np.nan, INPUTS).astype(np.float32)
    clean = np.where(padding[..., None], 0, INPUTS).astype(np.float32)
    with precision_for(name):
        stack = make(name, (4, 6) if name == "gru" else (4,), bidirectional=True)
        ours, expected = (gradients(stack, inputs, seq_lengths=LENGTHS) for inputs in (dirty, clean))
    assert_close(ours, expected, atol=0)
    assert not np.asarray(ours[2])[padding].any()


def test_both_directions_are_two_layers_one_of_them_reversed():
    stack = make("lstm", (4, 6), bidirectional=True)
    graph, state = nnx.split(stack)

    @jax.jit
    def ours_and_those_of_flax(state, inputs):
        stack, ends = nnx.merge(graph, state), []
        ours = stack(inputs)
        for layer in stack.layers:
            forward = nnx.RNN(layer.forward_rnn.cell)(inputs)
            backward = nnx.RNN(layer.backward_rnn.cell)(inputs[:, ::-1])[:, ::-1]
            inputs = jnp.concatenate([forward, backward], axis=-1)
            ends.append((forward[:, -1], backward[:, 0]))
        return ours, (inputs, ends)

    (outputs, carries), expected = ours_and_those_of_flax(state, INPUTS)
    assert_close((outputs, [(h, backward_h) for (_, h), (_, backward_h) in carries]), expected)
    assert stack.out_features == 12


def test_flaxs_bidirectional_merges_the_outputs_of_two_layers_as_it_is_told():
    cells = nnx.List(drawn_module(lambda: nnx.OptimizedLSTMCell(5, 4, rngs=nnx.Rngs(0))) for _ in range(2))

    @nnx.jit
    def outputs_and_carries(cells):
        return [
            nnx.Bidirectional(rnn(cells[0]), rnn(cells[1]), merge_fn=jnp.add, return_carry=True)(INPUTS)
            for rnn in (RNN, nnx.RNN)
        ]

    ours, theirs = outputs_and_carries(cells)
    assert ours[1].shape == (4, 9, 4)
    assert_close(ours, theirs)


REMAT = [(name, *case) for name in ("lstm", "projected") for case in ((1, False), (4, False), (4, True))]
REMAT += [("lstm", 1, True), ("lstm", 9, False), ("gru", 4, True), ("layer norm", 4, True)]
REMAT = [case if case[0] == "lstm" else pytest.param(*case, marks=pytest.mark.slow) for case in REMAT]


@pytest.mark.parametrize(("name", "remat", "padded"), REMAT)
def test_remat_changes_no_number(name, remat, padded):
    """In pieces of one step, in pieces that leave a remainder, and in a single one."""
    with precision_for(name):
        plain, saving = (make(name, bidirectional=True, remat=steps) for steps in (None, remat))
        ours = gradients(saving, INPUTS, **({"seq_lengths": LENGTHS} if padded else {}))
        # Without padding, all lengths are that of the batch: one program for both.
        expected = gradients(plain, INPUTS, seq_lengths=LENGTHS if padded else np.full(4, 9))
    assert_close(ours, expected, atol=2e-5)


def test_remat_keeps_less():
    inputs = np.zeros((2, 400, 5), np.float32)

    def kept(remat):
        graph, params, rest = nnx.split(make("lstm", (16,), remat=remat), nnx.Param, ...)
        loss = jax.jit(jax.grad(lambda params: nnx.merge(graph, params, rest, copy=True)(inputs)[1][0].h.sum()))
        return loss.lower(params).compile().memory_analysis().temp_size_in_bytes

    assert kept(20) < kept(None) / 3


def test_the_gradient_through_initial_carries():
    stack = make("lstm", (4, 6))
    carries = jax.tree.map(lambda part: np.asarray(part) + np.float32(0.3), stack.zero_carries((4,)))

    @jax.jit
    @jax.value_and_grad
    def loss_and_gradient(carries, lengths):
        return stack(INPUTS, initial_carries=carries, seq_lengths=lengths)[0].sum()

    def moved(carries, layer, part, where, by):
        carries = jax.tree.map(np.copy, carries)
        carries[layer][part][where] += by
        return carries

    step = np.float32(1e-3)
    for lengths in (None, LENGTHS):
        _, gradient = loss_and_gradient(carries, lengths)
        for layer, part, where in [(0, 0, (1, 2)), (1, 1, (0, 5)), (1, 0, (2, 0)), (0, 1, (3, 1))]:
            up, down = (loss_and_gradient(moved(carries, layer, part, where, by), lengths)[0] for by in (step, -step))
            numeric = (np.asarray(up) - np.asarray(down)) / (2 * step)
            np.testing.assert_allclose(np.asarray(gradient[layer][part])[where], numeric, atol=2e-2, rtol=2e-2)


def test_options_that_make_no_sense_are_refused():
    cell = nnx.OptimizedLSTMCell(5, 4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="no backend 'cuda'; expected one of auto, native, xla, pallas, flax"):
        RNN(cell, backend="cuda")
    with pytest.raises(ValueError, match="1 or more; got 0"):
        RNN(cell, remat=0)
    with pytest.raises(ValueError, match=r"seq_lengths of the batch's shape \(4,\), got \(3,\)"):
        RNN(cell)(INPUTS, seq_lengths=np.array([1, 2, 3]))
    with pytest.raises(ValueError, match="seq_lengths to be integers, got float32"):
        RNN(cell)(INPUTS, seq_lengths=np.ones(4, np.float32))


@pytest.mark.parametrize("name", ["lstm", "projected", "gru"])
def test_bfloat16_is_near_float32_and_keeps_its_carries_in_it(name):
    exact, rough = (make(name, bidirectional=True, dtype=dtype) for dtype in (None, jnp.bfloat16))
    ((_, (outputs, carries)), ours, d_inputs) = gradients(rough, INPUTS, seq_lengths=LENGTHS)
    ((_, (expected, _)), theirs, d_expected) = gradients(exact, INPUTS, seq_lengths=LENGTHS)
    assert outputs.dtype == jnp.bfloat16
    assert {part.dtype for part in jax.tree.leaves(carries)} == {jnp.dtype(jnp.float32)}
    assert np.abs(np.asarray(outputs, np.float32) - np.asarray(expected)).mean() < 0.01
    assert_close(d_inputs, d_expected, atol=0.1)
    flat, flat_expected = (
        np.concatenate([*map(np.ravel, map(np.asarray, jax.tree.leaves(tree)))]) for tree in (ours, theirs)
    )
    assert flat.dtype == np.float32
    assert np.linalg.norm(flat - flat_expected) < 0.03 * np.linalg.norm(flat_expected)


def test_a_long_sequence_does_not_lose_small_steps_in_bfloat16():
    """A memory in bfloat16 would stop growing at 256 times its steps."""
    cell = drawn_module(lambda: nnx.OptimizedLSTMCell(1, 1, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    zeros, bias = np.zeros((1, 4), np.float32), np.float32([-4, 30, 1, 0])  # add 0.0137 a step, forget nothing
    weights = (cell.dense_i.kernel, zeros), (cell.dense_h.kernel, zeros), (cell.dense_h.bias, bias)
    for param, value in weights:
        param.set_value(jax.device_put(value))
    (c, _), _ = RNN(cell, return_carry=True)(np.zeros((1, 1000, 1), np.float32))
    step = 1 / (1 + np.exp(4.0)) * np.tanh(1.0)
    np.testing.assert_allclose(c, 1000 * step, rtol=0.02)


@pytest.mark.parametrize(
    "name", ["lstm", *(pytest.param(name, marks=pytest.mark.slow) for name in STACKS if name != "lstm")]
)
def test_jit_vmap_grad_and_checkpoint_go_through(name):
    with precision_for(name):
        graph, params, rest = nnx.split(make(name), nnx.Param, ...)

        def loss(params, inputs):
            return jnp.sin(nnx.merge(graph, params, rest, copy=True)(inputs)[0]).sum()

        @jax.jit
        def transformed(params, inputs):
            each = jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, inputs[:, None])
            many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
            both = jax.vmap(jax.grad(loss), in_axes=(0, None))(many, inputs)
            each, both = jax.tree.map(lambda leaf: leaf.sum(0), each), jax.tree.map(lambda leaf: leaf[0], both)
            return jax.grad(loss)(params, inputs), jax.grad(jax.checkpoint(loss))(params, inputs), each, both

        expected, *every = transformed(params, INPUTS)
        for found in every:
            assert_close(found, expected, atol=1e-5)


def test_a_width_may_be_a_number_and_cell_options_reach_the_cell():
    stack = StackedRNN(ProjectedLSTMCell, 5, 4, forget_bias=2.0, rngs=nnx.Rngs(0))
    assert stack(INPUTS)[0].shape == (4, 9, 4)
    np.testing.assert_array_equal(
        np.split(np.asarray(stack.layers[0].cell.dense_i.bias), 4), [[0], [2], [0], [0]] * np.ones(4)
    )


def test_carries_of_both_directions_can_be_carried_on():
    stack = make("gru", (4, 6), bidirectional=True)
    _, carries = stack(INPUTS)
    stack(INPUTS, initial_carries=carries)
    with pytest.raises(ValueError, match="GRU expected initial carries, one for each layer, of shapes"):
        stack(INPUTS, initial_carries=[forward for forward, _ in carries])


REFUSED = """
import jax
import numpy as np
from flax import nnx
from lstm_mnist_jax.rnn import GRU, LSTM, RNN, RecurrentNoise, StackedRNN, chrono, gated, lstm
inputs = np.ones((2, 3, 5), np.float32)
for options in (
    {"hidden_features": "88"}, {"hidden_features": (8.0,)}, {"hidden_features": ()}, {"dropout_rate": "0.1"},
    {"projection_features": (4, 4)}, {"rngs": 0}, {"rngs": jax.random.key(0)}, {"remat": 2.5}, {"initial_carries": 0},
    {"hidden_features": True},
    {"zoneout_rates": "0.1"}, {"bidirectional": "False"}, {"dtype": "int8"}, {"dtype": "bf16"}, {"unroll": 2.5},
    {"projection_features": True}, {"unroll": 0}, {"unroll": True}, {"time_major": 1}, {"use_bias": "no"},
    {"dropout_rate": [0.1]}, {"dropout_rate": None},
    {"kernel_init": "glorot"}, {"initial_carries": [(np.zeros((2, 4), int),) * 2]}, {"resets": np.zeros((2, 3))},
):
    called = {name: options.pop(name) for name in ("initial_carries", "resets") if name in options}
    try:
        LSTM(5, **{"hidden_features": (4,), "rngs": nnx.Rngs(0)} | options)(inputs, **called)
    except ValueError as error:
        print(error)
class Mine(LSTM):
    def __init__(self):
        super().__init__(5, hidden_size=4, rngs=nnx.Rngs(0))
cell = nnx.OptimizedLSTMCell(5, 4, rngs=nnx.Rngs(0))
for wrong in (
    lambda: RNN(nnx.OptimizedLSTMCell), lambda: RNN(RNN(cell)), lambda: RNN(cell, rngs=0),
    lambda: StackedRNN(cell, 5, 4, rngs=nnx.Rngs(0)), lambda: RNN(cell)((inputs, inputs[0])),
    lambda: LSTM(5, 4, 2, rngs=nnx.Rngs(0)), lambda: LSTM(5, 4), lambda: StackedRNN(5, 4, rngs=nnx.Rngs(0)), RNN,
    lambda: RNN(cell)(inputs, lengths=[3, 3]), lambda: RNN(cell)(inputs, inputs),
    lambda: RNN(cell)(inputs, hx=0), lambda: RNN(cell, go_backwards=True), lambda: RNN(cell, return_sequences=True),
    lambda: RNN(cell, hidden_size=4), Mine, lambda: RNN(cell, unroll=-1), lambda: RNN(cell, keep_order="no"),
    lambda: RNN(cell)(inputs, reverse="no"), lambda: GRU(5, 4, reset_after=0, rngs=nnx.Rngs(0)),
    lambda: lstm(inputs, *[inputs] * 3, (inputs, inputs), unroll=0),
    lambda: StackedRNN("lstm", 5, 4, rngs=nnx.Rngs(0)), lambda: RNN(cell, noise=0.1),
    lambda: RecurrentNoise(deterministic="no", rngs=nnx.Rngs(0)), lambda: RecurrentNoise(dropout_rate=0.1, rngs=0),
    lambda: gated(None, {}, (inputs,), inputs[0], inputs[0]), lambda: chrono(2),
    lambda: chrono("5"), lambda: chrono(None), lambda: chrono(np.inf), lambda: StackedRNN(int, 5, 4, rngs=nnx.Rngs(0)),
    lambda: RecurrentNoise(dropout_rate=None, rngs=nnx.Rngs(0)),
):
    try:
        wrong()
    except (TypeError, ValueError) as error:
        print(error)
# What is right: a flag of NumPy, and lists of traced values.
RecurrentNoise(deterministic=np.True_, rngs=nnx.Rngs(0))
rnn = RNN(cell)
print(jax.jit(lambda x, n: rnn([x, x], seq_lengths=[n, 3]))(inputs[0], 2).shape)
"""


def test_what_no_type_checker_saw_is_refused_in_words():
    """In a process of its own: here, types are checked at every call."""
    done = programs.run(code=REFUSED)
    assert done.returncode == 0, done.stderr
    messages = [
        "integers of 1 or more; got in_features=5, hidden_features='88'.",
        "integers of 1 or more; got in_features=5, hidden_features=(8.0,).",
        "at least one layer width, all integers of 1 or more; got in_features=5, hidden_features=().",
        "LSTM needs a dropout_rate from 0 to below 1; got '0.1'.",
        "LSTM has one projection_features for all layers; got (4, 4).",
        "LSTM draws its parameters from rngs, such as nnx.Rngs(0); got 0.",
        "LSTM draws its parameters from rngs, such as nnx.Rngs(0); got a key: write rngs=nnx.Rngs(key).",
        "RNN keeps a carry every `remat` steps, 1 or more; got 2.5.",
        "LSTM expected initial carries, one for each layer, of shapes (((2, 4), (2, 4)),), got ().",
        "integers of 1 or more; got in_features=5, hidden_features=True.",
        "RecurrentNoise needs rates from 0 to below 1; got dropout_rate=0.0, zoneout_rates='0.1'.",
        "LSTM needs bidirectional to be True or False; got 'False'.",
        "LSTM needs a dtype of floats, such as jnp.bfloat16; got 'int8'.",
        "LSTM needs a dtype of floats, such as jnp.bfloat16; got 'bf16'.",
        "LSTM expected unroll to be an integer, 1 or more; got 2.5.",
        "LSTM has one projection_features for all layers; got True.",
        "LSTM expected unroll to be an integer, 1 or more; got 0.",
        "LSTM expected unroll to be an integer, 1 or more; got True.",
        "LSTM needs time_major to be True or False; got 1.",
        "LSTM needs use_bias to be True or False; got 'no'.",
        "LSTM needs a dropout_rate from 0 to below 1; got [0.1].",
        "LSTM needs a dropout_rate from 0 to below 1; got None.",
        "LSTM needs a function as kernel_init, such as nnx.initializers.ones; got 'glorot'.",
        "LSTM expected an initial carry of floats, got ['int32', 'int32']; convert each, such as "
        "c.astype(jnp.float32).",
        "LSTM expected resets to be booleans, got float32; convert them: resets > 0.",
        "RNN runs a cell, such as nnx.OptimizedLSTMCell(...); got the class OptimizedLSTMCell.",
        "RNN runs a cell, such as nnx.OptimizedLSTMCell(...); got an object of class RNN.",
        "RNN expected rngs to be an nnx.Rngs, a stream of one, or a bool; got 0.",
        "StackedRNN makes a cell for each layer: give it the class OptimizedLSTMCell, not a cell.",
        "RNN expected inputs [*batch, time, features] in one array, got a tuple.",
        "positional arguments. Write it as LSTM(28, 64, rngs=nnx.Rngs(0)); with (64, 64) for 64, two layers.",
        "argument: 'rngs'. Write it as LSTM(28, 64, rngs=nnx.Rngs(0)); with (64, 64) for 64, two layers.",
        "Write it as StackedRNN(nnx.GRUCell, 28, 64, rngs=nnx.Rngs(0)).",
        "RNN: missing a required argument: 'cell'. Write it as RNN(nnx.OptimizedLSTMCell(28, 64, rngs=nnx.Rngs(0))).",
        "A call of RNN has no argument 'lengths'. Here it is seq_lengths.",
        "A call of RNN: too many positional arguments. Write it as layer(inputs, initial_carry=...).",
        "A call of RNN has no argument 'hx'. Here it is initial_carry.",
        "RNN has no argument 'go_backwards'. Here it is reverse.",
        "RNN has no argument 'return_sequences'. A call returns the outputs of all steps.",
        "RNN has no argument 'hidden_size'. Give it to the cell: RNN(nnx.OptimizedLSTMCell(28, 64, rngs=nnx.Rngs(0))).",
        "LSTM has no argument 'hidden_size'. Here it is hidden_features.",
        "RNN expected unroll to be an integer, 1 or more; got -1.",
        "RNN needs keep_order to be True or False; got 'no'.",
        "RNN needs reverse to be True or False; got 'no'.",
        "GRUCell needs reset_after to be True or False; got 0.",
        "lstm expected unroll to be an integer, 1 or more; got 0.",
        "StackedRNN makes a cell for each layer: give it the class of one, not 'lstm'.",
        "RNN expected noise to be RecurrentNoise(dropout_rate=0.1, rngs=...); got 0.1.",
        "RecurrentNoise needs deterministic to be True or False; got 'no'.",
        "RecurrentNoise expected rngs to be an nnx.Rngs or a stream of one; got 0.",
        "gated expected initial_carry to be a tuple of arrays; got ndarray.",
        *(f"chrono expected max_steps to be a number above 2; got {given}." for given in ("2", "'5'", "None", "inf")),
        "StackedRNN makes a cell for each layer: give it the class of one, not <class 'int'>.",
        "RecurrentNoise needs rates from 0 to below 1; got dropout_rate=None, zoneout_rates=0.0.",
        "(2, 3, 4)",
    ]
    for line, message in zip(done.stdout.splitlines(), messages, strict=True):
        assert line.endswith(message), line


def test_widths_may_be_a_list():
    assert nnx.eval_shape(lambda: GRU(5, [6, 7], rngs=nnx.Rngs(0))).hidden_features == (6, 7)


def test_carries_of_integers_are_refused():
    stack = make("lstm")
    with pytest.raises(ValueError, match=r"initial carry of floats, got \['int32', 'int32'\]"):
        stack(INPUTS, initial_carries=[(np.zeros((4, 4), np.int32),) * 2])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gru", "projected"])
def test_parameters_may_be_below_float32(name):
    """Orthogonal kernels are drawn in float32; the carries between the pieces of `remat` are float32 too."""
    narrow = make(name, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16, remat=4)
    outputs, carries = narrow(INPUTS)
    assert {leaf.dtype for leaf in jax.tree.leaves((outputs, carries, nnx.state(narrow, nnx.Param)))} == {
        jnp.dtype(jnp.bfloat16)
    }
    wide = make(name)
    values = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), nnx.state(narrow, nnx.Param))
    nnx.update(wide, jax.device_put(values))
    np.testing.assert_allclose(np.asarray(outputs, np.float32), wide(INPUTS)[0], atol=0.02)


def test_the_kernel_is_not_quietly_replaced_by_something_else():
    for stack in (
        GRU(5, (4,), reset_after=False, backend="native", rngs=nnx.Rngs(0)),
        LSTM(5, (4,), backend="native", dtype=jnp.float16, rngs=nnx.Rngs(0)),
    ):
        with pytest.raises(ValueError, match=r'backend="native" runs an nnx\.OptimizedLSTMCell, .* in float32'):
            stack(INPUTS)
