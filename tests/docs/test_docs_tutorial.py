"""docs/tutorial.md: the TensorFlow program learns, and the JAX blocks are scripts/tutorial.py."""

import re

import pytest
from pages import ROOT, TOLERANT, blocks, run_program


def program(title: str) -> str:
    return "\n".join(block.text for block in blocks("tutorial") if block.title == title)


@pytest.mark.slow
def test_the_tensorflow_program_learns(tmp_path):
    pytest.importorskip("tensorflow")
    pytest.importorskip("tf_keras")
    text = program("TensorFlow 1")
    for long, short in (("load()", "load(train_examples=6_400)"), ("= 0.01, 64, 10, 0", "= 0.01, 64, 1, 0")):
        assert text.count(long) == 1
        text = text.replace(long, short)
    epoch, last_output, losses, restored = run_program(TOLERANT + text, tmp_path).splitlines()
    assert float(re.findall(r"loss (\d\.\d+)", epoch)[0]) < 1.5  # 2.3 is the loss of a guess
    assert last_output.endswith("True")
    of_integers, of_one_hot = re.findall(r"\d+\.\d{6}", losses)
    assert float(of_integers) == pytest.approx(float(of_one_hot), abs=2e-6)
    assert restored.endswith("the same logits: True")
    assert list((tmp_path / "checkpoints").iterdir())


def test_the_jax_blocks_are_the_script():
    _, _, script = (ROOT / "scripts" / "tutorial.py").read_text("utf-8").split('"""', 2)
    lines, expected = ([line for line in text.splitlines() if line] for text in (program("JAX"), script))
    assert lines == expected, "docs/tutorial.md: copy the lines of scripts/tutorial.py that differ"


def test_every_block_belongs_to_one_of_the_two():
    assert {block.title for block in blocks("tutorial")} == {"TensorFlow 1", "JAX"}
