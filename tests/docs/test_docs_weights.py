"""Every command and program of docs/weights.md runs; other libraries compute the same logits from exported files."""

import re
import shutil

import numpy as np
import pytest
from pages import TOLERANT, commands, python_programs, read, run, run_program

from lstm_mnist_jax import load, load_run, model

FROM_PYTHON, *FOR_EXPORTED_FILES = python_programs("weights")


@pytest.mark.slow
def test_export_import_and_resume(folder_with_run):
    _, _, imported, resumed, *_ = [run(line, folder_with_run) for line in commands("weights")]
    assert re.search("the state of Adam after (93|186|279) steps", imported)  # of the epoch that was best on validation
    assert "epoch 4/4" in resumed
    assert run_program(FROM_PYTHON, folder_with_run) == ""


@pytest.fixture(scope="module")
def exported(tmp_path_factory, digits_run):
    """A folder with every file that the page exports, digits, and their logits."""
    folder = tmp_path_factory.mktemp("exports")
    shutil.copytree(digits_run, folder / "runs" / "first")
    exports = re.findall(r"^`(lstm-mnist export \w+ [^`]*)`$", read("weights"), re.MULTILINE)
    assert len(exports) == len(FOR_EXPORTED_FILES) == 6
    for command in exports:
        run(command, folder)
    digits = load().test.images[:20]
    np.save(folder / "digits.npy", digits)
    first = load_run(folder / "runs" / "first")
    return folder, model.apply(first.params, digits, first.folder.config.model)


@pytest.mark.slow
@pytest.mark.parametrize("program", FOR_EXPORTED_FILES)
def test_programs_load_exported_files(program, exported, monkeypatch):
    if "import torch" in program:
        pytest.importorskip("torch")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    folder, logits = exported
    assert run_program(TOLERANT + program, folder) == ""
    np.testing.assert_allclose(np.load(folder / "logits.npy"), logits, rtol=0, atol=1e-5)
    (folder / "logits.npy").unlink()
