"""TensorFlow 1's graphs: models with the logits that TensorFlow computed, other networks, and damage."""

import random
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop import formats, tf1
from lstm_mnist_jax.interop.inputs import Inputs
from lstm_mnist_jax.interop.tf_checkpoint import find_prefix, messages, read_checkpoint, write_checkpoint
from lstm_mnist_jax.interop.tf_checkpoint.sstable import varint

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "tf1_graphs.tar.xz"

FORGET_BIASES = {
    "all_steps": [1],
    "bidirectional": [1],
    "bidirectional_final_states": [1, 0.3],
    "bidirectional_in_two_layers": [1, 1, 0.5, 2],
    "block_lstm": [0.7],
    "columns": [1],
    "divided_by_255": [1],
    "dropout": [1, 1],
    "dropout_in_training": [1],
    "dropout_of_2016": [1],
    "dynamic_in_loops_of_2": [0.2, 1],
    "forget_bias_0": [0],
    "forget_biases_differ": [0.3, 2],
    "gathered": [1],
    "hand_written": [0],
    "hidden_dense": [1],
    "hidden_tanh": [1],
    "in_a_while_loop": [0.5],
    "linear_cell": [1],
    "lstm_block_cell": [0.7],
    "max_over_time": [1],
    "mean": [1],
    "normalised": [1],
    "partitioned": [1],
    "projection": [1],
    "projection_by_layers": [1],
    "relu": [1],
    "relu_with_forget_biases": [0.3, 2],
    "renamed": [0.4, 1],
    "sequence_lengths": [1],
    "shared_by_two_copies": [1],
    "state_not_in_a_tuple": [1],
    "static": [0.5],
    "static_from_split": [0.5, 0.5],
    "static_in_two_calls": [1, 1],
    "static_with_projected_steps": [1, 1],
}

FIELDS = {
    "all_steps": {"pooling": "all"},
    "bidirectional": {"bidirectional": True, "pooling": "last_step"},
    "bidirectional_final_states": {"bidirectional": True},
    "bidirectional_in_two_layers": {"bidirectional": True},
    "columns": {"task": "columns"},
    "hidden_dense": {"dense_features": (6,), "dense_activation": "relu"},
    "hidden_tanh": {"dense_features": (6,), "dense_activation": "tanh"},
    "linear_cell": {"activation": "linear"},
    "max_over_time": {"pooling": "max"},
    "mean": {"pooling": "mean"},
    "relu": {"activation": "relu"},
    "relu_with_forget_biases": {"activation": "relu"},
}
"""What a config has besides the widths of the LSTM layers."""

