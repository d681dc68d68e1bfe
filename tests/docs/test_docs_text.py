"""What all pages have in common: links, names of files, versions."""

import re

import pytest
from pages import PAGES, ROOT, blocks, read

from lstm_mnist_jax import __version__

PACKAGE = ROOT / "lstm_mnist_jax"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (page.parent / target).is_file(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_source_files_that_are_named_exist(page):
    for name in re.findall(r"`((?:\w+/)+[\w.]+\.(?:py|cc|sh|yaml))`", page.read_text("utf-8")):
        assert (ROOT / name).is_file() or (PACKAGE / name).is_file(), f"{page.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_say_their_language(page):
    name = "README" if page.stem == "README" else page.stem
    assert {block.language for block in blocks(name)} <= {"sh", "python", "text"}
    assert len(blocks(name)) * 2 == len(re.findall(r"^\s*```", page.read_text("utf-8"), re.MULTILINE))


def test_the_repository_layout_names_every_file_of_the_package_and_the_scripts():
    tree = read("architecture").split("## Repository layout")[1].split("```")[1]
    package, scripts = tree.split("\nscripts/ ")
    for folder, part in ((PACKAGE, package), (ROOT / "scripts", scripts)):
        files = {file.name for file in folder.rglob("*.py") if not file.name.startswith("__")}
        named = set(re.findall(r"(?<![\w.])\w+\.py\b", part))
        assert files == named, f"the tree in docs/architecture.md: {sorted(files ^ named)} differ"


def test_the_version_is_the_same_everywhere():
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == __version__
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
