"""The cells: one step against their papers' equations in NumPy, and the quick recurrence against Flax's scan of it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy_lstm import sigmoid
from own_cell import RotatedCell
from parameters import drawn_module

from lstm_mnist_jax.rnn import (
    RNN,
    CoupledLSTMCell,
    GatedCell,
    LayerNormLSTMCell,
    PeepholeLSTMCell,
    ProjectedLSTMCell,
    URLSTMCell,
    chrono,
    uniform_gates,
)

INPUTS = np.random.default_rng(0).normal(size=(3, 7, 5)).astype(np.float32)
LENGTHS = np.array([7, 3, 1])


CELLS = {
    "projected": lambda **options: ProjectedLSTMCell(5, 4, projection_features=3, **options),
    "projected to its own width": lambda **options: ProjectedLSTMCell(5, 4, projection_features=4, **options),
    "not projected": lambda **options: ProjectedLSTMCell(5, 4, **options),
    "coupled": lambda **options: CoupledLSTMCell(5, 4, **options),
    "peephole": lambda **options: PeepholeLSTMCell(5, 4, **options),
    "refined": lambda **options: URLSTMCell(5, 4, **options),
    "layer norm": lambda **options: LayerNormLSTMCell(5, 4, **options),
    "layer norm, projected": lambda **options: LayerNormLSTMCell(5, 4, projection_features=3, **options),
    "gru": lambda **options: nnx.GRUCell(5, 4, **options),
    "one's own": lambda **options: RotatedCell(5, 4, **options),
}


def make(name, **options):
    return drawn_module(lambda: CELLS[name](rngs=nnx.Rngs(0), **options))


def assert_close(ours, theirs, atol=2e-5, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=rtol), ours, theirs)


@partial(jax.jit, static_argnames=("rnn_type", "graph", "options"))
def values_and_gradients(rnn_type, graph, options, cell, inputs, carry, lengths, counts):
    """The last carry, the outputs, a loss of both, and its gradient by the cell, the inputs and the first carry."""

    def loss(cell, inputs, carry):
        rnn = rnn_type(nnx.merge(graph, cell), return_carry=True, **dict(options))
        last, outputs = rnn(inputs, initial_carry=carry, seq_lengths=lengths)
        outputs = outputs * counts
        return sum(jnp.sin(part).sum() for part in jax.tree.leaves(last)) + jnp.cos(3 * outputs).sum(), (last, outputs)

    values, (d_cell, *others) = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(cell, inputs, carry)
    return values, nnx.to_pure_dict(d_cell), others


@partial(jax.jit, static_argnums=0)
def values(graph, cell, inputs, carry):
    return RNN(nnx.merge(graph, cell), return_carry=True)(inputs, initial_carry=carry)


BACKWARDS = {"reverse": True, "keep_order": True}
# How sequences are read is the same code for all cells: one of them, with all that a cell can have, takes every option.
CASES = [
    ("layer norm, projected", options, padded)
    for options, padded in [({}, False), ({}, True), (BACKWARDS, False), (BACKWARDS, True), ({"unroll": 2}, True)]
]
CASES += [(name, BACKWARDS, True) for name in CELLS if name != "layer norm, projected"]


@pytest.mark.parametrize(("name", "options", "padded"), CASES)
def test_every_cell_gives_the_numbers_and_gradients_of_flaxs_scan(name, options, padded):
    cell = make(name)
    assert RNN(cell)._spec(INPUTS) is not None
    graph, state = nnx.split(cell)
    carry = jax.tree.map(
        lambda part: np.random.default_rng(part.size).normal(size=part.shape).astype(np.float32),
        jax.eval_shape(lambda: cell.initialize_carry((3, 5), nnx.Rngs(0))),
    )

    def by_flax(inputs, lengths):
        counts = (np.arange(7) < lengths[:, None])[..., None]
        return counts, values_and_gradients(nnx.RNN, graph, (), state, inputs, carry, lengths, counts)

    lengths = LENGTHS if padded else np.full(3, 7)
    # Flax's scan reads the flipped sequences: one program for all options.
    flip = partial(flipped, lengths=lengths) if "reverse" in options else lambda array: array
    counts, ((loss, (last, outputs)), d_cell, (d_inputs, d_carry)) = by_flax(flip(INPUTS), lengths)
    ours_lengths = lengths if padded else None
    ours = values_and_gradients(RNN, graph, (*options.items(),), state, INPUTS, carry, ours_lengths, counts)
    assert_close(ours[0], (loss, (last, flip(outputs))))
    rtol = 1e-4 if "layer norm" in name else 1e-5  # a norm of four numbers magnifies their rounding
    assert_close(ours[1], d_cell, atol=5 * rtol, rtol=rtol)
    assert_close(ours[2], [flip(d_inputs), d_carry], atol=5 * rtol, rtol=rtol)
    # Of what no gradient is wanted runs another loop.
    _, ((_, expected), _, _) = by_flax(INPUTS, np.full(3, 7))
    assert_close(values(graph, state, INPUTS, carry), expected)


def flipped(sequences, lengths):
    """The steps that count in the opposite order."""
    sequences = np.array(sequences)
    for sequence, length in zip(sequences, lengths, strict=True):
        sequence[:length] = sequence[:length][::-1].copy()
    return sequences


def weights(cell):
    values = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), nnx.to_pure_dict(nnx.state(cell, nnx.Param)))
    return values, values["dense_i"]["kernel"], values["dense_h"]["kernel"]


def one_step(cell, inputs):
    rng = np.random.default_rng(3)
    carry = jax.eval_shape(lambda: cell.initialize_carry(inputs.shape))
    carry = tuple(rng.normal(size=part.shape).astype(np.float32) for part in carry)
    after, output = jax.jit(lambda carry: cell(carry, jnp.asarray(inputs)))(carry)
    np.testing.assert_array_equal(after[-1], output)
    return [np.float64(part) for part in carry], after


X = np.random.default_rng(2).normal(size=(3, 5)).astype(np.float32)


def test_projected_is_its_papers_equations():
    cell = make("projected")
    values, kernel, recurrent = weights(cell)
    (c, h), after = one_step(cell, X)
    i, f, g, o = np.split(X @ kernel + values["dense_i"]["bias"] + h @ recurrent, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    assert_close(after, (c, (sigmoid(o) * np.tanh(c)) @ values["dense_p"]["kernel"]), atol=1e-6)
    assert after[1].shape == (3, 3)


def test_coupled_is_its_papers_equations():
    cell = make("coupled")
    values, kernel, recurrent = weights(cell)
    (c, h), after = one_step(cell, X)
    f, g, o = np.split(X @ kernel + values["dense_i"]["bias"] + h @ recurrent, 3, axis=-1)
    c = sigmoid(f) * c + (1 - sigmoid(f)) * np.tanh(g)
    assert_close(after, (c, sigmoid(o) * np.tanh(c)), atol=1e-6)


def test_peephole_is_its_papers_equations():
    cell = make("peephole")
    values, kernel, recurrent = weights(cell)
    (c, h), after = one_step(cell, X)
    i, f, g, o = np.split(X @ kernel + values["dense_i"]["bias"] + h @ recurrent, 4, axis=-1)
    peep_i, peep_f, peep_o = values["peepholes"]
    c = sigmoid(f + peep_f * c) * c + sigmoid(i + peep_i * c) * np.tanh(g)
    assert_close(after, (c, sigmoid(o + peep_o * c) * np.tanh(c)), atol=1e-6)


def test_refined_is_its_papers_equations():
    cell = make("refined")
    values, kernel, recurrent = weights(cell)
    (c, h), after = one_step(cell, X)
    f, r, u, o = np.split(X @ kernel + values["dense_i"]["bias"] + h @ recurrent, 4, axis=-1)
    f, r = sigmoid(f), sigmoid(r)
    g = r * (1 - (1 - f) ** 2) + (1 - r) * f**2
    c = g * c + (1 - g) * np.tanh(u)
    assert_close(after, (c, sigmoid(o) * np.tanh(c)), atol=1e-6)


def test_uniform_gates_spread_the_forget_gates_over_the_unit_interval():
    # Alone: to draw the orthogonal kernel takes seconds.
    bias = jax.jit(lambda: URLSTMCell(3, 400, rngs=nnx.Rngs(0)).dense_i.bias[...])()
    f, r, u, o = np.split(np.asarray(bias), 4)
    np.testing.assert_array_equal(r, -f)
    assert not np.any([u, o])
    gates = np.sort(sigmoid(f))
    np.testing.assert_allclose(gates, np.linspace(0, 1, 400), atol=0.08)
    assert gates[0] >= 1 / 400 - 1e-6
    assert gates[-1] <= 1 - 1 / 400 + 1e-6
    alone = jax.jit(lambda: uniform_gates("fruo")(jax.random.key(0), (4,)))()  # one unit, which is half open at most
    np.testing.assert_allclose(alone, 0, atol=1e-4)


def test_chrono_gives_each_gate_its_bias_by_name():
    o, i, f = np.split(np.asarray(chrono(100, "oif")(jax.random.key(0), (30,))), 3)
    assert not o.any()
    np.testing.assert_array_equal(i, -f)
    assert 0 <= f.min() < f.max() <= np.log(99)


def test_layer_norm_is_its_papers_equations():
    cell = make("layer norm")
    values, kernel, recurrent = weights(cell)
    (c, h), after = one_step(cell, X)

    def norm(rows, name):
        normal = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 1e-6)
        return normal * values[name]["scale"] + values[name].get("bias", 0)

    z = norm(X @ kernel, "norm_i") + norm(h @ recurrent, "norm_h") + values["bias"]
    i, f, g, o = np.split(z, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    assert_close(after, (c, sigmoid(o) * np.tanh(norm(c, "norm_c"))), atol=2e-6)


@pytest.mark.parametrize("name", ["not projected", "coupled", "peephole", "layer norm"])
def test_the_forget_bias_goes_to_the_forget_gate(name):
    plain, biased = (CELLS[name](rngs=nnx.Rngs(0), forget_bias=bias) for bias in (0.0, 50.0))
    carry = (np.full((3, 4), 0.7, np.float32), np.zeros((3, 4), np.float32))
    ((c, _), _), projected = jax.jit(lambda: (biased(carry, X), plain.project(X)))()
    added = 0.0
    if name != "coupled":
        i, _, g, _ = np.split(np.asarray(projected), 4, axis=-1)
        added = sigmoid(i) * np.tanh(g)
    np.testing.assert_allclose(c, 0.7 + added, atol=1e-6)  # all is kept, and the other gates are as they were


def test_a_cell_with_a_state_of_its_own_runs_through_flax():
    class Counting(RotatedCell):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.calls = nnx.BatchStat(jnp.zeros(()))

        def update(self, carry, projected, recurrent):
            self.calls[...] += 1
            return super().update(carry, projected, recurrent)

    rnn = RNN(Counting(5, 4, rngs=nnx.Rngs(0)))
    assert rnn._spec(INPUTS) is None
    rnn(INPUTS)
    assert rnn.cell.calls[...] == 7


class ReadsItsBias(RotatedCell):
    """`RNN` adds the bias of `dense_i` before the loop; its gradient there is not all of it."""

    def update(self, carry, projected, recurrent):
        *cell_states, h = super().update(carry, projected, recurrent)
        return *cell_states, h * (1 + self.dense_i.bias[: self.hidden_features])


class CountsInIntegers(RotatedCell):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.scale = nnx.Param(jnp.full(self.hidden_features, 2))

    def update(self, carry, projected, recurrent):
        *cell_states, h = super().update(carry, projected, recurrent)
        return *cell_states, h * self.scale[...]


@pytest.mark.parametrize("cell_type", [ReadsItsBias, CountsInIntegers])
def test_an_update_that_reads_what_the_quick_path_does_not_hand_over_runs_through_flax(cell_type):
    cell = cell_type(5, 4, bias_init=nnx.initializers.normal(), rngs=nnx.Rngs(0))
    assert RNN(cell)._spec(INPUTS) is None
    np.testing.assert_array_equal(RNN(cell)(INPUTS), nnx.RNN(cell)(INPUTS))


@pytest.mark.parametrize("cell_type", [ProjectedLSTMCell, CoupledLSTMCell, PeepholeLSTMCell])
def test_a_cell_can_go_without_a_bias(cell_type):
    with_zeros, without = (cell_type(5, 4, use_bias=use, rngs=nnx.Rngs(0)) for use in (True, False))
    for layer in ("dense_i", "dense_h"):
        getattr(without, layer).kernel[...] = getattr(with_zeros, layer).kernel[...]
    np.testing.assert_array_equal(RNN(without)(INPUTS), RNN(with_zeros)(INPUTS))
    with pytest.raises(ValueError, match=r"forget_bias=1.0 to a bias, but use_bias is False"):
        cell_type(5, 4, use_bias=False, forget_bias=1.0, rngs=nnx.Rngs(0))


def test_a_cell_without_a_forget_gate_refuses_a_forget_bias():
    with pytest.raises(TypeError, match="URLSTMCell has no forget_gate to whose bias forget_bias could be added"):
        URLSTMCell(5, 4, forget_bias=1.0, rngs=nnx.Rngs(0))


def test_layer_normalization_always_has_a_bias():
    with pytest.raises(TypeError, match="unexpected keyword argument 'use_bias'"):
        LayerNormLSTMCell(5, 4, use_bias=False, rngs=nnx.Rngs(0))


def test_a_cell_without_an_update_says_so():
    with pytest.raises(NotImplementedError, match=r"GatedCell has to define update\(carry, projected, recurrent\)"):
        RNN(GatedCell(5, 4, rngs=nnx.Rngs(0)))(INPUTS)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"num_gates": 2, "num_cell_states": 0}, "out of range. With num_gates = 2, projected and recurrent have 2"),
        ({"num_gates": 3}, "too many values .* num_cell_states = 1, the carry has 2"),
    ],
)
def test_wrong_numbers_of_gates_and_states_are_named(numbers, message):
    def update(self, carry, projected, recurrent):
        (h,) = carry
        return (h + projected[2] + recurrent[0],)

    def run():
        RNN(type("Own", (GatedCell,), {**numbers, "update": update})(5, 4, rngs=nnx.Rngs(0)))(INPUTS)

    with pytest.raises((TypeError, ValueError), match=message):
        run()


@pytest.mark.parametrize(
    ("returned", "shapes"), [(lambda n: n, r"\(1, 4\)"), (lambda n: (n, n), r"\(\(1, 4\), \(1, 4\)\)")]
)
def test_an_update_that_returns_another_carry_is_refused(returned, shapes):
    class Wrong(GatedCell):
        num_gates, num_cell_states = 1, 0

        def update(self, carry, projected, recurrent):
            return returned(jnp.tanh(projected[0] + recurrent[0]))

    with pytest.raises(ValueError, match=rf"Wrong.update has to return a tuple .* \(\(1, 4\),\); it returned {shapes}"):
        RNN(Wrong(5, 4, rngs=nnx.Rngs(0)))(INPUTS)


@pytest.mark.parametrize("sizes", [(0, 4, None), (5, 0, None), (5, 4, 0)])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="ProjectedLSTMCell needs sizes of 1 or more"):
        ProjectedLSTMCell(*sizes[:2], projection_features=sizes[2], rngs=nnx.Rngs(0))


def test_the_initial_carry_can_be_drawn():
    cell = make("projected")
    c, h = jax.jit(lambda: cell.initialize_carry((2, 3, 5), nnx.Rngs(0), nnx.initializers.normal()))()
    assert (c.shape, h.shape) == ((2, 3, 4), (2, 3, 3))
    assert np.std(c) > 0