REFUSED = {
    "backward_before_forward": r"joins the backward direction before the forward one",
    "backwards": r"reads rows backwards.*reads rows or columns from the first one.*the operations Reverse",
    "backwards_by_stride": r"reads rows backwards, and Variable takes last of rnn/basic_lstm_cell/kernel",
    "basic_rnn": r"no LSTM cell.*basic_rnn_cell/bias of a BasicRNNCell",
    "block_lstm_clipped": r"no plain LSTM cell: it has cell_clip=3",
    "cell_clip": r"rnn/lstm_cell/kernel is no plain LSTM cell: it has a clipped cell state \(cell_clip\)",
    "cell_state": r"Variable takes the last cell state c of rnn/basic_lstm_cell/kernel",
    "decaying_state": r"computes other logits of random images than a model with rnn/decaying/kernel, Variable",
    "elu_cell": r"the operation Elu \(rnn/while/.*\), which import does not know",
    "first_step": r"Variable takes the outputs h of step 1 of 6 of",
    "gru": r"no LSTM cell.*of a GRUCell \(which multiplies r and h before the product",
    "halved": r"computes other logits of random images",
    "initial_state_of_ones": r"computes other logits of random images",
    "layer_norm": r"another computation of its input gate.*of layer normalization \(LayerNormBasicLSTMCell\)",
    "learned_state": r"depends also on Variable",
    "lengths_of_the_images": r"differ for images with blank rows alone: the graph computes sequence lengths",
    "no_bias": r"The output layer Variable has no bias",
    "num_proj": r"of a projection of its output \(num_proj\)",
    "other_order_of_gates": r"the activation sigmoid instead of tanh or relu or linear",
    "peepholes": r"another computation of its input gate.*of peepholes \(use_peepholes=True\)",
    "random_noise": r"depends on random numbers",
    "relu_of_logits": r"The output layer Variable has the activation relu",
    "relu_of_projection": r"computes relu of the outputs of w_in before rnn/basic_lstm_cell/kernel",
    "relu_then_tanh": r"activations .*cell_0/.* relu, .*cell_1/.* tanh; in this program's model all LSTM",
    "residual": r"computes other logits of random images than a model with .*cell_0.*, .*cell_1.*, Variable",
    "scaled_logits": r"computes other logits of random images",
    "state_before_input": r"has the state before the input",
    "static_backwards": r"reads rows backwards",
    "static_backwards_between": r"computes other logits of random images",
    "static_fourth_step": r"reads 66 % of the images' pixels",
    "two_heads": r"Expected one output layer.*found Variable, other_w.*--ignore",
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


def logits(imported, images):
    """The model in plain NumPy."""
    config, weights = imported.config, imported.weights
    functions = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0), "linear": lambda x: x}
    activation = functions[config.activation]

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def outputs_of(cell, x):
        h = c = np.zeros((len(images), len(cell.recurrent_kernel)))
        outputs = []
        for step in range(x.shape[1]):
            i, f, g, o = np.split(x[:, step] @ cell.kernel + h @ cell.recurrent_kernel + cell.bias, 4, axis=1)
            c = c * sigmoid(f) + sigmoid(i) * activation(g)
            h = activation(c) * sigmoid(o)
            outputs.append(h)
        return np.stack(outputs, 1)

    x = images.astype(np.float64)
    x = x.transpose(0, 2, 1) if config.task == "columns" else x
    for layer in weights.layers:
        directions = [outputs_of(layer.forward, x)]
        directions += [outputs_of(layer.backward, x[:, ::-1])[:, ::-1]] if layer.backward else []
        x = np.concatenate(directions, -1)
    last = np.concatenate([each[:, 0 if number else -1] for number, each in enumerate(directions)], -1)
    pooled = {"all": x.reshape(len(x), -1), "mean": x.mean(1), "max": x.max(1), "last": last, "last_step": x[:, -1]}
    x = pooled[config.pooling]
    for dense in weights.dense[:-1]:
        x = functions[config.dense_activation](x @ dense.kernel + dense.bias)
    return x @ weights.dense[-1].kernel + weights.dense[-1].bias


def assert_right(folder, imported):
    expected = np.load(folder / "expected.npz")
    np.testing.assert_allclose(logits(imported, expected["images"]), expected["logits"], rtol=0, atol=2e-6)


def test_logits_are_tensorflows_with_the_forget_biases_of_the_graph(networks):
    assert {folder.name for folder in networks.iterdir()} == {*FORGET_BIASES, *REFUSED}
    for name, biases in FORGET_BIASES.items():
        imported = tf1.read(networks / name / "model.ckpt")
        assert_right(networks / name, imported)
        shown = f"{biases[0]:g}" if len(set(biases)) == 1 else ", ".join(f"{bias:g}" for bias in biases)
        config = imported.config
        assert imported.notes[0].startswith(f"from the graph: forget bias {shown}, {config.activation}"), name
        expected = {"forget_bias": float(biases[0]), "hidden_features": config.hidden_features} | FIELDS.get(name, {})
        assert config == ModelConfig(**expected), name


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
        with pytest.raises(WeightsError, match=r"names are wanted is that of another .* a linear layer before"):
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


