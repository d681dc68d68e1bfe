"""What the arguments of a command are: the fields of a dataclass, and of the dataclasses within it; and their help.

Depends on the classes and on their source, where the docstring below a field is its help text. Does not parse words.
"""

import ast
import dataclasses
import inspect
import itertools
import os
import re
import shlex
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

COLUMNS = 80
"""The maximum width of help texts."""

INDENT = 26
"""The column of help texts, beside the names of the options."""

PLACEHOLDERS = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}


Type = TypeVar("Type")
Positional = Annotated[Type, "positional"]
Repeated = Annotated[tuple[Type, ...], "repeated"]
"""Markers of a field: an argument without a name, and an option that can be given several times."""


@dataclass(frozen=True)
class Argument:
    """An argument of a command.

    Attributes:
      field: the name of the field.
      hint: its type.
      default: the value where it is not given; MISSING if it must be.
      help: its help text, in one line.
      group: the class whose field it is, within that of the command.
      markers: "positional", "repeated" or none.
    """

    field: str
    hint: Any
    default: Any
    help: str
    group: type
    markers: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The name without dashes in front: "batch-size"."""
        return self.field.replace("_", "-")

    @property
    def is_positional(self) -> bool:
        return "positional" in self.markers

    @property
    def takes_several(self) -> bool:
        """Whether several words follow it."""
        return typing.get_origin(self.hint) is tuple and "repeated" not in self.markers

    @property
    def is_swept(self) -> bool:
        """Whether it is an option of `sweep` that takes the values to try."""
        return self.hint == tuple[str, ...] and self.takes_several and not self.is_positional

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it may be, if they are few."""
        kinds = [self.hint, *typing.get_args(self.hint)]
        return next((typing.get_args(kind) for kind in kinds if typing.get_origin(kind) is typing.Literal), ())

    @property
    def takes_path(self) -> bool:
        """Whether it is the name of a file or of a folder."""
        return Path in (self.hint, *typing.get_args(self.hint))

    def usage(self) -> str:
        """How it is written: "--batch-size N"."""
        kind, *_ = [kind for kind in typing.get_args(self.hint) if kind is not types.NoneType] or [self.hint]
        if self.is_positional:
            word = f"{self.field.upper().removesuffix('S')} ..." if self.takes_several else self.field.upper()
            return word if self.default in (MISSING, ()) else f"[{word}]"
        if self.hint is bool:
            return f"--{self.name}" + f", --no-{self.name}" * (self.default is True)
        if self.is_swept:
            return f"--{self.name} VALUE ..."
        word = "NAME" if self.choices else PLACEHOLDERS.get(kind, "TEXT")
        return f"--{self.name} {f'{word},{word},...' if self.takes_several else word}"

    def description(self) -> str:
        """Its help text, with the words that it may be, and its default."""
        choices = f"One of {', '.join(self.choices)}." if self.choices else ""
        default = getattr(self.group, "default_in_words", "")
        if self.default is True:
            default = "(default: on)"
        elif self.hint is not bool and self.default not in (MISSING, None, ()):
            shown = ",".join(map(str, self.default)) if isinstance(self.default, tuple) else str(self.default)
            default = f"(default: {shown})"
        return " ".join(part for part in (self.help, choices, default) if part)


def command_of(cls: type) -> str:
    """The command whose arguments are those of a class: "lstm-mnist train"."""
    return f"lstm-mnist {cls.__name__.removesuffix('Arguments').lower()}"


def as_called(text: str) -> str:
    """A text whose commands, `lstm-mnist train ...`, are written with the path by which this program was called, where
    it is not on the PATH."""
    called, found = Path(sys.argv[0]), shutil.which("lstm-mnist")
    if called.stem != "lstm-mnist" or (found is not None and os.path.abspath(found) == os.path.abspath(called)):
        return text
    program = shlex.quote(sys.argv[0])
    return re.sub(r"(?<![\w/.-])lstm-mnist (?=[a-z-])", lambda _: f"{program} ", text)


def arguments_of(cls: Any, default: Any = None) -> list[Argument]:
    """The arguments of a class, with the default values of an object of it."""
    return list(_arguments(cls, default))


def _arguments(cls: Any, default: Any) -> Iterator[Argument]:
    for field, hint, markers, value in _fields(cls, default):
        if dataclasses.is_dataclass(hint):
            yield from _arguments(hint, value)
        else:
            yield Argument(field, hint, value, _docstring(cls, field), cls, markers)


