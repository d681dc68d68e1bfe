"""Programs of several members: every member is the run that it would be alone."""

import dataclasses
from functools import partial

import jax
import jax.export
import jax.monitoring
import numpy as np
import pytest
from step_programs import CONFIG, needs_two_devices

from lstm_mnist_jax import introspection
from lstm_mnist_jax.config import AugmentationConfig, Config, DataConfig, Execution, ModelConfig, OptimizerConfig
from lstm_mnist_jax.errors import ConfigError
from lstm_mnist_jax.introspection import logits_along
from lstm_mnist_jax.rnn import native
from lstm_mnist_jax.training import make_program, member_state
from lstm_mnist_jax.training.evaluation import _logits
from lstm_mnist_jax.training.mesh import make_mesh

MEMBERS = [
    dataclasses.replace(CONFIG, seed=7),
    dataclasses.replace(CONFIG, seed=7, optimizer=OptimizerConfig(learning_rate=0.002, b1=0.8)),
    dataclasses.replace(CONFIG, seed=2**32 - 1, optimizer=OptimizerConfig(b2=0.99, epsilon=1e-4)),
]


def mesh_of(devices):
    return make_mesh(Execution(devices=devices), CONFIG.batch_size, len(MEMBERS))


RECIPE = Config(
    batch_size=8,
    epochs=3,
    batch_doubling_epochs=(1,),
    label_smoothing=0.1,
    model=ModelConfig(hidden_features=(4,), dropout_rate=0.2, bidirectional=True, pooling="mean"),
    optimizer=OptimizerConfig(
        weight_decay=0.1, ema_decay=0.9, clip_norm=0.5, schedule="cosine", warmup_epochs=0.5, final_fraction=0.1
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


SETS = {"plain": MEMBERS, "with every option": WITH_EVERY_OPTION}


@pytest.fixture(scope="module")
def trained_alone():
    """Of each member of a set, the state of a single run after 25 steps, and its evaluation on validation."""
    known = {}

    def find(name, dataset):
        if name in known:
            return known[name]
        members = SETS[name]
        mesh = make_mesh(Execution(devices=1), CONFIG.batch_size)
        known[name] = []
        for config in members:
            program = make_program([config], dataset, mesh)
            state = program.run_steps(program.init(), 25)
            (evaluation,) = program.evaluate(state.trained)["validation"]
            known[name].append((member_state(fetched(state), 0), evaluation))
        return known[name]

    return find


def fetched(state):
    """A state as NumPy arrays."""
    # To one device first: of many small programs in which CPU devices meet, each can wait for another's threads.
    state = jax.device_put(state, jax.devices()[0])
    return jax.device_get(state._replace(key=jax.random.key_data(state.key)))


@pytest.mark.parametrize(
    ("members", "devices", "each"),
    [
        # Both ways to run the members, on one device and two, once each. (Whole sweeps, one after another on one
        # device and on two, are compared in test_sweep.py.)
        pytest.param("plain", 1, "one after another", marks=pytest.mark.slow),
        pytest.param("plain", 2, "vmap", marks=needs_two_devices),
        pytest.param("with every option", 1, "vmap", marks=pytest.mark.slow),
        pytest.param("with every option", 2, "one after another", marks=[needs_two_devices, pytest.mark.slow]),
    ],
)
def test_every_member_is_the_run_that_it_would_be_alone(
    tiny_dataset, trained_alone, monkeypatch, members, devices, each
):
    if each == "vmap":
        monkeypatch.setattr("lstm_mnist_jax.training.mesh.ONE_BY_ONE", ())
    program = make_program(SETS[members], tiny_dataset, mesh_of(devices)).compile()
    state = program.init()
    for steps in (5, 20):
        state = program.run_steps(state, steps)
    found = program.evaluate(state.trained)["validation"]
    state, expected = fetched(state), trained_alone(members, tiny_dataset)
    assert len(found) == len(expected)
    for n, (alone, evaluation) in enumerate(expected):
        member = member_state(state, n)
        assert member.key.tolist() == alone.key.tolist()
        for a, b in zip(jax.tree.leaves(member), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found[n].correct, evaluation.correct)
        np.testing.assert_allclose(found[n].loss, evaluation.loss, rtol=1e-4)


def test_a_second_program_that_differs_in_numbers_alone_is_neither_traced_nor_compiled(tiny_dataset):
    def run(config):
        program = make_program([config], tiny_dataset, mesh_of(1)).compile()
        state = program.run_steps(program.init(), 1)
        return program.evaluate(state.trained)["test"][0].loss

    first, compiled = run(CONFIG), []

    def note(event, seconds, **details):
        compiled.append(event)

    others = {"seed": 5, "epochs": 30, "optimizer": OptimizerConfig(learning_rate=0.1), "early_stopping_patience": 2}
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        assert run(CONFIG) == first
        assert compiled == []
        assert run(dataclasses.replace(CONFIG, **others)) != first
        assert compiled == []
        assert run(dataclasses.replace(CONFIG, label_smoothing=0.1)) != first
        assert compiled != []
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def test_members_differ(tiny_dataset):
    program = make_program(MEMBERS, tiny_dataset, mesh_of(1))
    losses = program.run_steps(program.init(), 10).epoch_sums.loss
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
        make_program([CONFIG, dataclasses.replace(CONFIG, **other)], tiny_dataset, mesh_of(1))


def test_a_program_without_members_is_refused(tiny_dataset):
    with pytest.raises(ConfigError, match="no config is given"):
        make_program([], tiny_dataset, mesh_of(1))


@pytest.mark.parametrize("config", [CONFIG, pytest.param(RECIPE, marks=pytest.mark.slow)])
def test_training_evaluation_and_inference_lower_for_gpus_and_tpus_without_the_cpu_kernel(tiny_dataset, config):
    program, kernel = make_program([config], tiny_dataset, mesh_of(1)), "lstm_mnist_jax_lstm"
    evaluator, params = program._evaluator, program.abstract_state.trained
    of_one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), params)
    images = jax.ShapeDtypeStruct((5, *tiny_dataset.image_shape), np.uint8)
    for function, arguments in (
        (program._run_steps, program.abstract_arguments()),
        (evaluator._program, (params, *evaluator._abstract)),
        (jax.jit(partial(logits_along, config=config.model)), (of_one, images)),
    ):
        exported = jax.export.export(function, platforms=("cuda", "tpu"))(*arguments)
        assert exported.platforms == ("cuda", "tpu")
        assert kernel not in exported.mlir_module()
        if native.unavailable() is None and jax.default_backend() == "cpu":
            assert kernel in function.lower(*arguments).as_text()


