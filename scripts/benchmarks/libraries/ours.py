"""This package, called as its users call it: `run_steps` as `lstm-mnist train` does, a layer within `jax.jit`,
`TrainedRun.predict`."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.libraries import CHECKED_STEPS, Job, inference_job
from benchmarks.libraries.in_jax import config_of, dispatch, layer_job, mesh_of, settings_of, with_weights
from benchmarks.work import Epoch, Inference, Layer, Product, Start, Work
from lstm_mnist_jax import Config, load
from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.data.shuffle import permutation
from lstm_mnist_jax.interop.weights import from_params, to_params
from lstm_mnist_jax.rnn import StackedRNN
from lstm_mnist_jax.training.mesh import describe
from lstm_mnist_jax.training.program import make_program
from lstm_mnist_jax.training.step import init_state


def settings(work: Work) -> list[str]:
    return settings_of(work) if isinstance(work, Inference) else [""]


def start(work: Epoch) -> Start:
    """The initial weights of seed 0, and the examples of each step."""
    config = config_of(work)
    dataset = load(**vars(config.data))
    # Compiled: one by one, its operations would take seconds to compile.
    first_state = jax.jit(partial(init_state, config, dataset.image_shape, len(dataset.class_names)))
    state = first_state(config.seed)
    examples, needed = len(dataset.train), work.steps * work.batch_size
    passes = [permutation(config.seed, number, examples) for number in range(-(-needed // examples))]
    order = np.concatenate(passes)[:needed].reshape(work.steps, work.batch_size)
    weights = from_params(state.params)
    return Start(tuple(layer.forward[:3] for layer in weights.layers), *weights.dense[0], order)


def epoch(work: Epoch, setting: str) -> Job:
    config, mesh = config_of(work), mesh_of(work)
    program = make_program([config], load(**vars(config.data)), mesh)
    state = jax.block_until_ready(program.init())
    began = time.perf_counter()
    program = program.compile()
    compile_seconds = time.perf_counter() - began

    def run() -> None:
        nonlocal state
        state = jax.block_until_ready(program.run_steps(state, work.steps))

    def check() -> list[float]:
        nonlocal state
        sums = [0.0]
        for _ in range(min(CHECKED_STEPS, work.steps - 1)):
            state = program.run_steps(state, 1)
            sums.append(float(state.epoch_sums.loss[0]))
        state = program.init()
        return np.diff(sums).tolist()

    return Job(run, check, compile_seconds, describe(mesh))


def layer(work: Layer, setting: str) -> Job:
    cells: dict[str, Any] = {"lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell}
    inputs, *arrays = work.arrays()

    def make() -> StackedRNN:
        return StackedRNN(cells[work.cell], work.hidden, (work.hidden,), time_major=True, rngs=nnx.Rngs(0))

    graph, params = nnx.split(with_weights(make, *arrays))
    lengths = work.lengths()
    return layer_job(work, lambda params, inputs: nnx.merge(graph, params)(inputs, seq_lengths=lengths), params, inputs)


def inference(work: Inference, setting: str) -> Job:
    """The devices are those that JAX shows by itself."""
    from lstm_mnist_jax.inference import TrainedRun  # imports Orbax: a second that only this work needs
    from lstm_mnist_jax.training.run_folder import DataFacts, RunFolder

    how = dispatch(setting)
    config, dataset = Config(model=ModelConfig(hidden_features=work.start.weights.hidden_features)), load()
    folder = RunFolder(Path(), config, DataFacts(dataset.origin, dataset.image_shape, dataset.class_names, ""), {})
    trained = TrainedRun(folder, 0, jax.tree.map(jnp.asarray, to_params(work.start.weights)), None)
    return inference_job(work, lambda images: trained.predict(images)[1], how)


def product(work: Product, setting: str) -> Job:
    left, right = map(jnp.asarray, work.arrays())
    multiply = jax.jit(jnp.matmul)
    return Job(
        run=lambda: multiply(left, right).block_until_ready(),
        check=lambda: [float(multiply(left, right)[0, 0])],
        setting="JAX",
    )
