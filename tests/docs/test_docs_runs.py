"""Every command and program of docs/runs.md runs."""

import re
import shlex
from importlib.util import find_spec

import pytest
from pages import LESS_WORK, TOLERANT, blocks, commands, run, run_installed, run_program
from runs import TINY_OPTIONS


@pytest.mark.slow
def test_train_evaluate_predict_report(folder, empty_figures):
    first, *commands_before, predict, report, compare, lesson = commands("runs")
    words = [*shlex.split(first, comments=True), *TINY_OPTIONS, "--epochs", "2"]
    outputs = [run_installed(words, folder)]  # once as it is installed
    for line in commands_before:
        outputs.append(run(line, folder, *(TINY_OPTIONS[2:] if " smoke " in line else ())))
    checks = "\nassert labels.shape == (5,) and probabilities.shape == (5, 10)\n"
    programs = [block.text for block in blocks("runs") if block.language == "python" and not block.marker]
    assert run_program(LESS_WORK + "\n".join(programs) + checks, folder) == ""
    lines = (folder / "epochs.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in lines] == [["run", "epoch"], ["runs/tracked", "1"], ["runs/tracked", "2"]]
    outputs += [run(line, folder) for line in (predict, report, compare, lesson)]
    trained, resumed, evaluated, _, script, predicted, reported, compared, lesson = outputs
    assert "best on validation: epoch" in trained
    assert "epoch 3/3" in resumed
    assert re.search("test", evaluated)
    assert "epoch 1/1" in script
    assert "digits.npy[4]" in predicted
    assert "page: runs/first/report.html" in reported
    assert "python" in compared
    assert "test accuracy" in lesson


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_trackers_that_are_installed_get_each_epoch(folder, tracker):
    (text,) = [block.text for block in blocks("runs") if block.marker == tracker]
    compile(text, tracker, "exec")
    if find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed")
    run_program(TOLERANT + LESS_WORK + text, folder)
    assert (folder / ("wandb" if tracker == "wandb" else "mlflow.db")).exists()


def test_completion_scripts_are_printed(tmp_path):
    (text,) = [block.text for block in blocks("runs") if block.marker == "completion"]
    for shell in re.findall("lstm-mnist completion (\\w+)", text):
        assert "lstm-mnist" in run(f"lstm-mnist completion {shell}", tmp_path)
