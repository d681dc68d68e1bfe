"""Layers with options drawn at random, against a loop in NumPy in float64: outputs, final carries and gradients.

The suite tries some draws. Many more: `python tests/rnn/test_every_option.py 2000`.
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lstm_mnist_jax.rnn import GRU, LSTM, RNN, native

BACKENDS = ["auto", "xla", "flax"] + (["native"] if native.unavailable() is None else [])
PALLAS = ["pallas_interpret_tpu", "pallas_interpret_gpu"]
INTEGERS = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"]
FEATURES, HIDDEN = 3, 4


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def lstm_step(params, carry, x):
    c, h = carry
    i, f, g, o = np.split(x @ params["W"] + h @ params["U"] + params["b"], 4, -1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return c, h @ params["P"] if "P" in params else h


def gru_step(params, carry, x, reset_after=True):
    (h,) = carry
    W, U = params["W"], params["U"]
    projected = np.split(x @ W + params["b"], 3, -1)
    recurrent = np.split(h @ U + params["d"], 3, -1)
    r, z = (sigmoid(projected[n] + recurrent[n]) for n in (0, 1))
    last = r * recurrent[2] if reset_after else (r * h) @ U[:, 2 * HIDDEN :]
    n = np.tanh(projected[2] + last)
    return ((1 - z) * n + z * h,)


def simple_step(params, carry, x):
    return (np.tanh(x @ params["W"] + carry[0] @ params["U"] + params["b"]),)


def run_numpy(step, params, inputs, initial, lengths, resets, reverse):
    """inputs [batch, time, features], initial: parts [batch, width]. The outputs and the final carry."""
    batch, time, _ = inputs.shape
    outputs = np.zeros((batch, time, initial[-1].shape[-1]), inputs.dtype)
    final = [np.array(part) for part in initial]
    for b in range(batch):
        start = tuple(part[b] for part in initial)
        carry, steps = start, range(int(lengths[b]))
        for t in reversed(steps) if reverse else steps:
            begins = t + 1 if reverse else t  # the step at which the piece begins that would go on here
            if begins < lengths[b] and resets[b, begins]:
                carry = start
            carry = step(params, carry, inputs[b, t])
            outputs[b, t] = carry[-1]
        for part, value in zip(final, carry, strict=True):
            part[b] = value
    return outputs, final


def draw(seed, pallas=None):
    """A layer, what it is called with, and the same for NumPy. `pallas` is a backend for an LSTM."""
    rng = np.random.default_rng(seed)
    kinds = ["lstm", "no bias", "projected", "gru", "gru before", "simple"]
    kind = str(rng.choice(kinds if pallas is None else kinds[:2]))
    backend = str(rng.choice(BACKENDS if kind in ("lstm", "no bias", "gru") else ["auto", "xla", "flax"]))
    backend = backend if pallas is None else pallas
    time, batch = int(rng.choice([0, 1, 5, 8])), int(rng.choice([0, 1, 5]))
    reverse, time_major = bool(rng.integers(2)), bool(rng.integers(2))
    slow = backend == "flax" or kind in ("simple", "gru before")
    remat = None if slow else [None, 1, 3][rng.integers(3)]
    if kind == "simple":
        backend = "auto"
    layer_options = {"backend": backend, "remat": remat, "rngs": nnx.Rngs(seed)}
    if kind == "simple":
        cell = nnx.SimpleCell(FEATURES, HIDDEN, rngs=nnx.Rngs(seed))
        layer = RNN(cell, backend=backend)
    elif kind.startswith("gru"):
        layer = GRU(
            FEATURES, HIDDEN, reset_after=kind == "gru", bias_init=jax.nn.initializers.normal(), **layer_options
        )
        cell = layer.layers[0].cell
        if kind == "gru":
            cell.dense_h.bias.set_value(jax.device_put(np.float32(rng.normal(size=3 * HIDDEN))))
    else:
        options = {"lstm": {}, "no bias": {"use_bias": False}, "projected": {"projection_features": 2}}[kind]
        layer = LSTM(FEATURES, HIDDEN, **options, **layer_options)
        cell = layer.layers[0].cell
    rnn = layer if kind == "simple" else layer.layers[0]
    out = 2 if kind == "projected" else HIDDEN
    widths = {"lstm": (HIDDEN, out), "no bias": (HIDDEN, out), "projected": (HIDDEN, out)}.get(kind, (HIDDEN,))
    inputs = rng.normal(size=(batch, time, FEATURES))
    carry = [rng.normal(size=(batch, width)) for width in widths]
    if rng.integers(3) == 0:  # one for all sequences
        carry = [np.broadcast_to(rng.normal(size=width), (batch, width)) for width in widths]
    lengths = rng.integers(0, time + 1, batch) if rng.integers(2) else None
    resets = rng.random((batch, time)) < 0.3 if rng.integers(2) else None
    dtype = str(rng.choice(INTEGERS))
    return rnn, cell, kind, {
        "inputs": inputs, "carry": carry, "lengths": lengths, "resets": resets, "reverse": reverse,
        "time_major": time_major, "dtype": dtype, "as_jax": bool(rng.integers(2)), "jit": bool(rng.integers(2)),
    }, rng  # fmt: skip


def numpy_params(cell, kind):
    def array(linear, name, size):
        found = getattr(linear, name, None)
        return np.zeros(size) if found is None else np.asarray(found[...], np.float64)

    in_, rec = cell.dense_i, cell.dense_h
    params = {"W": array(in_, "kernel", 0), "U": array(rec, "kernel", 0)}
    gates = params["U"].shape[1]
    if kind.startswith("gru"):
        return params | {"b": array(in_, "bias", gates), "d": array(rec, "bias", gates)}
    if kind == "projected":
        params["P"] = np.asarray(cell.dense_p.kernel[...], np.float64)
    return params | {"b": array(in_, "bias", gates) + array(rec, "bias", gates)}


STEPS = {"gru": gru_step, "gru before": partial(gru_step, reset_after=False), "simple": simple_step}


def check(seed, pallas=None):
    rnn, cell, kind, call, rng = draw(seed, pallas)
    inputs, carry, lengths, resets = (call[name] for name in ("inputs", "carry", "lengths", "resets"))
    batch, time, _ = inputs.shape
    weights = rng.normal(size=(batch, time, carry[-1].shape[-1])), [rng.normal(size=part.shape) for part in carry]
    direction = rng.normal(size=inputs.shape), [rng.normal(size=part.shape) for part in carry]
    params = numpy_params(cell, kind)
    turned = {name: rng.normal(size=value.shape) for name, value in params.items()}

    all_lengths = np.full(batch, time) if lengths is None else lengths
    all_resets = np.zeros((batch, time), bool) if resets is None else resets
    run = partial(
        run_numpy, STEPS.get(kind, lstm_step), lengths=all_lengths, resets=all_resets, reverse=call["reverse"]
    )

    def loss_of(outputs, final):
        parts = [w * array for w, array in zip([weights[0], *weights[1]], [outputs, *final], strict=True)]
        return sum(part.sum() for part in parts)

    # The derivative along a direction, exact by a complex step: Im f(x + i e v) / e.
    tiny = 1e-30j
    step = {name: value + tiny * turned[name] for name, value in params.items()}
    moved = [part + tiny * d for part, d in zip(carry, direction[1], strict=True)]
    wanted_slope = np.imag(loss_of(*run(step, inputs + tiny * direction[0], moved))) / 1e-30
    wanted = run(params, inputs, carry)

    graph, state, others = nnx.split(rnn, nnx.Param, ...)
    options = {"return_carry": True, "reverse": call["reverse"], "keep_order": True, "time_major": call["time_major"]}
    layout = (lambda array: jnp.swapaxes(array, 0, 1)) if call["time_major"] else (lambda array: array)
    if lengths is not None:
        lengths = lengths.astype(call["dtype"])
        lengths = jnp.asarray(lengths) if call["as_jax"] else lengths

    def loss(state, inputs, carry, lengths):
        initial = tuple(carry) if len(carry) > 1 else carry[0]
        given = {"seq_lengths": lengths, "resets": None if resets is None else layout(resets)}
        final, outputs = nnx.merge(graph, state, others)(layout(inputs), initial_carry=initial, **given, **options)
        final = jax.tree.leaves(final)
        return jax.jit(loss_of)(layout(outputs), final), (layout(outputs), final)

    as_float32 = jax.device_put(jax.tree.map(np.float32, (inputs, carry)))
    differentiate = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    differentiate = jax.jit(differentiate) if call["jit"] else differentiate
    (_, (outputs, final)), (d_state, d_inputs, d_carry) = differentiate(state, *as_float32, lengths)
    for found, right in zip([outputs, *final], [wanted[0], *wanted[1]], strict=True):
        np.testing.assert_allclose(found, right, rtol=2e-5, atol=2e-5)

    d_params = numpy_params(nnx.merge(graph, d_state, others).cell, kind)
    if kind == "simple" or (kind not in ("gru", "gru before") and "b" in d_params):
        d_params["b"] = d_params["b"] if kind != "no bias" else np.zeros_like(d_params["b"])
    if kind == "no bias":
        turned["b"] = np.zeros_like(turned["b"])
        step = {name: value + tiny * turned[name] for name, value in params.items()}
        wanted_slope = np.imag(loss_of(*run(step, inputs + tiny * direction[0], moved))) / 1e-30
    if kind == "gru before":  # it has no recurrent bias
        step = params | {name: params[name] + tiny * turned[name] for name in ("W", "U", "b")}
        wanted_slope = np.imag(loss_of(*run(step, inputs + tiny * direction[0], moved))) / 1e-30
        d_params["d"] = np.zeros_like(d_params["d"])
    slope = sum((np.asarray(d_params[name], np.float64) * turned[name]).sum() for name in params)
    slope += (np.asarray(d_inputs, np.float64) * direction[0]).sum()
    slope += sum((np.asarray(d, np.float64) * v).sum() for d, v in zip(d_carry, direction[1], strict=True))
    np.testing.assert_allclose(slope, wanted_slope, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 16))])
def test_values_and_gradients_are_those_of_numpy(seed):
    check(seed)


@pytest.mark.parametrize("backend", PALLAS)
@pytest.mark.parametrize("seed", [6, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 5))])
def test_values_and_gradients_of_the_pallas_kernels_are_those_of_numpy(seed, backend):
    check(seed, backend)


if __name__ == "__main__":
    failed = 0
    first, last = (int(word) for word in (["0", *sys.argv[1:]])[-2:])
    for seed in range(first, last):
        try:
            for pallas in (None, *PALLAS):
                check(seed, pallas)
        except Exception as error:
            failed += 1
            _, _, kind, call, _ = draw(seed, pallas)
            print(
                seed, pallas, kind, {k: v for k, v in call.items() if k not in ("inputs", "carry")}, repr(error)[:300]
            )
        if seed % 100 == 99:
            jax.clear_caches()
    print(f"{last - first} draws, {failed} failed")
