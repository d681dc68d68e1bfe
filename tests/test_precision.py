"""The precision of matrix products: it reaches every product, is kept with a run, and changes nothing on a CPU."""

import re
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from parameters import drawn, drawn_module

from lstm_mnist_jax import inference, model
from lstm_mnist_jax.config import Config, Execution, ModelConfig
from lstm_mnist_jax.config.json import from_dict
from lstm_mnist_jax.errors import ConfigError
from lstm_mnist_jax.rnn import LSTM
from lstm_mnist_jax.training import make_program
from lstm_mnist_jax.training.mesh import make_mesh, rounding

HEAD = {"hidden_features": (4, 3), "pooling": "attention", "dense_features": (5,)}
CONFIGS = [
    ModelConfig(**HEAD, cell="gru", bidirectional=True),
    ModelConfig(**HEAD, cell="ur_lstm"),
    ModelConfig(hidden_features=(4,), pooling="all", activation="relu"),
]


def products(function: Callable[..., Any], *arguments: Any) -> list[str]:
    """The precision of each matrix product of a program, as it is lowered for a TPU."""
    text = jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
    return re.findall(r"dot_general .*?(?:precision = \[([A-Z]+), \1\]|$)", text, re.MULTILINE)


def test_every_product_of_training_evaluation_and_prediction_has_the_precision_of_the_config(tiny_dataset):
    images, labels = tiny_dataset.test.images[:2].astype(np.float32) / 255, tiny_dataset.test.labels[:2]
    for config in [replace(config, precision="high") for config in CONFIGS]:
        params = drawn(config)
        for function in (model.apply, inference.logits_along, inference.layer_states):
            found = products(lambda params, function=function, config=config: function(params, images, config), params)
            assert set(found) == {"HIGH"}, (function, config)
        found = products(lambda params, config=config: inference.saliency(params, images, labels, config), params)
        assert set(found) == {"HIGH"}, config

    config = Config(batch_size=8, model=ModelConfig(hidden_features=(4, 3), precision="high"))
    program = make_program([config], tiny_dataset, make_mesh(Execution(devices=1), 8))
    found = products(program._run_steps, *program.abstract_arguments())
    assert set(found) == {"HIGH"}
    # Of each layer, the products of inputs and of h with their kernels, and both gradients of each; JAX 0.12 leaves out
    # the one of the images.
    assert len(found) in (14, 15)
    evaluator = program._evaluator
    found = products(evaluator._program, program.abstract_state.params, *evaluator._abstract)
    assert found == ["HIGH"] * 5


def test_gradients_of_a_layer_have_the_precision_of_the_layer_as_any_product_of_jax():
    graph, params = nnx.split(drawn_module(lambda: LSTM(3, 4, rngs=nnx.Rngs(0))))
    inputs = np.ones((2, 5, 3), np.float32)

    def loss(params, inputs):
        with jax.default_matmul_precision("high"):
            return nnx.merge(graph, params)(inputs)[0].sum()

    def of_vmap(params, inputs):
        return jax.vmap(loss, (None, 0))(params, inputs[:, None]).sum()

    def forward_mode(params, inputs):
        return jax.jvp(loss, (params, inputs), (params, inputs))[1]

    for function in (jax.grad(loss, (0, 1)), jax.grad(of_vmap, (0, 1)), forward_mode, jax.grad(forward_mode)):
        found = products(function, params, inputs)
        assert len(found) >= 4
        assert set(found) == {"HIGH"}, function


def test_default_is_the_setting_of_jax(tiny_dataset):
    config = ModelConfig(hidden_features=(4,), precision="default")
    params, images = drawn(config), tiny_dataset.test.images
    for setting, expected in ((None, "DEFAULT"), ("high", "HIGH")):
        with jax.default_matmul_precision(setting):
            assert set(products(lambda params: model.apply(params, images, config), params)) <= {expected, ""}


def test_rounded_products_are_reported():
    with jax.default_matmul_precision(None):
        assert rounding("cpu", "default") is None
        assert "round float32 to bfloat16; not with --precision highest" in rounding("tpu", "default")
        assert "round float32 to TF32" in rounding("gpu", "high")
        assert "round float32 to sums of two bfloat16" in rounding("tpu", "high")
        assert rounding("tpu", "highest") is rounding("gpu", "highest") is None
    assert rounding("tpu", "default") is None  # the suite's own setting is highest
    with jax.default_matmul_precision("tensorfloat32"):
        assert rounding("tpu", "default") == rounding("tpu", "high")


def test_a_cpu_runs_the_same_program_with_any_precision(tiny_dataset):
    texts = set()
    for precision in ("default", "high", "highest"):
        config = Config(batch_size=8, model=ModelConfig(hidden_features=(4,), precision=precision))
        with jax.default_matmul_precision(None):
            program = make_program([config], tiny_dataset, make_mesh(Execution(devices=1), 8)).compile()
        compiled = program._run_steps.as_text()
        assert ("operand_precision" in compiled) == (precision != "default")
        compiled = re.sub(r", operand_precision=\{\w+,\w+\}", "", compiled)
        texts.add(re.sub(r"(, )?metadata=\{.*?\}|stack_frame_id=\d+", "", compiled))
    assert len(texts) == 1


def test_runs_without_the_field_have_the_precision_of_jax_that_they_were_trained_with():
    values = asdict(Config())
    del values["model"]["precision"]
    assert from_dict(Config, values).model.precision == "default"
    values["model"]["precision"] = "float32"
    with pytest.raises(ConfigError, match="precision is 'float32', expected one of default, high, highest"):
        from_dict(Config, values)
