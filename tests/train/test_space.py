"""The settings that a sweep tries: lists, draws from intervals, Optuna's; and which are refused."""

import dataclasses
import os
import re
import signal

import numpy as np
import pytest
from runs import TINY, TWO_NETWORKS, metrics_of

from lstm_mnist_jax.config.space import Interval
from lstm_mnist_jax.errors import ConfigError
from lstm_mnist_jax.sweeps import space_of, sweep
from lstm_mnist_jax.training import TrainingProgram
from lstm_mnist_jax.training.results import member_results
from lstm_mnist_jax.training.run_folder import read_run_folder


def test_draws_are_within_their_intervals_and_the_same_again():
    space = space_of({"learning_rate": "loguniform:1e-4:1e-1", "b1": "uniform:0.5:0.95"}, samples=200)
    settings = space.settings(3)
    assert settings == space.settings(3) != space.settings(4)
    rates = np.log10([setting["learning_rate"] for setting in settings])
    assert -4 <= rates.min() < -3.8
    assert -1.2 < rates.max() <= -1
    assert np.mean(rates) == pytest.approx(-2.5, abs=0.2)
    assert np.mean([setting["b1"] for setting in settings]) == pytest.approx(0.725, abs=0.03)
    combined = space_of({"learning_rate": "uniform:0.1:0.2", "b1": [0.8, 0.9]}, samples=3).settings(0)
    assert len(combined) == 6
    assert [list(setting) for setting in combined] == [["learning_rate", "b1"]] * 6
    narrow = space_of({"b2": "uniform:0.9999:0.99999"}, samples=100).settings(0)
    values = {setting["b2"] for setting in narrow}
    assert len(values) > 90
    assert min(values) >= 0.9999
    assert max(values) <= 0.99999
    assert space.axes()["learning_rate"] == Interval(1e-4, 0.1, True)


