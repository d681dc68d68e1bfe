"""Every command and every program in the README runs."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import programs
import pytest
from runs import TINY_OPTIONS
from test_cli import leaf_names

from lstm_mnist_jax import load, load_run, model
from lstm_mnist_jax.config import PRESETS
from lstm_mnist_jax.config.json import to_dict

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
FROM_TF1 = (ROOT / "lstm_mnist_jax" / "interop" / "from_tf1.md").read_text("utf-8")
OWN_CELL = (ROOT / "lstm_mnist_jax" / "rnn" / "your_own_cell.md").read_text("utf-8")
RECIPES = (ROOT / "docs" / "recipes.md").read_text("utf-8")
OWN_DATA = (ROOT / "lstm_mnist_jax" / "data" / "your_own_data.md").read_text("utf-8")
MANY_TRAININGS = (ROOT / "lstm_mnist_jax" / "sweeps" / "many_trainings.md").read_text("utf-8")
EXPORTS = (ROOT / "lstm_mnist_jax" / "interop" / "exports.md").read_text("utf-8")


def blocks(text):
    return re.findall(r"(?:<!-- (\w+) -->\n)?```(\w+)\n(.*?)```", text, re.DOTALL)


BLOCKS = blocks(README)


SCRIPT = """
import runpy, sys

sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

TOLERANT = "import warnings\n\nwarnings.resetwarnings()\n"
"""Before programs that import other libraries, which may warn."""


LESS_WORK = {
    "lstm-mnist train smoke --seeds": ["--epochs", "1", "--train-examples", "1000"],
    "lstm-mnist sweep smoke": ["--epochs", "1", "--train-examples", "1000"],
    "lstm-mnist train rows-fast": ["--epochs", "2", "--train-examples", "6400"],  # not a minute of a core
    "python scripts/launch_local.py": TINY_OPTIONS,  # whose program other tests compile for two processes as well
}
"""What is added to the commands that begin so."""


