"""Mutates ONNX graphs: the reader refuses each with WeightsError, or computes what onnxruntime computes.

PYTHONPATH=.:tests python tests/interop/onnx_mutations.py 20000
"""

import itertools
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy_gru
import numpy_lstm
import onnx
import onnxruntime
from onnx_graphs import IMAGES
from parameters import drawn
from rewriting import rewrite

from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop import export
from lstm_mnist_jax.interop import onnx as reader
from lstm_mnist_jax.interop.onnx import trace

FOLDER = Path(__file__).parents[1] / "fixtures" / "onnx"
INTEGERS = [-(2**63), -7, -2, -1, 0, 1, 2, 3, 4, 5, 6, 8, 30, 2**31, 2**62]
OPERATORS = sorted({*trace.ON_CONSTANTS, *trace.OPERATORS, "Conv", "Loop"})


def try_mutations(count, folder, seed):
    """The mutations that were read, those of them that onnxruntime takes too, and the refused ones.

    Raises:
      AssertionError: one was read wrongly.
    """
    generator, read, compared, refused = random.Random(seed), 0, 0, 0
    seeds = [path.read_bytes() for path in sorted(FOLDER.glob("*.onnx")) if path.stem in SEEDS]
    seeds += [export.to_onnx(drawn(config, (6, 5)), (6, 5), (), config) for config in OWN]
    for number in range(count):
        data = _mutated(generator.choice(seeds), generator)
        path = folder / "model.onnx"
        rewrite(path, data)
        try:
            imported = reader.read(path)
        except WeightsError as error:
            assert len(str(error)) < 2000
            refused += 1
            continue
        compared += _compare(imported, data, number)
        read += 1
    return read, compared, refused


SEEDS = ("last", "both_dynamo", "mean_both", "zeros_dynamo", "normalised", "flat_dynamo", "channel", "linear_first")
SEEDS += ("gru_with_recurrent_bias", "last_both")
OWN = (
    ModelConfig(hidden_features=(4,), bidirectional=True, pooling="attention"),
    ModelConfig(cell="gru", recurrent_bias=True, hidden_features=(3, 4), task="permuted", sequence_length=5),
)


def _compare(imported, data, number):
    """Whether onnxruntime takes the graph; it then computes the same logits, or probabilities."""
    proto = onnx.load_model_from_string(data)
    shape = [size.dim_value or 4 for size in proto.graph.input[0].type.tensor_type.shape.dim]
    if int(np.prod(shape)) > 10_000:
        return False
    raw = "of 0 to 255" in imported.input_note
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        given = session.get_inputs()[0]
        kind = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(uint8)": np.uint8}[given.type]
        x = np.resize(IMAGES, shape).astype(np.float64) / (1 if raw else 255)
        outputs = session.run(None, {given.name: x.astype(kind)})
    except Exception:  # it refuses the graph, or knows no such type
        return False
    first = imported.params["rnn"]["layers"][0]
    width = len(first.get("forward_rnn", first)["cell"]["dense_i"]["kernel"])
    batch_axis = 1 if "steps" in data.decode("latin-1") else 0
    images = np.moveaxis(x, batch_axis, 0) / (255 if raw else 1)
    if imported.config.task == "columns":
        images = images.reshape(len(images), width, -1).swapaxes(1, 2)
    if imported.config.task == "permuted":
        images = images.reshape(len(images), -1)
        images = images[:, np.random.RandomState(imported.config.permutation_seed).permutation(images.shape[1])]
    with np.errstate(over="ignore"):
        logits = _logits(imported, images.reshape(len(images), -1, width))
    logs = logits - logits.max(axis=-1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(axis=-1, keepdims=True))
    forms = [logits, logs, np.exp(logs), logits.argmax(axis=-1)]
    pairs = itertools.product(forms, outputs)  # of the outputs some may be states of a layer
    if not any(form.size == np.size(theirs) and _close(form.ravel(), np.ravel(theirs)) for form, theirs in pairs):
        Path("wrong.onnx").write_bytes(data)
        raise AssertionError(f"mutation {number} is read wrongly; it is in wrong.onnx")
    return True


def _close(a, b):
    return np.allclose(a, b, rtol=1e-4, atol=2e-4)


