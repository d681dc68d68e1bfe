"""Configs: the tutorial's numbers, what is refused, JSON and back, differences."""

import dataclasses
import json

import programs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstm_mnist_jax.config import (
    PRESETS,
    AugmentationConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    Execution,
    ModelConfig,
    OptimizerConfig,
)
from lstm_mnist_jax.config.json import differences, from_dict
from lstm_mnist_jax.data.splits import usual_validation_examples
from lstm_mnist_jax.errors import ConfigError


def test_the_tutorial_has_the_original_programs_numbers():
    tutorial = PRESETS["tutorial"]
    assert (tutorial.batch_size, tutorial.epochs, tutorial.model.hidden_features) == (64, 10, (32, 64))
    assert dataclasses.astuple(tutorial.optimizer)[:4] == (0.01, 0.9, 0.999, 1e-8)
    assert tutorial.data == DataConfig("mnist")
    assert tutorial.model.forget_bias == 1.0
    assert (60_000 - usual_validation_examples(60_000, None)) // tutorial.batch_size == 859


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_survive_json(preset):
    config = PRESETS[preset]
    assert from_dict(Config, json.loads(json.dumps(dataclasses.asdict(config)))) == config


@given(
    seed=st.integers(0, 2**32 - 1),
    source=st.text(),
    train_examples=st.none() | st.integers(1, 10**9),
    hidden_features=st.lists(st.integers(1, 4096), min_size=1).map(tuple),
    learning_rate=st.floats(1e-30, 1e30),
)
def test_any_config_survives_json(seed, source, train_examples, hidden_features, learning_rate):
    config = Config(
        seed=seed,
        data=DataConfig(source=source, train_examples=train_examples),
        model=ModelConfig(hidden_features=hidden_features),
        optimizer=OptimizerConfig(learning_rate=learning_rate),
    )
    assert from_dict(Config, json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Config(epochs=0), "epochs is 0, expected 1 or more"),
        (lambda: Config(batch_size=-64), "batch_size is -64"),
        (lambda: Config(seed=-1), "seed is -1"),
        (lambda: Config(seed=2**32), "seed is 4294967296"),
        (lambda: ModelConfig(hidden_features=()), "hidden_features is ()"),
        (lambda: ModelConfig(hidden_features=(32, 0)), "hidden_features is (32, 0)"),
        (lambda: ModelConfig(dense_features=(32, 0)), "dense_features is (32, 0), expected widths, each 1 or more"),
        (lambda: ModelConfig(cell="gru", activation="relu"), "activation is relu, expected tanh with the cell gru"),
        (lambda: ModelConfig(recurrent_bias=True), "recurrent_bias is True, expected False with the cell lstm"),
        (lambda: ModelConfig(pooling="last_step"), "pooling is last_step, expected last in one direction"),
        (lambda: OptimizerConfig(learning_rate=0.0), "learning_rate is 0.0"),
        (lambda: OptimizerConfig(learning_rate=float("nan")), "learning_rate is nan"),
        (lambda: OptimizerConfig(b1=1.0), "b1 is 1.0"),
        (lambda: OptimizerConfig(epsilon=0.0), "epsilon is 0.0"),
        (lambda: OptimizerConfig(learning_rate=float("inf")), "learning_rate is inf"),
        (lambda: ModelConfig(forget_bias=float("nan")), "forget_bias is nan, expected a finite number"),
        (lambda: DataConfig(validation_examples=0), "validation_examples is 0"),
        (lambda: DataConfig(train_examples=0), "train_examples is 0"),
        (lambda: CheckpointConfig(keep_checkpoints=0), "keep_checkpoints is 0"),
        (lambda: CheckpointConfig(checkpoint_minutes=0.0), "checkpoint_minutes is 0.0"),
        (lambda: Execution(devices=0), "devices is 0"),
        (lambda: ModelConfig(sequence_length=0), "sequence_length is 0, expected 1 or more, or None"),
        (lambda: ModelConfig(permutation_seed=-1), "permutation_seed is -1"),
        (lambda: ModelConfig(dropout_rate=1.0), "dropout_rate is 1.0, expected at least 0 and below 1"),
        (lambda: ModelConfig(chrono_steps=2), "chrono_steps is 2, expected 3 or more"),
        (lambda: ModelConfig(cell="ur_lstm", chrono_steps=784), "chrono_steps is 784, expected None with ur_lstm"),
        (lambda: ModelConfig(dense_stddev=-1.0), "dense_stddev is -1.0"),
        (lambda: OptimizerConfig(weight_decay=-0.1), "weight_decay is -0.1"),
        (lambda: OptimizerConfig(ema_decay=1.0), "ema_decay is 1.0"),
        (lambda: OptimizerConfig(clip_norm=0.0), "clip_norm is 0.0, expected a number above 0, or None"),
        (lambda: OptimizerConfig(warmup_epochs=-1.0), "warmup_epochs is -1.0"),
        (lambda: OptimizerConfig(final_fraction=1.5), "final_fraction is 1.5, expected 0 to 1"),
        (
            lambda: Config(optimizer=OptimizerConfig(warmup_epochs=11.0)),
            "warmup_epochs is 11.0, expected at most epochs, which is 10",
        ),
        (
            lambda: Config(batch_doubling_epochs=(3, 3)),
            "batch_doubling_epochs is (3, 3), expected rising epochs from 1 to 9",
        ),
        (lambda: Config(batch_doubling_epochs=(10,)), "batch_doubling_epochs is (10,)"),
        (lambda: Config(label_smoothing=1.0), "label_smoothing is 1.0"),
        (lambda: Config(early_stopping_patience=0), "early_stopping_patience is 0, expected 1 or more, or None"),
        (lambda: AugmentationConfig(rotation_degrees=200.0), "rotation_degrees is 200.0, expected 0 to 180"),
        (lambda: AugmentationConfig(scaling=-0.1), "scaling is -0.1, expected at least 0"),
        (lambda: AugmentationConfig(mixup_alpha=-1.0), "mixup_alpha is -1.0"),
        (lambda: AugmentationConfig(elastic_spacing=0.5), "elastic_spacing is 0.5, expected 1 or more"),
        (lambda: AugmentationConfig(erasing_probability=1.1), "erasing_probability is 1.1, expected 0 to 1"),
        (lambda: AugmentationConfig(erasing_size=0.0), "erasing_size is 0.0"),
        (lambda: Config(batchsize=3), "Config has no field 'batchsize'; expected one of seed, "),
        (lambda: Config(batchsize=3), "checkpoints; did you mean batch_size?"),
        (lambda: Config(learning_rate=3.0), "optimizer has: Config(optimizer=OptimizerConfig(learning_rate=...))."),
        (
            lambda: dataclasses.replace(Config(), learning_rate=3.0),
            "its part optimizer has: replace(config, optimizer=replace(config.optimizer, learning_rate=...)).",
        ),
    ],
)
def test_impossible_values_are_refused(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("epochs"), "lacks epochs"),
        (lambda d: d.update(epoch=3), "unknown fields epoch"),
        (lambda d: d["model"].update(hidden_features=[32, "64"]), "model.hidden_features is '64', expected int"),
        (lambda d: d["model"].update(hidden_features=32), "model.hidden_features is 32"),
        (lambda d: d.update(seed=True), "seed is True, expected int"),
        (lambda d: d.update(data=None), "data is None, expected an object"),
        (lambda d: d["data"].update(train_examples="all"), "data.train_examples is 'all', expected int or null"),
        (lambda d: d["optimizer"].update(learning_rate=-1), "learning_rate is -1"),
        (
            lambda d: d["model"].update(task="row"),
            "model.task is 'row', expected one of rows, columns, pixels, permuted; did you mean rows?",
        ),
        (
            lambda d: d["optimizer"].update(schedule=3),
            "optimizer.schedule is 3, expected one of constant, linear, cosine",
        ),
    ],
)
def test_json_that_is_no_config_is_refused(change, message):
    values = dataclasses.asdict(Config())
    values["model"]["hidden_features"] = list(values["model"]["hidden_features"])
    change(values)
    with pytest.raises(ConfigError) as caught:
        from_dict(Config, values)
    assert message in str(caught.value)


