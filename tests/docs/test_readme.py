"""The README: its program runs, its two commands are those of continuous integration, and it is short."""

import pytest
from pages import ROOT, blocks, python_programs, read, run_installed, run_program

from lstm_mnist_jax.config import PRESETS


def test_it_is_short():
    assert len(read("README").splitlines()) < 160


@pytest.mark.slow
@pytest.mark.parametrize("program", python_programs("README"))
def test_its_program_runs(program, tmp_path):
    assert run_program(program, tmp_path) == ""


def test_every_preset_is_listed():
    table = read("README").split("## Presets")[1].split("##")[0]
    for name in PRESETS:
        assert f"`{name}`" in table


def test_the_two_commands_are_those_of_continuous_integration():
    marked = {block.marker: block.text.strip() for block in blocks("README") if block.language == "sh"}
    assert marked.keys() == {"train", "tests"}
    script = (ROOT / ".ci" / "run").read_text().split("step()")[0].split("command_of()")[1]
    for marker, command in marked.items():
        extract = f"cd {ROOT}; command_of() {script}\ncommand_of {marker}"
        assert run_installed(["bash", "-c", extract], ROOT).strip() == command