def built(cls: Any, default: Any, given: Mapping[str, Any]) -> Any:
    """An object of a class, with the values of the fields that are given, also of those of the dataclasses within."""
    values = {
        field: built(hint, value, given) if dataclasses.is_dataclass(hint) else given.get(field, value)
        for field, hint, _, value in _fields(cls, default)
    }
    return cls(**values)


def _fields(cls: Any, given: Any) -> Iterator[tuple[str, Any, tuple[str, ...], Any]]:
    """The fields of a dataclass: name, type, markers, and the value in an object, or else the default."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        hint, markers = hints[field.name], getattr(hints[field.name], "__metadata__", ())
        default = field.default if field.default_factory is MISSING else field.default_factory()
        yield field.name, hint.__origin__ if markers else hint, markers, getattr(given, field.name, default)


def _docstring(cls: Any, field: str) -> str:
    """The docstring below a field in one line.

    The fields of a class with `documented_by` have the docstrings of the fields of those classes.
    """
    owner = next(o for o in getattr(cls, "documented_by", cls.__mro__) if field in inspect.get_annotations(o))
    return _field_docstrings(owner.__module__).get((owner.__name__, field), "")


@cache
def _field_docstrings(module: str) -> dict[tuple[str, str], str]:
    """The docstrings below the fields of the classes of a module."""
    found = {}
    body = ast.parse(inspect.getsource(sys.modules[module])).body
    for owner in [node for node in body if isinstance(node, ast.ClassDef)]:
        for field, below in itertools.pairwise(owner.body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                text = ast.literal_eval(below.value)
                found[owner.name, ast.unparse(field.target)] = " ".join(text.split())
    return found


def help_of(cls: Any, default: Any = None, *, everything: bool = True) -> str:
    """The help of a command, no wider than the terminal or 80 columns.

    Args:
      cls: the class of its arguments. Its attribute `common`, if it has one, are the fields of a short help.
      default: an object of the class with the default values; None takes the class's own.
      everything: print all options, group by group, not the common ones alone.
    """
    found = arguments_of(cls, default)
    positional, options = ([a for a in found if a.is_positional == wanted] for wanted in (True, False))
    usage = [command_of(cls), *(argument.usage() for argument in positional), "[OPTIONS]"]
    lines = [*wrapped(f"usage: {' '.join(usage)}", hanging=7), ""]
    for paragraph in (inspect.getdoc(cls) or "").split("\n\n"):
        lines += [*wrapped(" ".join(paragraph.split())), ""]
    for argument in positional:
        lines += entry(argument.usage().strip("[]"), argument.description())
    if not everything and hasattr(cls, "common"):
        by_field = {argument.field: argument for argument in options}
        lines += ["", "options:"]
        for field in cls.common:
            lines += entry(by_field[field].usage(), by_field[field].description())
        return "\n".join([*lines, "", *wrapped(f"{command_of(cls)} --help-all prints all options.")]) + "\n"
    for group, arguments in itertools.groupby(options, lambda argument: argument.group):
        heading = "options:" if group is cls else " ".join((inspect.getdoc(group) or "").split("\n\n")[0].split())
        lines += ["", *wrapped(heading)]
        for argument in arguments:
            lines += entry(argument.usage(), argument.description())
    return "\n".join(lines) + "\n"


def wrapped(text: str, hanging: int = 0) -> list[str]:
    """A line of text in lines no wider than the terminal or 80 columns; the second and further ones are indented."""
    return textwrap.wrap(
        text, _width(), subsequent_indent=" " * hanging, break_long_words=False, break_on_hyphens=False
    )


def _width() -> int:
    return max(40, min(COLUMNS, shutil.get_terminal_size().columns))


def entry(usage: str, text: str) -> list[str]:
    """The lines of an argument or a command: how it is written, and its help text beside or below."""
    indent = min(INDENT, _width() // 3)
    lines = textwrap.wrap(text, _width() - indent, break_long_words=False, break_on_hyphens=False)
    beside = len(usage) + 4 <= indent
    first = [f"  {usage:{indent - 2}}{lines.pop(0)}"] if beside and lines else [f"  {usage}"]
    return first + [" " * indent + line for line in lines]
