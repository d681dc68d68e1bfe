"""The classifier as one file that runs without this package: an ONNX graph, or StableHLO of `jax.export`.

Both take uint8 images (0 to 255), [batch, height, width] or [batch, height, width, channels], of any batch size, and
return `probabilities` and `logits`, float32 [batch, classes].
"""

import math
from typing import Any

import jax
import numpy as np

from lstm_mnist_jax import __version__, model
from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.interop.files import require
from lstm_mnist_jax.interop.holds import refuse_unusual
from lstm_mnist_jax.interop.weights import GATES, from_params, pooling_of
from lstm_mnist_jax.rnn.weights import reorder_gates

ONNX_GATES = "iofg"
"""ONNX's order of the gates, i, o, f, c, in this package's letters."""

OPSET, IR_VERSION = 14, 8
"""For onnxruntime 1.10 and later."""

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
    """The model as an ONNX file: a graph of ONNX's LSTM operators. Needs the package onnx.

    Args:
      params: the model's parameters.
      image_shape: (height, width) or (height, width, channels) of one image.
      class_names: written into the file's metadata, as `classes`, one a line.
      config: the network, of which parameters do not hold the activations and the pooling over time.

    Raises:
      WeightsError: the package onnx is not installed, or the network is not one of LSTM layers over rows in one
        direction.
    """
    refuse_unusual("onnx", config)
    onnx = require("onnx")
    helper, tensor = onnx.helper, onnx.numpy_helper.from_array
    weights = from_params(params)
    refuse_unusual("onnx", weights.config)
    last = len(weights.layers) - 1
    pooling = pooling_of(weights, config)
    own: dict[str, Any] = {}
    if model.runs_through_flax(config):
        # Of the gates, of the candidate and of the output. alpha and beta are of those that have them, in this order.
        functions = [ONNX_ACTIVATIONS[config.recurrent_activation], *2 * [ONNX_ACTIVATIONS[config.activation]]]
        with_numbers = [function for function in functions if function[1]]
        own = {"activations": [name for name, _, _ in functions]}
        if with_numbers:
            _, own["activation_alpha"], own["activation_beta"] = zip(*with_numbers, strict=True)
    height, *row = image_shape
    constants = {
        "row_shape": np.array([0, height, math.prod(row)]),  # 0: as it is
        "scale": np.float32(1 / 255),
        "direction": np.array([0]),
        "time_direction": np.array([1]),
    }
    nodes = [
        helper.make_node("Reshape", ["images", "row_shape"], ["rows"]),
        helper.make_node("Cast", ["rows"], ["floats"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["sequence_0"], perm=[1, 0, 2]),
    ]
    for number, layer in enumerate(weights.layers):
        kernel, recurrent_kernel, bias = (
            reorder_gates(array, GATES["lstm"], ONNX_GATES) for array in layer.forward[:3]
        )
        names = [f"lstm_{number}/{part}" for part in ("kernel", "recurrent_kernel", "bias")]
        arrays = kernel.T[None], recurrent_kernel.T[None], np.concatenate([bias, np.zeros_like(bias)])[None]
        constants |= zip(names, arrays, strict=True)
        outputs = [f"outputs_{number}", f"last_{number}"]
        hidden = len(recurrent_kernel)
        options = {"hidden_size": hidden} | own
        nodes.append(helper.make_node("LSTM", [f"sequence_{number}", *names], outputs, **options))
        if number < last or pooling != "last":
            nodes.append(helper.make_node("Squeeze", [outputs[0], "time_direction"], [f"sequence_{number + 1}"]))
    sequence = f"sequence_{len(weights.layers)}"
    match pooling:
        case "last":
            nodes.append(helper.make_node("Squeeze", [f"last_{last}", "direction"], ["pooled"]))
        case "mean" | "max":
            nodes.append(helper.make_node(f"Reduce{pooling.title()}", [sequence], ["pooled"], axes=[0], keepdims=0))
        case _:
            constants["flat_shape"] = np.array([0, -1])
            nodes.append(helper.make_node("Transpose", [sequence], ["by_image"], perm=[1, 0, 2]))
            nodes.append(helper.make_node("Reshape", ["by_image", "flat_shape"], ["pooled"]))
    below = "pooled"
    for number, dense in enumerate(weights.dense):
        is_output = number == len(weights.dense) - 1
        name, output = ("dense", "logits") if is_output else (f"dense_hidden_{number}", f"hidden_{number}")
        constants |= {f"{name}/kernel": dense.kernel, f"{name}/bias": dense.bias}
        nodes.append(helper.make_node("Gemm", [below, f"{name}/kernel", f"{name}/bias"], [output]))
        below = output
        if not is_output and config.dense_activation != "linear":
            below = f"activated_{number}"
            nodes.append(helper.make_node(config.dense_activation.title(), [output], [below]))
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1))
    make_info, floats = helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "lstm_classifier",
        [make_info("images", onnx.TensorProto.UINT8, ["batch", *image_shape])],
        [make_info(name, floats, ["batch", weights.num_classes]) for name in ("probabilities", "logits")],
        [tensor(np.ascontiguousarray(array), name) for name, array in constants.items()],
    )
    proto = helper.make_model(
        graph,
        producer_name="lstm-mnist-jax",
        producer_version=__version__,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    if class_names:
        helper.set_model_props(proto, {"classes": "\n".join(class_names)})
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


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
