"""The GRU from its equations, in NumPy, float64, one step at a time: what the tests compare with."""

import numpy as np


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def _gates(x, h, kernel, recurrent_kernel, bias, recurrent_bias):
    """r, z, n, and what r multiplies."""
    projected = np.split(x @ kernel + bias, 3, axis=-1)
    recurrent = np.split(h @ recurrent_kernel + recurrent_bias, 3, axis=-1)
    r, z = sigmoid(projected[0] + recurrent[0]), sigmoid(projected[1] + recurrent[1])
    return r, z, np.tanh(projected[2] + r * recurrent[2]), recurrent[2]


def gru(inputs, *weights, h, resets=None, reverse=False):
    """inputs [time, batch, features]; weights: kernel, recurrent kernel, bias, recurrent bias, columns in the order r,
    z, n. Where `resets` [time, batch], h is the initial one before the step. The h before and after each step.
    """
    (inputs, *weights), h = _float64(inputs, *weights), np.float64(h)
    start = h
    before, hs = np.zeros((2, len(inputs), *h.shape))
    for t in reversed(range(len(inputs))) if reverse else range(len(inputs)):
        before[t] = h = h if resets is None else np.where(resets[t][:, None], start, h)
        _, z, n, _ = _gates(inputs[t], h, *weights)
        hs[t] = h = (1 - z) * n + z * h
    return before, hs


def gradients(inputs, *weights, h, d_hs=0, d_last=0, resets=None, reverse=False):
    """How a number changes with inputs, weights and the initial h, from how it changes with hs and the last h."""
    inputs, *weights = _float64(inputs, *weights)
    before, hs = gru(inputs, *weights, h=h, resets=resets, reverse=reverse)
    d_hs = np.broadcast_to(d_hs, hs.shape)
    dh, d_start = d_last + np.zeros(h.shape), np.zeros(h.shape)
    d_inputs, d_kernel, d_recurrent_kernel, d_bias, d_recurrent_bias = map(np.zeros_like, (inputs, *weights))
    for t in range(len(inputs)) if reverse else reversed(range(len(inputs))):
        r, z, n, last = _gates(inputs[t], before[t], *weights)
        dh = dh + d_hs[t]
        dn = dh * (1 - z) * (1 - n**2)
        dr, dz = dn * last * r * (1 - r), dh * (before[t] - n) * z * (1 - z)
        projected, recurrent = np.concatenate([dr, dz, dn], -1), np.concatenate([dr, dz, dn * r], -1)
        d_kernel += inputs[t].T @ projected
        d_recurrent_kernel += before[t].T @ recurrent
        d_bias += projected.sum(axis=0)
        d_recurrent_bias += recurrent.sum(axis=0)
        d_inputs[t] = projected @ weights[0].T
        dh = dh * z + recurrent @ weights[1].T
        if resets is not None:
            d_start += np.where(resets[t][:, None], dh, 0)
            dh = np.where(resets[t][:, None], 0, dh)
    return d_inputs, d_kernel, d_recurrent_kernel, d_bias, d_recurrent_bias, dh + d_start


def _float64(*arrays):
    return [np.asarray(array, np.float64) for array in arrays]
