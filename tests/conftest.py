"""Settings for the whole suite: array shapes are checked while it runs, two CPU devices, one compilation cache."""

import gc
import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path

# Before JAX is imported, here and in the subprocesses that tests start.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")  # accelerators round products by default
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# There are as many workers as cores: a thread of NumPy's products on every core only waits for the others, busily.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# The suite starts many interpreters: what one has compiled of the package the others read.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# How XLA compiles for CPUs, which takes most of the time: one LLVM module a program; and with its former emitters,
# in two thirds of the time, where jaxlib has them (0.10 does, 0.12 does not). XLA_FLAGS=" " has it compile as users
# have it.
_flags = ["--xla_cpu_parallel_codegen_split_count=1"]
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    _flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_flags))

# A shell starts what runs in its background deaf to Ctrl-C, and so would be the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

import jaxtyping

jaxtyping.install_import_hook("lstm_mnist_jax", "type_checks.check")

import pytest

# JAX makes many objects that live long: the default thresholds have the collector look at all of them again and again.
gc.set_threshold(100_000, 50, 100)

LONGEST = (
    "test_processes", "test_train", "test_sweep", "test_resume", "test_step", "test_determinism", "test_feed",
    "test_native", "test_page_drawing", "test_benchmark", "test_accelerator_check", "test_stack", "test_report",
    "test_docs_sweeps", "test_train_and_sweep", "test_docs_runs", "test_native_build", "test_rnn", "test_model",
    "test_sharding", "test_page", "test_derivatives", "test_import_export", "test_program", "test_recipe",
    "test_sweep_resume", "test_docs_layers", "test_selection", "test_weights", "test_tf_checkpoint", "test_tutorial",
    "test_docs_data", "test_normal_form", "test_page_network", "test_page_normal_form", "test_page_pictures",
    "test_predict",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take the longest come first: at the end, no worker waits long for the other. (pytest-xdist hands
    out whole files, see pyproject.toml.)"""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_configure(config: pytest.Config) -> None:
    """The fixtures of all files. The process that only hands out the files does without: their imports take seconds,
    and its workers begin after it."""
    hands_out = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if not hands_out:
        config.pluginmanager.import_plugin("shared_fixtures")
