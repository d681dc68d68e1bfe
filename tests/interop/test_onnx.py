"""ONNX graphs: against PyTorch's outputs, onnxruntime and ONNX's reference; and graphs that are something else."""

import numpy as np
import onnx
import pytest
from onnx_graphs import CONSTANTS, HEAD, IMAGES, LSTM, computed, graph
from onnx_mutations import try_mutations
from parameters import drawn
from stacks import FIXTURES, STACKS, apply, assert_close

from lstm_mnist_jax import model
from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop import export, formats
from lstm_mnist_jax.interop import onnx as reader
from lstm_mnist_jax.interop.inputs import Inputs

FOLDER = FIXTURES / "onnx"
NETWORKS = {
    **{name: {} for name in ("last", "flat", "normalised", "channel", "zeros", "state", "linear_first")},
    "steps_first": {},
    "both": {"bidirectional": True},
    "mean_both": {"bidirectional": True, "pooling": "mean"},
    "max": {"pooling": "max"},
    "gru": {"cell": "gru"},
    "gru_with_recurrent_bias": {"cell": "gru", "recurrent_bias": True},
    "last_both": {"bidirectional": True, "pooling": "last_step"},
}


def read(proto, folder):
    onnx.save(proto, folder / "model.onnx")
    return reader.read(folder / "model.onnx")


@pytest.mark.parametrize("exporter", ["", "_dynamo"])
def test_graphs_of_pytorch_give_what_pytorch_computed(exporter):
    expected = np.load(FOLDER / "expected.npz")
    for name, fields in NETWORKS.items():
        imported = reader.read(FOLDER / f"{name}{exporter}.onnx")
        images, outputs = expected[f"{name} images"], expected[f"{name} outputs"]
        images = images.swapaxes(0, 1) if name == "steps_first" else images.reshape(-1, 6, 5)
        logits = np.asarray(apply(imported.params, images, imported.config), np.float64)
        if name == "zeros":  # which ends with log_softmax
            logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        np.testing.assert_allclose(logits, outputs, rtol=0, atol=1e-5, err_msg=name)
        layers = len(imported.config.hidden_features)
        assert imported.config == ModelConfig(hidden_features=(4,) * layers, **fields)
        assert imported.time_steps == 6


OWN = [
    *({"hidden_features": stack} for stack in STACKS),
    {"dense_features": (6, 4), "dense_activation": "tanh"},
    {"pooling": "all", "dense_features": (6,), "dense_activation": "linear"},
    {"pooling": "max", "activation": "relu", "recurrent_activation": "hard_sigmoid_keras3"},
    {"pooling": "mean", "activation": "linear", "recurrent_activation": "hard_sigmoid_keras2"},
    {"pooling": "attention", "activation": "hard_sigmoid_keras3", "bidirectional": True, "task": "columns"},
    {"cell": "gru", "hidden_features": (3, 4), "task": "permuted", "permutation_seed": 7},
    {"cell": "gru", "recurrent_bias": True, "bidirectional": True, "task": "pixels", "hidden_features": (3, 4)},
    {"bidirectional": True, "pooling": "all", "sequence_length": 3},
    {"cell": "gru", "bidirectional": True, "pooling": "last_step", "task": "permuted", "sequence_length": 10},
]


def test_our_own_graphs_come_back_to_the_bit(tmp_path):
    for fields in OWN:
        config = ModelConfig(**fields)
        for shape in ((6, 5), (6, 5, 3)):
            params = drawn(config, shape)
            (tmp_path / "model.onnx").write_bytes(export.to_onnx(params, shape, ("a", "b", "c"), config))
            imported = formats.read("onnx", tmp_path / "model.onnx")
            assert_close(imported.params, params, atol=0)
            assert imported.config == config
            assert imported.time_steps == model.task_of(config).shape(shape)[0]


def test_own_graphs_of_pixels_compute_what_the_model_computes_in_onnxruntime():
    for fields in [fields for fields in OWN if fields.get("task") in ("pixels", "permuted")]:
        config = ModelConfig(**fields)
        params = drawn(config, (6, 5))
        proto = onnx.load_model_from_string(export.to_onnx(params, (6, 5), (), config))
        logits = computed(proto, IMAGES, "logits")
        np.testing.assert_allclose(logits, apply(params, IMAGES, config), rtol=0, atol=1e-5, err_msg=str(fields))


