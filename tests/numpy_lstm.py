"""The LSTM from its equations, in NumPy, float64, one step and one gate at a time: what the tests compare with."""

import numpy as np


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


ACTIVATIONS = {
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "relu": lambda z: np.maximum(z, 0),
    "linear": lambda z: z,
    "hard_sigmoid_keras2": lambda z: np.clip(0.2 * z + 0.5, 0, 1),
    "hard_sigmoid_keras3": lambda z: np.clip(z + 3, 0, 6) / 6,
}


def lstm(inputs, kernel, recurrent_kernel, bias, c, h, *, reverse=False, activation=np.tanh, gate=sigmoid):
    """inputs [time, batch, features]; columns of the weights in the order i, f, g, o. Returns hs, cs."""
    inputs, kernel, recurrent_kernel, bias, c, h = _float64(inputs, kernel, recurrent_kernel, bias, c, h)
    hidden = len(recurrent_kernel)
    weights = [np.s_[hidden * number : hidden * (number + 1)] for number in range(4)]
    hs, cs = np.zeros((2, len(inputs), *h.shape))
    for t in reversed(range(len(inputs))) if reverse else range(len(inputs)):
        i, f, g, o = (inputs[t] @ kernel[:, w] + h @ recurrent_kernel[:, w] + bias[w] for w in weights)
        cs[t] = c = gate(f) * c + gate(i) * activation(g)
        hs[t] = h = gate(o) * activation(c)
    return hs, cs


def last(hs, cs, c, h, *, reverse=False):
    """The last carry (c, h), which is the first where there are no steps."""
    return (cs[0 if reverse else -1], hs[0 if reverse else -1]) if len(hs) else (c, h)


def gradients(inputs, kernel, recurrent_kernel, bias, c, h, d_hs=0, d_cs=0, d_last=(0, 0), *, reverse=False):
    """How a number changes with the first six arguments, from how it changes with hs, cs and the last (c, h)."""
    if reverse:
        d_hs, d_cs = (d if np.ndim(d) == 0 else d[::-1] for d in (d_hs, d_cs))
        d_inputs, *others = gradients(inputs[::-1], kernel, recurrent_kernel, bias, c, h, d_hs, d_cs, d_last)
        return d_inputs[::-1], *others
    inputs, kernel, recurrent_kernel, bias, c, h = _float64(inputs, kernel, recurrent_kernel, bias, c, h)
    hs, cs = lstm(inputs, kernel, recurrent_kernel, bias, c, h)
    d_hs, d_cs = np.broadcast_to(d_hs, hs.shape), np.broadcast_to(d_cs, cs.shape)
    dc, dh = (d + np.zeros_like(c) for d in d_last)
    d_inputs, d_kernel, d_recurrent_kernel, d_bias = map(np.zeros_like, (inputs, kernel, recurrent_kernel, bias))
    for t in reversed(range(len(inputs))):
        h_before, c_before = (hs[t - 1], cs[t - 1]) if t else (h, c)
        i, f, g, o = np.split(inputs[t] @ kernel + h_before @ recurrent_kernel + bias, 4, axis=-1)
        i, f, g, o, tanh_c = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o), np.tanh(cs[t])
        dh = dh + d_hs[t]
        dc = dc + d_cs[t] + dh * o * (1 - tanh_c**2)
        d_gates = np.concatenate(
            [dc * g * i * (1 - i), dc * c_before * f * (1 - f), dc * i * (1 - g**2), dh * tanh_c * o * (1 - o)], axis=-1
        )
        d_kernel += inputs[t].T @ d_gates
        d_recurrent_kernel += h_before.T @ d_gates
        d_bias += d_gates.sum(axis=0)
        d_inputs[t] = d_gates @ kernel.T
        dc, dh = dc * f, d_gates @ recurrent_kernel.T
    return d_inputs, d_kernel, d_recurrent_kernel, d_bias, dc, dh


def _float64(*arrays):
    return [np.asarray(array, np.float64) for array in arrays]


def classify(params, images, config=None):
    """The logits of the classifier, from its nested dictionary of parameters and uint8 images.

    Of LSTM layers in one direction over rows; without a config, with the last output through one dense layer.
    """
    functions = {}
    if config is not None:
        functions = {"activation": ACTIVATIONS[config.activation], "gate": ACTIVATIONS[config.recurrent_activation]}
    sequence = np.swapaxes(images.astype(np.float64) / 255, 0, 1)
    for layer in params["rnn"]["layers"].values():
        cell = layer["cell"]
        zeros = np.zeros((sequence.shape[1], len(cell["dense_h"]["kernel"])))
        weights = cell["dense_i"]["kernel"], cell["dense_h"]["kernel"], cell["dense_h"]["bias"]
        sequence, _ = lstm(sequence, *weights, zeros, zeros, **functions)
    features = sequence[-1]
    if config is not None and config.pooling == "all":
        features = np.concatenate(list(sequence), axis=-1)
    for layer in params.get("dense_hidden", {}).values():
        features = ACTIVATIONS[config.dense_activation](features @ np.asarray(layer["kernel"]) + layer["bias"])
    return features @ np.asarray(params["dense"]["kernel"]) + np.asarray(params["dense"]["bias"])


def cross_entropy(logits, labels):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return (np.log(np.exp(shifted).sum(axis=-1)) - shifted[np.arange(len(labels)), labels]).mean()
