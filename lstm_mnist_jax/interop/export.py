"""The classifier as one file that runs without this package: an ONNX graph, or StableHLO of `jax.export`.

Both take uint8 images (0 to 255), [batch, height, width] or [batch, height, width, channels], of any batch size, and
return `probabilities` and `logits`, float32 [batch, classes].
"""

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from lstm_mnist_jax import __version__, model
from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.data.tasks import Task
from lstm_mnist_jax.interop.files import require
from lstm_mnist_jax.interop.imported import refuse_unusual
from lstm_mnist_jax.interop.weights import GATES, Layer, Weights, from_params, pooling_of
from lstm_mnist_jax.rnn.weights import reorder_gates

ONNX_GATES = {"LSTM": "iofg", "GRU": "zrn"}
"""ONNX's orders of the gates, i, o, f, c and z, r, h, in this package's letters."""

OPSET, IR_VERSION = 14, 8
"""For onnxruntime 1.10 and later."""

PRODUCER = "lstm-mnist-jax"

PLATFORMS = ("cpu", "cuda", "tpu")


ONNX_ACTIVATIONS: dict[str, tuple[str, float, float]] = {
    "tanh": ("Tanh", 0.0, 0.0),
    "sigmoid": ("Sigmoid", 0.0, 0.0),
    "relu": ("Relu", 0.0, 0.0),
    "linear": ("Affine", 1.0, 0.0),
    "hard_sigmoid_keras2": ("HardSigmoid", 0.2, 0.5),
    "hard_sigmoid_keras3": ("HardSigmoid", 1 / 6, 0.5),
}
"""The activations of ONNX's LSTM operator, with their alpha and beta where they have them."""


def to_onnx(
    params: model.Params,
    image_shape: tuple[int, ...] = (28, 28),
    class_names: tuple[str, ...] = (),
    config: ModelConfig = ModelConfig(),
) -> bytes:
    """The model as an ONNX file: a graph of ONNX's LSTM or GRU operators. Needs the package onnx.

    Args:
      params: the model's parameters.
      image_shape: (height, width) or (height, width, channels) of one image.
      class_names: written into the file's metadata, as `classes`, one a line.
      config: the network, of which parameters do not hold the activations, the pooling over time and the task.

    Returns:
      The bytes of the file.

    Raises:
      WeightsError: the package onnx is not installed, or the cells are neither LSTMs nor GRUs.
    """
    refuse_unusual("onnx", config)
    onnx = require("onnx")
    weights = from_params(params)
    pooling = pooling_of(weights, config)
    shown = {name: getattr(weights.config, name) for name in ("cell", "recurrent_bias", "bidirectional")}
    config = replace(config, **shown)  # which refuses other activations of a GRU
    graph = _OnnxGraph(onnx)
    sequence = _onnx_sequence(graph, model.task_of(config), image_shape)
    final = ""
    for number, layer in enumerate(weights.layers):
        sequence, final = _onnx_layer(graph, sequence, number, layer, config)
    pooled = _onnx_pooled(graph, sequence, final, pooling, weights)
    for number, dense in enumerate(weights.dense):
        is_output = number == len(weights.dense) - 1
        name, output = ("dense", "logits") if is_output else (f"dense_hidden_{number}", f"hidden_{number}")
        pooled = graph.add(
            "Gemm", pooled, **{f"{name}/kernel": dense.kernel, f"{name}/bias": dense.bias}, output=output
        )
        if not is_output and config.dense_activation != "linear":
            pooled = graph.add(config.dense_activation.title(), pooled, output=f"activated_{number}")
    graph.add("Softmax", "logits", output="probabilities", axis=-1)
    make_info, floats = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            f"{weights.cell}_classifier",
            [make_info("images", onnx.TensorProto.UINT8, ["batch", *image_shape])],
            [make_info(name, floats, ["batch", weights.num_classes]) for name in ("probabilities", "logits")],
            graph.constants,
        ),
        producer_name=PRODUCER,
        producer_version=__version__,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    properties = {"classes": "\n".join(class_names)} if class_names else {}
    if config.task == "permuted":
        properties["permutation_seed"] = str(config.permutation_seed)
    onnx.helper.set_model_props(proto, properties)
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString())


class _OnnxGraph:
    """Nodes and constants of an ONNX graph."""

    def __init__(self, onnx: Any) -> None:
        self.onnx, self.nodes, self.constants = onnx, list[Any](), list[Any]()

    def add(self, operator: str, *inputs: str, output: str, **options: Any) -> str:
        """Adds a node. Options that are arrays are further inputs, by name; others are attributes. Returns `output`."""
        arrays = {name: value for name, value in options.items() if isinstance(value, np.ndarray | np.generic)}
        for name, array in arrays.items():
            if name not in {tensor.name for tensor in self.constants}:
                self.constants.append(self.onnx.numpy_helper.from_array(np.asarray(array, order="C"), name))
        attributes = {name: value for name, value in options.items() if name not in arrays}
        self.nodes.append(self.onnx.helper.make_node(operator, [*inputs, *arrays], output.split(), **attributes))
        return output


