"""Training programs of one member on `tiny_dataset`, compiled once for the tests that use them."""

import dataclasses

import jax
import pytest

from lstm_mnist_jax.config import AugmentationConfig, Config, Execution, ModelConfig, OptimizerConfig
from lstm_mnist_jax.training import TrainingProgram, make_program, member_state
from lstm_mnist_jax.training.mesh import make_mesh

CONFIG = Config(batch_size=8, model=ModelConfig(hidden_features=(4, 6)))
EVERY_OPTION = dataclasses.replace(
    CONFIG,
    label_smoothing=0.1,
    model=ModelConfig(hidden_features=(4, 6), dropout_rate=0.2),
    optimizer=OptimizerConfig(weight_decay=0.1, ema_decay=0.9, clip_norm=1.0, schedule="cosine", warmup_epochs=0.5),
    augmentation=AugmentationConfig(10.0, 0.1, 0.1, 1.0, 0.5, erasing_probability=0.3, mixup_alpha=0.3),
)
needs_two_devices = pytest.mark.skipif(len(jax.devices()) < 2, reason="needs two devices")
_programs = {}


def mesh_of(devices):
    return make_mesh(Execution(devices=devices), CONFIG.batch_size)


def program_of(dataset, config=CONFIG, devices=1) -> TrainingProgram:
    """The program on `tiny_dataset`, which is equal in all tests."""
    if (config, devices) not in _programs:
        _programs[config, devices] = make_program([config], dataset, mesh_of(devices))
    return _programs[config, devices]


def fetched(state):
    """The state of the one member as NumPy arrays, without its key."""
    return member_state(jax.device_get(state._replace(key=())), 0)


def run(program, *chunks):
    """The state after so many steps, made in so many calls."""
    state = program.init()
    for steps in chunks:
        state = program.run_steps(state, steps)
    return fetched(state)


def train(dataset, *chunks, config=CONFIG, devices=1):
    """The state after so many steps, made in so many calls."""
    return run(program_of(dataset, config, devices), *chunks)
