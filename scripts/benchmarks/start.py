"""How long programs take to start, each in fresh processes, from the shell."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

COMMAND = (sys.executable, "-c", "from lstm_mnist_jax.cli.main import main; main()")
"""What `lstm-mnist` runs."""

PICTURE = """
import sys
from PIL import Image
from lstm_mnist_jax import load
Image.fromarray(255 - load().test.images[0]).resize((280, 280)).save(sys.argv[1])
"""

TRAINING = "train to the first epoch"


class StartError(Exception):
    """A program failed; the message has its last line."""


def programs(folder: Path, preset: str) -> dict[str, Callable[[], float]]:
    """By name, functions that start a program and return seconds.

    Args:
      folder: an empty one, for a run, a picture and caches. The functions are called in their order: predict takes the
        last run, and the warm start finds the caches of the cold one.
      preset: of the training run.
    """
    cache, run, picture = folder / "cache", folder / "run", folder / "picture.png"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    environment |= {"XDG_CACHE_HOME": str(cache), "PYTHONWARNINGS": "ignore"}

    def seconds(*words: str, until: str | None = None) -> float:
        """Seconds until a line begins so, or until the program ends."""
        began = time.perf_counter()
        reached, line, words = None, "", (*words,)
        output, errors = subprocess.PIPE, subprocess.STDOUT
        with subprocess.Popen(words, stdout=output, stderr=errors, env=environment, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if until is not None and reached is None and line.startswith(until):
                    reached = time.perf_counter() - began
        if process.returncode != 0 or (until is not None and reached is None):
            raise StartError(f"exit code {process.returncode}: {line.strip()}")
        return time.perf_counter() - began if reached is None else reached

    def imported(name: str) -> Callable[[], float]:
        return lambda: seconds(sys.executable, "-c", f"import {name}")

    def train(is_cold: bool) -> float:
        shutil.rmtree(run, ignore_errors=True)
        if is_cold:
            shutil.rmtree(cache, ignore_errors=True)
        return seconds(*COMMAND, "train", preset, "--epochs", "1", "--run-dir", str(run), until="epoch ")

    def predict() -> float:
        if not picture.exists():
            seconds(sys.executable, "-c", PICTURE, str(picture))
        return seconds(*COMMAND, "predict", str(run), str(picture))

    return {
        "import jax": imported("jax"),
        "import flax.nnx": imported("flax.nnx"),
        "import lstm_mnist_jax.rnn": imported("lstm_mnist_jax.rnn"),
        "lstm-mnist --help": lambda: seconds(*COMMAND, "--help"),
        f"lstm-mnist {TRAINING}, caches empty": lambda: train(True),
        f"lstm-mnist {TRAINING}": lambda: train(False),
        "lstm-mnist predict, one picture": predict,
    }
