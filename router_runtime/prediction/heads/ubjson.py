"""The part of UBJSON that XGBoost writes, read strictly: any deviation is a ``ValueError``.

Integers and floats are big-endian. Lengths carry the marker ``L`` (int64); arrays of one type state
type and count in front (``[$d#L...``) and have no end mark. See https://ubjson.org for the format.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

_NUMBERS = {"i": ">i1", "U": ">u1", "I": ">i2", "l": ">i4", "L": ">i8", "d": ">f4", "D": ">f8"}
_CONSTANTS = {"Z": None, "T": True, "F": False}
_MAX_DEPTH = 32
_MAX_VALUES = 5_000_000  # a value takes one byte of the data and up to 64 bytes of memory


def parse_ubjson(data: bytes) -> Any:
    """Return the value in ``data``: dict, list, ndarray (typed array), str, number, None or bool.

    Raises
    ------
    ValueError
        If the data is cut off, goes on after its end, or is nothing that XGBoost writes.
    """
    reader = _Reader(data)
    value = reader.value(0)
    if reader.at != len(data):
        raise ValueError(f"it goes on after its end at byte {reader.at}")
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.values = 0

    def take(self, count: int) -> bytes:
        taken = self.data[self.at : self.at + count]
        if count < 0 or len(taken) != count:
            raise ValueError(f"it is cut off at byte {self.at}")
        self.at += count
        return taken

    def mark(self) -> str:
        return self.take(1).decode("latin-1")

    def length(self) -> int:
        self.expect("L")
        (length,) = struct.unpack(">q", self.take(8))
        return int(length)

    def expect(self, mark: str) -> None:
        if self.mark() != mark:
            raise ValueError(f"'{mark}' is missing before byte {self.at}")

    def text(self) -> str:
        return self.take(self.length()).decode("utf-8")

    def value(self, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested too deeply at byte {self.at}")
        self.values += 1
        if self.values > _MAX_VALUES:
            raise ValueError(f"it has more than {_MAX_VALUES} values")
        mark = self.mark()
        if mark == "{":
            return self.mapping(depth)
        if mark == "[":
            return self.array(depth)
        if mark == "S":
            return self.text()
        if mark in _CONSTANTS:
            return _CONSTANTS[mark]
        return self.numbers(mark, 1).tolist()[0]

    def mapping(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while self.data[self.at : self.at + 1] != b"}":
            key = self.text()
            if key in found:
                raise ValueError(f"the key '{key}' is repeated")
            found[key] = self.value(depth + 1)
        self.expect("}")
        return found

    def array(self, depth: int) -> Any:
        if self.data[self.at : self.at + 1] == b"$":
            self.expect("$")
            mark = self.mark()
            self.expect("#")
            return self.numbers(mark, self.length())
        count = None
        if self.data[self.at : self.at + 1] == b"#":
            self.expect("#")
            count = self.length()
        found: list[Any] = []
        while len(found) != count and self.data[self.at : self.at + 1] != b"]":
            found.append(self.value(depth + 1))
        if count is None:
            self.expect("]")
        elif len(found) != count:
            raise ValueError(f"an array of {count} ends after {len(found)}")
        return found

    def numbers(self, mark: str, count: int) -> np.ndarray:
        if mark not in _NUMBERS:
            raise ValueError(f"'{mark}' before byte {self.at} is no type that is read")
        dtype = np.dtype(_NUMBERS[mark])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype=dtype)
