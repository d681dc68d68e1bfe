"""What `lstm_mnist_jax` exports: the names, their signatures, and their docstrings with the examples."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

import lstm_mnist_jax
from lstm_mnist_jax import model, rnn

DOCS = Path(__file__).parents[1] / "docs"
CLASSES = ["Config", "Execution", "UserError"]
FUNCTIONS = ["load", "load_run", "space_of", "sweep", "train"]
MODEL = ["apply", "init", "softmax_cross_entropy"]


def public_function(name):
    return getattr(model if name in MODEL else lstm_mnist_jax, name)


def test_the_exported_names():
    """A change of this list is a change of the public surface: note it in CHANGELOG.md."""
    assert sorted(lstm_mnist_jax.__all__) == sorted(["PRESETS", "__version__", *CLASSES, *FUNCTIONS])
    assert all(hasattr(lstm_mnist_jax, name) for name in lstm_mnist_jax.__all__)
    assert sorted(lstm_mnist_jax.PRESETS) == [
        "fashion",
        "permuted",
        "pixels",
        "rows",
        "rows-fast",
        "smoke",
        "tutorial",
    ]


@pytest.mark.parametrize("name", FUNCTIONS + MODEL)
def test_every_argument_is_named_and_typed_and_has_its_own_entry_in_the_docstring(name):
    function = public_function(name)
    docstring = inspect.getdoc(function)
    for argument in inspect.signature(function).parameters.values():
        assert argument.kind not in (argument.VAR_KEYWORD, argument.VAR_POSITIONAL), argument
        assert argument.annotation is not argument.empty, argument
        assert re.search(rf"^  {argument.name}: \S", docstring, re.MULTILINE), argument
    assert "Returns:" in docstring


def run_example(exported, name):
    (example,) = doctest.DocTestFinder(recurse=False).find(exported, name, globs={})
    results = doctest.DocTestRunner().run(example)
    assert results.failed == 0, name
    assert results.attempted >= 2, name


@pytest.mark.parametrize("name", [*CLASSES, "load", "space_of", *MODEL])
def test_the_example_in_the_docstring_runs(name):
    run_example(public_function(name), name)


@pytest.mark.slow
def test_the_examples_that_train_run_one_after_another(tmp_path, monkeypatch):
    """`load_run` reads the run that the example of `train` makes."""
    monkeypatch.chdir(tmp_path)
    for name in ("train", "load_run", "sweep"):
        run_example(public_function(name), name)


PAGES = {page.stem: page.read_text() for page in (DOCS / "api").glob("*.md")}
DOCUMENTED = [path for page in PAGES.values() for path in re.findall(r"^::: (\S+)$", page, re.MULTILINE)]


@pytest.mark.parametrize("path", DOCUMENTED)
def test_what_the_api_reference_names_exists(path):
    """mkdocs checks it as well, where it is installed."""
    home, _, name = path.rpartition(".")
    home = importlib.import_module(home)
    assert hasattr(home, name) or importlib.import_module(path)


def test_the_api_reference_has_every_exported_name():
    for package in (lstm_mnist_jax, rnn):
        for name in {*package.__all__} - {"PRESETS", "UserError", "__version__"}:
            assert any(path.endswith(f".{name}") for path in DOCUMENTED), name
    assert "lstm_mnist_jax.errors" in DOCUMENTED
    assert "`PRESETS` is" in PAGES["lstm_mnist_jax"]
