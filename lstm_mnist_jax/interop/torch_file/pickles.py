"""Reads a pickle without executing anything of it: only the opcodes that dictionaries of tensors need.

`pickle` calls whatever a file names. Here `pickletools` parses the opcodes, and the names of a file are plain text:
what they would make is decided by two functions of the caller, and becomes a `Foreign` otherwise, a value that is never
used. Protocols 2 to 5 are read.
"""

import io
import pickle
import pickletools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lstm_mnist_jax.errors import WeightsError

MAX_OPCODES = 1_000_000
"""The most opcodes of a pickle, which limits the memory: each makes at most an object of about 100 bytes."""

MAX_NAME = 1000
"""The longest name of a class."""

MAX_KEY = 10_000
"""The longest key of a dictionary: keys are compared."""

MAX_INT_BYTES = 256
"""The size of the largest integer."""

HARMLESS_BUILTINS = (
    *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "range", "set"),
    *("slice", "str", "tuple", "type"),
)

HARMLESS_MODULES = (
    *("_codecs", "abc", "argparse", "array", "collections", "copyreg", "dataclasses", "datetime", "decimal", "enum"),
    *("fractions", "functools", "logging", "math", "numbers", "pathlib", "random", "re", "time", "types", "typing"),
    *("uuid", "zoneinfo"),
)
"""Modules of the standard library whose objects are found beside the weights. All others are refused by name."""

OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}