P = IMAGES.astype(np.float32) / 255
BOTH = "s = Transpose<perm=[1,0,2]>(x) Y, H = LSTM<hidden_size=4, direction='bidirectional'>(s, WB, RB, BB)".replace(
    "'", '"'
)
STEP = "q = Squeeze(Y, i1) t = Transpose<perm=[1,0,2]>(q)"
SECOND = "q = Squeeze(Y, i1) Z, G = LSTM<hidden_size=4>(q, W2, R2, B2)"

READ = {
    "Y_h": (LSTM + HEAD, {}, P),
    "MatMul and Add": (LSTM + "h = Squeeze(H, i0) m = MatMul(h, K) y = Add(c, m)", {}, P),
    "MatMul alone": (LSTM + "h = Squeeze(H, i0) y = MatMul(h, K)", {}, P),
    "Gemm with factors": (LSTM + "h = Squeeze(H, i0) y = Gemm<alpha=0.5, beta=2.0, transB=1>(h, KT, c)", {}, P),
    "layout 1": ("Y, H = LSTM<hidden_size=4, layout=1>(x, W, R, B) h = Squeeze(H, i1) y = Gemm(h, K, c)", {}, P),
    "last of Y": (LSTM + STEP + "l = Gather<axis=1>(t, last) y = Gemm(l, K, c)", {}, P),
    "slice of Y": (LSTM + STEP + "l = Slice(t, im1, big, i1) h = Squeeze(l, i1) y = Gemm(h, K, c)", {}, P),
    "dense at all steps": (LSTM + STEP + "m = MatMul(t, K) a = Add(m, c) y = Gather<axis=1>(a, last)", {}, P),
    "mean": (LSTM + STEP + "l = ReduceMean<axes=[1], keepdims=0>(t) y = Gemm(l, K, c)", {"pooling": "mean"}, P),
    "maximum": (LSTM + STEP + "l = ReduceMax<axes=[1]>(t) h = Flatten(l) y = Gemm(h, K, c)", {"pooling": "max"}, P),
    "two layers": (LSTM + SECOND + "h = Squeeze(G, i0) y = Gemm(h, K, c)", {"hidden_features": (4, 4)}, P),
    "no biases": (
        "s = Transpose<perm=[1,0,2]>(x) Y, H = LSTM<hidden_size=4>(s, W, R) h = Squeeze(H) y = MatMul(h, K)", {}, P,
    ),
    "zero states": (
        "s = Transpose<perm=[1,0,2]>(x) Y, H = LSTM<hidden_size=4>(s, W, R, B, , h0, h0)" + HEAD, {}, P,
    ),
    "named activations": (
        's = Transpose<perm=[1,0,2]>(x) Y, H = LSTM<hidden_size=4, direction="forward", '
        'activations=["Sigmoid","Tanh","Tanh"]>(s, W, R, B)' + HEAD, {}, P,
    ),
    "both directions": (
        BOTH + "a = Transpose<perm=[1,0,2]>(H) h = Reshape(a, to2) y = Gemm(h, KB, c)", {"bidirectional": True}, P,
    ),
    "both directions joined": (
        BOTH + "f = Gather<axis=0>(H, zero) b = Gather<axis=0>(H, one) h = Concat<axis=1>(f, b) y = Gemm(h, KB, c)",
        {"bidirectional": True}, P,
    ),
    "both directions of Y": (
        BOTH + "f = Gather<axis=1>(Y, zero) fl = Gather<axis=0>(f, last) b = Gather<axis=1>(Y, one) "
        "bf = Gather<axis=0>(b, zero) h = Concat<axis=1>(fl, bf) y = Gemm(h, KB, c)", {"bidirectional": True}, P,
    ),
    "two layers in both directions": (
        BOTH + "t = Transpose<perm=[0,2,1,3]>(Y) q = Reshape(t, to_both) "
        'Z, G = LSTM<hidden_size=4, direction="bidirectional">(q, WBB, RBB, BBB) '
        "a = Transpose<perm=[1,0,2]>(G) h = Reshape(a, to_features) y = Gemm(h, KB, c)",
        {"bidirectional": True, "hidden_features": (4, 4)}, P,
    ),
    "GRU with a recurrent bias": (
        "s = Transpose<perm=[1,0,2]>(x) Y, H = GRU<hidden_size=4, linear_before_reset=1>(s, WG, RG, BG)" + HEAD,
        {"cell": "gru", "recurrent_bias": True}, P,
    ),
    "the last step in both directions": (
        BOTH + "t = Transpose<perm=[0,2,1,3]>(Y) q = Reshape(t, to_both) l = Gather(q, last) y = Gemm(l, KB, c)",
        {"bidirectional": True, "pooling": "last_step"}, P,
    ),
    "attention": (
        LSTM + STEP + "e = MatMul(t, A) f = Add(e, half) w = Softmax<axis=1>(f) p = Mul(w, t) "
        "l = ReduceSum<keepdims=0>(p, i1) y = Gemm(l, K, c)", {"pooling": "attention"}, P,
    ),
    "attention as a product of matrices": (
        LSTM + STEP + "e = MatMul(t, A) w = Softmax<axis=1>(e) v = Transpose<perm=[0,2,1]>(w) p = MatMul(v, t) "
        "l = Squeeze(p, i1) y = Gemm(l, K, c)", {"pooling": "attention"}, P,
    ),
    "lengths of all steps": (
        "s = Transpose<perm=[1,0,2]>(x) n = Shape(s) b = Slice(n, i1, i2) t = Slice(n, i0, i1) "
        "e = Expand(t, b) l = Cast<to=6>(e) Y, H = LSTM<hidden_size=4>(s, W, R, B, l)" + HEAD, {}, P,
    ),
    "GRU": (
        "s = Transpose<perm=[1,0,2]>(x) Y, H = GRU<hidden_size=4, linear_before_reset=1>(s, WG, RG, BG0)" + HEAD,
        {"cell": "gru"}, P,
    ),
    "columns": (
        "s = Transpose<perm=[2,0,1]>(x) Y, H = LSTM<hidden_size=4>(s, WC, R, B)" + HEAD, {"task": "columns"}, P,
    ),
    "half precision": (
        "s = Transpose<perm=[1,0,2]>(x) w = Cast<to=1>(W16) Y, H = LSTM<hidden_size=4>(s, w, R, B)" + HEAD, {}, P,
    ),
    "weights in nodes": (
        "s = Transpose<perm=[1,0,2]>(x) Y, H = LSTM<hidden_size=4>(s, W, R, B) h = Squeeze(H, i0) m = MatMul(h, K) "
        "b = Constant<value_floats=[0.5, -1.0, 2.0]>() y = Add(m, b)", {}, P,
    ),
    "transposed kernel": (LSTM + "h = Squeeze(H, i0) k = Transpose<perm=[1,0]>(KT) y = Gemm(h, k, c)", {}, P),
    "Dropout and Identity": (LSTM + "h = Squeeze(H, i0) d = Dropout(h) e = Identity(d) y = Gemm(e, K, c)", {}, P),
    "hidden dense layers": (
        LSTM + "h = Squeeze(H, i0) m = MatMul(h, K) a = Add(m, c) r = Relu(a) g = Gemm(r, SQ, c) u = Relu(g) "
        "y = Gemm(u, SQ, c)", {"dense_features": (3, 3), "dense_activation": "relu"}, P,
    ),
    "hidden dense layer without an activation": (
        LSTM + "h = Squeeze(H, i0) g = Gemm(h, K, c) y = MatMul(g, SQ)",
        {"dense_features": (3,), "dense_activation": "linear"}, P,
    ),
    "outputs of all steps": (LSTM + STEP + "h = Flatten(t) y = Gemm(h, KALL, c)", {"pooling": "all"}, P),
    "outputs of all steps in both directions": (
        BOTH + "t = Transpose<perm=[2,0,1,3]>(Y) h = Reshape(t, to2) y = Gemm(h, KBALL, c)",
        {"bidirectional": True, "pooling": "all"}, P,
    ),
    "other activations": (
        LSTM.replace("size=4", 'size=4, activations=["HardSigmoid","Relu","Relu"], activation_alpha=[0.2], '
        "activation_beta=[0.5]") + HEAD, {"activation": "relu", "recurrent_activation": "hard_sigmoid_keras2"}, P,
    ),
    "images in a row": ("r = Reshape(x, to3)" + LSTM.replace("(x)", "(r)") + HEAD, {}, P.reshape(4, 30)),
    "one channel": ("r = Squeeze(x, i1)" + LSTM.replace("(x)", "(r)") + HEAD, {}, P[:, None]),
    "pixels": (
        "s = Transpose<perm=[1,0,2]>(x) Y, H = LSTM<hidden_size=4>(s, W1, R, B)" + HEAD, {}, P.reshape(4, 30, 1),
    ),
    "all pixels": (
        "r = Reshape(x, to_pixels) s = Transpose<perm=[1,0,2]>(r) Y, H = LSTM<hidden_size=4>(s, W1, R, B)" + HEAD,
        {"task": "pixels"}, P,
    ),
    "uint8": ("f = Cast<to=1>(x) r = Mul(f, r255)" + LSTM.replace("(x)", "(r)") + HEAD, {}, IMAGES),
    "uint8 as it is": (
        "f = Cast<to=1>(x) s = Transpose<perm=[1,0,2]>(f) Y, H = LSTM<hidden_size=4>(s, WS, R, B)" + HEAD, {}, IMAGES,
    ),
    "floats of 0 to 255": ("r = Div(x, p255)" + LSTM.replace("(x)", "(r)") + HEAD, {}, IMAGES.astype(np.float32)),
    "mean and deviation": ("m = Sub(x, mean) r = Div(m, std)" + LSTM.replace("(x)", "(r)") + HEAD, {}, P),
    "raw mean and deviation": (
        "f = Cast<to=1>(x) g = Div(f, p255) m = Sub(g, mean) r = Div(m, std)" + LSTM.replace("(x)", "(r)") + HEAD,
        {}, IMAGES,
    ),
    "a mean of floats of 0 to 255": (
        "r = Sub(x, mean255)" + LSTM.replace("(x)", "(r)").replace(" W,", " WS,") + HEAD, {}, IMAGES.astype(np.float32),
    ),
    "inverted": ("r = Sub(unit, x)" + LSTM.replace("(x)", "(r)") + HEAD, {}, P),
}  # fmt: skip
A = CONSTANTS["P"][0, :4, None]
CHANGES = {"A": A, "W16": CONSTANTS["W"].astype(np.float16), "WS": CONSTANTS["W"] / 255, "SQ": CONSTANTS["K"][:3]}
CHANGES |= {"KALL": np.tile(CONSTANTS["K"], (6, 1)) * np.linspace(0, 1, 24, dtype=np.float32)[:, None]}
CHANGES |= {"KBALL": np.tile(CONSTANTS["K"], (12, 1)) * np.linspace(0, 1, 48, dtype=np.float32)[:, None]}


