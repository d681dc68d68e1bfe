"""The errors that a user can cause and fix.

Each message says what was wrong, where, what was expected and what to do. The command line prints it as one line
and exits with code 2. From Python they are ordinary `ValueError`s.
"""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """The base class of the errors below: an argument, a file or a setting is wrong. The message is for people.

    Examples:
      >>> from lstm_mnist_jax import UserError, load
      >>> try:
      ...     load("no/such/folder")
      ... except UserError as error:
      ...     print(type(error).__name__, str(error)[:41])
      DataError Unknown data source 'no/such/folder': the
    """


class ConfigError(UserError):
    """A setting is impossible, alone or together with another."""


class DataError(UserError):
    """Images or labels are missing or damaged, or do not fit together."""


class RunError(UserError):
    """A run folder or a checkpoint cannot be used, or a run had to stop."""


class WeightsError(UserError):
    """Weights in a file are missing or damaged, belong to another network, or do not fit together."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The end of a message: "; did you mean ...?", with the choice nearest to a mistyped word, or a full stop."""
    by_lower = {choice.lower(): choice for choice in choices}
    nearest = difflib.get_close_matches(word.lower(), by_lower, 1)
    return f"; did you mean {by_lower[nearest[0]]}?" if nearest else "."


def how_to_install(extra: str) -> str:
    """The command that installs an extra of this package, which is in no package index."""
    name = f"lstm-mnist-jax[{extra}]"
    return f"pip install -e '.[{extra}]' in a checkout, or pip install '{name} @ git+GIT_URL' of the repository"


@contextmanager
def os_errors_as(kind: type[UserError], path: object, done: str) -> Iterator[None]:
    """While entered, an error of the system is raised as `kind`: PATH cannot be DONE, and why."""
    try:
        yield
    except OSError as error:
        raise kind(f"{path} cannot be {done}: {error.strerror or error}.") from error
