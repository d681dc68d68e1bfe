"""The LSTM from its equations, in NumPy, float64, one step and one gate at a time: what the tests compare with."""

import numpy as np


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def lstm(inputs, kernel, recurrent_kernel, bias, c, h):
    """inputs [time, batch, features]; columns of the weights in the order i, f, g, o. Returns hs, cs."""
    inputs, kernel, recurrent_kernel, bias, c, h = (
        np.asarray(array, np.float64) for array in (inputs, kernel, recurrent_kernel, bias, c, h)
    )
    hidden = len(recurrent_kernel)
    weights = [np.s_[hidden * gate : hidden * (gate + 1)] for gate in range(4)]
    hs, cs = [], []
    for x in inputs:
        i, f, g, o = (x @ kernel[:, w] + h @ recurrent_kernel[:, w] + bias[w] for w in weights)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        hs.append(h)
        cs.append(c)
    return np.array(hs), np.array(cs)


def classify(params, images):
    """The logits of the classifier, from its nested dictionary of parameters and uint8 images."""
    sequence = np.swapaxes(images.astype(np.float64) / 255, 0, 1)
    for layer in params["rnn"]["layers"].values():
        cell = layer["cell"]
        zeros = np.zeros((sequence.shape[1], len(cell["dense_h"]["kernel"])))
        weights = cell["dense_i"]["kernel"], cell["dense_h"]["kernel"], cell["dense_h"]["bias"]
        sequence, _ = lstm(sequence, *weights, zeros, zeros)
    return sequence[-1] @ np.asarray(params["dense"]["kernel"]) + np.asarray(params["dense"]["bias"])


def cross_entropy(logits, labels):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return (np.log(np.exp(shifted).sum(axis=-1)) - shifted[np.arange(len(labels)), labels]).mean()