def output_of(done):
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_installed(words, folder):
    """Runs a command as a shell does that has the virtual environment in its path."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return output_of(
        subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
    )


def run(line, folder):
    """Runs `lstm-mnist ...` or `python SCRIPT ...`, with scripts/ in the folder, without starting an interpreter."""
    program, *words = shlex.split(line, comments=True)
    assert program in ("lstm-mnist", "python")
    words += [word for start, options in LESS_WORK.items() if line.startswith(start) for word in options]
    return output_of(programs.run(words, code=SCRIPT if program == "python" else None, cwd=folder))


def run_program(text, folder):
    return output_of(programs.run(code=text, cwd=folder))


@pytest.mark.slow
def test_the_commands_and_the_programs_in_their_order(tmp_path):
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    outputs = []
    for marker, kind, text in BLOCKS:
        if kind == "sh" and not marker:
            for line in text.splitlines():
                words = shlex.split(line, comments=True)
                installed = not outputs or words[:2] == ["python", "scripts/train.py"]
                outputs.append(run_installed(words, tmp_path) if installed else run(line, tmp_path))
        if kind == "python":
            check = (
                "\nassert labels.shape == (5,) and probabilities.shape == (5, 10)\n" if "labels, prob" in text else ""
            )
            printed = run_program(text + check, tmp_path)
            assert bool(printed) == ("print(" in text)
    assert len(outputs) == 18
    assert "best on validation: epoch" in outputs[0]  # the installed command
    assert "epoch 1/1" in outputs[4]  # the script
    assert "digits.npy[4]" in outputs[5]
    assert "page: runs/first/report.html" in outputs[6]
    assert "python" in outputs[7]
    assert "on 2 x cpu in 2 processes" in outputs[13]
    assert "epoch 3/3" in outputs[1]
    assert re.search("the state of Adam after (93|186|279) steps", outputs[16])  # of the epoch that validated best
    assert "epoch 4/4" in outputs[17]


@pytest.mark.slow
def test_the_commands_of_the_recipes(tmp_path):
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    first, *_ = [text for _, kind, text in blocks(RECIPES) if kind == "sh"]
    trained, evaluated, table = [run(line, tmp_path) for line in first.splitlines()]
    assert "best on validation" in trained
    assert "not the model alone: averaged over 9 shifts of up to 1 pixels" in evaluated
    assert "lstm-mnist train rows-fast" in table
    for option in re.findall(r"`--([\w-]+)", RECIPES):
        assert option.replace("-", "_") in {*leaf_names(to_dict(PRESETS["tutorial"]))}, option


def test_the_presets_are_all_told():
    for name in PRESETS:
        assert f"`{name}`" in README.split("## Recipes")[1].split("##")[0]


def test_the_two_commands_are_those_that_continuous_integration_runs():
    marked = {marker: text.strip() for marker, _, text in BLOCKS if marker}
    assert marked.keys() == {"train", "tests"}
    for marker, command in marked.items():
        script = (ROOT / ".ci" / "run").read_text().split("step()")[0].split("command_of()")[1]
        extract = f"cd {ROOT}; command_of() {script}\ncommand_of {marker}"
        assert run_installed(["bash", "-c", extract], ROOT).strip() == command


@pytest.mark.slow
@pytest.mark.parametrize("program", [text for _, kind, text in blocks(FROM_TF1) if kind == "python"])
def test_both_programs_from_tf1_to_jax_learn(program, tmp_path):
    if "tensorflow" in program:
        pytest.importorskip("tensorflow")
        pytest.importorskip("tf_keras")
    loss = run_program(TOLERANT + program, tmp_path).split()
    assert loss[0] == "loss"
    assert float(loss[1]) < 1.5  # 2.3 is that of a guess


@pytest.mark.slow
def test_a_cell_of_ones_own_learns(tmp_path):
    program = "\n".join(text for _, kind, text in blocks(OWN_CELL) if kind == "python")
    name, *losses = run_program(program, tmp_path).split()
    assert name == "losses"
    assert len(losses) == 4
    assert max(map(float, losses)) < 1.5  # 2.3 is that of a guess


@pytest.mark.slow
def test_a_sweep_from_python(tmp_path):
    (program,) = [text for _, kind, text in blocks(MANY_TRAININGS) if kind == "python"]
    assert "learning_rate" in run_program(program, tmp_path)
    assert load_run(tmp_path / "runs" / "best-rate").class_names == tuple("0123456789")


@pytest.mark.slow
def test_data_of_ones_own_are_learnt(tmp_path):
    texts = [text for _, kind, text in blocks(OWN_DATA) if kind == "python"]
    (commands,) = [text for _, kind, text in blocks(OWN_DATA) if kind == "sh"]
    name, accuracy = run_program("\n".join(texts), tmp_path).split()
    assert name == "accuracy"
    assert float(accuracy) > 0.8  # 0.5 is that of a guess
    trained, predicted, reported = [run(line, tmp_path) for line in commands.splitlines()]
    assert "20 rows of 20" in trained
    assert len(re.findall(r"│ odd +│", predicted)) > 200  # of 265, in the column of labels
    assert "parity/plots" in reported


@pytest.fixture(scope="module")
def exported(tmp_path_factory, digits_run):
    """A folder with every file that exports.md tells to write, digits, and their logits."""
    folder = tmp_path_factory.mktemp("exports")
    shutil.copytree(digits_run, folder / "runs" / "first")
    commands = re.findall(r"`(lstm-mnist export \w+ [^`]*)`", EXPORTS)
    assert len(commands) == 7
    for command in commands:
        run(command, folder)
    digits = load().test.images[:20]
    np.save(folder / "digits.npy", digits)
    return folder, model.apply(load_run(folder / "runs" / "first").params, digits)


@pytest.mark.slow
@pytest.mark.parametrize("program", [text for _, kind, text in blocks(EXPORTS) if kind == "python"])
def test_programs_load_exported_files(program, exported, monkeypatch):
    if "import torch" in program:
        pytest.importorskip("torch")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    folder, logits = exported
    assert run_program(TOLERANT + program, folder) == ""
    np.testing.assert_allclose(np.load(folder / "logits.npy"), logits, rtol=0, atol=1e-5)
    (folder / "logits.npy").unlink()


def test_the_constructs_are_those_of_the_code():
    for name in re.findall(r"`((?:data|training)/\w+\.py)`", FROM_TF1):
        assert (ROOT / "lstm_mnist_jax" / name).is_file()


def test_the_tree_names_every_file_of_the_package():
    tree = README.split("## The house")[1].split("```")[1]
    for file in (ROOT / "lstm_mnist_jax").rglob("*.py"):
        if not file.name.startswith("__"):
            assert file.name in tree, f"{file.name} is missing from the README's tree"
    for name in re.findall(r"^\s+([\w.]+\.py)", tree, re.MULTILINE):
        assert list((ROOT / "lstm_mnist_jax").rglob(name)), f"the README's tree names {name}, which is gone"


def test_nothing_else_says_sh_or_python():
    assert {kind for _, kind, _ in BLOCKS} == {"sh", "python", "text"}
