"""GRUs, both directions and their poolings: against the equations in NumPy, from arrays with PyTorch's names."""

import itertools

import flax.linen as nn
import jax
import numpy as np
import numpy_gru
import numpy_lstm
import pytest
from parameters import drawn
from safetensors.numpy import save_file
from stacks import apply, assert_close

from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop import files, flax, formats, torch

SIZES = {"lstm": 4, "gru": 3}


def arrays_of(rng, cell, widths, *, both=False, dense=(), pooling="last", bias=True):
    """A state_dict in the arrangement of one module, or of a list of modules."""
    found, features = {}, 5
    one = len(set(widths)) == 1
    for number, hidden in enumerate(widths):
        rows = SIZES[cell] * hidden
        shapes = {"weight_ih": (rows, features), "weight_hh": (rows, hidden), "bias_ih": rows, "bias_hh": rows}
        for kind, shape in list(shapes.items())[: 4 if bias else 2]:
            for end in ("", "_reverse")[: 1 + both]:
                name = f"rnn.{kind}_l{number}{end}" if one else f"rnn.{number}.{kind}_l0{end}"
                found[name] = rng.normal(0, 0.5, shape).astype("f4")
        features = hidden * (1 + both)
    if pooling == "attention":
        found["attention.weight"] = rng.normal(size=(1, features)).astype("f4")
    sizes = [features * (6 if pooling == "all" else 1), *dense, 3]
    for number, (before, after) in enumerate(itertools.pairwise(sizes)):
        found[f"fc.{number}.weight"] = rng.normal(0, 0.5, (after, before)).astype("f4")
        found[f"fc.{number}.bias"] = rng.normal(size=after).astype("f4")
    return found


def logits_of(found, cell, widths, images, *, both=False, dense=(), pooling="last", bias=True):
    """In float64."""
    sequence, one = np.swapaxes(images.astype(np.float64), 0, 1), len(set(widths)) == 1
    for number, hidden in enumerate(widths):
        states = []
        for reverse in (False, True)[: 1 + both]:
            end = "_reverse" if reverse else ""
            names = [
                f"rnn.{kind}_l{number}{end}" if one else f"rnn.{number}.{kind}_l0{end}"
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            ]
            kernel, recurrent, *biases = (found[name].T for name in names[: 4 if bias else 2])
            biases = biases or [np.zeros(kernel.shape[1])] * 2
            h = np.zeros((len(images), hidden))
            if cell == "lstm":
                states.append(numpy_lstm.lstm(sequence, kernel, recurrent, sum(biases), h, h, reverse=reverse)[0])
            else:
                states.append(numpy_gru.gru(sequence, kernel, recurrent, *biases, h=h, reverse=reverse)[1])
        sequence = np.concatenate(states, axis=-1)
    match pooling:
        case "last":
            features = np.concatenate([hs[0 if number else -1] for number, hs in enumerate(states)], axis=-1)
        case "last_step":
            features = sequence[-1]
        case "all":
            features = np.concatenate(list(sequence), axis=-1)
        case "attention":
            weights = np.exp(sequence @ found["attention.weight"].T)
            features = (sequence * weights / weights.sum(axis=0)).sum(axis=0)
        case _:
            features = getattr(sequence, pooling)(axis=0)
    for number in range(len(dense) + 1):
        features = features if not number else np.tanh(features)
        features = features @ found[f"fc.{number}.weight"].T + found[f"fc.{number}.bias"]
    return features


CASES = [
    {"cell": "gru", "widths": (4,)},
    {"cell": "gru", "widths": (4, 3), "bias": False},
    {"cell": "gru", "widths": (3, 3), "both": True, "pooling": "last_step", "dense": (4,)},
    {"cell": "gru", "widths": (4,), "pooling": "attention", "both": True},
    {"cell": "lstm", "widths": (3, 4), "both": True, "pooling": "last"},
    {"cell": "lstm", "widths": (4,), "both": True, "pooling": "last_step"},
    {"cell": "lstm", "widths": (3, 3, 3), "both": True, "pooling": "mean"},
    {"cell": "lstm", "widths": (4,), "both": True, "pooling": "all"},
    {"cell": "lstm", "widths": (4,), "pooling": "max"},
]


