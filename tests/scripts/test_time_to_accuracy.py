"""How soon a preset reaches an accuracy: the clock, the table, and the same recipe in PyTorch."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import time_to_accuracy
from time_to_accuracy import ProgramError, median_and_spread, seconds_to, timed

SCRIPTS = str(Path(__file__).parents[2] / "scripts")

LINES = """
import sys, time
print("run of something", file=sys.stdout)
for epoch, test in enumerate((97.0, 98.2, 99.1), start=1):
    time.sleep(0.3)
    print(f"epoch {epoch}/3  loss 0.1  validation  98.00%  test  {test}%  1.0 s", flush=True)
print("x" * 200_000, file=sys.stderr)
"""


def test_epochs_are_timed_from_the_start_of_the_process(tmp_path):
    epochs = timed([sys.executable, "-c", LINES], tmp_path)
    assert [epoch["test"] for epoch in epochs] == [97.0, 98.2, 99.1]
    for number, epoch in enumerate(epochs, start=1):
        assert epoch["seconds"] >= 0.3 * number  # the process slept for so long before it printed the line
    assert epochs[0]["seconds"] < epochs[1]["seconds"] < epochs[2]["seconds"]
    assert seconds_to(epochs, 98.0) == epochs[1]["seconds"]
    assert seconds_to(epochs, 99.5) is None


@pytest.mark.parametrize(("program", "message"), [("print(1)", "it printed no epoch"), ("raise OSError('why')", "why")])
def test_a_failed_process_is_reported_with_its_error(program, message):
    with pytest.raises(ProgramError, match=message):
        timed([sys.executable, "-c", program], None)


def test_medians_count_runs_that_never_reached_the_accuracy():
    assert median_and_spread([3.0, 1.0, 2.0]) == "2.0 [1.0, 3.0]"
    assert median_and_spread([3.0, None]) == "3.0 [3.0, 3.0], 1 never"
    assert median_and_spread([None]) == "never"


PARITY = """
import numpy as np, torch
import sys
sys.path.insert(0, sys.argv[1])
import torch_recipe
from lstm_mnist_jax.config import AugmentationConfig

bar = torch.zeros(200, 40, 40)
bar[:, 12:28, 17:23] = 1
moved = torch_recipe.augment(bar, AugmentationConfig(shift_pixels=3.0)).numpy()
rows = (moved.sum(2) * np.arange(40)).sum(1) / moved.sum((1, 2)) - 19.5
assert 2.7 < rows.max() <= 3.01 and -3.01 <= rows.min() < -2.7, (rows.min(), rows.max())
slanted = torch_recipe.augment(bar, AugmentationConfig(shear=0.4)).numpy()
y, x = np.indices((40, 40)) - 19.5
slopes = (slanted * x * y).sum((1, 2)) / (slanted * y * y).sum((1, 2))
assert 0.35 < slopes.max() < 0.41 and -0.41 < slopes.min() < -0.35, (slopes.min(), slopes.max())
torch_recipe.main("rows")
"""


@pytest.mark.slow
def test_the_recipe_in_pytorch_augments_alike_and_refuses_what_it_does_not_do():
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "-c", PARITY, SCRIPTS], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    refusal = (
        "rows has more than this program does: selection_metric, model.pooling, optimizer.weight_decay, augmentation"
    )
    assert done.stderr.strip() == f"{refusal}.elastic_pixels"


@pytest.mark.slow
def test_errors_before_the_first_round_are_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "rocm")  # of the processes that are started
    for words, message in (
        (["fast"], "unknown preset 'fast'; expected one of tutorial"),
        (["--rounds", "0"], "rounds is 0, expected 1 or more"),
        (["smoke"], "smoke cannot be trained: lstm-mnist: JAX finds no device"),
    ):
        monkeypatch.setattr(sys, "argv", ["time_to_accuracy.py", *words])
        with pytest.raises(SystemExit, match=re.escape(message)):
            time_to_accuracy.main()
    assert list(tmp_path.iterdir()) == []
