"""Reads a pickle without executing anything of it: an interpreter of the opcodes that dictionaries of tensors need.

`pickle` calls whatever a file names. Here the names of a file are plain text: what they would make is decided by two
functions of the caller, and becomes a `Foreign` otherwise, a value that is never used. Protocols 2 to 5 are read.
"""

import struct
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

TEXTS = {b"X": 4, b"\x8c": 1, b"\x8d": 8}
BYTES = {b"B": 4, b"C": 1, b"\x8e": 8, b"\x96": 8}
TEXTS_OF_PYTHON_2 = {b"T": 4, b"U": 1}
LONGS = {b"\x8a": 1, b"\x8b": 4}
NUMBERS = {b"J": struct.Struct("<i"), b"K": struct.Struct("<B"), b"M": struct.Struct("<H"), b"G": struct.Struct(">d")}
CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False, b")": ()}
TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
PUTS = {b"q": 1, b"r": 4}
GETS = {b"h": 1, b"j": 4}


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


def load(
    data: memoryview, start: int, call: Callable[[str, Any], Any], persistent: Callable[[Any], Any]
) -> tuple[Any, int]:
    """The object in a pickle, and where the pickle ends.

    Args:
      data: the bytes.
      start: where the pickle begins.
      call: what a call of a name with these arguments makes; NotImplemented for a `Foreign`.
      persistent: the object of a persistent id.

    Returns:
      Numbers, texts, bytes, None, tuples, lists, dictionaries, what `call` and `persistent` return, and `Foreign`s.

    Raises:
      Malformed: it is damaged or has other opcodes.
      WeightsError: it names something that no dictionary of tensors needs.
    """
    interpreter = _Interpreter(data, start, call, persistent)
    try:
        return interpreter.run(), interpreter.position
    except IndexError:
        raise Malformed(f"the pickle takes more from its stack than there is, at byte {interpreter.position}") from None


class _Interpreter:
    def __init__(
        self, data: memoryview, start: int, call: Callable[[str, Any], Any], persistent: Callable[[Any], Any]
    ) -> None:
        self.data, self.position = data, start
        self.call, self.persistent = call, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under the marks
        self.memo: dict[int, Any] = {}

    def read(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self.data):
            raise Malformed(f"the pickle ends within {size} bytes at byte {self.position}")
        found = bytes(self.data[self.position : end])
        self.position = end
        return found

    def count(self, size: int) -> int:
        return int.from_bytes(self.read(size), "little")

    def line(self) -> str:
        start = bytes(self.data[self.position : self.position + MAX_NAME + 1])
        text, newline, _ = start.partition(b"\n")
        if not newline:
            raise Malformed(f"a name at byte {self.position} does not end")
        self.position += len(text) + 1
        return _decoded(text)

    def to_mark(self) -> list[Any]:
        """What is above the last mark, which is removed."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def run(self) -> Any:
        for _ in range(MAX_OPCODES):
            opcode = self.read(1)
            if opcode == b".":
                return self.stack.pop()
            self.step(opcode)
        raise Malformed(f"its pickle has more than {MAX_OPCODES:,} opcodes, which no dictionary of tensors needs")

    def step(self, opcode: bytes) -> None:
        push = self.stack.append
        if opcode in GETS:
            number = self.count(GETS[opcode])
            if number not in self.memo:
                raise Malformed(f"the pickle refers to object {number}, which it does not have")
            push(self.memo[number])
        elif opcode in PUTS:
            self.memo[self.count(PUTS[opcode])] = self.stack[-1]
        elif opcode in NUMBERS:
            push(NUMBERS[opcode].unpack(self.read(NUMBERS[opcode].size))[0])
        elif opcode in TEXTS:
            push(_decoded(self.read(self.count(TEXTS[opcode])), "surrogatepass"))
        elif opcode in CONSTANTS:
            push(CONSTANTS[opcode])
        elif opcode in TUPLES:
            size = TUPLES[opcode]
            if len(self.stack) < size:
                raise IndexError
            self.stack[-size:] = [tuple(self.stack[-size:])]
        elif opcode in LONGS:
            size = self.count(LONGS[opcode])
            if size > MAX_INT_BYTES:
                raise Malformed(f"it has an integer of {size} bytes, the most here are {MAX_INT_BYTES}")
            push(int.from_bytes(self.read(size), "little", signed=True))
        elif opcode in BYTES:
            push(self.read(self.count(BYTES[opcode])))
        elif opcode in TEXTS_OF_PYTHON_2:
            raw = self.read(self.count(TEXTS_OF_PYTHON_2[opcode]))
            try:
                push(raw.decode())
            except UnicodeDecodeError:  # bytes were of the same type
                push(raw)
        else:
            self.step_by_name(opcode)

    def step_by_name(self, opcode: bytes) -> None:
        """The opcodes that have no group, called as in the module pickle."""
        stack = self.stack
        match opcode:
            case b"\x80":  # PROTO
                if (version := self.count(1)) not in range(2, 6):
                    raise Malformed(f"the pickle has protocol {version}, expected 2 to 5")
            case b"\x95":  # FRAME
                self.read(8)  # its length, of no use here
            case b"(":  # MARK
                self.below.append(stack)
                self.stack = []
            case b"0" if stack:  # POP
                stack.pop()
            case b"0" | b"1":  # POP of a mark, POP_MARK
                self.to_mark()
            case b"2":  # DUP
                stack.append(stack[-1])
            case b"}":  # EMPTY_DICT
                stack.append({})
            case b"]":  # EMPTY_LIST
                stack.append([])
            case b"\x8f":  # EMPTY_SET
                stack.append(Foreign("builtins.set", made=True))
            case b"\x91":  # FROZENSET
                self.to_mark()
                self.stack.append(Foreign("builtins.frozenset", made=True))
            case b"t":  # TUPLE
                items = tuple(self.to_mark())
                self.stack.append(items)
            case b"\x94":  # MEMOIZE
                self.memo[len(self.memo)] = stack[-1]
            case b"a":  # APPEND
                self.extend([stack.pop()])
            case b"e" | b"\x90":  # APPENDS, ADDITEMS
                self.extend(self.to_mark())
            case b"s":  # SETITEM
                value, key = stack.pop(), stack.pop()
                self.update([key, value])
            case b"u":  # SETITEMS
                self.update(self.to_mark())
            case b"c":  # GLOBAL
                self.name(self.line(), self.line())
            case b"\x93":  # STACK_GLOBAL
                name, module = stack.pop(), stack.pop()
                self.name(module, name)
            case b"R" | b"\x81":  # REDUCE; NEWOBJ: a class and the arguments of its __new__
                self.make()
            case b"\x92":  # NEWOBJ_EX
                stack.pop()  # the arguments by name
                self.make()
            case b"b":  # BUILD
                self.build()
            case b"Q":  # BINPERSID
                stack.append(self.persistent(stack.pop()))
            case _:
                raise Malformed(f"opcode {opcode!r} at byte {self.position - 1} is in no file of torch.save")

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


def _decoded(raw: bytes, errors: str = "strict") -> str:
    try:
        return raw.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise Malformed("a text of the pickle is not UTF-8") from error