def test_configs_without_the_fields_that_were_added_have_their_defaults():
    values = dataclasses.asdict(Config())
    for name in ("dense_features", "dense_activation", "activation", "recurrent_activation"):
        del values["model"][name]
    assert from_dict(Config, values) == Config()


WITHOUT_TYPE_CHECKS = """
import numpy as np
from lstm_mnist_jax import load, space_of, sweep, train
from lstm_mnist_jax.config import Config, ModelConfig
from lstm_mnist_jax.errors import ConfigError, DataError

config = Config(batch_size=np.int64(32), model=ModelConfig(hidden_features=[8, np.int32(4)], forget_bias=1))
assert config == Config(batch_size=32, model=ModelConfig(hidden_features=(8, 4), forget_bias=1.0))
assert type(config.batch_size) is int
for wrong in ({"epochs": 1.5}, {"tensorboard": "yes"}, {"seed": None}):
    try:
        Config(**wrong)
    except ConfigError as error:
        print(error)
for wrong in (
    lambda: train("smoke", "nowhere"), lambda: sweep("smoke", space_of({}), "nowhere"),
    lambda: sweep(config, {"cell": ["gru"]}, "nowhere"), lambda: train(config, "nowhere", resume="runs/first"),
    lambda: train(config, "nowhere", execution=2), lambda: load(np.zeros((2, 28, 28))),
):
    try:
        wrong()
    except (ConfigError, DataError) as error:
        print(error)
"""


def test_values_of_other_types_become_those_of_the_fields_or_are_refused():
    """In a process of its own: here, the checks of the test suite would come before the config's."""
    done = programs.run(code=WITHOUT_TYPE_CHECKS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "epochs is 1.5, expected int.",
        "tensorboard is 'yes', expected bool.",
        "seed is None, expected int.",
        *2 * ["The config is 'smoke', expected a Config, such as PRESETS['smoke']."],
        "The space is {'cell': ['gru']}, expected that of space_of({'learning_rate': [0.003, 0.01]}).",
        "resume is 'runs/first', expected True or False: the folder to resume is run_dir.",
        "execution is 2, expected an Execution, such as Execution(devices=1).",
        "The source is an object of <class 'numpy.ndarray'>, expected text or a Path. Save arrays to a file: "
        "numpy.savez('data.npz', x_train=..., y_train=..., x_test=..., y_test=...).",
    ]


def test_differences_name_the_fields():
    old = Config()
    new = dataclasses.replace(old, epochs=12, optimizer=OptimizerConfig(learning_rate=0.1))
    assert differences(old, old) == {}
    assert differences(old, new) == {"epochs": (10, 12), "optimizer.learning_rate": (0.01, 0.1)}
