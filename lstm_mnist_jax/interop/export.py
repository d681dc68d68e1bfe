"""The classifier as one file that runs without this package: an ONNX graph, or StableHLO of `jax.export`.

Both take uint8 images (0 to 255), [batch, height, width] or [batch, height, width, channels], of any batch size, and
return `probabilities` and `logits`, float32 [batch, classes].
"""

import math

import jax
import numpy as np

from lstm_mnist_jax import __version__, model
from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.interop.files import require
from lstm_mnist_jax.interop.weights import GATES, from_params
from lstm_mnist_jax.rnn.weights import reorder_gates

ONNX_GATES = "iofg"
"""ONNX's order of the gates, i, o, f, c, in this package's letters."""

OPSET, IR_VERSION = 14, 8
"""For onnxruntime 1.10 and later."""

PLATFORMS = ("cpu", "cuda", "tpu")


def to_onnx(params: model.Params, image_shape: tuple[int, ...] = (28, 28), class_names: tuple[str, ...] = ()) -> bytes:
    """The model as an ONNX file: a graph of ONNX's LSTM operators. Needs the package onnx.

    Args:
      params: the model's parameters.
      image_shape: (height, width) or (height, width, channels) of one image.
      class_names: written into the file's metadata, as `classes`, one a line.
    """
    onnx = require("onnx")
    helper, tensor = onnx.helper, onnx.numpy_helper.from_array
    weights = from_params(params)
    height, *row = image_shape
    constants = {
        "row_shape": np.array([0, height, math.prod(row)]),  # 0: as it is
        "scale": np.float32(1 / 255),
        "direction": np.array([0]),
        "dense/kernel": weights.dense_kernel,
        "dense/bias": weights.dense_bias,
    }
    nodes = [
        helper.make_node("Reshape", ["images", "row_shape"], ["rows"]),
        helper.make_node("Cast", ["rows"], ["floats"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["sequence_0"], perm=[1, 0, 2]),
    ]
    for number, layer in enumerate(weights.layers):
        kernel, recurrent_kernel, bias = (reorder_gates(array, GATES, ONNX_GATES) for array in layer)
        names = [f"lstm_{number}/{part}" for part in ("kernel", "recurrent_kernel", "bias")]
        arrays = kernel.T[None], recurrent_kernel.T[None], np.concatenate([bias, np.zeros_like(bias)])[None]
        constants |= zip(names, arrays, strict=True)
        outputs = [f"outputs_{number}", f"last_{number}"]
        hidden = len(recurrent_kernel)
        nodes.append(helper.make_node("LSTM", [f"sequence_{number}", *names], outputs, hidden_size=hidden))
        if number + 1 < len(weights.layers):
            nodes.append(helper.make_node("Squeeze", [outputs[0], "time_direction"], [f"sequence_{number + 1}"]))
    constants["time_direction"] = np.array([1])
    last = f"last_{len(weights.layers) - 1}"
    nodes += [
        helper.make_node("Squeeze", [last, "direction"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "dense/kernel", "dense/bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
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
