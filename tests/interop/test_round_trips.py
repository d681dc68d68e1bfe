"""Every kind of network through every format that can hold it: written, and read again."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
from parameters import drawn

from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop import formats
from lstm_mnist_jax.interop.imported import EXPORT_ENDINGS, unusual

IMAGE_SHAPE = (6, 5)
CLASSES = ("zero", "one", "two")

CELLS = [{"cell": "lstm"}, {"cell": "gru"}, {"cell": "gru", "recurrent_bias": True}, {"cell": "layer_norm_lstm"},
         {"cell": "ur_lstm"}]  # fmt: skip
POOLINGS = ["last", "last_step", "mean", "max", "attention", "all"]
WIDTHS = [(4,), (4, 4), (4, 6), (6, 4, 3)]
HEADS = [{}, {"dense_features": (7,)}, {"dense_features": (7, 4), "dense_activation": "tanh"},
         {"dense_features": (4,), "dense_activation": "linear"}]  # fmt: skip
TASKS = ["rows", "columns", "pixels", "permuted"]
ACTIVATIONS = [("tanh", "sigmoid"), ("relu", "sigmoid"), ("tanh", "hard_sigmoid_keras3"), ("linear", "sigmoid"),
               ("hard_sigmoid_keras2", "hard_sigmoid_keras2")]  # fmt: skip


def every_config() -> list[ModelConfig]:
    """Every cell in one and both directions with every pooling, and in turn the other options; and every activation."""
    turns = [itertools.cycle(options) for options in (WIDTHS, HEADS, TASKS, [False, True])]
    found = []
    for cell, bidirectional, pooling in itertools.product(CELLS, (False, True), POOLINGS):
        if pooling == "last_step" and not bidirectional:
            continue  # is "last"
        widths, head, task, plain = map(next, turns)
        options = {"hidden_features": widths, "bidirectional": bidirectional, "pooling": pooling, **cell, **head}
        found.append(ModelConfig(**options, task="rows" if plain else task))
    for activation, recurrent_activation in ACTIVATIONS:
        for bidirectional, pooling in itertools.product((False, True), ("last", "all", "max")):
            widths, head, *_ = map(next, turns)
            options = {"activation": activation, "recurrent_activation": recurrent_activation, **head}
            found.append(ModelConfig(hidden_features=widths, bidirectional=bidirectional, pooling=pooling, **options))
    return found


@functools.cache
def params_of(config: ModelConfig):
    """Drawn once for all formats. Nobody may change them."""
    return drawn(config, IMAGE_SHAPE, len(CLASSES))


def given_for(format_name: str, config: ModelConfig) -> formats.Given:
    """What somebody who imports the file has to say of it."""
    if format_name not in ("torch", "keras", "flax"):
        return formats.Given()
    asked = {}
    if config.dense_features:
        asked["dense_activation"] = config.dense_activation
    if config.pooling != "last" or config.bidirectional:
        asked["pooling"] = config.pooling
    if format_name != "torch":
        asked |= {"activation": config.activation, "recurrent_activation": config.recurrent_activation}
    return formats.Given(**asked)


def as_held(format_name: str, config: ModelConfig, params):
    """The parameters as the format keeps them: Flax's GRU adds the second bias of r and z to the first."""
    if format_name != "flax" or not config.recurrent_bias:
        return params
    params = jax.tree.map(np.array, params)
    for layer in params["rnn"]["layers"].values():
        for direction in (layer["forward_rnn"], layer["backward_rnn"]) if config.bidirectional else (layer,):
            first, second = direction["cell"]["dense_i"]["bias"], direction["cell"]["dense_h"]["bias"]
            gates = np.s_[: 2 * len(first) // 3]
            first[gates] += second[gates]
            second[gates] = 0
    return params


IMPORTED = [name for name in EXPORT_ENDINGS if name in formats.IMPORT_FORMATS]


@pytest.mark.parametrize("format_name", IMPORTED)
def test_every_network_that_a_format_holds_comes_back(tmp_path, format_name):
    held = [config for config in every_config() if not unusual(format_name, config)]
    assert held
    for number, config in enumerate(held):
        params = params_of(config)
        path = tmp_path / f"{number}{EXPORT_ENDINGS[format_name]}"
        model = formats.Exported(config, params, None, IMAGE_SHAPE, CLASSES, formats.Settings())
        formats.write(format_name, path, model)
        found = formats.read(format_name, path, given=given_for(format_name, config))
        assert found.config == config, dataclasses.asdict(config)
        params = as_held(format_name, config, params)
        assert jax.tree.structure(found.params) == jax.tree.structure(params)
        for got, wanted in zip(jax.tree.leaves(found.params), jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7, err_msg=str(config))


def test_networks_that_a_format_cannot_hold_are_refused_by_name(tmp_path):
    for format_name in EXPORT_ENDINGS:
        for config in every_config():
            if fields := unusual(format_name, config):
                params = params_of(config)
                model = formats.Exported(config, params, None, IMAGE_SHAPE, CLASSES, formats.Settings())
                with pytest.raises(WeightsError, match="cannot hold this model's") as caught:
                    formats.write(format_name, tmp_path / f"x{EXPORT_ENDINGS[format_name]}", model)
                assert all(name in str(caught.value) for name in fields)
                assert not list(tmp_path.iterdir())
