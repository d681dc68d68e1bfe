"""The program `lstm-mnist COMMAND ...`: runs a command, and prints an error as one line."""

import _thread
import io
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

from lstm_mnist_jax import __version__
from lstm_mnist_jax.cli.arguments import as_called, entry, wrapped
from lstm_mnist_jax.config import PRESETS, options
from lstm_mnist_jax.errors import ConfigError, DataError, UserError, did_you_mean


@dataclass(frozen=True)
class Command:
    """A command, whose module is imported when it is needed: `--help` needs none of them.

    Attributes:
      module: of this folder.
      function: its function there; the class of its arguments has the same name: `train` and `TrainArguments`.
      usage: its required arguments, as its help names them.
      summary: a line of help.
    """

    module: str
    function: str
    usage: str
    summary: str

    @property
    def run(self) -> Callable[[Sequence[str]], int]:
        """The function: it takes the arguments and returns the exit code."""
        found: Callable[[Sequence[str]], int] = getattr(self._imported(), self.function)
        return found

    @property
    def arguments(self) -> type:
        """The class that holds its arguments."""
        found: type = getattr(self._imported(), f"{self.function.rstrip('_').title()}Arguments")
        return found

    def _imported(self) -> ModuleType:
        return import_module(f"lstm_mnist_jax.cli.{self.module}")


COMMANDS = {
    "train": Command(
        "train",
        "train",
        "[PRESET]",
        f"train a model (presets: {', '.join(PRESETS)}), or continue one with --resume RUN_DIR",
    ),
    "sweep": Command("sweep", "sweep", "[PRESET]", "train several runs at once: seeds, hyperparameters, networks"),
    "evaluate": Command("evaluate", "evaluate", "RUN_DIR", "loss and accuracy of a trained run, by split and class"),
    "predict": Command("predict", "predict", "RUN_DIR IMAGE ...", "classify images"),
    "report": Command(
        "report",
        "report",
        "RUN_DIR ...",
        "curves, errors and figures of a run; a comparison of several; --html for a page to draw on",
    ),
    "import": Command(
        "interop",
        "import_",
        "FORMAT PATH --run-dir RUN_DIR",
        "make a run folder from weights of tf1, torch, keras, flax, safetensors, onnx or huggingface",
    ),
    "export": Command(
        "interop",
        "export",
        "FORMAT RUN_DIR FILE",
        "write a run's model for tf1, torch, keras, flax, safetensors, onnx, stablehlo or huggingface",
    ),
    "completion": Command(
        "completion",
        "completion",
        "SHELL",
        "print a script with which bash, zsh or fish complete commands and options",
    ),
}


def program_help() -> str:
    """What `lstm-mnist --help` prints, no wider than the terminal or 80 columns."""
    lines = wrapped(f"lstm-mnist-jax {__version__}: a stacked LSTM reads MNIST row by row, in JAX.")
    lines += ["", "usage: lstm-mnist COMMAND [OPTIONS]", ""]
    for name, command in COMMANDS.items():
        lines += entry(f"{name} {command.usage}", command.summary)
    for paragraph in (
        "A run of a sweep is named by its path wherever RUN_DIR is taken: SWEEP/NUMBER or SWEEP/best.",
        "lstm-mnist COMMAND --help prints the options of a command, for train, sweep and import the common ones; "
        "--help-all prints all. --version prints the version. With --debug, an error prints its traceback.",
    ):
        lines += ["", *wrapped(paragraph)]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits: 0 for success, 2 for an error of the user, 1 for a bug."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    sys.exit(_run(words, debug))


def _run(words: list[str], debug: bool) -> int:
    command = words[0] if words else "--help"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal can print every name
    try:
        if command == "help" and words[1:2] and words[1] in COMMANDS:
            command, words = words[1], [words[1], "--help"]
        if command in ("-h", "--help", "--help-all", "help"):
            print(program_help(), end="", flush=True)
            return 0
        if command == "--version":
            print(__version__, flush=True)
            return 0
        if command == "extract":
            raise UserError(
                "The command extract is gone since 0.5.0: a run of a sweep is named by its path, SWEEP/NUMBER or "
                "SWEEP/best, wherever a run folder is taken, also by train --resume."
            )
        if command not in COMMANDS:
            raise UserError(_unknown_command(words))
        sys.unraisablehook = partial(_report_unraisable, sys.unraisablehook, debug)
        if not debug:  # orbax and tensorstore print tracebacks of errors that they also raise
            from absl import logging

            logging.set_verbosity(logging.FATAL)
        if command in ("train", "sweep"):  # its threads wait by spinning, on the cores on which XLA compiles and trains
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read by NumPy, which is not imported yet
        code = COMMANDS[command].run(words[1:])
        sys.stdout.flush()  # here, where a reader that has gone is no error
        return code
    except BrokenPipeError:  # the reader of our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _failed(128 + signal.SIGPIPE)
    except KeyboardInterrupt as error:
        print(as_called(f"lstm-mnist: interrupted{f': {error}' if str(error) else ''}"), file=sys.stderr)
        return _failed(128 + signal.SIGINT)
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, PermissionError) and error.filename is not None:
            error = UserError(f"{error.filename} cannot be read or written: {error.strerror}.")
        if isinstance(error, UserError):
            print("lstm-mnist:", as_called(re.sub(r"\s*\n\s*", " ", _with_options(error).strip())), file=sys.stderr)
            return _failed(2)
        print(
            f"lstm-mnist: unexpected {type(error).__name__}: {error}\nThis is a fault of the program, not yours. "
            "Run the command again with --debug and report what it prints.",
            file=sys.stderr,
        )
        return _failed(1)