def given_as(x):
    sizes = ",".join(map(str, ("N", *x.shape[1:])))
    return f"{'uint8' if x.dtype == np.uint8 else 'float'}[{sizes}] x"


def with_half(proto):
    """W16 in float16, whatever the others are."""
    for tensor in proto.graph.initializer:
        if tensor.name == "W16":
            tensor.CopyFrom(onnx.numpy_helper.from_array(CHANGES["W16"], "W16"))
    return proto


def test_every_way_to_write_the_classifier_computes_what_onnxruntime_computes(tmp_path):
    for name, (body, fields, x) in READ.items():
        proto = with_half(graph(body, given_as(x), **CHANGES))
        imported = read(proto, tmp_path)
        assert imported.config == ModelConfig(**{"hidden_features": (4,)} | fields), name
        images = x if x.dtype == np.uint8 else P.reshape(4, 30, 1) if name == "pixels" else P
        logits = np.asarray(apply(imported.params, images, imported.config))
        np.testing.assert_allclose(logits, computed(proto, x), rtol=0, atol=2e-5, err_msg=name)
        assert ("0 to 255" in imported.input_note) == (x.max() > 1), name
        if name == "MatMul alone":
            normalized = imported.with_inputs(Inputs(0.5))
            assert normalized.input_note.startswith("trained on inputs of (pixel / 255 - 0.5)")
            assert normalized.notes == imported.notes == ("y has no bias: zeros were taken",)


