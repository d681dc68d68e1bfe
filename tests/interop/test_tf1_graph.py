"""TensorFlow 1's graphs: models with the logits that TensorFlow computed, other networks, and damage."""

import random
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop import formats, tf1
from lstm_mnist_jax.interop.inputs import Inputs
from lstm_mnist_jax.interop.tf_checkpoint import find_prefix, graph, protobuf, read_checkpoint, write_checkpoint

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "tf1_graphs.tar.xz"

FORGET_BIASES = {
    "block_lstm": [0.7],
    "divided_by_255": [1],
    "dropout": [1, 1],
    "dropout_in_training": [1],
    "dropout_of_2016": [1],
    "dynamic_in_loops_of_2": [0.2, 1],
    "forget_bias_0": [0],
    "forget_biases_differ": [0.3, 2],
    "gathered": [1],
    "hand_written": [0],
    "lstm_block_cell": [0.7],
    "normalised": [1],
    "partitioned": [1],
    "projection": [1],
    "projection_by_layers": [1],
    "renamed": [0.4, 1],
    "sequence_lengths": [1],
    "shared_by_two_copies": [1],
    "state_not_in_a_tuple": [1],
    "static": [0.5],
    "static_from_split": [0.5, 0.5],
    "static_in_two_calls": [1, 1],
    "static_with_projected_steps": [1, 1],
}

REFUSED = {
    "all_steps": r"weights \[24, 3\].*but the last LSTM layer gives 4 features",
    "backwards": r"computes ReverseV2 of its inputs",
    "backwards_by_stride": r"by columns or backwards",
    "basic_rnn": r"no LSTM cell.*basic_rnn_cell/bias of a BasicRNNCell",
    "bidirectional": r"Variable takes the outputs of .*bw.*, .*fw.* together \(both directions",
    "block_lstm_clipped": r"no plain LSTM cell: it has cell_clip=3",
    "cell_clip": r"rnn/lstm_cell/kernel is no plain LSTM cell: it has a clipped cell state \(cell_clip\)",
    "cell_state": r"Variable takes the cell state c of .*, not the hidden state h",
    "columns": r"by columns or backwards",
    "decaying_state": r"does not keep its own h and c unchanged",
    "first_step": r"the first time step \(strided_slice\), not of the last one",
    "gru": r"no LSTM cell.*of a GRUCell",
    "halved": r"a product or a sum with a constant of the outputs of",
    "hidden_dense": r"a dense layer dense/kernel after LSTM cells, besides the output layer dense_1/kernel",
    "initial_state_of_ones": r"begins with another state than zeros \(ones\)",
    "layer_norm": r"it has no bias .*of layer normalization \(LayerNormBasicLSTMCell\)",
    "learned_state": r"depends also on Variable",
    "mean": r"computes Mean of the outputs",
    "no_bias": r"The output layer Variable has no bias",
    "num_proj": r"of a projection of its output \(num_proj\)",
    "other_order_of_gates": r"the activation sigmoid instead of tanh",
    "peepholes": r"another computation of its input gate .*of peepholes \(use_peepholes=True\)",
    "relu": r"model.ckpt.meta: The cell of rnn/basic_lstm_cell/kernel .* the activation relu instead of tanh",
    "relu_of_logits": r"The output layer Variable has the activation relu",
    "relu_of_projection": r"computes Relu of the outputs of w_in before rnn/basic_lstm_cell/kernel",
    "residual": r"takes the outputs of .*cell_0.*, .*cell_1.* together",
    "state_before_input": r"joins its state and its input in another order",
    "static_backwards": r"time steps before layer_0/basic_lstm_cell/kernel in another order",
    "static_backwards_between": r"time steps before layer_1/basic_lstm_cell/kernel in another order",
    "static_fourth_step": r"time steps before Variable in another order",
    "two_networks": r"Expected one output layer.*found a/Variable, b/Variable.*--ignore",
}


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def copy(networks, tmp_path):
    def copy(name):
        return shutil.copytree(networks / name, tmp_path / name)

    return copy


def logits(weights, images):
    """The model in plain NumPy."""

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    outputs = list(images.astype(np.float64).transpose(1, 0, 2))
    for layer in [layer.forward for layer in weights.layers]:
        h = c = np.zeros((len(images), len(layer.recurrent_kernel)))
        for step, x in enumerate(outputs):
            i, f, g, o = np.split(x @ layer.kernel + h @ layer.recurrent_kernel + layer.bias, 4, axis=1)
            c = c * sigmoid(f) + sigmoid(i) * np.tanh(g)
            outputs[step] = h = np.tanh(c) * sigmoid(o)
    return outputs[-1] @ weights.dense[0].kernel + weights.dense[0].bias


def assert_right(folder, imported):
    expected = np.load(folder / "expected.npz")
    np.testing.assert_allclose(logits(imported.weights, expected["images"]), expected["logits"], rtol=0, atol=2e-6)


