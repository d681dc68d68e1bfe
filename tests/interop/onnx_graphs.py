"""ONNX graphs as text, and what onnxruntime or ONNX's own reference computes with them."""

import re
from functools import cache

import numpy as np
import onnx
import onnx.parser
import onnx.reference
import onnxruntime

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, 6, 5)).astype(np.uint8)


def _drawn(*shape):
    return RNG.uniform(-1, 1, shape).astype(np.float32)


CONSTANTS = {
    **{"W": _drawn(1, 16, 5), "R": _drawn(1, 16, 4), "B": _drawn(1, 32)},
    **{"W2": _drawn(1, 16, 4), "R2": _drawn(1, 16, 4), "B2": _drawn(1, 32), "W1": _drawn(1, 16, 1)},
    **{"WB": _drawn(2, 16, 5), "RB": _drawn(2, 16, 4), "BB": _drawn(2, 32)},
    **{"WBB": _drawn(2, 16, 8), "RBB": _drawn(2, 16, 4), "BBB": _drawn(2, 32)},
    **{"WG": _drawn(1, 12, 5), "RG": _drawn(1, 12, 4), "BG": _drawn(1, 24), "BG0": _drawn(1, 24)},
    **{"WC": _drawn(1, 16, 6)},
    **{"K": _drawn(4, 3), "KT": _drawn(3, 4), "KB": _drawn(8, 3), "c": _drawn(3), "row": _drawn(5), "P": _drawn(1, 12)},
    "h0": np.zeros((1, 4, 4), np.float32),
    "h1": np.ones((1, 4, 4), np.float32),
    "lengths": np.full(4, 6, np.int32),
}
CONSTANTS["BG0"][0, 20:] = 0
INTEGERS = {"i0": [0], "i1": [1], "i2": [2], "im1": [-1], "big": [2**62], "to3": [-1, 6, 5], "to2": [0, -1]}
INTEGERS |= {"to_rows": [0, 6, 5], "to_both": [0, 0, -1], "to_features": [-1, 8], "to_pixels": [0, 30, 1], "last": -1}
INTEGERS |= {"zero": 0, "one": 1, "two": 2, "to_4": [4, 6, 5], "i5": [5]}
SCALARS = {
    "p255": 255.0,
    "r255": 1 / 255,
    "mean": 0.1307,
    "mean255": 127.5,
    "std": 0.3081,
    "unit": 1.0,
    "half": 0.5,
    "tenth": 0.03,
}
CONSTANTS |= {name: np.array(value, np.int64) for name, value in INTEGERS.items()}
CONSTANTS |= {name: np.array(value, np.float32) for name, value in SCALARS.items()}
CONSTANTS["uneven"] = np.linspace(0, 1, 5, dtype=np.float32)

LSTM = "s = Transpose<perm=[1,0,2]>(x) Y, H, C = LSTM<hidden_size=4>(s, W, R, B)"
"""One layer over images [batch, time, features]."""

HEAD = "h = Squeeze(H, i0) y = Gemm(h, K, c)"


def graph(body, given="float[N,6,5] x", opset=17, outputs=("y",), dtype=np.float32, **changes):
    """A model from the text of its nodes; constants are those of `CONSTANTS` that it names, or `changes`."""
    kind = {np.float64: "double", np.float32: "float", np.float16: "float16"}[dtype]
    results = ", ".join(name if " " in name else f"{kind}[N,3] {name}" for name in outputs)
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({given}) => ({results}) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    known = CONSTANTS | changes
    names = [name for name in dict.fromkeys(re.findall(r"\w+", body)) if name in known]
    for name in names:
        array = known[name].astype(dtype) if known[name].dtype.kind == "f" else known[name]
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def computed(proto, x, output=None):
    """An output of the graph: onnxruntime's; the reference's for what onnxruntime's LSTM does not have."""
    names = [output or proto.graph.output[0].name]
    feeds = {proto.graph.input[0].name: x}
    attributes = {attribute.name for node in proto.graph.node for attribute in node.attribute}
    if "layout" in attributes or x.dtype == np.float64:
        return onnx.reference.ReferenceEvaluator(proto).run(names, feeds)[0]
    return _session(proto.SerializeToString()).run(names, feeds)[0]


@cache
def _session(data):
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
