"""The trained layers of a Keras model, with the layers that scale features folded into those beside them.

`Rescaling`, `Normalization` and `BatchNormalization` compute gain * x + shift of each feature, and a dense layer before
the recurrent layers x K + b. The layer after them takes x instead, with other weights: computed in float64.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.assembly import Arrays, check
from lstm_mnist_jax.interop.imported import Imported
from lstm_mnist_jax.interop.inputs import are_bytes
from lstm_mnist_jax.interop.keras_config import AFFINE, Architecture, ConfiguredLayer
from lstm_mnist_jax.interop.weights import (
    Dense,
    Kernel,
    Layer,
    Weights,
    float32,
    folded_cell,
    to_params,
    with_recurrent_biases,
)

EPSILON = 1e-7
"""The least standard deviation by which a `Normalization` layer divides."""


class Affine(NamedTuple):
    """gamma * scale * (x - center) + shift of each feature x: each [1], or [features]."""

    scale: np.ndarray
    center: np.ndarray = np.zeros(1)
    gamma: np.ndarray = np.ones(1)
    shift: np.ndarray = np.zeros(1)


class Folding:
    """Takes the layers of a model one by one, from its input to its output."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.dense_layers: list[Dense] = []
        self.names: list[str] = []
        self.notes: list[str] = []
        self.input_note, self.reads_pixels = "", False
        self.gain, self.shift = np.ones(1), np.zeros(1)
        """Of what the next layer takes: [1], or [features]; after dense layers, the gain is a matrix."""
        self.pending: list[str] = []
        """The layers that gain and shift are of."""
        self.is_linear = False
        """Whether no activation has followed the last dense layer."""

    def recurrent(self, name: str, layer: Layer) -> None:
        self.layers.append(Layer(*(self._folded(name, cell) for cell in layer.directions)))
        self._took(name)

    def dense(self, name: str, dense: Dense, activation: str) -> None:
        dense = self._folded(name, dense)
        if not self.layers:
            self.gain, self.shift = (np.asarray(array, np.float64) for array in dense)
            self.pending.append(name)
            return
        self.dense_layers.append(dense)
        self._took(name)
        self.is_linear = activation == "linear"

    def other(self, layer: ConfiguredLayer, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes a layer that is neither recurrent nor dense."""
        if layer.kind == "GlobalMaxPooling1D" and np.any(self.gain < 0):
            raise WeightsError(
                f"The layer {self.pending[-1]} multiplies features by negative numbers before the pooling layer "
                f"{layer.name}; of them the maximum becomes the minimum, which this classifier does not have."
            )
        if layer.kind in ("Activation", "ReLU", "Softmax") and layer.activation != "linear":
            self.is_linear = False
        if layer.kind not in AFFINE:
            return
        affine = _affine(layer, arrays)
        gain = affine.gamma * affine.scale
        shift = affine.shift - affine.center * gain
        if not (self.layers or self.pending):
            self._read_pixels(layer.name, affine)
        if self.is_linear:
            kernel, bias = self.dense_layers[-1]
            gain, shift = (_of_size(array, len(bias), layer.name) for array in (gain, shift))
            with np.errstate(over="ignore", invalid="ignore"):
                self.dense_layers[-1] = Dense(float32(kernel * gain), float32(bias * gain + shift))
            self.notes.append(f"{layer.name} is folded into the weights and biases of {self.names[-1]}")
            return
        size = max(len(shift), self.gain.shape[-1], len(self.shift))
        gain, shift, before = (_of_size(array, size, layer.name) for array in (gain, shift, self.shift))
        own = self.gain if self.gain.shape[-1] == size else _of_size(self.gain, size, layer.name)
        with np.errstate(over="ignore", invalid="ignore"):
            self.gain, self.shift = own * gain, before * gain + shift
        self.pending.append(layer.name)

    def imported(self, architecture: Architecture, found: Arrays) -> Imported:
        """The classifier of all layers. `found`: the arrays of the file, for messages."""
        if self.pending:
            raise WeightsError(
                f"The layer {self.pending[-1]} stands after the output layer, where this classifier has none."
            )
        network = architecture.network
        weights = check(Weights(with_recurrent_biases(self.layers), tuple(self.dense_layers)), self.names, found)
        rows, features = len(weights.dense[0].kernel), weights.layers[-1].out_features
        steps = (architecture.image_rows or rows // features) if network["pooling"] == "all" else 1
        if rows != steps * features:
            raise WeightsError(
                f"The layer {self.names[len(self.layers)]} takes {rows} features, but those before it give "
                f"{steps * features}."
            )
        return Imported(
            replace(weights.config, **network),
            to_params(weights),
            tuple(self.names),
            notes=tuple(self.notes),
            known=frozenset(network),
            time_steps=architecture.image_rows,
            knows_inputs=self.reads_pixels,
            input_note=self.input_note,
        )

    def _took(self, name: str) -> None:
        if self._has_effect():
            self.notes.append(f"{', '.join(self.pending)}, before {name}, is folded into its weights and biases")
        self.gain, self.shift, self.pending = np.ones(1), np.zeros(1), []
        self.names.append(name)

    def _read_pixels(self, name: str, first: Affine) -> None:
        """Decides, by the first layer that scales them, whether the inputs are 0 to 1, or 0 to 255."""
        smallest = np.abs(first.scale).min()
        if (reads_pixels := are_bytes(smallest, np.abs(first.center).max())) is None:
            raise WeightsError(
                f"The layer {name} multiplies the inputs by {smallest:.3g}, so that it is not clear whether these are "
                "0 to 1 or 0 to 255. Save the model's weights alone, with model.save_weights('model.weights.h5'), and "
                "import these with --input-mean, --input-std and --input-scale."
            )
        self.reads_pixels, most = reads_pixels, 255 if reads_pixels else 1
        self.gain = np.full(1, float(most))
        self.input_note = f"the inputs are taken to be 0 to {most}, as {name} scales them by {smallest:.3g}"

    def _has_effect(self) -> bool:
        """Whether the next layer takes something else than what the layer before gives."""
        is_one = self.gain.ndim == 1 and np.allclose(self.gain, 1, rtol=1e-6, atol=0)  # as 255 * (1 / 255)
        return bool(self.pending and (not is_one or self.shift.any()))

    def _folded(self, name: str, layer: Kernel) -> Kernel:
        """A layer that takes x where the given one took gain * x + shift."""
        kernel, bias = layer.kernel, layer.bias
        if kernel.ndim != 2 or bias.shape != kernel.shape[1:]:
            raise WeightsError(
                f"The arrays of the layer {name} do not fit together: {list(kernel.shape)}, {list(bias.shape)}."
            )
        if not self._has_effect():
            return layer
        gain = self.gain if self.gain.shape[-1] == len(kernel) else _of_size(self.gain, len(kernel), name)
        return folded_cell(layer, gain, _of_size(self.shift, len(kernel), name))


def _of_size(array: np.ndarray, size: int, name: str) -> np.ndarray:
    """One number for each of `size` features: one is that of all, and those of a step are those of every step."""
    if array.ndim > 1 or not len(array) or size % len(array):
        raise WeightsError(f"The layer {name} takes {size} features; the numbers to scale them are {[*array.shape]}.")
    return np.tile(array, size // len(array))


def _affine(layer: ConfiguredLayer, arrays: Mapping[str, np.ndarray]) -> Affine:
    """The numbers of a layer of `AFFINE`. `arrays`: those that the file has of it."""
    names = layer.array_names
    parts = dict(arrays) if set(arrays) <= set(names) else dict(zip(names, arrays.values(), strict=False))
    if len(arrays) != len(names) or set(parts) != set(names):
        raise WeightsError(
            f"The {layer.kind} layer {layer.name} has {len(arrays)} arrays, expected {len(names)}: "
            f"{', '.join(names) or 'none'}."
        )

    def number(name: str, usual: float | None = None) -> np.ndarray:
        value = parts[name] if name in parts else layer.config.get(name, usual)
        try:
            array = np.asarray(value, np.float64)
        except (OverflowError, RecursionError, TypeError, ValueError):
            array = np.full(1, np.nan)
        array = array.reshape(1) if array.size == 1 else array
        if array.ndim != 1 or not array.size or not np.isfinite(array).all():
            raise WeightsError(
                f"The {layer.kind} layer {layer.name} has, as its {name}, something else than a finite number, or one "
                "for each feature."
            )
        return array

    if layer.kind == "Rescaling":
        found = Affine(number("scale"), shift=number("offset", 0.0))
    elif layer.kind == "Normalization":
        mean, deviation = number("mean"), np.maximum(np.sqrt(np.maximum(number("variance"), 0)), EPSILON)
        found = Affine(deviation, shift=mean) if layer.config.get("invert") else Affine(1 / deviation, mean)
    else:
        variance = np.maximum(number("moving_variance") + number("epsilon", 1e-3), np.finfo(np.float64).tiny)
        gamma, beta = number("gamma", 1.0), number("beta", 0.0)
        found = Affine(1 / np.sqrt(variance), number("moving_mean"), gamma, beta)
    if len({len(array) for array in found} - {1}) > 1:
        raise WeightsError(f"The arrays of the {layer.kind} layer {layer.name} do not fit together.")
    return found
