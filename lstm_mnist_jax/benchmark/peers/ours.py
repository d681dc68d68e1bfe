"""This package, called as its users call it: `run_steps` as `lstm-mnist train` does, `LSTM` within `jax.jit`,
`TrainedRun.predict`."""

import itertools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import PartitionSpec as P

from lstm_mnist_jax import model
from lstm_mnist_jax.benchmark import prepared
from lstm_mnist_jax.benchmark.peers import CHECKED_IMAGES, CHECKED_STEPS, Job
from lstm_mnist_jax.benchmark.peers.jax_layer import compile_timed, layer_job
from lstm_mnist_jax.benchmark.work import Epoch, Inference, Layer, Product
from lstm_mnist_jax.config import Config, Execution, ModelConfig
from lstm_mnist_jax.data import load
from lstm_mnist_jax.rnn import LSTM
from lstm_mnist_jax.training.mesh import DATA_AXIS, describe, make_mesh, prepare
from lstm_mnist_jax.training.optimizer import make_optimizer
from lstm_mnist_jax.training.program import make_program


def epoch(work: Epoch, setting: str) -> Job:
    """The devices are those that `lstm-mnist train` chooses."""
    jax.config.update("jax_enable_compilation_cache", False)
    prepare(Execution(), work.batch_size)
    mesh = make_mesh(Execution(), work.batch_size)
    config = prepared.config_of(work)
    if work.form == "bare":
        return _bare(work, config, mesh)
    training = make_program([config], load(**vars(config.data)), mesh)
    state = jax.block_until_ready(training.init())
    began = time.perf_counter()
    training = training.compile()
    compile_seconds = time.perf_counter() - began
    calls, steps = (1, work.steps) if work.form == "loop" else (work.steps, 1)

    def run() -> None:
        nonlocal state
        for _ in range(calls):
            state = training.run_steps(state, steps)
        jax.block_until_ready(state)

    def check() -> list[float]:
        nonlocal state
        sums = [0.0]
        for _ in range(min(CHECKED_STEPS, work.steps - 1)):
            state = training.run_steps(state, 1)
            sums.append(float(state.epoch_sums.loss[0]))
        state = training.init()
        return np.diff(sums).tolist()

    return Job(run, check, compile_seconds, describe(mesh))


def _bare(work: Epoch, config: Config, mesh: jax.sharding.Mesh) -> Job:
    """Forward pass, backward pass, mean over the devices and Adam on one batch that is already there, many times:
    what the steps of an epoch cost without shuffling, gathering, and sums for the metrics."""
    start = prepared.read(work.prepared)
    examples = load(**vars(config.data)).train
    optimizer = make_optimizer(config.optimizer)
    share = work.batch_size // mesh.size

    def steps(state: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss(params: model.Params) -> jax.Array:
            return model.softmax_cross_entropy(model.apply(params, images, config.model), labels).mean()

        def step(_: Any, state: Any) -> Any:
            params, opt_state = state
            flat, unflatten = jax.flatten_util.ravel_pytree(jax.grad(loss)(params))
            updates, opt_state = optimizer.update(unflatten(jax.lax.pmean(flat, DATA_AXIS)), opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        return jax.lax.fori_loop(0, work.steps, step, state)

    # Each device its own part of the batch, placed there beforehand.
    split = jax.shard_map(steps, mesh=mesh, in_specs=(P(), P(DATA_AXIS), P(DATA_AXIS)), out_specs=P(), check_vma=False)
    batch = start.order[0][: share * mesh.size]
    place = jax.sharding.NamedSharding(mesh, P(DATA_AXIS))
    images, labels = jax.device_put((examples.images[batch], examples.labels[batch]), place)
    params = jax.tree.map(jnp.asarray, start.params)
    state = jax.device_put((params, optimizer.init(params)), jax.sharding.NamedSharding(mesh, P()))
    compiled, compile_seconds = compile_timed(jax.jit(split), state, images, labels)
    return Job(lambda: jax.block_until_ready(compiled(state, images, labels)), list, compile_seconds, describe(mesh))


def layer(work: Layer, setting: str) -> Job:
    inputs, *arrays = work.arrays()
    lstm = LSTM(work.hidden, (work.hidden,), time_major=True, rngs=nnx.Rngs(0))
    cell: Any = lstm.layers[0].cell
    cell.dense_i.kernel[...], cell.dense_h.kernel[...], cell.dense_h.bias[...] = map(jnp.asarray, arrays)
    graph, params = nnx.split(lstm)

    def forward(params: Any, inputs: jax.Array) -> Any:
        outputs, carries = nnx.merge(graph, params)(inputs)
        return outputs, carries

    return layer_job(work, forward, params, inputs)


def inference(work: Inference, setting: str) -> Job:
    """The devices are those that JAX shows by itself."""
    from lstm_mnist_jax.inference import TrainedRun  # imports Orbax: a second that only this work needs
    from lstm_mnist_jax.training.run_folder import DataFacts, RunFolder

    start, dataset = prepared.read(work.prepared), load()
    config = Config(model=ModelConfig(hidden_features=start.weights.hidden_features))
    folder = RunFolder(Path(), config, DataFacts(dataset.origin, dataset.image_shape, dataset.class_names, ""), {})
    trained = TrainedRun(folder, 0, jax.tree.map(jnp.asarray, start.params), None)
    images, labels = dataset.test.images, dataset.test.labels
    starts = itertools.cycle(range(0, len(images), work.images))

    def run() -> None:
        first = next(starts)
        trained.predict(images[first : first + work.images])

    def check() -> list[float]:
        checked = range(CHECKED_IMAGES)
        probabilities = trained.predict(images[:CHECKED_IMAGES])[1]
        return (-np.log(probabilities[checked, labels[:CHECKED_IMAGES]])).tolist()

    return Job(run, check, setting=f"{jax.devices()[0].platform}")


def product(work: Product, setting: str) -> Job:
    left, right = map(jnp.asarray, work.arrays())
    multiply = jax.jit(jnp.matmul)
    return Job(
        run=lambda: multiply(left, right).block_until_ready(),
        check=lambda: [float(multiply(left, right)[0, 0])],
        setting="JAX",
    )
