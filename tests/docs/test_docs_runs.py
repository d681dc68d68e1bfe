"""Every command and program of docs/runs.md runs, in the order of the page."""

import re
import shlex

import pytest
from pages import blocks, commands, run, run_installed, run_program


@pytest.mark.slow
def test_train_evaluate_predict_report(folder):
    outputs = {}
    for block in blocks("runs"):
        if block.language == "python":
            program = block.text
            if "labels, probabilities" in program:
                program += "\nassert labels.shape == (5,) and probabilities.shape == (5, 10)\n"
            assert run_program(program, folder) == ""
        elif block.language == "sh":
            for line in block.text.splitlines():
                words = shlex.split(line, comments=True)
                # The installed command, and the script, each once in a new interpreter.
                new_interpreter = not outputs or words[1] == "scripts/train.py"
                outputs[line] = run_installed(words, folder) if new_interpreter else run(line, folder)
    trained, resumed, evaluated, _, script, predicted, reported, compared, lesson = map(outputs.get, commands("runs"))
    assert "best on validation: epoch" in trained
    assert "epoch 3/3" in resumed
    assert re.search("test", evaluated)
    assert "epoch 1/1" in script
    assert "digits.npy[4]" in predicted
    assert "page: runs/first/report.html" in reported
    assert "python" in compared
    assert "test accuracy" in lesson
