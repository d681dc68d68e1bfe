import shutil
from pathlib import Path

import pytest
from pages import ROOT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with scripts/, as in a checkout."""
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    return tmp_path


@pytest.fixture
def folder_with_run(folder: Path, digits_run: Path) -> Path:
    """The same with `runs/first`, as the first two commands of the page "runs" leave it."""
    shutil.copytree(digits_run, folder / "runs" / "first")
    return folder
