"""Dataclasses as JSON and back, with strict types; fields from words; and the differences between two dataclasses."""

import dataclasses
import math
import types
import typing
from pathlib import Path
from typing import Any

from lstm_mnist_jax.errors import ConfigError, did_you_mean

ADDED = {"added": True}
"""Metadata of a dataclass's field that older files lack: it has its default there."""


def from_dict(cls: type, values: Any, path: str = "") -> Any:
    """The inverse of `dataclasses.asdict`. Raises ConfigError where a field is missing, unknown or of another type.

    Fields with the metadata `ADDED` may be missing.
    """
    hints = typing.get_type_hints(cls)
    if not isinstance(values, dict):
        raise ConfigError(f"{path or 'the config'} is {values!r}, expected an object of named values.")
    values = {item.name: item.default for item in dataclasses.fields(cls) if item.metadata == ADDED} | values
    if missing := sorted(hints.keys() - values.keys()):
        raise ConfigError(f"{path or 'the config'} lacks {', '.join(missing)}.")
    if unknown := sorted(values.keys() - hints.keys()):
        raise ConfigError(f"{path or 'the config'} has the unknown fields {', '.join(unknown)}.")
    return cls(**{name: from_value(hint, values[name], f"{path}.{name}".strip(".")) for name, hint in hints.items()})


def from_value(hint: Any, value: Any, path: str) -> Any:
    """`value` as the type of a config's field; takes JSON lists for tuples, and NumPy numbers.

    Raises:
      ConfigError: it cannot be of that type.
    """
    if dataclasses.is_dataclass(hint) and not isinstance(value, typing.cast(type, hint)):
        return from_dict(typing.cast(type, hint), value, path)
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        element = typing.get_args(hint)[0]
        return tuple(from_value(element, item, path) for item in value)
    if typing.get_origin(hint) is typing.Literal:
        choices = tuple(map(str, typing.get_args(hint)))
        if value not in typing.get_args(hint):
            nearest = did_you_mean(str(value), choices)
            raise ConfigError(f"{path} is {value!r}, expected one of {', '.join(choices)}{nearest}")
        return value
    accepted = _kinds(hint)
    if hasattr(value, "item") and not getattr(value, "shape", None):  # a NumPy number
        value = value.item()
    if float in accepted and type(value) is int:
        value = float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path} is {value}, expected a finite number.")
    if type(value) not in accepted:
        names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in accepted)
        raise ConfigError(f"{path} is {value!r}, expected {names}.")
    return value


def from_text(hint: Any, text: str, path: str) -> Any:
    """A word as the type of a config's field; a tuple of integers has commas between them.

    Raises:
      ConfigError: it cannot be of that type.
    """
    kinds = _kinds(hint)
    kind, choices = kinds[0], typing.get_args(kinds[0])
    if types.NoneType in kinds and text == "None":
        return None
    try:
        if kind in (int, float):
            number = kind(text)
        elif kind is bool:
            return {"true": True, "false": False}[text.lower()]
        elif typing.get_origin(kind) is tuple:
            return tuple(map(int, text.split(","))) if text not in ("", "()") else ()
        else:
            return {choice: choice for choice in choices}[text] if choices else kind(text)
    except (KeyError, ValueError):
        nearest = did_you_mean(text, choices if typing.get_origin(kind) is typing.Literal else ())
        raise ConfigError(f"{path} is {text!r}, expected {described(hint)}{nearest}") from None
    return from_value(kind, number, path)


def described(hint: Any) -> str:
    """A type in words."""
    kinds = _kinds(hint)
    if typing.get_origin(kinds[0]) is typing.Literal:
        words = f"one of {', '.join(typing.get_args(kinds[0]))}"
    elif typing.get_origin(kinds[0]) is tuple and (each := typing.get_args(kinds[0])[0]) is not int:
        plurals = {float: "numbers", Path: "paths", str: "texts"}
        words = f"one or more {plurals.get(each, 'values')}, with blanks between"  # on the command line
    else:
        known = {int: "an integer", float: "a number", bool: "true or false", str: "text", Path: "a path"}
        words = known.get(kinds[0], "integers with commas between")
    return words + " or None" * (types.NoneType in kinds)


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def differences(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """The fields in which two configs of one class differ: dotted name to (old value, new value)."""
    found: dict[str, tuple[Any, Any]] = {}
    for item in dataclasses.fields(old):
        name = f"{path}{item.name}"
        before, after = getattr(old, item.name), getattr(new, item.name)
        if dataclasses.is_dataclass(before):
            found |= differences(before, after, f"{name}.")
        elif before != after:
            found[name] = (before, after)
    return found
