"""`RNN` against `flax.nnx.RNN`: same parameters, same arguments, same numbers and gradients."""

import copy
import gc
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P
from parameters import drawn_module

from lstm_mnist_jax.rnn import GRU, LSTM, RNN, CoupledLSTMCell, GRUCell, LayerNormLSTMCell, LSTMCarry

INPUTS = np.random.default_rng(0).normal(size=(3, 7, 5)).astype(np.float32)
LENGTHS = np.array([7, 3, 1])


def assert_close(ours, theirs, atol=2e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), ours, theirs)


@partial(jax.jit, static_argnames=("rnn_type", "graph", "options"))
def values_and_gradients(rnn_type, graph, options, cell, inputs, lengths, counts):
    """What a layer gives, a loss of it, and its gradient; outputs count where `counts` is 1."""

    def loss(cell, inputs):
        rnn = rnn_type(nnx.merge(graph, cell), return_carry=True, **dict(options))
        (c, h), outputs = rnn(inputs, seq_lengths=lengths)
        if rnn_type is nnx.RNN:
            outputs = outputs * counts  # Flax leaves there what the cell makes of the padding
        return jnp.sin(c).sum() + (h**2).sum() + jnp.cos(3 * outputs).sum(), (c, h, outputs)

    values, (d_cell, d_inputs) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(cell, inputs)
    return values, nnx.to_pure_dict(d_cell), d_inputs


