"""The README and the pages of docs/: their commands and programs, and how to run them."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import programs

from lstm_mnist_jax.cli.main import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

SCRIPT = """
import runpy, sys

sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

LESS_WORK = """
from dataclasses import replace
from lstm_mnist_jax import PRESETS
from runs import TINY
PRESETS["smoke"] = replace(TINY, epochs=2)
"""
"""Before programs that train `smoke`: a run of a second."""

TOLERANT = "import warnings\n\nwarnings.resetwarnings()\n"
"""Before programs that import other libraries, which may warn."""


class Block(NamedTuple):
    """A fenced block.

    Attributes:
      marker: the name in a comment `<!-- name -->` above it, or "".
      language: sh, python or text.
      title: or "".
      text: what is in it.
    """

    marker: str
    language: str
    title: str
    text: str


def read(page: str) -> str:
    """The text of a page: README, or the name of a page of docs/."""
    return (ROOT / ("README.md" if page == "README" else f"docs/{page}.md")).read_text("utf-8")


def blocks(page: str) -> list[Block]:
    found = re.findall(
        r'^(?:<!-- (\w+) -->\n)?```(\w+)(?: title="(.*?)")?\n(.*?)^```$', read(page), re.DOTALL | re.MULTILINE
    )
    return [Block(*parts) for parts in found]


def python_programs(page: str) -> list[str]:
    return [block.text for block in blocks(page) if block.language == "python"]


def commands(page: str) -> list[str]:
    """The lines of all shell blocks without a marker."""
    texts = [block.text for block in blocks(page) if block.language == "sh" and not block.marker]
    return [line for text in texts for line in text.splitlines()]


def run_installed(words: list[str], folder: Path) -> str:
    """The output of a command, run as in a shell whose PATH contains the virtual environment.

    XLA optimizes its programs as it does for users: the variables of the tests that make it compile sooner are not set.
    """
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for name in ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS"):
        environment.pop(name, None)
    return _output_of(
        subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
    )


def run(line: str, folder: Path, *options: str) -> str:
    """The output of `lstm-mnist ...` in this process, which keeps compiled programs, or of `python scripts/...`.

    Args:
      line: the command.
      folder: the working directory.
      options: added to the command, for less work.
    """
    program, *words = shlex.split(line, comments=True)
    words += options
    if program == "python":
        return _output_of(programs.run(words, code=SCRIPT, cwd=folder))
    assert program == "lstm-mnist"
    output, errors, code = io.StringIO(), io.StringIO(), None
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        mock.patch.object(sys, "unraisablehook", sys.unraisablehook),  # which the program replaces
    ):
        try:
            main(words)
        except SystemExit as end:
            code = end.code
    return _output_of(subprocess.CompletedProcess(words, code or 0, output.getvalue(), errors.getvalue()))


def run_program(text: str, folder: Path) -> str:
    """The output of a Python program; its warnings are errors."""
    return _output_of(programs.run(code=text, cwd=folder))


def _output_of(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