def test_the_names_of_another_network_are_not_taken(networks, tmp_path):
    weights = tf1.read(networks / "static" / "model.ckpt").weights
    for name, field in [("relu", "activation relu"), ("mean", "pooling mean"), ("hidden_dense", "hidden dense layers")]:
        with pytest.raises(WeightsError, match=f"is that of another network, with {field}"):
            tf1.write(tmp_path / "ours", weights, like=networks / name / "model.ckpt")


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
    old = {"AddV2": "Add", "BiasAdd": "Add", "VariableV2": "Variable", "ConcatV2": "Concat"}
    for name in ("static_from_split", "forget_biases_differ"):
        folder = copy(name)
        meta = messages.parse("MetaGraph", (folder / "model.ckpt.meta").read_bytes())
        for node in meta.graph_def.node:
            if node.op == "ConcatV2":
                inputs = [each for each in node.input if not each.startswith("^")]
                node.input[: len(inputs)] = [inputs[-1], *inputs[:-1]]
            node.op = old.get(node.op, node.op.replace("V3", "V2"))
        data = meta.SerializeToString()
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
    for name in ("BUDGET", "MAX_VISITS"):
        with monkeypatch.context() as patch:
            patch.setattr(f"lstm_mnist_jax.interop.tf1_run.{name}", 1000)
            with pytest.raises(WeightsError, match="computes more than this program runs"):
                tf1.read(prefix)


def test_a_loop_without_an_end_is_refused(copy, monkeypatch):
    prefix = copy("in_a_while_loop") / "model.ckpt"
    meta = messages.parse("MetaGraph", prefix.with_suffix(".ckpt.meta").read_bytes())
    nodes = {node.name: node for node in meta.graph_def.node}
    nodes["while/NextIteration"].input[0] = "while/Identity"  # the number of the step stays 0
    prefix.with_suffix(".ckpt.meta").write_bytes(meta.SerializeToString())
    monkeypatch.setattr("lstm_mnist_jax.interop.tf1_run.MAX_VISITS", 10_000)
    with pytest.raises(WeightsError, match="computes more than this program runs"):
        tf1.read(prefix)


def test_a_function_within_itself_ends(copy):
    prefix = copy("static") / "model.ckpt"
    meta = messages.parse("MetaGraph", prefix.with_suffix(".ckpt.meta").read_bytes())
    function = meta.graph_def.library.function.add()
    function.signature.name = "f"
    function.signature.output_arg.add(name="result")
    function.ret.add(key="result", value="again:output:0")
    node = function.node.add(name="again", op="PartitionedCall")
    node.attr.add(key="f").value.func.name = "f"
    called = next(each for each in meta.graph_def.node if each.op == "Split")
    called.op = node.op
    called.attr.extend(node.attr)
    del called.input[:]
    prefix.with_suffix(".ckpt.meta").write_bytes(meta.SerializeToString())
    with pytest.raises(WeightsError, match="within each other, more than 8"):
        tf1.read(prefix)


def test_mutated_graphs_raise_only_weights_errors(networks, tmp_path):
    """A sample: whole nodes are doubled, lost, connected to others and made other operations."""
    generator = random.Random(0)
    for name in ("normalised", "block_lstm"):
        write_checkpoint(tmp_path / name, {key: np.asarray(a) for key, a in read_checkpoint(networks / name).items()})
        meta = messages.parse("MetaGraph", (networks / name / "model.ckpt.meta").read_bytes())
        nodes = [node.SerializeToString() for node in meta.graph_def.node]
        outcomes = []
        for _ in range(20):
            parts = [mutated(node, nodes, generator) for node in nodes]
            graph_def = b"".join(varint(10) + varint(len(part)) + part for part in parts if part is not None)
            (tmp_path / f"{name}.meta").write_bytes(varint(18) + varint(len(graph_def)) + graph_def)
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
    changed, other = (messages.parse("Node", each) for each in (node, generator.choice(nodes)))
    if kind == 1:
        changed.op = other.op
    elif kind == 2 and changed.input:
        changed.input[0] = generator.choice([other.name, "", "a:b:c:9", ":"])
    elif kind == 3:
        place = generator.randrange(len(node))
        return node[:place] + bytes([generator.randrange(256)]) + node[place + 1 :]
    elif kind == 4:
        changed.ClearField("attr")
        changed.attr.extend(other.attr)
    return changed.SerializeToString()