@pytest.mark.parametrize(
    ("time_major", "reverse", "keep_order"), list(itertools.product([False, True], [False, True], [False, True]))
)
def test_every_option_agrees_with_flax(time_major, reverse, keep_order):
    """With lengths and without, of one step an iteration of the loop and of three."""
    cell = drawn_module(lambda: nnx.OptimizedLSTMCell(5, 4, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(cell)
    order = {"reverse": reverse, "keep_order": keep_order}

    def transposed(array):
        return np.swapaxes(np.asarray(array), 0, 1) if time_major else np.asarray(array)

    assert RNN(cell, time_major=time_major, **order)._spec(transposed(INPUTS)) is not None
    for lengths in (LENGTHS, np.full(3, 7)):
        counts = (np.arange(7) < lengths[:, None])[..., None]
        # Flax's layer reads the batch as it is: one program for both layouts.
        theirs = values_and_gradients(nnx.RNN, graph, (*order.items(),), state, INPUTS, lengths, counts)
        (loss, (c, h, outputs)), d_cell, d_inputs = theirs
        padded = lengths is LENGTHS
        # Without lengths or with, as the order is kept or not: every pair of options is met with.
        ours_options = (*order.items(), ("time_major", time_major), ("unroll", 3 if padded == keep_order else 1))
        ours_lengths = lengths if padded else None
        ours = values_and_gradients(RNN, graph, ours_options, state, transposed(INPUTS), ours_lengths, None)
        assert_close(ours, ((loss, (c, h, transposed(outputs))), d_cell, transposed(d_inputs)))


@pytest.mark.parametrize(
    "make_cell",
    [
        lambda: nnx.LSTMCell(5, 4, rngs=nnx.Rngs(0)),
        lambda: nnx.SimpleCell(5, 4, rngs=nnx.Rngs(0)),
        lambda: nnx.OptimizedLSTMCell(5, 4, activation_fn=nnx.relu, rngs=nnx.Rngs(0)),
        lambda: nnx.OptimizedLSTMCell(5, 4, dtype=jnp.float16, rngs=nnx.Rngs(0)),
        lambda: nnx.GRUCell(5, 4, gate_fn=nnx.relu, rngs=nnx.Rngs(0)),
    ],
)
def test_other_cells_run_through_flax(make_cell):
    cell = drawn_module(make_cell)
    ours, theirs = RNN(cell), nnx.RNN(cell)
    assert ours._spec(INPUTS) is None
    np.testing.assert_array_equal(ours(INPUTS), theirs(INPUTS))


@pytest.mark.parametrize("known", [nnx.OptimizedLSTMCell, nnx.GRUCell, CoupledLSTMCell])
def test_a_subclass_with_a_step_of_its_own_is_not_bypassed(known):
    class Doubled(known):
        def __call__(self, carry, inputs):
            carry, output = super().__call__(carry, inputs)
            return carry, 2 * output

    cell = Doubled(5, 4, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(RNN(cell)(INPUTS), nnx.RNN(cell)(INPUTS))


def test_a_replaced_projection_is_not_bypassed():
    cell = nnx.OptimizedLSTMCell(5, 4, rngs=nnx.Rngs(0))
    cell.dense_i = nnx.LoRALinear(
        5, 16, lora_rank=2, use_bias=False, b_initializer=nnx.initializers.ones, rngs=nnx.Rngs(1)
    )
    assert_close(RNN(cell)(INPUTS), nnx.RNN(cell)(INPUTS), atol=0)


def test_initial_carry_and_its_gradient():
    cell = nnx.OptimizedLSTMCell(5, 4, rngs=nnx.Rngs(0))
    carry = tuple(np.random.default_rng(n).normal(size=(3, 4)).astype(np.float32) for n in (1, 2))

    @nnx.jit
    def gradients(cell, carry):
        gradient = nnx.grad(lambda rnn, carry: rnn(INPUTS, initial_carry=carry).sum(), argnums=1)
        return gradient(RNN(cell), carry), gradient(nnx.RNN(cell), carry)

    assert_close(*gradients(cell, carry))


def test_a_parameter_may_hold_a_whole_carry():
    start = jax.device_put((np.full(4, 0.5, np.float32), np.full(4, -0.25, np.float32)))
    repeated = tuple(np.broadcast_to(part, (3, 4)) for part in start)
    cell = nnx.OptimizedLSTMCell(5, 4, rngs=nnx.Rngs(0))
    rnn, stack = RNN(cell, return_carry=True), LSTM(5, (4,), rngs=nnx.Rngs(0))
    expected, stack_expected = rnn(INPUTS, initial_carry=repeated), stack(INPUTS, initial_carries=[repeated])
    assert_close(rnn(INPUTS, initial_carry=nnx.Param(start)), expected, atol=0)
    for carries in ([nnx.Param(start)], nnx.Param([start])):
        assert_close(stack(INPUTS, initial_carries=carries), stack_expected, atol=0)
    gradient = nnx.grad(lambda carry: rnn(INPUTS, initial_carry=carry)[1].sum())(nnx.Param(start))
    assert jax.tree.map(jnp.shape, jax.tree.leaves(gradient)) == [(4,), (4,)]


@pytest.mark.parametrize("start", [list, LSTMCarry._make])
def test_carries_of_cells_that_flax_runs(start):
    """A part [hidden] is for every sequence, and the pytree is that of the cell."""
    rnn = RNN(nnx.LSTMCell(5, 4, rngs=nnx.Rngs(0)), return_carry=True)
    parts = np.full(4, 0.5, np.float32), np.full(4, -0.25, np.float32)
    found = rnn(INPUTS, initial_carry=start(parts))
    assert type(found[0]) is tuple
    expected = rnn(INPUTS, initial_carry=tuple(np.broadcast_to(part, (3, 4)) for part in parts))
    assert_close(found, expected, atol=0)
    with pytest.raises(ValueError, match=r"initial carry \(c, h\), each of shape \(3, 4\), got \[\(3, 6\), \(3, 6\)\]"):
        rnn(INPUTS, initial_carry=(np.zeros((3, 6), np.float32),) * 2)
    with pytest.raises(ValueError, match="initial carry of floats"):
        rnn(INPUTS, initial_carry=(np.zeros((3, 4), np.int32),) * 2)


@pytest.mark.parametrize("cell_type", [nnx.OptimizedLSTMCell, nnx.GRUCell, GRUCell, LayerNormLSTMCell])
@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, nnx.clone])
def test_a_copy_takes_the_fast_path(cell_type, copied):
    rnn = RNN(drawn_module(lambda: cell_type(5, 4, rngs=nnx.Rngs(0))))
    spec = rnn._spec(INPUTS)
    assert spec is not None
    assert copied(rnn)._spec(INPUTS) == spec


@pytest.mark.parametrize("batch_shape", [(), (2, 3)])
def test_any_number_of_batch_axes(batch_shape):
    cell = nnx.OptimizedLSTMCell(5, 4, rngs=nnx.Rngs(0))
    inputs = np.random.default_rng(0).normal(size=(*batch_shape, 7, 5)).astype(np.float32)
    ours, theirs = (rnn(cell, return_carry=True)(inputs) for rnn in (RNN, nnx.RNN))
    assert_close(ours, theirs)


@pytest.mark.parametrize("cell_type", [nnx.OptimizedLSTMCell, nnx.GRUCell, CoupledLSTMCell])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", [(0, 7, 5), (3, 0, 5)])
def test_empty_batches_and_sequences(shape, padded, cell_type):
    inputs = np.zeros(shape, np.float32)
    cell = cell_type(5, 4, rngs=nnx.Rngs(0))
    lengths = np.zeros(shape[0], np.int32) if padded else None
    ours = RNN(cell, return_carry=True)(inputs, seq_lengths=lengths)
    theirs = nnx.RNN(cell, return_carry=True)(inputs)
    assert jax.tree.map(np.shape, ours) == jax.tree.map(np.shape, theirs)


def test_lengths_may_be_one_for_all():
    rnn = RNN(nnx.OptimizedLSTMCell(5, 4, rngs=nnx.Rngs(0)), return_carry=True)
    each = rnn(INPUTS, seq_lengths=np.array([3, 3, 3]))
    for lengths in (3, np.array([3])):
        assert_close(rnn(INPUTS, seq_lengths=lengths), each, atol=0)


@pytest.mark.parametrize("shape", [(4, 3), (1, 3, 4), (12,), (1, 4)])
def test_carries_of_other_shapes_are_refused(shape):
    rnn = RNN(nnx.OptimizedLSTMCell(5, 4, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"expected an initial carry \(c, h\), each of shape \(3, 4\)"):
        rnn(INPUTS, initial_carry=(np.zeros(shape, np.float32),) * 2)


def test_sequences_of_no_steps_keep_the_initial_carry():
    cell = nnx.OptimizedLSTMCell(5, 4, rngs=nnx.Rngs(0))
    carry = tuple(np.full((3, 4), value, np.float32) for value in (0.25, 0.5))
    last, _ = RNN(cell)(INPUTS, initial_carry=carry, seq_lengths=np.array([0, 7, 0]), return_carry=True)
    for ours, start in zip(last, carry, strict=True):
        kept = np.asarray(ours) == start
        assert kept[[0, 2]].all()
        assert not kept[1].any()


def test_parameters_survive_split_and_merge():
    rnn = RNN(nnx.OptimizedLSTMCell(5, 4, rngs=nnx.Rngs(0)), rngs=False)
    graph, params = nnx.split(rnn, nnx.Param)
    outputs = jax.jit(
        lambda params: nnx.merge(graph, params)(INPUTS, initial_carry=(np.zeros((3, 4), np.float32),) * 2)
    )
    assert_close(outputs(params), nnx.RNN(rnn.cell)(INPUTS))


@pytest.mark.skipif(len(jax.devices()) < 2, reason="needs two devices")
def test_gradients_inside_shard_map_sum_over_devices():
    """With JAX tracking what varies over devices, as users of shard_map have it by default."""
    cell = nnx.OptimizedLSTMCell(5, 4, rngs=nnx.Rngs(0))
    graph, params = nnx.split(cell, nnx.Param)
    inputs = np.random.default_rng(0).normal(size=(4, 7, 5)).astype(np.float32)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))

    def loss(params, inputs):
        return RNN(nnx.merge(graph, params))(inputs)[:, -1].sum()

    gradient = jax.shard_map(jax.grad(loss), mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    ours, expected = jax.jit(gradient)(params, inputs), jax.jit(jax.grad(loss))(params, inputs)
    assert_close(nnx.to_pure_dict(ours), nnx.to_pure_dict(expected))


def test_inputs_that_do_not_fit_the_cell_are_refused():
    for cell_type in (nnx.OptimizedLSTMCell, nnx.SimpleCell, partial(GRUCell, reset_after=False)):
        with pytest.raises(ValueError, match="expected inputs of 5 features, got 4"):
            RNN(cell_type(5, 4, rngs=nnx.Rngs(0)))(INPUTS[..., :4])


class Counter(nnx.GRUCell):
    """Counts its steps in a parameter."""

    def __init__(self):
        super().__init__(5, 4, rngs=nnx.Rngs(0))
        self.steps = nnx.Param(jnp.zeros(()))

    def __call__(self, carry, inputs):
        self.steps[...] += 1
        return super().__call__(carry, inputs)


class RandomCarry(nnx.GRUCell):
    """Draws its initial carry from the stream that it is given, as Flax gives it."""

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jax.random.normal(rngs(), (*input_shape[:-1], self.hidden_features))


class OwnCarry(nnx.GRUCell):
    """Draws its initial carry from a stream of its own."""

    def __init__(self):
        super().__init__(5, 4, rngs=nnx.Rngs(0))
        self.own = nnx.Rngs(carry=1)

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jax.random.normal(self.own.carry(), (*input_shape[:-1], self.hidden_features))


def test_parameters_that_a_cell_writes_are_kept():
    cell = Counter()
    RNN(cell)(INPUTS)
    assert np.asarray(cell.steps[...]) == 7


@pytest.mark.parametrize("make", [lambda: RandomCarry(5, 4, rngs=nnx.Rngs(0)), OwnCarry])
def test_random_initial_carries_are_those_of_flax(make):
    ours, theirs = RNN(make()), nnx.RNN(make())
    for _ in range(2):
        np.testing.assert_allclose(ours(INPUTS), theirs(INPUTS), atol=1e-6)
    with_stream = RNN(make(), rngs=nnx.Rngs(carry=1).carry)
    np.testing.assert_allclose(with_stream(INPUTS), nnx.RNN(make())(INPUTS, rngs=nnx.Rngs(carry=1).carry), atol=1e-6)


@pytest.mark.parametrize("shape", [(3,), (3, 4)])
def test_a_cell_without_the_base_class_runs(shape):
    """With one axis of features, or several, as images have."""

    class Cell(nnx.Module):
        num_feature_axes = len(shape)

        def initialize_carry(self, input_shape, rngs=None):
            return jnp.zeros(input_shape)

        def __call__(self, carry, inputs):
            return carry + inputs, carry

    inputs = np.random.default_rng(0).normal(size=(2, 5, *shape)).astype(np.float32)
    np.testing.assert_array_equal(RNN(Cell())(inputs), nnx.RNN(Cell())(inputs))


@pytest.mark.parametrize("cell", [nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell])
def test_zeros_take_no_random_numbers_in_a_closure_under_jit(cell):
    rnn = RNN(cell(5, 4, rngs=nnx.Rngs(0)))
    assert jax.jit(lambda inputs: rnn(inputs))(INPUTS).shape == (3, 7, 4)


@pytest.mark.parametrize("backend", ["auto", "xla"])
def test_without_jit_the_numbers_are_the_same(backend):
    rnn, inputs = RNN(nnx.OptimizedLSTMCell(5, 4, rngs=nnx.Rngs(0)), backend=backend), INPUTS[:, :3]
    with jax.disable_jit():
        found = rnn(inputs)
    np.testing.assert_allclose(found, rnn(inputs), atol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"dtype": jnp.bfloat16}, {"recurrent_dropout_rate": 0.1, "zoneout_rates": 0.1}]
)
def test_strict_dtype_promotion(options):
    stack = GRU(5, 4, **options, rngs=nnx.Rngs(0))
    with jax.numpy_dtype_promotion("strict"):
        gradient = nnx.grad(lambda stack: stack(INPUTS)[0].astype(jnp.float32).sum())(stack)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_nothing_traced_is_kept():
    kept = []
    rnn = RNN(drawn_module(lambda: LayerNormLSTMCell(3, 4, rngs=nnx.Rngs(0))))
    gc.freeze()  # JAX looks through all objects again and again, of which those of other tests are the most
    try:
        with jax.checking_leaks():
            jax.jit(lambda inputs: rnn(inputs))(np.ones((2, 5, 3), np.float32))
            with pytest.raises(Exception, match="Leaked trace"):
                jax.jit(lambda inputs: kept.append(inputs) or rnn(inputs))(np.ones((2, 4, 3), np.float32))
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("layer", [LSTM, GRU])
def test_export_with_symbolic_batch_and_time(layer):
    batch, time = jax.export.symbolic_shape("batch, time")
    stack = layer(5, 4, backend="xla", rngs=nnx.Rngs(0))
    shapes = jax.ShapeDtypeStruct((batch, time, 5), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.int32)
    exported = jax.export.export(jax.jit(lambda inputs, lengths: stack(inputs, seq_lengths=lengths)[0]))(*shapes)
    lengths = np.int32(LENGTHS)
    np.testing.assert_allclose(exported.call(INPUTS, lengths), stack(INPUTS, seq_lengths=lengths)[0], atol=1e-6)


def test_nan_in_the_padding_passes_debug_nans():
    inputs = np.where(np.arange(7)[:, None] < LENGTHS[:, None, None], INPUTS, np.nan)
    with jax.debug_nans(True):
        outputs, _ = LSTM(5, 4, rngs=nnx.Rngs(0))(inputs, seq_lengths=LENGTHS)
    assert np.isfinite(outputs).all()