def test_nothing_is_on_the_devices_before_the_first_step(tiny_dataset):
    before = {id(array) for array in jax.live_arrays()}
    program = make_program([CONFIG], tiny_dataset, mesh_of(1)).compile()
    program.device_bytes()
    assert [array.shape for array in jax.live_arrays() if id(array) not in before] == []
    program.place()
    assert tiny_dataset.train.images.shape in [array.shape for array in jax.live_arrays() if id(array) not in before]


def test_accelerators_compute_shifted_images_and_prefixes_in_batches_with_the_same_result(tiny_dataset, monkeypatch):
    params = member_state(make_program([RECIPE], tiny_dataset, mesh_of(1)).init(), 0).params
    images = jax.numpy.asarray(tiny_dataset.test.images[:4])
    cases = ((1, True), (1, False), (0, True))
    one_by_one, at_once, alone = jax.jit(lambda: [_logits(params, images, RECIPE.model, *case) for case in cases])()
    np.testing.assert_allclose(one_by_one, at_once, rtol=1e-5, atol=1e-6)
    assert not np.allclose(one_by_one, alone, atol=1e-3)
    along = logits_along.__wrapped__
    one_by_one = along(params, images, RECIPE.model)
    monkeypatch.setattr(introspection, "ONE_BY_ONE", ())
    monkeypatch.setattr(introspection, "ALONG_BATCH", 4 * 4)  # of the 6 prefixes four, then two
    np.testing.assert_allclose(along(params, images, RECIPE.model), one_by_one, rtol=1e-5, atol=1e-6)
