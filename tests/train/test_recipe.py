"""Runs with every option: what they leave, and that they resume to the last bit."""

import dataclasses
import json
import signal

import jax
import numpy as np
import pytest
from runs import TINY, best_of, outcome

from lstm_mnist_jax import load_run, train
from lstm_mnist_jax.config import AugmentationConfig, Execution, ModelConfig, OptimizerConfig
from lstm_mnist_jax.data import load
from lstm_mnist_jax.training import checkpoint, make_program, member_state
from lstm_mnist_jax.training.mesh import make_mesh
from lstm_mnist_jax.training.metrics import read_metrics
from lstm_mnist_jax.training.program import LatestAndBest

# One layer: with relu, two take XLA seconds more. (Runs of two: test_determinism.py.)
RECIPE = dataclasses.replace(
    TINY,
    batch_doubling_epochs=(1,),
    label_smoothing=0.1,
    model=ModelConfig(
        "permuted",
        sequence_length=28,
        permutation_seed=5,
        hidden_features=(4,),
        dropout_rate=0.2,
        activation="relu",
        pooling="all",
        dense_features=(5,),
    ),
    optimizer=OptimizerConfig(
        learning_rate=0.03,
        weight_decay=0.01,
        ema_decay=0.9,
        clip_norm=1.0,
        schedule="cosine",
        warmup_epochs=0.5,
        final_fraction=0.5,
    ),
    augmentation=AugmentationConfig(10.0, 0.1, 0.1, 1.0, 0.5, erasing_probability=0.3, mixup_alpha=0.3),
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The result of a run with every option, never interrupted."""
    return train(RECIPE, tmp_path_factory.mktemp("recipe") / "run")


@pytest.mark.slow
def test_the_returned_result_is_that_of_the_folder(recipe):
    assert recipe.trained
    assert recipe.stopped_by is None
    assert recipe.epochs == read_metrics(recipe.run_dir / "metrics.jsonl")
    assert recipe.best == best_of(recipe.epochs)
    assert load_run(recipe.run_dir).step == recipe.best_step == recipe.best.step
    rates = [metrics.learning_rate for metrics in recipe.epochs]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.slow
def test_a_recipe_with_everything_resumes_to_the_last_bit(recipe, tmp_path, stop_at):
    for step in (1, 25, None):
        stop_at(step)
        assert train(RECIPE, tmp_path / "part", resume=step != 1).stopped_by == (step and signal.SIGTERM)
    assert outcome(recipe.run_dir) == outcome(tmp_path / "part")


@pytest.mark.slow
def test_the_ema_of_the_weights_is_evaluated_and_loaded(recipe):
    run = load_run(recipe.run_dir, "last")
    program = make_program([RECIPE], load(**vars(RECIPE.data)), make_mesh(Execution(), RECIPE.batch_size))
    path = checkpoint.checkpoint_path(recipe.run_dir / "checkpoints", run.step)
    shapes = program.abstract_saved(1)
    state = member_state(checkpoint.load_state(path, LatestAndBest(shapes, shapes)).newest, 0)
    jax.tree.map(np.testing.assert_array_equal, run.params, state.average)
    found = run.evaluate()["test"].loss
    assert found == pytest.approx(recipe.epochs[-1].test_loss, rel=1e-5)
    without_mean = dataclasses.replace(run, params=state.params).evaluate()["test"].loss
    assert abs(without_mean - found) > 1e-3


@pytest.mark.slow
def test_a_run_over_permuted_pixels_holds_their_order(recipe):
    order = json.loads((recipe.run_dir / "permutation.json").read_text())
    assert order == np.random.RandomState(5).permutation(784).tolist()