def test_state_dicts_give_the_logits_of_the_equations(rng, tmp_path):
    images = rng.random((3, 6, 5), np.float32)
    for case in CASES:
        found = arrays_of(rng, **case)
        expected = logits_of(found, images=images, **case)
        save_file(found, tmp_path / "model.safetensors")
        given = {"pooling": case.get("pooling"), "dense_activation": "tanh" if case.get("dense") else None}
        imported = formats.read("torch", tmp_path / "model.safetensors", given=formats.Given(**given))
        assert imported.config.recurrent_bias == (case["cell"] == "gru" and case.get("bias", True))
        logits = apply(imported.params, images, imported.config)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5, err_msg=str(case))
        written = torch.from_state_dict(torch.to_state_dict(imported.params))  # with other names
        assert_close(written, imported.params, atol=0)


def test_a_recurrent_bias_that_does_nothing_is_not_kept(rng):
    found = arrays_of(rng, "gru", (4,))
    found["rnn.bias_hh_l0"][8:] = 0
    imported = torch.from_arrays(found)
    assert not imported.config.recurrent_bias
    images = rng.random((3, 6, 5), np.float32)
    expected = logits_of(found, "gru", (4,), images)
    np.testing.assert_allclose(apply(imported.params, images, imported.config), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "said", "message"),
    [
        ({"both": True}, {}, r"both directions, .*--pooling last_step where it takes outputs\[:, -1\].*h_n\[-2\]"),
        ({"pooling": "attention"}, {}, "weights of attention pooling, .* confirm this with --pooling attention"),
        ({"pooling": "attention"}, {"pooling": "mean"}, "confirm this with --pooling attention"),
        ({}, {"pooling": "attention"}, r"but the file has no attention.weight"),
        ({"both": True, "pooling": "all"}, {"pooling": "max"}, "--pooling is max, but .* has all"),
    ],
)
def test_a_pooling_is_asked_for_and_not_guessed(rng, tmp_path, case, said, message):
    save_file(arrays_of(rng, "gru", (4,), **case), tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=message):
        formats.read("torch", tmp_path / "model.safetensors", given=formats.Given(**said))


def test_state_dicts_with_mixed_layers_are_refused(rng):
    gru, lstm = (arrays_of(rng, cell, (4, 5), both=True) for cell in ("gru", "lstm"))

    def without(kind, arrays=gru):
        return {name: array for name, array in arrays.items() if not kind(name)}

    for arrays, message in [
        (without(lambda name: name == "rnn.1.weight_ih_l0_reverse"), "rnn.1.l0 lacks its weight_ih"),
        (gru | {name: array for name, array in lstm.items() if name.startswith("rnn.1")}, "are LSTM and GRU layers"),
        (without(lambda name: name.startswith("rnn.0") and "rev" not in name), "rnn.0.l0 reads backwards alone"),
        (
            without(lambda name: name.startswith("rnn.1") and "rev" in name) | {"fc.0.weight": np.ones((3, 5))},
            "layers in one and in both directions",
        ),
        (gru | {"fc.0.weight": np.zeros((3, 5))}, "last recurrent layer gives 10 features"),
        (gru | {"rnn.0.weight_ih_l0": np.zeros((12, 6))}, "two directions of the layer rnn.0.l0 are of different"),
    ]:
        with pytest.raises(WeightsError, match=message):
            torch.from_state_dict(arrays)


class Linen(nn.Module):
    """Both directions, in Linen."""

    cell: type
    both: bool

    @nn.compact
    def __call__(self, outputs):
        for hidden in (3, 4):
            layers = [nn.RNN(self.cell(hidden)) for _ in range(1 + self.both)]
            outputs = (nn.Bidirectional(*layers) if self.both else layers[0])(outputs)
        return nn.Dense(3)(outputs[:, -1])