@pytest.mark.parametrize(
    ("axes", "options", "message"),
    [
        ({"speed": [1]}, {}, "speed cannot be swept; expected one of learning_rate, b1"),
        ({"seed": [1]}, {}, "seed is no field of a setting: seeds=4 trains each setting with four seeds."),
        ({"model.cell": ["gru"]}, {}, "did you mean cell?"),
        ({"learing_rate": [1]}, {}, "label_smoothing; did you mean learning_rate?"),
        ({"learning_rate": 0.1}, {}, "learning_rate is 0.1, expected a list of values, or an interval as text"),
        ({"learning_rate": []}, {}, "learning_rate has no value to try"),
        ({"learning_rate": ["fast"]}, {}, "learning_rate is 'fast', expected a number"),
        ({"learning_rate": [0.1, -1]}, {}, "learning_rate is -1.0, expected a number above 0"),
        ({"learning_rate": [0.1, 0.1]}, {}, "learning_rate names a value twice"),
        ({"hidden_features": ["32x64"]}, {}, "hidden_features is '32x64', expected integers with commas between"),
        ({"batch_size": ["1.5"]}, {}, "batch_size is '1.5', expected an integer"),
        ({"learning_rate": "uniform:1:2:3"}, {"samples": 2}, "expected values, uniform:LOW:HIGH or loguniform:LOW"),
        ({"learning_rate": "normal:1:2"}, {"samples": 2}, "expected values, uniform:LOW:HIGH or loguniform:LOW:HIGH"),
        ({"learning_rate": "uniform:2:1"}, {"samples": 2}, "expected LOW < HIGH"),
        ({"learning_rate": "loguniform:0:1"}, {"samples": 2}, "expected LOW < HIGH, both above 0"),
        ({"b1": "uniform:0:1"}, {"samples": 2}, "b1 is 1.0, expected at least 0 and below 1"),
        ({"learning_rate": "uniform:0.1:nan"}, {"samples": 2}, "learning_rate is nan, expected a finite number"),
        ({"batch_size": "uniform:1:9"}, {"samples": 2}, "an interval is for numbers with decimals: list its values"),
        ({"learning_rate": "uniform:0.1:1"}, {}, "set samples, the number of settings to draw"),
        ({"learning_rate": ["uniform:0.1:1", "3"]}, {"samples": 2}, "expected values, or one interval"),
        ({"learning_rate": [0.1]}, {"samples": 2}, "samples is for intervals"),
        ({"learning_rate": [0.1]}, {"seeds": 0}, "seeds is 0, expected 1 or more"),
        ({"learning_rate": "uniform:0.1:1"}, {"samples": 0}, "samples is 0, expected 1 or more"),
        ({}, {"optuna": True, "samples": 3}, "Optuna needs something to vary"),
    ],
)
def test_impossible_spaces_are_refused(axes, options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        space_of(axes, **options)


def test_a_field_may_vary_that_has_an_effect_in_some_runs():
    space_of({"forget_bias": [0, 1], "cell": ["lstm", "gru"]}).refuse_without_effect(TINY)
    space_of({"elastic_spacing": [3, 6], "elastic_pixels": "uniform:0:2"}, samples=2).refuse_without_effect(TINY)
    with pytest.raises(ConfigError, match="forget_bias has no effect here"):
        space_of({"forget_bias": [0, 1], "cell": ["gru", "ur_lstm"]}).refuse_without_effect(TINY)
    with pytest.raises(ConfigError, match="forget_bias has no effect here: it needs chrono_steps None"):
        space_of({"forget_bias": [0, 1], "chrono_steps": [7, 28]}).refuse_without_effect(TINY)
    tenths = [n / 10 for n in range(10)]  # of which there are too many combinations to try
    many = dict.fromkeys(("weight_decay", "final_fraction", "dropout_rate", "label_smoothing", "clip_norm"), tenths)
    many |= {"clip_norm": range(1, 100), "batch_size": range(1, 100), "schedule": ["constant", "cosine"]}
    space_of(many, samples=2, optuna=True).refuse_without_effect(TINY)


@pytest.mark.slow
def test_optuna_goes_on_as_if_it_had_not_been_interrupted(tmp_path, monkeypatch, empty_figures):
    pytest.importorskip("optuna")
    monkeypatch.setattr("lstm_mnist_jax.sweeps.ROUND", 2)
    axes = {"learning_rate": "loguniform:1e-3:1e-1", "hidden_features": TWO_NETWORKS}
    space = space_of(axes, samples=3, seeds=3, optuna=True)
    config = dataclasses.replace(TINY, epochs=1)
    whole = sweep(config, space, tmp_path / "whole")
    assert len(whole.settings) == 3
    assert len(read_run_folder(whole.run_dir).groups) == 3
    run_steps, begun = TrainingProgram.run_steps, []

    def run_and_stop(self, state, n):
        if int(state.step[0]) == 0:
            begun.append(self)
            if len(begun) > 1:
                os.kill(os.getpid(), signal.SIGTERM)
        return run_steps(self, state, n)

    monkeypatch.setattr(TrainingProgram, "run_steps", run_and_stop)
    for groups in (2, 3):  # in the midst of the first round, and at the start of the second
        stopped = sweep(config, space, tmp_path / "parts", resume=groups > 2)
        assert stopped.stopped_by == signal.SIGTERM
        assert len(begun) == groups
    resumed = sweep(config, space, tmp_path / "parts", resume=True)
    assert metrics_of(tmp_path / "parts") == metrics_of(tmp_path / "whole")
    assert resumed.members == member_results(read_run_folder(tmp_path / "parts"))
    assert [member.setting for member in resumed.members] == [member.setting for member in whole.members]


@pytest.mark.slow
def test_optuna_ends_when_all_listed_settings_were_tried(tmp_path, empty_figures):
    pytest.importorskip("optuna")
    config = dataclasses.replace(TINY, epochs=1)
    space = space_of({"learning_rate": [0.003, 0.01, 0.03]}, samples=7, optuna=True)
    result = sweep(config, space, tmp_path / "run")
    assert sorted(member.setting["learning_rate"] for member in result.members) == [0.003, 0.01, 0.03]
