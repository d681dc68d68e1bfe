"""What all configs are: dataclasses that check their fields."""

import typing

from lstm_mnist_jax.config.json import from_value
from lstm_mnist_jax.errors import ConfigError


class Checked:
    """Gives each field its declared type, or says which value cannot have it, before a config's own checks."""

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self)).items():
            object.__setattr__(self, name, from_value(hint, getattr(self, name), name))


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """Raises ConfigError unless a field is as expected."""
    if not condition:
        raise ConfigError(f"{name} is {value}, expected {expected}.")
