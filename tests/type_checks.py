"""How the suite checks types: by beartype, which takes 2 ms to compile the checks of a function."""

import functools
from collections.abc import Callable
from typing import Any

import beartype

_checked: dict[object, Callable[..., Any]] = {}


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """What `jaxtyping` calls with a function that has the signature of one of the package, and does nothing.

    Its checks are compiled at its first call, as a worker calls a part of the functions. Those of a function within
    another, which is made anew at every call of that one, are compiled once: they depend on the annotations alone.
    """
    is_inner = "<locals>" in function.__qualname__
    if not is_inner or function.__defaults__ or function.__kwdefaults__:
        return _checked_when_called(function)
    hints = repr(function.__annotations__)
    if "<locals>" in hints:  # a class that is made anew as well
        return _checked_when_called(function)
    key = function.__module__, function.__qualname__, function.__code__, hints
    if key not in _checked:
        _checked[key] = _checked_when_called(function)
    return _checked[key]


def _checked_when_called(function: Callable[..., Any]) -> Callable[..., Any]:
    checked = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if checked is None:
            checked = beartype.beartype(function)
        return checked(*args, **kwargs)

    return call
