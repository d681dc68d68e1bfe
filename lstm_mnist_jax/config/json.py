"""Dataclasses as JSON and back, with strict types, and the differences between two of them."""

import dataclasses
import math
import types
import typing
from typing import Any

from lstm_mnist_jax.errors import ConfigError, did_you_mean


def to_dict(config: Any) -> dict[str, Any]:
    """The config as nested dictionaries of JSON values."""
    return dataclasses.asdict(config)


def from_dict(cls: type, values: Any, path: str = "") -> Any:
    """The inverse of `to_dict`. Raises ConfigError where a field is missing, unknown or of the wrong type."""
    hints = typing.get_type_hints(cls)
    if not isinstance(values, dict):
        raise ConfigError(f"{path or 'the config'} is {values!r}, expected an object of named values.")
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
    accepted = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
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