VALUES = (
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
"""Opcodes that put their own argument on the stack."""

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class Malformed(ValueError):
    """The bytes are no pickle of this kind. The message says why."""


@dataclass(slots=True, eq=False)
class Foreign:
    """A class or function that a pickle names, or something made by it. It is never called.

    Attributes:
      name: module and name.
      made: whether it is an object rather than the class or function.
      is_module: whether it is known to be a `torch.nn.Module`, or its class.
    """

    name: str
    made: bool = False
    is_module: bool = False


def load(stream: io.BytesIO, call: Callable[[str, Any], Any], persistent: Callable[[Any], Any]) -> Any:
    """The object in the pickle that begins where `stream` is, which is then behind it.

    Args:
      stream: the bytes.
      call: what a call of a name with these arguments makes; NotImplemented for a `Foreign`.
      persistent: the object of a persistent id.

    Returns:
      Numbers, texts, bytes, None, tuples, lists, dictionaries, what `call` and `persistent` return, and `Foreign`s.

    Raises:
      Malformed: it is damaged or has other opcodes.
      WeightsError: it names something that no dictionary of tensors needs.
    """
    machine = _Machine(stream, call, persistent)
    try:
        for _ in range(MAX_OPCODES):
            if not (code := stream.read(1)):
                raise Malformed("its pickle does not end")
            if code == pickle.STOP:
                return machine.stack.pop()
            machine.step(code)
    except IndexError:
        raise Malformed(f"the pickle takes more from its stack than there is, at byte {stream.tell()}") from None
    except (WeightsError, Malformed):
        raise
    except ValueError as error:
        raise Malformed(f"the pickle cannot be read at byte {stream.tell()}: {error}") from error
    raise Malformed(f"its pickle has more than {MAX_OPCODES:,} opcodes, which no dictionary of tensors needs")


class _Machine:
    def __init__(self, stream: io.BytesIO, call: Callable[[str, Any], Any], persistent: Callable[[Any], Any]) -> None:
        self.stream, self.call, self.persistent = stream, call, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under the marks
        self.memo: dict[int, Any] = {}

    def to_mark(self) -> list[Any]:
        """What is above the last mark, which is removed."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def line(self) -> str:
        line = self.stream.readline()
        if not line.endswith(b"\n"):
            raise Malformed("a name of the pickle does not end")
        return line[:-1].decode()

    def step(self, code: bytes) -> None:
        stack, place = self.stack, self.stream.tell() - 1
        opcode = OPCODES.get(code)
        argument: Any = None
        # Lines are the arguments of protocol 0, which is not read, and of GLOBAL: pickletools reads ASCII alone.
        if opcode and opcode.arg and opcode.arg.n != pickletools.UP_TO_NEWLINE:
            argument = opcode.arg.reader(self.stream)
        match opcode.name if opcode else None:
            case name if name in VALUES:
                if isinstance(argument, int) and argument.bit_length() > 8 * MAX_INT_BYTES:
                    raise Malformed(f"it has an integer of more than {MAX_INT_BYTES} bytes")
                stack.append(argument)
            case "PROTO":
                if argument not in range(2, 6):
                    raise Malformed(f"the pickle has protocol {argument}, expected 2 to 5")
            case "FRAME":
                pass
            case "BINGET" | "LONG_BINGET":
                if argument not in self.memo:
                    raise Malformed(f"the pickle refers to object {argument}, which it does not have")
                stack.append(self.memo[argument])
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINSTRING" | "SHORT_BINSTRING":  # of Python 2, where texts and bytes are of one type
                try:
                    argument = argument.encode("latin-1").decode()
                except UnicodeDecodeError:
                    argument = argument.encode("latin-1")
                stack.append(argument)
            case name if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_SET":
                stack.append(Foreign("builtins.set", made=True))
            case "FROZENSET":
                self.to_mark()
                self.stack.append(Foreign("builtins.frozenset", made=True))
            case "MARK":
                self.below.append(stack)
                self.stack = []
            case "POP" if stack:
                stack.pop()
            case "POP" | "POP_MARK":
                self.to_mark()
            case "DUP":
                stack.append(stack[-1])
            case "TUPLE":
                items = tuple(self.to_mark())
                self.stack.append(items)
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                size = int(name[-1])
                if len(stack) < size:
                    raise IndexError
                stack[-size:] = [tuple(stack[-size:])]
            case "APPEND":
                self.extend([stack.pop()])
            case "APPENDS" | "ADDITEMS":
                self.extend(self.to_mark())
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self.update([key, value])
            case "SETITEMS":
                self.update(self.to_mark())
            case "GLOBAL":
                self.name(self.line(), self.line())
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                self.name(module, name)
            case "REDUCE" | "NEWOBJ":  # a class and the arguments of its __new__
                self.make()
            case "NEWOBJ_EX":
                stack.pop()  # the arguments by name
                self.make()
            case "BUILD":
                self.build()
            case "BINPERSID":
                stack.append(self.persistent(stack.pop()))
            case _:
                raise Malformed(f"opcode {code!r} at byte {place} is in no file of torch.save")

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Foreign):  # a list or set of another class
            raise Malformed("the pickle appends to something that is no list")

    def update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if len(items) % 2:
            raise Malformed("a dictionary of the pickle has a key without a value")
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[as_key(key)] = value
        elif not isinstance(target, Foreign):  # a dictionary of another class
            raise Malformed("the pickle sets an item of something that is no dictionary")

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(name, str) or not isinstance(module, str):
            raise Malformed("the pickle names a class by something that is no text")
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if len(full) > MAX_NAME or not full.isprintable():
            raise Malformed(f"the pickle names the class {full[:100]!r}")
        top = full.partition(".")[0]
        if top == "builtins":
            refused = name not in HARMLESS_BUILTINS
        else:
            refused = top in sys.stdlib_module_names and top not in HARMLESS_MODULES
        if refused:
            raise WeightsError(
                f"names {full}, which no dictionary of tensors needs: in PyTorch such a file can run any program. "
                "Nothing of it was executed."
            )
        self.stack.append(Foreign(full))

    def make(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Foreign) or not isinstance(arguments, tuple):
            raise Malformed("the pickle calls something that is no class or function")
        made = NotImplemented if function.made else self.call(function.name, arguments)
        self.stack.append(Foreign(function.name, True, function.is_module) if made is NotImplemented else made)

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Foreign):
            state = state[0] if isinstance(state, tuple) and state else state  # with __slots__
            target.is_module |= isinstance(state, dict) and {"_parameters", "_modules"} <= state.keys()
        elif not isinstance(target, dict):  # such as an OrderedDict with the attribute _metadata
            raise Malformed("the pickle sets attributes of something that has none")


def as_key(value: Any) -> Any:
    """A key of a dictionary; what no state_dict has as a key becomes a `Foreign`, which equals itself alone."""
    if isinstance(value, (str, bytes)):
        if len(value) > MAX_KEY:
            raise Malformed(f"a dictionary has a key of {len(value):,} characters, the most here are {MAX_KEY:,}")
        return value
    if value is None or isinstance(value, float) or (isinstance(value, int) and -(2**63) <= value < 2**63):
        return value
    return Foreign("a key", made=True)
