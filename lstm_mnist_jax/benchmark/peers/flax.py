"""Flax: `nnx.RNN` over `nnx.OptimizedLSTMCell`.

Around it is all that this package's own training has: the data on the devices, the whole epoch in one compiled loop,
the same optimizer, the batch split over CPU devices if that helps.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lstm_mnist_jax.benchmark import prepared
from lstm_mnist_jax.benchmark.peers import CHECKED_IMAGES, CHECKED_STEPS, Job
from lstm_mnist_jax.benchmark.peers.jax_layer import compile_timed, layer_job
from lstm_mnist_jax.benchmark.work import Epoch, Inference, Layer, Work
from lstm_mnist_jax.config import Execution
from lstm_mnist_jax.data import load
from lstm_mnist_jax.interop.weights import Weights
from lstm_mnist_jax.training.mesh import make_mesh, prepare
from lstm_mnist_jax.training.optimizer import make_optimizer

ALL_DEVICES, ONE_DEVICE = "all devices", "one device"


def settings(work: Work) -> list[str]:
    return [ALL_DEVICES, ONE_DEVICE] if isinstance(work, Epoch) else [""]


class Classifier(nnx.Module):
    """The tutorial's network in Flax's own layers, with given weights."""

    def __init__(self, weights: Weights) -> None:
        rngs, widths = nnx.Rngs(0), (weights.in_features, *weights.hidden_features)
        self.layers = nnx.List([_rnn(*pair, rngs) for pair in itertools.pairwise(widths)])
        for layer, arrays in zip(self.layers, weights.layers, strict=True):
            _set(layer.cell, *arrays)
        self.dense = nnx.Linear(widths[-1], weights.num_classes, rngs=rngs)
        bias: Any = self.dense.bias
        self.dense.kernel[...], bias[...] = jnp.asarray(weights.dense_kernel), jnp.asarray(weights.dense_bias)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits [batch, classes] of uint8 images [batch, height, width]."""
        outputs: Any = jnp.moveaxis(images, 1, 0).astype(jnp.float32) * (1 / 255)
        for layer in self.layers:
            (_, h), outputs = layer(outputs, initial_carry=_zeros(layer, outputs))
        return self.dense(h)


def _rnn(in_features: int, hidden_features: int, rngs: nnx.Rngs) -> nnx.RNN:
    cell = nnx.OptimizedLSTMCell(in_features, hidden_features, rngs=rngs)
    return nnx.RNN(cell, time_major=True, return_carry=True, rngs=False)


def _set(cell: Any, kernel: np.ndarray, recurrent_kernel: np.ndarray, bias: np.ndarray) -> None:
    cell.dense_i.kernel[...] = jnp.asarray(kernel)
    cell.dense_h.kernel[...], cell.dense_h.bias[...] = jnp.asarray(recurrent_kernel), jnp.asarray(bias)


def _zeros(rnn: Any, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The initial carry, given because nnx.RNN would want a source of random numbers to make it."""
    zeros = jnp.zeros((inputs.shape[1], rnn.cell.hidden_features), jnp.float32)
    return zeros, zeros


def epoch(work: Epoch, setting: str) -> Job:
    jax.config.update("jax_enable_compilation_cache", False)
    prepare(Execution(), work.batch_size)
    mesh = make_mesh(Execution(devices=1 if setting == ONE_DEVICE else None), work.batch_size)
    start, examples = prepared.read(work.prepared), load().train
    graph, params = nnx.split(Classifier(start.weights), nnx.Param)
    optimizer = make_optimizer(prepared.config_of(work).optimizer)

    def train(state: Any, order: jax.Array, images: jax.Array, labels: jax.Array) -> Any:
        def step(state: Any, batch: jax.Array) -> Any:
            params, opt_state = state

            def mean_loss(params: Any) -> jax.Array:
                logits = nnx.merge(graph, params)(images[batch])
                return optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]).mean()

            loss, gradient = jax.lax.pmean(jax.value_and_grad(mean_loss)(params), "data")
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        return jax.lax.scan(step, state, order)

    whole = NamedSharding(mesh, P())
    state = jax.device_put((params, optimizer.init(params)), whole)
    images, labels = jax.device_put((examples.images, examples.labels), whole)
    order = jax.device_put(start.order, NamedSharding(mesh, P(None, "data")))
    program = _on_devices(train, mesh)
    compiled, compile_seconds = compile_timed(jax.jit(program), state, order, images, labels)

    def run() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(compiled(state, order, images, labels))

    def check() -> list[float]:
        return np.asarray(compiled(state, order, images, labels)[1])[:CHECKED_STEPS].tolist()

    return Job(run, check, compile_seconds, f"{mesh.size} x {jax.devices()[0].platform}")


def _on_devices(train: Any, mesh: Mesh) -> Any:
    return jax.shard_map(
        train, mesh=mesh, in_specs=(P(), P(None, "data"), P(), P()), out_specs=(P(), P()), check_vma=False
    )


def layer(work: Layer, setting: str) -> Job:
    inputs, *arrays = work.arrays()
    rnn = _rnn(work.hidden, work.hidden, nnx.Rngs(0))
    _set(rnn.cell, *arrays)
    graph, params = nnx.split(rnn, nnx.Param)

    def forward(params: Any, inputs: jax.Array) -> Any:
        rnn = nnx.merge(graph, params)
        carry, outputs = rnn(inputs, initial_carry=_zeros(rnn, inputs))
        return outputs, carry

    return layer_job(work, forward, params, inputs)


def inference(work: Inference, setting: str) -> Job:
    images, labels = load().test.images, load().test.labels
    graph, state = nnx.split(Classifier(prepared.read(work.prepared).weights))
    classify = jax.jit(lambda state, images: jax.nn.softmax(nnx.merge(graph, state)(images)))
    starts = itertools.cycle(range(0, len(images), work.images))

    def run() -> None:
        first = next(starts)
        np.asarray(classify(state, images[first : first + work.images]))

    def check() -> list[float]:
        probabilities = np.asarray(classify(state, images[:CHECKED_IMAGES]))
        return (-np.log(probabilities[range(CHECKED_IMAGES), labels[:CHECKED_IMAGES]])).tolist()

    return Job(run, check, setting=jax.devices()[0].platform)