def _logits(imported, images):
    """The classifier of LSTM or GRU layers, in NumPy."""
    outputs = np.moveaxis(images, 0, 1)
    for layer in imported.params["rnn"]["layers"].values():
        found, finals = [], []
        for name in ("forward_rnn", "backward_rnn") if "forward_rnn" in layer else (None,):
            cell = (layer[name] if name else layer)["cell"]
            kernels, back = (cell["dense_i"]["kernel"], cell["dense_h"]["kernel"]), name == "backward_rnn"
            zeros = np.zeros((outputs.shape[1], len(kernels[1])))
            if imported.config.cell == "gru":
                biases = cell["dense_i"]["bias"], cell["dense_h"].get("bias", np.zeros(len(cell["dense_i"]["bias"])))
                found.append(numpy_gru.gru(outputs, *kernels, *biases, h=zeros, reverse=back)[1])
            else:
                bias = cell["dense_h"]["bias"]
                found.append(numpy_lstm.lstm(outputs, *kernels, bias, zeros, zeros, reverse=back)[0])
            finals.append(found[-1][0 if back else -1])
        outputs, last = np.concatenate(found, axis=-1), np.concatenate(finals, axis=-1)
    match imported.config.pooling:
        case "last":
            pooled = last
        case "last_step":
            pooled = outputs[-1]
        case "all":
            pooled = np.moveaxis(outputs, 0, 1).reshape(outputs.shape[1], -1)
        case "attention":
            scores = outputs @ imported.params["attention"]["kernel"]
            weights = np.exp(scores - scores.max(axis=0))
            pooled = (outputs * weights).sum(axis=0) / weights.sum(axis=0)
        case pooling:
            pooled = getattr(outputs, pooling)(axis=0)
    function = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh, "linear": lambda x: x}
    for dense in imported.params.get("dense_hidden", {}).values():
        pooled = function[imported.config.dense_activation](pooled @ dense["kernel"] + dense["bias"])
    return pooled @ imported.params["dense"]["kernel"] + imported.params["dense"]["bias"]


def _mutated(data, generator):
    """Bytes that are changed, or a graph of which a part is."""
    if generator.random() < 0.3:
        changed = bytearray(data)
        for _ in range(generator.choice((1, 1, 2, 8))):
            place = generator.randrange(len(changed))
            match generator.randrange(3):
                case 0:
                    changed[place] = generator.randrange(256)
                case 1:
                    del changed[place : place + generator.randrange(1, 9)]
                case 2:
                    changed[place:place] = generator.randbytes(generator.randrange(1, 9))
        return bytes(changed)
    proto = onnx.load_model_from_string(data)
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        _change(proto.graph, generator)
    return proto.SerializeToString()


def _change(changed, generator):
    node = generator.choice(changed.node)
    names = [name for other in changed.node for name in (*other.input, *other.output)]
    match generator.randrange(9):
        case 0:
            node.op_type = generator.choice(OPERATORS)
        case 1 if node.input:
            node.input[generator.randrange(len(node.input))] = generator.choice(names)
        case 2 if len(node.input) > 1:
            node.input[0], node.input[1] = node.input[1], node.input[0]
        case 3:
            changed.node.remove(node)
        case 4 if node.attribute:
            attribute = generator.choice(node.attribute)
            if attribute.type == onnx.AttributeProto.INT:
                attribute.i = generator.choice(INTEGERS)
            elif attribute.ints:
                attribute.ints[generator.randrange(len(attribute.ints))] = generator.choice(INTEGERS)
            elif attribute.type == onnx.AttributeProto.STRING:
                attribute.s = generator.choice((b"forward", b"reverse", b"bidirectional", b"\xff"))
            elif attribute.type == onnx.AttributeProto.TENSOR:
                _change_tensor(attribute.t, generator)
        case 5 if changed.initializer:
            _change_tensor(generator.choice(changed.initializer), generator)
        case 6:
            dim = generator.choice(changed.input[0].type.tensor_type.shape.dim)
            dim.dim_value = generator.choice(INTEGERS[3:])
        case 7:
            changed.output[0].name = generator.choice(names)
        case 8:
            attribute = onnx.helper.make_attribute(
                generator.choice(("axis", "layout", "transA", "transB", "alpha", "clip", "keepdims", "perm", "end")),
                generator.choice((0, 1, 2, -1, 0.5, [0, 1], [2, 0, 1])),
            )
            node.attribute.append(attribute)


def _change_tensor(tensor, generator):
    if tensor.dims and generator.random() < 0.3:
        tensor.dims[generator.randrange(len(tensor.dims))] = generator.choice(INTEGERS)
        return
    try:
        array = onnx.numpy_helper.to_array(tensor).copy()
    except Exception:
        return
    if array.size and array.dtype.kind == "i":
        array.flat[generator.randrange(array.size)] = generator.choice(INTEGERS)
    elif array.size:
        array.flat[generator.randrange(array.size)] = generator.choice((0, -3.5, np.nan, 1e30, 0.25))
    name = tensor.name
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        start = time.monotonic()
        done = try_mutations(int(sys.argv[1]), Path(name), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0)
        print(
            f"read {done[0]:,} (of these compared {done[1]:,}), refused {done[2]:,}, {time.monotonic() - start:.0f} s"
        )
