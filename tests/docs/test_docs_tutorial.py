"""Both programs of docs/tutorial.md learn."""

import pytest
from pages import TOLERANT, blocks, run_program


@pytest.mark.slow
@pytest.mark.parametrize("title", ["TensorFlow 1", "JAX"])
def test_the_two_programs_learn(title, tmp_path):
    program = "\n\n".join(block.text for block in blocks("tutorial") if block.title == title)
    if "tensorflow" in program:
        pytest.importorskip("tensorflow")
        pytest.importorskip("tf_keras")
        program = TOLERANT + program
    name, loss = run_program(program, tmp_path).split()
    assert name == "loss"
    assert float(loss) < 1.5  # 2.3 is the loss of a guess
    assert list((tmp_path / "checkpoints").iterdir())


def test_every_block_belongs_to_one_of_the_two():
    assert {block.title for block in blocks("tutorial")} == {"TensorFlow 1", "JAX"}