def test_older_and_newer_operator_sets(tmp_path):
    old = LSTM + "a = Squeeze<axes=[1]>(Y) l = Slice<starts=[-1], ends=[2147483647], axes=[0]>(a) "
    old += "h = Squeeze<axes=[0]>(l) z = Gemm(h, K, c) y = Softmax<axis=1>(z)"
    new = LSTM + "a = Squeeze(Y, i1) h = ReduceMean<keepdims=0>(a, i0) z = Gemm(h, K, c) y = Softmax(z)"
    for opset, body in [*((n, old) for n in (7, 9)), *((n, new) for n in (18, 20, 22, 23))]:
        proto = graph(body, opset=opset)
        imported = read(proto, tmp_path)
        logits = np.asarray(apply(imported.params, P, imported.config), np.float64)
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(probabilities, computed(proto, P), rtol=0, atol=1e-5)
    with pytest.raises(WeightsError, match="has the operator set 6, expected 7 to"):
        read(graph(old.replace("Squeeze", "Identity"), opset=6), tmp_path)


def test_double_precision_and_several_outputs(tmp_path):
    body = LSTM + "h = Squeeze(H, i0) z = Gemm(h, K, c) y = LogSoftmax(z) a = ArgMax<axis=1, keepdims=0>(z)"
    proto = graph(body, "double[N,6,5] x", outputs=("y", "z", "int64[N] a", "double[1,N,4] H"), dtype=np.float64)
    imported = read(proto, tmp_path)
    logits = np.asarray(apply(imported.params, P, imported.config))
    np.testing.assert_allclose(logits, computed(proto, P.astype(np.float64), "z"), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(logits.argmax(axis=-1), computed(proto, P.astype(np.float64), "a"))


def test_external_data_are_read_from_beside_the_file(tmp_path):
    proto = graph(LSTM + HEAD)
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, size_threshold=0, location="weights.bin")
    imported = reader.read(path)
    np.testing.assert_allclose(
        apply(imported.params, P, imported.config), computed(graph(LSTM + HEAD), P), rtol=0, atol=1e-5
    )
    for bad in ("short", "missing"):
        if bad == "short":
            (tmp_path / "a" / "weights.bin").write_bytes(b"abc")
        else:
            (tmp_path / "a" / "weights.bin").unlink()
        with pytest.raises(WeightsError):
            reader.read(path)


