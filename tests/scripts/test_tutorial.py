"""scripts/tutorial.py trains as `lstm-mnist train tutorial`, and the notebook runs the functions of the script."""

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import programs
import pytest
from flax import nnx
from runs import FIRST_OF_MNIST

import tutorial
from lstm_mnist_jax import PRESETS, load
from lstm_mnist_jax.config import Execution
from lstm_mnist_jax.training import make_program
from lstm_mnist_jax.training.mesh import make_mesh

ROOT = Path(__file__).parents[2]
EXAMPLES = 2_560
"""An epoch of 40 steps. Over the 859 of all of MNIST, Adam magnifies the rounding of float32 ten thousandfold."""


@pytest.fixture(scope="module")
def data():
    return load(FIRST_OF_MNIST, train_examples=EXAMPLES, validation_examples=500)


@pytest.fixture(scope="module")
def printed_and_losses(data, tmp_path_factory):
    """The lines that the script prints in one epoch, and the loss of every step."""
    train, losses, output = tutorial.train, [], io.StringIO()

    def train_and_keep(*arguments, **options):
        network, found = train(*arguments, **options)
        losses.extend(found)
        return network, found

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(tutorial, "load", lambda: data)
        patch.setattr(tutorial, "train", train_and_keep)
        tutorial.main(tmp_path_factory.mktemp("tutorial") / "checkpoint", epochs=1)
    return output.getvalue().splitlines(), losses


@pytest.mark.slow
def test_every_loss_of_an_epoch_is_that_of_the_package(data, printed_and_losses):
    config = PRESETS["tutorial"]
    program = make_program([config], data, make_mesh(Execution(devices=1), config.batch_size)).compile()
    state, sums = program.init(), [0.0]
    for _ in range(program.steps_per_epoch):
        state = program.run_steps(state, 1)
        sums.append(float(state.epoch_sums.loss[0]))
    _, losses = printed_and_losses
    assert config.seed == tutorial.SEED
    assert len(losses) == EXAMPLES // 64
    np.testing.assert_allclose(losses, np.diff(sums), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_it_prints_the_lines_of_the_command(printed_and_losses, command_line, tmp_path):
    options = ["--source", FIRST_OF_MNIST, "--train-examples", EXAMPLES, "--validation-examples", 500]
    options += ["--epochs", 1, "--run-dir", tmp_path / "run", "--devices", 1]
    lines = command_line("train", "tutorial", *options).stdout.splitlines()
    found, _ = printed_and_losses
    pattern = r"epoch +1/1  loss \d\.\d{4}  validation +[\d.]+%  test +[\d.]+%"
    (expected,) = [line for line in lines if re.match(pattern, line)]
    assert re.match(pattern, found[0])[0].split() == re.match(pattern, expected)[0].split()
    (best,) = [line for line in lines if line.startswith("best on validation: ")]
    assert best.startswith(found[1])
    assert found[2] == "states[1][1] == outputs[-1]: True"
    of_integers, of_one_hot = re.findall(r"\d+\.\d{6}", found[3])
    assert float(of_integers) == pytest.approx(float(of_one_hot), abs=2e-6)
    assert found[4].endswith("the same logits: True")


def test_its_network_may_have_three_layers(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tutorial, "HIDDEN", (4, 5, 6))
    monkeypatch.setattr(tutorial, "load", lambda: data)
    monkeypatch.setattr(tutorial, "train", lambda data, epochs: (tutorial.Network(nnx.Rngs(0)), []))
    tutorial.main(tmp_path / "checkpoint")
    assert capsys.readouterr().out.startswith("states[2][1] == outputs[-1]: True\n")


def cells():
    notebook = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text("utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_functions_of_the_notebook_are_those_of_the_script():
    script = (ROOT / "scripts" / "tutorial.py").read_text("utf-8")
    defined = [cell for cell in cells() if re.search(r"^(def|class) ", cell, re.MULTILINE)]
    assert len(defined) == 4
    for cell in defined:
        assert cell in script


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    program = "import matplotlib\nmatplotlib.use('agg')\n" + "\n".join(cells())
    assert "train_examples=10_000" in program
    program = program.replace("train_examples=10_000", "train_examples=640")
    done = programs.run(code=program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch ") == 3  # two, and the best
    assert "the same logits: True" in done.stdout
