"""Pickles read as data: no import, no call, no object of a class that the file names.

A pickle is a program for a small stack machine, and unpickling runs it. Here the standard
library's disassembler (``pickletools.genops``) only lists the instructions, and this module builds
containers, text, bytes and numbers from them. An instruction that would import or call something
is either one of the few understood by name (a NumPy scalar is a number, ``bytearray`` is bytes, a
class that the caller expects becomes an ``Inert`` record) or an error. ``joblib.dump`` writes plain
pickles unless they hold arrays or are compressed; those two are refused.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from router_runtime.errors import ArtifactError
from router_runtime.types import Json

MAX_BYTES = 256 * 2**20
MAX_INSTRUCTIONS = 100_000  # an empty list takes one byte of the file and 56 bytes of memory

_KEYS = (str, int, float, bytes, type(None))
_MAX_INT_BITS = 64

_SCALAR = frozenset({"numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar"})
_DTYPE = "numpy.dtype"
_BYTEARRAY = "builtins.bytearray"
_NUMBERS = frozenset("f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 b1".split())

_IGNORED = frozenset({"PROTO", "FRAME", "STOP"})
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset(
    "BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT SHORT_BINUNICODE BINUNICODE BINUNICODE8 "
    "SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass
class Inert:
    """What stands for an object: the name of its class, and the state that was stored with it."""

    name: str
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass
class _Dtype:
    code: str


def read_pickle(path: Path, *, classes: frozenset[str] = frozenset()) -> Any:
    """Rebuild the plain value in a pickle or joblib file.

    Parameters
    ----------
    path : Path
        At most ``MAX_BYTES`` long.
    classes : frozenset of str
        Dotted names of classes whose instances are returned as ``Inert`` records.

    Returns
    -------
    None, bool, int, float, str, bytes, list, tuple, dict or Inert, nested
        NumPy scalars come back as Python numbers.

    Raises
    ------
    ArtifactError
        If the file is too large, damaged, compressed, or asks for anything else.
    """
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MAX_BYTES else b""
    except OSError as error:
        raise ArtifactError(f"'{path}' cannot be read: {error}") from error
    if size > MAX_BYTES:
        raise ArtifactError(
            f"'{path}' has {size} bytes, more than the {MAX_BYTES} that are read of a pickle. "
            "It is not the file of names or settings that was expected here."
        )
    return parse_pickle(data, source=str(path), classes=classes)


def parse_pickle(data: bytes, *, source: str, classes: frozenset[str] = frozenset()) -> Any:
    """Rebuild the plain value in ``data``; see ``read_pickle``."""
    machine = _Machine(source, classes)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count >= MAX_INSTRUCTIONS:
                raise ValueError(f"it has more than {MAX_INSTRUCTIONS} instructions")
            machine.step(opcode.name, argument)
        return machine.result()
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ArtifactError(
            f"'{source}' is no plain pickle: {error}. Compressed files, and files that hold "
            "arrays, are not read; write it again with joblib.dump(value, path)."
        ) from error


class _Machine:
    """The stack machine, reduced to what builds plain values."""

    def __init__(self, source: str, classes: frozenset[str]) -> None:
        self.source = source
        self.classes = classes
        self.globals = classes | _SCALAR | {_DTYPE, _BYTEARRAY}
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def result(self) -> Any:
        (value,) = self.stack
        return value

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case _ if name in _IGNORED:
                pass
            case _ if name in _LITERALS:
                stack.append(bytes(argument) if isinstance(argument, bytearray) else argument)
            case _ if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case _ if name in _TUPLES:
                stack[-_TUPLES[name] :] = [self._last(_TUPLES[name])]
            case "MARK":
                self.marked.append(stack)
                self.stack = []
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                self._add(tuple(self._to_mark()))
            case "APPEND":
                self._extend([stack.pop()])
            case "APPENDS":
                self._extend(self._to_mark())
            case "SETITEM":
                self._update([*self._last(2)], drop=2)
            case "SETITEMS":
                self._update(self._to_mark())
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "GLOBAL":
                self._add(self._global(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                names = self._last(2)
                if not all(isinstance(name, str) for name in names):
                    raise TypeError("a class is named by something that is no text")
                stack[-2:] = [self._global(".".join(names))]
            case "REDUCE" | "NEWOBJ":
                function, arguments = self._last(2)
                stack[-2:] = [self._made(name, function, arguments)]
            case "BUILD":
                self._build(stack.pop())
            case _:
                raise ArtifactError(
                    f"'{self.source}' uses the pickle instruction {name}, which plain values do "
                    "not need. It is not read; nothing in it was executed."
                )

    def _add(self, value: Any) -> None:
        self.stack.append(value)

    def _last(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise IndexError("its stack runs empty")
        return tuple(self.stack[-count:])

    def _to_mark(self) -> list[Any]:
        values = self.stack
        self.stack = self.marked.pop()
        return values

    def _extend(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise TypeError("it appends to something that is no list")
        self.stack[-1].extend(values)

    def _update(self, values: list[Any], *, drop: int = 0) -> None:
        del self.stack[len(self.stack) - drop :]
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise TypeError("it sets a key of something that is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # A tuple may hold itself a million times over, and hashing it would visit each.
            if not isinstance(key, _KEYS):
                raise TypeError("a key is a container")
            target[key] = value

    def _global(self, name: str) -> _Global:
        if name not in self.globals:
            raise ArtifactError(
                f"'{self.source}' asks for '{name}'. Only containers, text and numbers are read "
                "from a pickle, because loading anything else can run code; nothing was executed."
            )
        return _Global(name)

    def _made(self, instruction: str, function: Any, arguments: Any) -> Any:
        name = function.name if isinstance(function, _Global) else None
        if instruction == "NEWOBJ" and name in self.classes and arguments == ():
            return Inert(str(name))
        if instruction == "REDUCE":
            if name == _DTYPE and isinstance(arguments[0], str) and arguments[0] in _NUMBERS:
                return _Dtype(arguments[0])
            if name in _SCALAR and isinstance(arguments[0], _Dtype):
                return _number(*arguments)
            if name == _BYTEARRAY and len(arguments) == 1 and isinstance(arguments[0], bytes):
                return arguments[0]
        raise TypeError(f"it makes an object of {name or type(function).__name__}")

    def _build(self, state: Any) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert) and isinstance(state, dict):
            target.state = state
        elif isinstance(target, _Dtype) and isinstance(state, tuple) and state[1] in ("<", "|"):
            pass  # little-endian, as ``_number`` reads it
        else:
            raise TypeError(f"it sets the state of a {type(target).__name__}")


def _number(dtype: _Dtype, raw: bytes) -> bool | int | float:
    (value,) = np.frombuffer(raw, dtype=np.dtype(f"<{dtype.code}")).tolist()
    number: bool | int | float = value
    return number


def plain_json(value: Any, *, source: str, max_nodes: int = 100_000) -> Json:
    """Copy a value as JSON: text keys, lists, finite numbers; NaN and infinity become None.

    Raises
    ------
    ArtifactError
        If it holds anything else, or more than ``max_nodes`` values (a list may hold itself).
    """
    remaining = [max_nodes]

    def copy(entry: Any, depth: int) -> Json:
        remaining[0] -= 1
        if remaining[0] < 0 or depth > 32:
            raise ArtifactError(f"'{source}' is nested too deeply, or too large, to be settings.")
        if isinstance(entry, dict):
            return {str(key): copy(item, depth + 1) for key, item in entry.items()}
        if isinstance(entry, list | tuple):
            return [copy(item, depth + 1) for item in entry]
        if isinstance(entry, float):
            return entry if np.isfinite(entry) else None
        if isinstance(entry, int) and entry.bit_length() > _MAX_INT_BITS:
            raise ArtifactError(f"'{source}' holds a whole number too large to be a setting.")
        if entry is None or isinstance(entry, str | int):
            return entry
        raise ArtifactError(f"'{source}' holds a {type(entry).__name__} where a setting belongs.")

    return copy(value, 0)
