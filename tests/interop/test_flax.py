"""Flax: against modules of Linen and NNX."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from stacks import LABELS, STACKS, apply, assert_close, logits_and_gradient, state_dict

from lstm_mnist_jax import model
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop import files, flax, formats, torch


class Linen(nn.Module):
    """Layers in Linen, in one of the ways in which people write them."""

    hidden_features: tuple[int, ...]
    cell: type = nn.OptimizedLSTMCell

    @nn.compact
    def __call__(self, outputs):
        for hidden in self.hidden_features:
            outputs = nn.RNN(self.cell(hidden))(outputs)
        return nn.Dense(3)(outputs[:, -1])


def shapes_of(network, images):
    """What `network.init` gives, without its numbers."""
    return jax.eval_shape(network.init, jax.random.key(0), images)


def drawn_like(shapes):
    """Arrays of these shapes, drawn by NumPy."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(leaf.dtype), shapes)


@pytest.mark.parametrize("cell", [nn.OptimizedLSTMCell, nn.LSTMCell])
def test_linen_computes_the_same(params, config, images, cell):
    network, tree = Linen(config.hidden_features, cell), flax.to_tree(params)
    if cell is nn.LSTMCell:
        tree = {"params": {name.removeprefix("Optimized"): branch for name, branch in tree["params"].items()}}
    assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, shapes_of(network, images))

    assert_close(flax.from_tree(tree), params, atol=0)
    if cell is nn.LSTMCell and config.hidden_features != STACKS[-1]:
        return  # its arrays have the same names and shapes in each layer: one stack tells what it computes of them

    def loss(tree):
        logits = network.apply(tree, images)
        return model.softmax_cross_entropy(logits, LABELS).mean(), logits

    their_gradient, their_logits = jax.jit(jax.grad(loss, has_aux=True))(tree)
    logits, gradient = logits_and_gradient(params, images, LABELS, config)
    assert_close(their_logits, logits)
    assert_close(flax.from_tree(their_gradient), gradient)


class Nnx(nnx.Module):
    """Layers in NNX, with cells that keep a matrix for each gate."""

    def __init__(self, hidden_features, rngs):
        widths = (5, *hidden_features)
        self.layers = nnx.List(nnx.RNN(nnx.LSTMCell(a, b, rngs=rngs)) for a, b in itertools.pairwise(widths))
        self.out = nnx.Linear(widths[-1], 3, rngs=rngs)

    def __call__(self, outputs):
        for layer in self.layers:
            outputs = layer(outputs)
        return self.out(outputs[:, -1])


@pytest.fixture
def state(config):
    """The parameters of `Nnx`, drawn by NumPy."""
    network = nnx.eval_shape(lambda: Nnx(config.hidden_features, nnx.Rngs(0)))
    return drawn_like(nnx.state(network, nnx.Param))


def test_nnx_computes_the_same(config, images, state):
    @jax.jit
    def theirs(state):
        network = Nnx(config.hidden_features, nnx.Rngs(0))
        nnx.update(network, state)
        return network(images)

    params = flax.from_tree(nnx.to_pure_dict(state))
    assert_close(apply(params, images, config), theirs(state))
    assert_close(flax.from_tree(flax.to_tree(params, "nnx")), params, atol=0)


def test_a_flax_program_reads_and_writes_the_msgpack_file(params, config, images, tmp_path):
    from flax import serialization

    network = Linen(config.hidden_features)
    files.write_msgpack(tmp_path / "ours.msgpack", flax.to_tree(params))
    template = drawn_like(shapes_of(network, images))
    tree = serialization.from_bytes(template, (tmp_path / "ours.msgpack").read_bytes())
    assert_close(tree, flax.to_tree(params), atol=0)  # with which Linen computes the same
    (tmp_path / "theirs.msgpack").write_bytes(serialization.to_bytes(template))
    assert_close(formats.read("flax", tmp_path / "theirs.msgpack").params, flax.from_tree(template), atol=0)


def test_trees_of_other_networks_are_refused():
    tree = flax.to_tree(torch.from_state_dict(state_dict()))
    del tree["params"]["OptimizedLSTMCell_0"]["hf"]["bias"]
    with pytest.raises(WeightsError, match=r"OptimizedLSTMCell_0 lacks its hf/bias. Found: "):
        flax.from_tree(tree)
    tree = flax.to_tree(torch.from_state_dict(state_dict()))
    tree["params"]["OptimizedLSTMCell_0"]["ii"]["kernel"] = np.zeros((5, 3))
    with pytest.raises(WeightsError, match="gates of the layer params/OptimizedLSTMCell_0 are of different"):
        flax.from_tree(tree)
    tree = flax.to_tree(torch.from_state_dict(state_dict()))
    tree["params"]["PReLU_0"] = {"negative_slope": np.array(0.01, np.float32)}
    with pytest.raises(WeightsError, match=r"more besides the recurrent layers: params/PReLU_0/negative_slope. If"):
        flax.from_tree(tree)
    with pytest.raises(WeightsError, match=r"There is no LSTM or GRU layer: no dense_i/kernel or ii/kernel"):
        flax.from_tree({"params": {"Dense_0": {"kernel": np.zeros((2, 3))}}})


def test_an_nnx_state_is_accepted(state):
    assert_close(flax.from_tree(state), flax.from_tree(nnx.to_pure_dict(state)), atol=0)


def test_a_train_state_of_flax_gives_its_parameters(params, config, images, tmp_path):
    import optax
    from flax import serialization
    from flax.training.train_state import TrainState

    network = Linen(config.hidden_features)
    state = TrainState.create(apply_fn=network.apply, params=flax.to_tree(params)["params"], tx=optax.adam(0.01))
    (tmp_path / "state.msgpack").write_bytes(serialization.to_bytes(state))
    assert_close(formats.read("flax", tmp_path / "state.msgpack").params, params, atol=0)
