"""The programs of docs/layers.md and docs/custom_cell.md run and learn."""

import pytest
from pages import python_programs, run_program


@pytest.mark.slow
@pytest.mark.parametrize("program", python_programs("layers"), ids=["call", "last", "weights", "train"])
def test_programs_of_the_layers_page(program, tmp_path):
    assert run_program(program, tmp_path) == ""


@pytest.mark.slow
def test_the_custom_cell_learns(tmp_path):
    name, *losses = run_program("\n".join(python_programs("custom_cell")), tmp_path).split()
    assert name == "losses"
    assert len(losses) == 4
    assert max(map(float, losses)) < 1.5  # 2.3 is the loss of a guess