def test_logits_are_tensorflows_with_the_forget_biases_of_the_graph(networks):
    assert {folder.name for folder in networks.iterdir()} == {*FORGET_BIASES, *REFUSED}
    for name, biases in FORGET_BIASES.items():
        imported = tf1.read(networks / name / "model.ckpt")
        assert_right(networks / name, imported)
        shown = f"{biases[0]:g}" if len(set(biases)) == 1 else ", ".join(f"{bias:g}" for bias in biases)
        assert imported.notes[0].startswith(f"from the graph: forget bias {shown}, tanh"), name
        assert imported.config.forget_bias == biases[0]


def test_graphs_of_other_networks_are_refused_for_what_they_are(networks):
    for name, message in REFUSED.items():
        with pytest.raises(WeightsError, match=message):
            tf1.read(networks / name / "model.ckpt")


def test_of_two_networks_one_is_taken(networks):
    imported = tf1.read(networks / "two_networks", ignore=["a/*"])
    assert_right(networks / "two_networks", imported)
    assert imported.names == ("b/rnn/basic_lstm_cell", "b/Variable")


def test_what_comes_before_the_cells_becomes_part_of_them(networks):
    for name, note in [
        ("projection", "the linear layer w_in became part of the first LSTM layer; Adam starts from zero"),
        ("normalised", "the scaling of pixels, 3.33333 x -0.433333, became part"),
    ]:
        imported = tf1.read(networks / name)
        assert note in imported.notes[1]
        assert imported.adam is None
        with pytest.raises(WeightsError, match="names are wanted has a linear layer before"):
            tf1.write(networks / "new", imported.weights, like=networks / name)
    for name in ("normalised", "divided_by_255"):
        with pytest.raises(WeightsError, match="scaled by the network itself"):
            formats.read("tf1", networks / name / "model.ckpt", inputs=Inputs(scale=1.0))


def test_a_forget_bias_that_contradicts_the_graph_is_taken_and_reported(networks):
    given, right = (tf1.read(networks / "static", forget_bias=bias) for bias in (0.0, None))
    assert "forget bias 0 as given, although the graph has 0.5" in given.notes[0]
    difference = right.weights.layers[0].forward.bias - given.weights.layers[0].forward.bias
    np.testing.assert_allclose(difference, [0] * 4 + [0.5] * 4 + [0] * 8, atol=1e-6)
    assert (given.config.forget_bias, right.config.forget_bias) == (0.0, 0.5)


def test_without_a_graph_what_was_assumed_is_reported(copy):
    folder = copy("static")
    (folder / "model.ckpt.meta").unlink()
    assumed, right = (tf1.read(folder / "model.ckpt", forget_bias=bias, b1=0.8) for bias in (None, 0.5))
    assert assumed.notes == ("without a .meta file: assumed forget bias 1, tanh and sigmoid",)
    assert_right(folder, right)
    assert "forget bias 0.5 (as given)" in right.notes[0]


def test_hyperparameters_of_adam_come_from_the_graph(networks):
    for name in ("static", "dynamic_in_loops_of_2"):
        imported = tf1.read(networks / name)
        assert "Adam with learning_rate 0.002, b1 0.8, b2 0.999, epsilon 1e-08" in imported.notes[0]
        assert imported.adam.steps == 0


def test_an_export_with_the_names_of_another_has_the_forget_biases_of_its_graph(networks, tmp_path):
    theirs = networks / "forget_biases_differ" / "model.ckpt"
    imported = tf1.read(theirs)
    tf1.write(tmp_path / "ours", imported.weights, like=theirs, forget_bias=7.0)
    found, expected = (read_checkpoint(path) for path in (tmp_path / "ours", theirs))
    for name, array in expected.items():
        np.testing.assert_allclose(np.asarray(found[name]), np.asarray(array), atol=1e-6)


def test_an_order_that_contradicts_the_graph_is_refused(networks):
    names = [f"rnn/multi_rnn_cell/cell_{number}/lstm_cell" for number in (1, 0)]
    with pytest.raises(WeightsError, match=r"--layer names .*; the graph has the cells"):
        tf1.read(networks / "static_from_split", order=names)


def test_saved_models_are_read_and_graphs_without_weights_are_named(networks, tmp_path):
    folder = networks / "static"
    for path in ("saved", "saved/saved_model.pb", "saved/variables"):
        assert_right(folder, formats.read("tf1", formats.locate("tf1", folder / path)))
    for name, message in [
        ("graph.pb", r"is a graph \(GraphDef\), without the weights. There are model.ckpt in"),
        ("frozen.pb", r"is a frozen graph \(GraphDef\): import reads the checkpoint"),
        ("expected.npz", "is no TensorFlow checkpoint, or cut short. There are model.ckpt in"),
    ]:
        with pytest.raises(WeightsError, match=message):
            find_prefix(folder / name)
    shutil.copy(folder / "saved" / "saved_model.pb", tmp_path)
    with pytest.raises(WeightsError, match="is not a TensorFlow checkpoint"):
        find_prefix(tmp_path)
    shutil.copy(folder / "model.ckpt.meta", tmp_path)
    with pytest.raises(WeightsError, match=r"the graph of a checkpoint, without the weights: its .index is missing"):
        find_prefix(tmp_path / "model.ckpt.meta")


