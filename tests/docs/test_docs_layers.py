"""The programs of docs/layers.md and docs/custom_cell.md run and learn; the tests that a table names exist."""

import re

import pytest
from pages import ROOT, python_programs, read, run_program


def test_every_feature_of_the_layers_page_has_a_test():
    """What is not here, "no: ...", may have none."""
    section = read("layers").split("## Feature by feature\n")[1].split("\n## ")[0]
    _, _, *rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    assert len(rows) > 50
    for row in rows:
        feature, _, _, _, here, tests = row
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", tests)
        assert named or here.startswith("no"), f"docs/layers.md names no test for {feature}"
        assert len(named) == tests.count("`") // 2, f"docs/layers.md: {tests} are no tests"
        for file, name in named:
            text = (ROOT / file).read_text("utf-8")
            assert f"\ndef {name}(" in text, f"{file} has no {name}, which docs/layers.md names for {feature}"


CALL, LAST, TRAIN, PADDED, WITH_DROPOUT, *OTHERS = python_programs("layers")


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    [CALL, LAST, TRAIN, PADDED + WITH_DROPOUT, *OTHERS],
    ids=["call", "last", "train", "padded", "torch", "weights", "mesh"],
)
def test_programs_of_the_layers_page(program, tmp_path):
    assert run_program(program, tmp_path) == ""


@pytest.mark.slow
def test_the_custom_cell_learns(tmp_path):
    name, *losses = run_program("\n".join(python_programs("custom_cell")), tmp_path).split()
    assert name == "losses"
    assert len(losses) == 4
    assert max(map(float, losses)) < 1.5  # 2.3 is the loss of a guess