ELSEWHERE = {
    "classify": "predict",
    "compare": "report",
    "convert": "export",
    "eval": "evaluate",
    "finetune": "train --resume RUN_DIR",
    "fit": "train",
    "infer": "predict",
    "load": "import",
    "plot": "report",
    "resume": "train --resume RUN_DIR",
    "run": "train",
    "save": "export",
    "search": "sweep",
    "test": "evaluate",
    "tune": "sweep",
    "validate": "evaluate",
}
"""Commands of other programs, and ours."""


def _unknown_command(words: Sequence[str]) -> str:
    command, *others = words
    first = next((word for word in others if word in COMMANDS), None)
    if command.startswith("-") or command in PRESETS:
        if command.startswith("--") and (near := did_you_mean(command, ["--help", "--help-all", "--version"])) != ".":
            return f"Unknown option {command}{near}"
        kind = "an option" if command.startswith("-") else "a preset"
        example = f"lstm-mnist {first or 'train'} {command}"
        return f"{command!r} is {kind}; the command comes first, such as {example} ... See lstm-mnist --help."
    meant = ELSEWHERE.get(command.lower())
    nearest = f"; did you mean {meant}?" if meant else did_you_mean(command, COMMANDS)
    return f"Unknown command {command!r}; expected one of {', '.join(COMMANDS)}{nearest} See lstm-mnist --help."


def _with_options(error: UserError) -> str:
    """The message of an error, with options (--batch-size) in place of the fields of a config (batch_size)."""
    if not isinstance(error, ConfigError | DataError):
        return str(error)
    fields = {name for cls in vars(options).values() for name in getattr(cls, "__dataclass_fields__", ())}
    fields |= {"seeds", "samples", "tta_shift_pixels"}
    long = "|".join(name for name in fields if "_" in name)  # no word of a sentence
    pattern = rf"(?<![\w/.'\"-])(?:[a-z]+\.)?({long})(?![\w/.'\"=-])"
    pattern += rf"|(?:^|(?<=, ))({'|'.join(fields)})(?=,| is | has | must )|(?:(?<=set )|(?<=and ))(samples)(?=,)"
    text, choices, rest = str(error).partition("expected one of ")  # of which some have the names of options
    text = re.sub(pattern, lambda found: "--" + (found[1] or found[2] or found[3]).replace("_", "-"), text)
    return text + choices + rest


def _failed(code: int) -> int:
    """The exit code of a failure. One of several processes exits here: a normal exit would wait for the others."""
    # Not imported here: a Ctrl-C may have ended an import half-way.
    processes = sys.modules.get("lstm_mnist_jax.training.processes")
    if processes is not None and processes.are_joined():
        processes.leave(code)
    return code


INTERRUPT_AGAIN_SECONDS = 0.05
"""By then the destructor or the callback has ended."""


def _report_unraisable(report: Callable[[Any], object], debug: bool, unraisable: Any) -> None:
    """Reports an error that could not be raised, with two exceptions.

    A Ctrl-C comes again a moment later. Python drops a KeyboardInterrupt within a destructor or a callback of the
    garbage collector, of which JAX has one. And tensorstore's other writes after a failed checkpoint call back into an
    event loop that orbax has closed by then. The failure itself is raised.
    """
    error = unraisable.exc_value
    if isinstance(error, KeyboardInterrupt):
        again = threading.Timer(INTERRUPT_AGAIN_SECONDS, _interrupt)
        again.daemon = True
        again.start()
    elif debug or not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        report(unraisable)


def _interrupt() -> None:
    if os.name == "posix":
        os.kill(os.getpid(), signal.SIGINT)  # which also ends a wait of the main thread
    else:
        _thread.interrupt_main()