REFUSED = [
    (LSTM + "h = Squeeze(H, i0) z = Gemm(h, K, c) y = Elu(z)", "the operator Elu, which this classifier does not"),
    (LSTM + "h = Squeeze(H, i0) z = Gemm(h, K, c) y = Relu(z)", "or one after the output layer"),
    (LSTM + "h = Squeeze(H, i0) r = Relu(h) y = Gemm(r, K, c)", "Relu stands elsewhere than after a dense layer"),
    (
        LSTM + "h = Squeeze(H, i0) z = Gemm(h, K, c) r = Relu(z) u = Gemm(r, SQ, c) t = Tanh(u) y = Gemm(t, SQ, c)",
        "dense layers with different activations",
    ),
    ("z = Conv(x, W)" + LSTM.replace("(x)", "(z)") + HEAD, "the operator Conv"),
    ("q = com.other.Thing(x)" + LSTM.replace("(x)", "(q)") + HEAD, r"the operator com\.other\.Thing"),
    (LSTM.replace("size=4", 'size=4, direction="reverse"') + HEAD, "LSTM .*has the direction reverse"),
    (LSTM.replace("size=4", "size=4, clip=3.0") + HEAD, "clips its gates at 3"),
    (LSTM.replace("size=4", "size=4, input_forget=1") + HEAD, "couples input and forget gates"),
    (LSTM.replace("size=4", "size=4, made_up=1") + HEAD, "has made_up, which is not read"),
    (LSTM.replace("size=4", "size=5") + HEAD, "its hidden_size is 5"),
    (
        LSTM.replace("size=4", 'size=4, activations=["Softsign","Tanh","Tanh"]') + HEAD,
        "has the activations softsign, tanh, tanh, expected sigmoid, tanh, tanh",
    ),
    (LSTM.replace("B)", "B, lengths)") + HEAD, "has sequence_lens"),
    (LSTM.replace("B)", "B, , h1)") + HEAD, "does not start from states of zero"),
    (LSTM.replace("B)", "B, , , , P)") + HEAD, "has peepholes"),
    (LSTM + "h = Squeeze(C, i0) y = Gemm(h, K, c)", "uses the cell state"),
    (LSTM + "h = Squeeze(H, i0) z = Gemm(h, K, c) y = Softmax<axis=0>(z)", "works along another axis than the classes"),
    (LSTM + "h = Squeeze(H, i0) z = Gemm(h, K, c) w = Softmax(z) y = Softmax(w)", "stands after the probabilities"),
    (LSTM + "h = Squeeze(H, i0) z = Gemm(h, K, c) y = Mul(z, half)", "computes with the outputs of a layer"),
    (LSTM + "h = Squeeze(H, i0) g = Add(h, h) y = Gemm(g, K, c)", "combines two outputs"),
    (LSTM + STEP + "l = Gather<axis=1>(t, two) y = Gemm(l, K, c)", "uses the output of time step 2, not of the last"),
    (LSTM + STEP + "l = Gather<axis=1>(t, zero) y = Gemm(l, K, c)", "the output of the first time step"),
    (LSTM + "q = Squeeze(Y, i1) l = Gather<axis=1>(q, last) y = Gemm(l, K, c)", "a part of the images, of the examp"),
    (LSTM + STEP + "l = Slice(t, i1, i2, i2) m = Squeeze(l) y = MatMul(m, K)", "and the layer before gives 6 features"),
    (LSTM + STEP + "y = MatMul(t, K)", "from the output of all time steps"),
    (
        LSTM + STEP + "e = MatMul(t, A) w = Softmax<axis=0>(e) p = Mul(w, t) l = ReduceSum<keepdims=0>(p, i1) "
        "y = Gemm(l, K, c)",
        "Softmax pools along another axis than time",
    ),
    (
        LSTM + STEP + "e = MatMul(t, A) w = Softmax<axis=1>(e) g = Gather(w, i0) p = Mul(g, t) "
        "l = ReduceSum<keepdims=0>(p, i1) y = Gemm(l, K, c)",
        "weights outputs by the attention to other steps or other",
    ),
    (LSTM + STEP + "l = ReduceSum<axes=[1], keepdims=0>(t) y = Gemm(l, K, c)", "has axes, which is not read"),
    (LSTM + STEP + "l = ReduceSum<keepdims=0>(t, i1) y = Gemm(l, K, c)", "pools something else than the outputs of a"),
    ("r = Gather<axis=1>(x, shuffled)" + LSTM.replace("(x)", "(r)") + HEAD, "reads the steps in another order"),
    (
        LSTM + STEP + "m = MatMul(t, K) a = Add(m, c) y = ReduceMax<axes=[1], keepdims=0>(a)",
        "pools after the dense layer",
    ),
    (LSTM + "q = Squeeze(Y, i1) l = ReduceMean<axes=[1], keepdims=0>(q) y = Gemm(l, K, c)", "another axis than time"),
    (LSTM + "h = Squeeze(H, i0) y = Gemm(h, KB, c)", r"its matrix is \[8, 3\], and the layer before gives 4"),
    (
        BOTH + "f = Gather<axis=0>(H, zero) b = Gather<axis=0>(H, one) h = Concat<axis=1>(b, f) y = Gemm(h, KB, c)",
        "puts the backward direction first",
    ),
    (LSTM + HEAD + "s = Identity(y)", "computes s twice"),
    (BOTH + "f = Gather<axis=0>(H, zero) y = Gemm(f, K, c)", "uses one direction of a bidirectional layer"),
    (
        BOTH + "t = Transpose<perm=[1,2,0]>(H) h = Reshape(t, to2) y = Gemm(h, KB, c)",
        "has other inputs than the features of one step",
    ),
    (
        "s = Transpose<perm=[1,0,2]>(x) Y, H = GRU<hidden_size=4>(s, WG, RG, BG0)" + HEAD,
        "has linear_before_reset=0: its reset gate",
    ),
    ("Y, H = LSTM<hidden_size=4>(x, W, R, B)" + HEAD, "steps along an axis of open size, and 6 examples along anoth"),
    ("m = Mul(x, tenth)" + LSTM.replace("(x)", "(m)") + HEAD, "not clear whether the pixels are 0 to 1 or 0 to 255"),
    ("m = Mul(x, uneven)" + LSTM.replace("(x)", "(m)") + HEAD, "changes each pixel by a number of its own"),
    ("m = Div(unit, x)" + LSTM.replace("(x)", "(m)") + HEAD, "divides by zero or by the images"),
    ("m = MatMul(x, SQ5)" + LSTM.replace("(x)", "(m)") + HEAD, "MatMul.* stands before the LSTM or GRU layers"),
    ("m = Slice(x, big, FIRST, i1, im1)" + LSTM.replace("(x)", "(m)") + HEAD, "reads the steps in another order"),
    ("m = Cast<to=7>(x) n = Cast<to=1>(m)" + LSTM.replace("(x)", "(n)") + HEAD, "rounds to another type than floats"),
    (LSTM + "h = Squeeze(H, i0) d, m = Dropout(h) y = Gemm(m, K, c)", "uses output 2 of the operator Dropout"),
    (LSTM + "h = Squeeze(H, i0) y = Gemm(h, NAN, c)", "layer y holds values that are not finite"),
    (LSTM + "h = Squeeze(H, i0) y = MatMul(h, A)", "layer y has one output, as for a number or for two classes"),
    ("y = MatMul(x, K53)", "stands before the LSTM"),
]
MORE = {"A": A, "shuffled": np.array([1, 0, 2, 3, 4, 5]), "SQ": np.eye(3, dtype="f4"), "SQ5": np.eye(5, dtype="f4"),
        "FIRST": np.array([-(2**62)]), "NAN": np.full((4, 3), np.nan, "f4"), "K53": np.ones((5, 3), "f4")}  # fmt: skip


