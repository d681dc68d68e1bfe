"""The programs and commands of docs/your_data.md make a data set and learn it."""

import re

import pytest
from pages import commands, python_programs, run, run_program


@pytest.mark.slow
def test_data_of_your_own_are_learned(tmp_path, empty_figures):
    name, accuracy = run_program("\n".join(python_programs("your_data")), tmp_path).split()
    assert name == "accuracy"
    assert float(accuracy) > 0.8  # 0.5 is the accuracy of a guess
    trained, predicted, reported = [run(line, tmp_path) for line in commands("your_data")]
    assert "20 rows of 20" in trained
    assert len(re.findall(r"│ odd +│", predicted)) > 80  # of 103, in the column of labels
    assert "parity/plots" in reported
