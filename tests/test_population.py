"""Populations: every member is the training that it would be alone."""

import dataclasses

import jax
import numpy as np
import pytest

from lstm_mnist_jax.config import AugmentationConfig, Config, DataConfig, Execution, ModelConfig, OptimizerConfig
from lstm_mnist_jax.errors import ConfigError
from lstm_mnist_jax.training import make_population, make_training, member_state
from lstm_mnist_jax.training.evaluation import make_evaluation
from lstm_mnist_jax.training.mesh import make_mesh, make_population_mesh

CONFIG = Config(batch_size=8, model=ModelConfig(hidden_features=(4, 6)))
needs_two_devices = pytest.mark.skipif(len(jax.devices()) < 2, reason="needs two devices")

MEMBERS = [
    dataclasses.replace(CONFIG, seed=7),
    dataclasses.replace(CONFIG, seed=7, optimizer=OptimizerConfig(learning_rate=0.002, b1=0.8)),
    dataclasses.replace(CONFIG, seed=2**32 - 1, optimizer=OptimizerConfig(b2=0.99, epsilon=1e-4)),
]


def mesh_of(devices):
    return make_population_mesh(Execution(devices=devices), len(MEMBERS), CONFIG.batch_size)


def alone(config, dataset, *chunks):
    training = make_training(config, dataset, make_mesh(Execution(devices=1), config.batch_size))
    state = training.init(config.seed)
    for steps in chunks:
        state = training.run_steps(state, steps)
    return state


RECIPE = Config(
    batch_size=8,
    epochs=3,
    batch_ramp=(1,),
    label_smoothing=0.1,
    model=ModelConfig(hidden_features=(4, 6), dropout_rate=0.2, bidirectional=True, pooling="mean"),
    optimizer=OptimizerConfig(
        weight_decay=0.1, ema_decay=0.9, clip_norm=0.5, schedule="cosine", warmup_epochs=0.5, final_share=0.1
    ),
    augmentation=AugmentationConfig(10.0, 0.1, 0.1, 1.0, 0.5, erasing_probability=0.3, mixup_alpha=0.3),
)
WITH_EVERY_OPTION = [
    RECIPE,
    dataclasses.replace(RECIPE, seed=3),
    dataclasses.replace(
        RECIPE,
        optimizer=dataclasses.replace(RECIPE.optimizer, weight_decay=0.01, ema_decay=0.8, clip_norm=0.1, b2=0.9),
    ),
]


@pytest.mark.parametrize("members", [MEMBERS, WITH_EVERY_OPTION], ids=["plain", "with every option"])
@pytest.mark.parametrize("each", ["one after another", "vmap"])
@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=needs_two_devices)])
def test_every_member_is_the_training_that_it_would_be_alone(tiny_dataset, monkeypatch, devices, each, members):
    if each == "vmap":
        monkeypatch.setattr("lstm_mnist_jax.training.population.ONE_BY_ONE", ())
    population = make_population(members, tiny_dataset, mesh_of(devices)).compile()
    state = population.init()
    for steps in (5, 20):
        state = population.run_steps(state, steps)
    mesh = make_mesh(Execution(devices=1), CONFIG.batch_size)
    evaluate = make_evaluation(members[0].model, tiny_dataset.validation, mesh)
    found = population.evaluate("validation", state.trained)
    assert len(found) == len(members)
    # To one device first: of many small programs in which CPU devices meet, each can wait for another's threads.
    state = jax.device_put(state, jax.devices()[0])
    for n, config in enumerate(members):
        expected, member = alone(config, tiny_dataset, 25), member_state(state, n)
        assert jax.random.key_data(member.key).tolist() == jax.random.key_data(expected.key).tolist()
        for a, b in zip(
            jax.tree.leaves(member._replace(key=0)), jax.tree.leaves(expected._replace(key=0)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        evaluation = evaluate(expected.trained)
        np.testing.assert_array_equal(found[n].correct, evaluation.correct)
        np.testing.assert_allclose(found[n].loss, evaluation.loss, rtol=1e-4)


def test_members_differ(tiny_dataset):
    population = make_population(MEMBERS, tiny_dataset, mesh_of(1))
    losses = population.run_steps(population.init(), 10).epoch_sums.loss
    assert len(np.unique(losses)) == 3


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"model": ModelConfig(hidden_features=(4, 7))}, r"model.hidden_features is \(4, 6\) and \(4, 7\)"),
        ({"batch_size": 9}, "batch_size is 8 and 9"),
        ({"data": DataConfig(train_examples=100)}, "data.train_examples is None and 100"),
    ],
)
def test_members_of_other_shapes_are_refused(tiny_dataset, other, message):
    with pytest.raises(ConfigError, match=message):
        make_population([CONFIG, dataclasses.replace(CONFIG, **other)], tiny_dataset, mesh_of(1))


def test_a_population_of_nobody_is_refused(tiny_dataset):
    with pytest.raises(ConfigError, match="needs one member at least"):
        make_population([], tiny_dataset, mesh_of(1))