def _onnx_sequence(graph: _OnnxGraph, task: Task, image_shape: tuple[int, ...]) -> str:
    """The images as sequences [time, batch, features]."""
    steps, features = task.shape(image_shape)
    below, order = "images", task.permutation(image_shape)
    if task.name == "columns":
        below = graph.add("Transpose", below, output="columns", perm=[0, 2, 1, *range(3, len(image_shape) + 1)])
    if order is not None:
        shape = np.array([0, len(order), *image_shape[2:]])
        below = graph.add("Reshape", below, output="pixels", pixels_shape=shape)
        below = graph.add("Gather", below, output="permuted", order=order, axis=1)
    below = graph.add("Reshape", below, output="rows", row_shape=np.array([0, steps, features]))  # 0: as it is
    below = graph.add("Cast", below, output="floats", to=graph.onnx.TensorProto.FLOAT)
    below = graph.add("Mul", below, output="scaled", scale=np.float32(1 / 255))
    return graph.add("Transpose", below, output="sequence_0", perm=[1, 0, 2])


def _onnx_layer(graph: _OnnxGraph, sequence: str, number: int, layer: Layer, config: ModelConfig) -> tuple[str, str]:
    """The outputs of a layer [time, batch, features], and its final states [directions, batch, hidden]."""
    kind, count = layer.forward.cell.upper(), len(layer.directions)
    options: dict[str, Any] = {"hidden_size": layer.hidden}
    if count == 2:
        options["direction"] = "bidirectional"
    if kind == "GRU":
        options["linear_before_reset"] = 1
    if model.runs_through_flax(config):
        # Of the gates, of the candidate and of the output. alpha and beta are of those that have them, in this order.
        functions = [ONNX_ACTIVATIONS[config.recurrent_activation], *2 * [ONNX_ACTIVATIONS[config.activation]]] * count
        options["activations"] = [name for name, _, _ in functions]
        if with_numbers := [function for function in functions if function[1]]:
            _, options["activation_alpha"], options["activation_beta"] = zip(*with_numbers, strict=True)

    def in_order(array: np.ndarray) -> np.ndarray:
        return reorder_gates(array, GATES[layer.forward.cell], ONNX_GATES[kind])

    kernels, recurrent_kernels, biases = [], [], []
    for cell in layer.directions:
        kernels.append(in_order(cell.kernel).T)
        recurrent_kernels.append(in_order(cell.recurrent_kernel).T)
        second = np.zeros_like(cell.bias) if cell.recurrent_bias is None else cell.recurrent_bias
        biases.append(np.concatenate([in_order(cell.bias), in_order(second)]))
    name, outputs, final = f"{kind.lower()}_{number}", f"outputs_{number}", f"last_{number}"
    options[f"{name}/kernel"], options[f"{name}/recurrent_kernel"] = np.stack(kernels), np.stack(recurrent_kernels)
    graph.add(kind, sequence, output=f"{outputs} {final}", **options | {f"{name}/bias": np.stack(biases)})
    below = f"sequence_{number + 1}"
    if count == 1:
        return graph.add("Squeeze", outputs, output=below, time_direction=np.array([1])), final
    by_step = graph.add("Transpose", outputs, output=f"by_step_{number}", perm=[0, 2, 1, 3])
    return graph.add("Reshape", by_step, output=below, joined=np.array([0, 0, -1])), final


def _onnx_pooled(graph: _OnnxGraph, sequence: str, final: str, pooling: str, weights: Weights) -> str:
    """The pooled features, [batch, features]."""
    match pooling:
        case "last":
            by_image = graph.add("Transpose", final, output="by_image", perm=[1, 0, 2])
        case "last_step":
            return graph.add("Gather", sequence, output="pooled", step=np.array(-1))
        case "mean" | "max":
            return graph.add(f"Reduce{pooling.title()}", sequence, output="pooled", axes=[0], keepdims=0)
        case "attention":
            scores = graph.add("MatMul", sequence, output="scores", **{"attention/kernel": weights.attention})
            shares = graph.add("Softmax", scores, output="shares", axis=0)
            weighted = graph.add("Mul", sequence, shares, output="weighted")
            return graph.add("ReduceSum", weighted, output="pooled", time=np.array([0]), keepdims=0)
        case "all":
            by_image = graph.add("Transpose", sequence, output="by_image", perm=[1, 0, 2])
        case _:
            raise NotImplementedError(f"pooling {pooling!r}")
    return graph.add("Reshape", by_image, output="pooled", flat=np.array([0, -1]))


def to_stablehlo(params: model.Params, image_shape: tuple[int, ...] = (28, 28), *, config: ModelConfig) -> bytes:
    """The model with its parameters as a file of `jax.export`: versioned StableHLO for CPU, CUDA and TPU.

    JAX reads it: `jax.export.deserialize(bytearray(data)).call(images)` returns a dictionary of probabilities and
    logits. JAX guarantees that it reads files that are up to six months old.

    Args:
      params: the parameters, as `model.init` returns them.
      image_shape: (height, width) or (height, width, channels) of one image.
      config: the network that the parameters belong to.

    Returns:
      The bytes of the file.

    Raises:
      WeightsError: flatbuffers is not installed.
    """
    require("flatbuffers")  # which jax.export writes with
    params = jax.tree.map(np.asarray, params)

    def classify(images: jax.Array) -> dict[str, jax.Array]:
        logits = model.apply(params, images, config)
        return {"probabilities": jax.nn.softmax(logits), "logits": logits}

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image_shape), np.uint8)
    return bytes(jax.export.export(jax.jit(classify), platforms=PLATFORMS)(images).serialize())