def test_whatever_is_not_the_classifier_is_refused_by_its_operator(tmp_path):
    for body, message in REFUSED:
        with pytest.raises(WeightsError, match=message) as error:
            read(graph(body, **MORE), tmp_path)
        assert str(error.value).startswith(str(tmp_path)), body
        assert "\n" not in str(error.value)
    with pytest.raises(WeightsError, match="it has 2 inputs"):
        read(graph(LSTM.replace("B)", "B, , z)") + HEAD, "float[N,6,5] x, float[1,N,4] z"), tmp_path)
    with pytest.raises(WeightsError, match="computes with integers, which overflow or are rounded"):
        read(graph("d = Div(x, n) f = Cast<to=1>(d)" + LSTM.replace("(x)", "(f)") + HEAD, "uint8[N,6,5] x",
                   n=np.array(255, np.uint8)), tmp_path)  # fmt: skip
    with pytest.raises(WeightsError, match="of integers that can be 0 to 255"):
        read(graph("f = Cast<to=1>(x)" + LSTM.replace("(x)", "(f)") + HEAD, "int8[N,6,5] x"), tmp_path)
    with pytest.raises(WeightsError, match="is of another classifier"):
        read(graph(LSTM + HEAD + "z = Gemm(h, K, row3)", outputs=("y", "z"), row3=CONSTANTS["c"] + 1), tmp_path)
    body = "v0 = Cast<to=1>(V) " + " ".join(f"v{n + 1} = Mul(v{n}, v{n})" for n in range(99))
    body += " w = Slice(v99, i0, i1, i0) u = Mul(x, w)" + LSTM.replace("(x)", "(u)") + HEAD
    with pytest.raises(WeightsError, match=r"numbers; with those before it these are .* bytes, more than the file can"):
        read(graph(body, V=np.ones(20_000, np.float32)), tmp_path)
    body = "t = Transpose<perm=[2,0,1,3]>(x) s = Reshape(t, sizes) Y, H = LSTM<hidden_size=4>(s, W10, R, B)" + HEAD
    changes = {"sizes": np.array([3, 4, 10]), "W10": np.ones((1, 16, 10), np.float32)}
    with pytest.raises(WeightsError, match="neither row by row nor column by column"):
        read(graph(body, "float[4,2,3,5] x", **changes), tmp_path)


def test_files_that_are_no_onnx_graphs_are_refused(tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(WeightsError, match="cannot be read: No such file"):
        reader.read(path)
    data = graph(LSTM + HEAD).SerializeToString()
    for contents in (b"", b"hello", data[:100], data[: len(data) // 2]):
        path.write_bytes(contents)
        with pytest.raises(WeightsError, match="cannot be read as an ONNX file"):
            reader.read(path)
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="leave out --ignore and --layer"):
        formats.read("onnx", path, ignore=["W"])
    assert formats.list_arrays("onnx", path)["W"].shape == (1, 16, 5)


def test_mutated_graphs_are_refused_or_compute_what_onnxruntime_computes(tmp_path):
    _, compared, refused = try_mutations(150, tmp_path, seed=1)
    assert min(compared, refused) > 15
