"""Every command and program of docs/runs.md runs."""

import re
import shlex

import pytest
from pages import commands, python_programs, run, run_installed, run_program


@pytest.mark.slow
def test_train_evaluate_predict_report(folder):
    first, *commands_before, predict, report, compare, lesson = commands("runs")
    outputs = [run_installed(shlex.split(first, comments=True), folder)]  # once as it is installed
    outputs += [run(line, folder) for line in commands_before]
    checks = "\nassert labels.shape == (5,) and probabilities.shape == (5, 10)\n"
    assert run_program("\n".join(python_programs("runs")) + checks, folder) == ""
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
