"""scripts/scaling.py: the model is found again from steps that it has made, and the program measures real ones."""

import json
import os
import sys

import pytest

import scaling
from scaling import KINDS, Growth, Step, fitted, largest_error


def test_the_slowdown_of_two_cores_is_divided_into_sharing_waiting_and_the_all_reduce():
    made = Step(overhead=1e-3, work=2e-5, sharing=0.25, waiting=0.1, all_reduce=3e-4)
    medians = {}
    for batch in (8, 32, 128):
        alone = 1e-3 + 2e-5 * batch
        steps = [alone, 1.25 * alone, 1.375 * alone + 3e-4]
        medians |= dict(zip([(kind, batch) for kind in KINDS], steps, strict=True))
    found = fitted(medians)
    assert vars(found) == pytest.approx(vars(made))
    assert largest_error(found, medians) < 1e-9
    for kind in KINDS:
        assert largest_error(found, medians | {(kind, 8): 2 * medians[kind, 8]}) == pytest.approx(0.5), kind


def test_one_and_two_cores_are_as_measured_and_more_are_a_range():
    step = Step(overhead=1e-3, work=2e-5, sharing=0.25, waiting=0.1, all_reduce=3e-4)
    for growth in (Growth.least, Growth.most):
        assert step.seconds(1, 64, growth(1)) == pytest.approx(1e-3 + 2e-5 * 64)
        assert step.seconds(2, 64, growth(2)) == pytest.approx(1.25 * 1.1 * (1e-3 + 2e-5 * 32) + 3e-4)
    # Eight cores: they share once, or seven times, what two share; they wait once, or three times, as long; the
    # all-reduce takes three times, or seven times, that of two.
    least, most = 1.25 * 1.1 * (1e-3 + 2e-5 * 8) + 3 * 3e-4, 2.75 * 1.3 * (1e-3 + 2e-5 * 8) + 7 * 3e-4
    assert scaling.epoch(step, 8, 64) == pytest.approx((55_000 / 64 * least, 55_000 / 64 * most))
    # From this batch on, and not before, a step on eight cores takes a quarter of its time on one.
    batch = step.least_batch(8, Growth.least(8))
    eight, one = ([step.seconds(cores, size, Growth.least(cores)) for size in (batch - 1, batch)] for cores in (8, 1))
    assert eight[0] > one[0] / 4
    assert eight[1] <= one[1] / 4
    assert step.least_batch(8, Growth.most(8)) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tutorials"], "unknown preset 'tutorials'; expected one of tutorial, smoke,"),
        (["--rounds", "0"], "--rounds and --seconds must be positive."),
        (["--batches", "8", "8"], "--batches are (8, 8); expected two or more different sizes"),
        (["--output", "missing/scaling.json"], "the folder of --output missing/scaling.json does not exist."),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_measured(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scaling.py", *words])
    with pytest.raises(SystemExit, match="2"):
        scaling.main()
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or len(scaling.physical_cores()) < 2, reason="needs Linux and two physical cores"
)
def test_steps_on_one_and_two_cores_are_measured(tmp_path, monkeypatch, capsys):
    output = tmp_path / "found.json"
    words = ["smoke", "--batches", "4", "512", "--rounds", "1", "--seconds", "0.02", "--output", output]
    monkeypatch.setattr(sys, "argv", ["scaling.py", *map(str, words)])
    for name in ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES"):  # which the program sets
        monkeypatch.setenv(name, os.environ.get(name, "cpu"))
    scaling.main()
    printed = capsys.readouterr().out
    found = json.loads(output.read_text())
    sizes = {(row["kind"], row["batch"]) for row in found["steps"]}
    assert sizes == {(kind, size) for kind in KINDS for size in (4, 512)}
    assert all(len(row["seconds"]) == 1 and 0 < row["seconds"][0] < 1 for row in found["steps"])
    assert found["model"]["work"] > 0
    assert printed.count("| 4 | ") == 1
    assert "| batch for half of the speed-up | " in printed
