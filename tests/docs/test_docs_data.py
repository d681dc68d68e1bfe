"""The programs and commands of docs/your_data.md make a data set and learn it; that of docs/pictures.md reads one."""

import re

import numpy as np
import pytest
from pages import commands, python_programs, run, run_program
from PIL import Image

from lstm_mnist_jax import load


@pytest.mark.slow
def test_data_of_your_own_are_learned(tmp_path, empty_figures):
    name, accuracy = run_program("\n".join(python_programs("your_data")), tmp_path).split()
    assert name == "accuracy"
    assert float(accuracy) > 0.8  # 0.5 is the accuracy of a guess
    trained, predicted, reported = [run(line, tmp_path) for line in commands("your_data")]
    assert "20 rows of 20" in trained
    assert len(re.findall(r"│ odd +│", predicted)) > 80  # of 103, in the column of labels
    assert "parity/plots" in reported


def test_the_digits_on_a_picture_are_read(folder_with_run):
    images = load().test.images[:2]
    Image.fromarray(np.pad(255 - np.hstack(images), 60, constant_values=255)).save(folder_with_run / "digits.png")
    (program,) = python_programs("pictures")
    assert run_program(program, folder_with_run).startswith("['7', '2'] [")