@pytest.mark.parametrize("cell", [nn.GRUCell, nn.OptimizedLSTMCell])
def test_linen_computes_the_same_in_both_directions(rng, cell, tmp_path):
    images = rng.random((3, 6, 5), np.float32)
    for both in (True, False) if cell is nn.GRUCell else (True,):
        network = Linen(cell, both)
        shapes = jax.eval_shape(network.init, jax.random.key(0), images)
        tree = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype("f4"), shapes)
        imported = flax.from_arrays(flax.flatten(tree)).with_network(pooling="last_step" if both else "last")
        assert imported.config.recurrent_bias == (cell is nn.GRUCell)
        expected = jax.jit(network.apply)(tree, images)
        np.testing.assert_allclose(apply(imported.params, images, imported.config), expected, atol=1e-5)
        assert jax.tree.map(np.shape, flax.to_tree(imported.params)) == jax.tree.map(np.shape, tree)
        assert_close(flax.to_tree(imported.params), tree, atol=1e-6)


def test_a_linen_layer_of_both_directions_as_wide_as_its_input_is_no_stack(rng, tmp_path):
    class Square(nn.Module):
        both: bool
        flatten: bool = False

        @nn.compact
        def __call__(self, outputs):
            layers = [nn.RNN(nn.OptimizedLSTMCell(5)) for _ in range(2)]
            outputs = nn.Bidirectional(*layers)(outputs) if self.both else layers[1](layers[0](outputs))
            return nn.Dense(3)(outputs.reshape(len(outputs), -1) if self.flatten else outputs[:, -1])

    images, path = rng.random((3, 6, 5), np.float32), tmp_path / "model.msgpack"
    cells = [f"params/OptimizedLSTMCell_{number}" for number in range(2)]
    for both, flatten, layers in [(True, False, []), (False, False, []), (True, True, [" and ".join(cells)]),
                                  (False, True, cells)]:  # fmt: skip
        network = Square(both, flatten)
        shapes = jax.eval_shape(network.init, jax.random.key(0), images)
        tree = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype("f4"), shapes)
        files.write_msgpack(path, tree)
        if flatten:
            with pytest.raises(WeightsError, match=r"may be two layers, or the two directions of one. .*--layer"):
                formats.read("flax", path)
        given = formats.Given(pooling="last_step" if both and not flatten else None)
        imported = formats.read("flax", path, layers=layers, given=given)
        expected = jax.jit(network.apply)(tree, images)
        np.testing.assert_allclose(apply(imported.params, images, imported.config), expected, atol=1e-5)
        assert sum("taken for the two directions of one layer" in note for note in imported.notes) == both


def test_trees_of_cells_with_the_same_names_are_refused_or_noted(tmp_path):
    ur = drawn(ModelConfig(cell="ur_lstm", hidden_features=(4,)))
    with pytest.raises(WeightsError, match=r"rnn/layers/0/cell has the biases of another cell .* such as a UR-LSTM"):
        flax.from_tree(ur)
    from flax import serialization

    gru = drawn(ModelConfig(cell="gru", hidden_features=(4,)))
    (tmp_path / "model.msgpack").write_bytes(serialization.to_bytes(jax.tree.map(np.asarray, gru)))
    imported = formats.read("flax", tmp_path / "model.msgpack")
    assert_close(imported.params, gru, atol=0)
    assert "GRUCells of NNX are assumed" in imported.notes[0]
    assert "assumed are Flax's defaults, tanh and sigmoid" in imported.notes[1]
    both = flax.flatten(drawn(ModelConfig(hidden_features=(4,), bidirectional=True)), ".")
    files.write_safetensors(tmp_path / "model.safetensors", both, {})
    with pytest.raises(WeightsError, match=r"reads both directions, .*give --pooling last_step"):
        formats.read("safetensors", tmp_path / "model.safetensors")