def test_operations_of_older_versions(copy):
    """TensorFlow 0.12 had other kinds of operations; its Concat takes the axis first."""
    for name in ("static_from_split", "forget_biases_differ"):
        folder = copy(name)
        graph_def = protobuf.parse(protobuf.last(protobuf.parse((folder / "model.ckpt.meta").read_bytes()), 2))
        nodes = []
        for node in map(protobuf.parse, graph_def[1]):
            if node[2] == [b"ConcatV2"]:
                node[3].insert(
                    0, node[3].pop([name[:1] for name in node[3]].index(b"^") - 1 if b"^" in node[3][-1] else -1)
                )
            old = {b"ConcatV2": b"Concat", b"AddV2": b"Add", b"BiasAdd": b"Add", b"VariableV2": b"Variable"}
            node[2] = [old.get(node[2][0], node[2][0].replace(b"V3", b"V2"))]
            nodes.append(protobuf.message((number, value) for number, values in node.items() for value in values))
        data = protobuf.message([(2, protobuf.message((1, node) for node in nodes))])
        assert b"ConcatV2" not in data
        (folder / "model.ckpt.meta").write_bytes(data)
        assert_right(folder, tf1.read(folder / "model.ckpt"))


def test_a_damaged_graph_is_refused_with_a_way_out(copy):
    meta = copy("static") / "model.ckpt.meta"
    data = meta.read_bytes()
    for damaged in (b"", data[:1000], b"no protocol buffer"):
        meta.write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"meta is damaged: .* Where model.ckpt.meta lies elsewhere"):
            tf1.read(meta.with_suffix(""))


def test_graphs_that_are_too_large_are_refused(copy, monkeypatch):
    prefix = copy("dynamic_in_loops_of_2") / "model.ckpt"
    for name, limit, message in [
        ("graph.MAX_BYTES", 1000, "is not supported: it has more than"),
        ("graph.MAX_NODES", 100, "is not supported: it has more than 100 nodes"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(f"lstm_mnist_jax.interop.tf_checkpoint.{name}", limit)
            with pytest.raises(WeightsError, match=message):
                tf1.read(prefix)
    monkeypatch.setattr("lstm_mnist_jax.interop.tf1_graph.MAX_STEPS", 100)
    with pytest.raises(WeightsError, match="too many connections"):
        tf1.read(prefix)


def test_a_loop_within_itself_ends():
    body = protobuf.message(
        [(1, b"While"), (2, b"While"), (5, protobuf.message([(1, b"body"), (2, b"\x52\x03\x0a\x01f")]))]
    )
    signature = protobuf.message([(1, b"f"), (2, protobuf.message([(1, b"a")]))])
    library = protobuf.message([(1, protobuf.message([(1, signature), (3, body), (3, body)]))])
    nodes = graph.nodes_of(protobuf.message([(1, body), (2, library)]))
    assert max(name.count("/") for name in nodes) == graph.MAX_DEPTH


def test_mutated_graphs_raise_only_weights_errors(networks, tmp_path):
    """A sample: whole nodes are doubled, lost, connected to others and made other operations."""
    generator = random.Random(0)
    for name in ("normalised", "block_lstm"):
        write_checkpoint(tmp_path / name, {key: np.asarray(a) for key, a in read_checkpoint(networks / name).items()})
        data = protobuf.last(protobuf.parse((networks / name / "model.ckpt.meta").read_bytes()), 2)
        fields = protobuf.parse(data)
        outcomes = []
        for _ in range(20):
            nodes = [mutated(node, fields[1], generator) for node in fields[1]]
            parts = [(1, node) for node in nodes if node is not None] + [(2, each) for each in fields.get(2, [])]
            (tmp_path / f"{name}.meta").write_bytes(protobuf.message([(2, protobuf.message(parts))]))
            try:
                outcomes.append(np.isfinite(tf1.read(tmp_path / name).weights.dense[-1].bias).all())
            except WeightsError:
                outcomes.append("refused")
        assert set(outcomes) == {True, "refused"}


def mutated(node, nodes, generator):
    """Mostly the node as it is."""
    kind = generator.randrange(400)
    if kind == 0:
        return None
    if kind > 4:
        return node
    fields = protobuf.parse(node)
    other = protobuf.parse(generator.choice(nodes))
    if kind == 1:
        fields[2] = other[2]
    elif kind == 2 and 3 in fields:
        fields[3] = [*fields[3][1:], generator.choice([*other[1], b"", b"a:b:c:9", b":"])]
    elif kind == 3:
        place = generator.randrange(len(node))
        return node[:place] + bytes([generator.randrange(256)]) + node[place + 1 :]
    elif kind == 4:
        fields[5] = other.get(5, [])
    return protobuf.message((number, value) for number, values in fields.items() for value in values)
