"""Pickles of NumPy arrays, as old programs keep their data, read without running anything in them.

Python's own unpickler calls what a file names, and its memo grows to whatever a file claims. This one is a machine of
its own for the part of the language that arrays and plain containers need: names of NumPy's makers of arrays are
looked up in a table here and nothing is ever imported; every length is held against the bytes that are there. The
language is described in Python's ``pickletools``.
"""

from __future__ import annotations

import codecs
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from safelight.core.errors import InputError, UnsafeInputError
from safelight.core.files import Limits

LARGEST = 256 << 20
"""Bytes of a file; templates and ground truth have about one million."""
MOST_STEPS = 4 << 20
"""Of a file: every byte of it could be an empty list, which takes sixty bytes of memory."""
_EXPANSION = 4
"""Most bytes of arrays made per byte of the file: a file can ask for an array of the same bytes again and again."""
_PLAIN = re.compile(r"[biufc](1|2|4|8|16)")
"""Types of which arrays may be: truth values and numbers."""
_MOST_AXES = 32
_ORDERS = ("<", ">", "=", "|")
_KEYS = (str, int, float, bytes, type(None))
"""A tuple within tuples would take for ever to hash."""
_REMEDY = "save the arrays with numpy.savez where the file was made"


def read_pickle(path: Path, limits: Limits | None = None) -> Any:
    """Read arrays and plain containers of them from a pickle of Python 2 or 3.

    Texts of Python 2 are taken for Latin 1, which keeps every byte.

    Returns
    -------
    object
        Of arrays and numbers of NumPy, None, truth values, numbers, texts, bytes, lists, tuples and dicts only.

    Raises
    ------
    InputError
        The file is missing or damaged.
    UnsafeInputError
        It holds anything else, which is named, or claims to be larger than it is, or is too large.
    """
    if not path.is_file():
        raise InputError("there is no such file", path=path)
    if (size := path.stat().st_size) > LARGEST:
        raise UnsafeInputError(f"has {size} bytes", path=path, expected=f"a pickle of at most {LARGEST}")
    (limits or Limits()).check_allocation(path, 2 * size)  # the file and its arrays
    try:
        return _Machine(path.read_bytes()).run()
    except UnsafeInputError as error:
        error.path, error.remedy = path, _REMEDY
        raise
    except _DAMAGE as error:
        raise InputError(f"cannot be read as a pickle ({type(error).__name__}: {error})", path=path) from None


_DAMAGE = (OSError, ValueError, TypeError, LookupError, OverflowError, struct.error)
"""What reading a damaged pickle leads to."""


class _Type:
    """The type of an array while it is read: its order of bytes comes after it."""

    def __init__(self, name: str) -> None:
        if not _PLAIN.fullmatch(name):
            raise UnsafeInputError(f"it holds an array of {name!r:.60}", expected="arrays of numbers or truth values")
        self._name, self._order = name, "="

    def set_state(self, state: tuple[Any, ...]) -> None:
        _, order, subarray, names, fields, *_ = state
        if order not in _ORDERS or (subarray, names, fields) != (None, None, None):
            raise UnsafeInputError("it holds an array of records", expected="arrays of numbers or truth values")
        self._order = order

    def array(self, content: str | bytes, shape: tuple[int, ...], order: Literal["C", "F"] = "C") -> NDArray[Any]:
        """Return an array with the values in ``content``, of which it must take all."""
        dtype = np.dtype(self._order + self._name)
        raw = _as_bytes(content)
        if math.prod(shape) * dtype.itemsize != len(raw) or min(shape, default=0) < 0:
            raise UnsafeInputError(f"it claims an array of {shape!r:.60}, and has {len(raw)} bytes for it")
        values = np.frombuffer(raw, dtype).reshape(shape, order=order)
        return values.astype(dtype.newbyteorder("="))


class _Array:
    """An array of which only the kind is known yet; its values come after it."""

    def __init__(self) -> None:
        self.places: list[int] = []

    def with_state(self, state: tuple[Any, ...]) -> NDArray[Any]:
        *_, shape, kind, in_columns, content = state
        return _of_type(kind).array(content, _sizes(shape), "F" if in_columns else "C")


class _Name:
    """A name that the table knows; it can be called by the file, and nothing else."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make


def _as_bytes(content: object) -> bytes:
    if isinstance(content, str):
        return content.encode("latin1")
    if isinstance(content, (bytes, bytearray)):
        return bytes(content)
    raise UnsafeInputError(f"the values of an array are a {type(content).__name__}", expected="bytes")


def _of_type(kind: object) -> _Type:
    if not isinstance(kind, _Type):
        raise UnsafeInputError(f"the type of an array is a {type(kind).__name__}", expected="a type of NumPy's")
    return kind


def _sizes(shape: object) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or len(shape) > _MOST_AXES or not all(type(size) is int for size in shape):
        raise UnsafeInputError(f"the shape of an array is a {type(shape).__name__}", expected="a few whole numbers")
    return shape


def _type(name: object, *_: object) -> _Type:
    return _Type(name if isinstance(name, str) else type(name).__name__)


def _array(*_: object) -> _Array:
    return _Array()


def _scalar(kind: object, content: object) -> Any:
    return _of_type(kind).array(_as_bytes(content), ())[()]


def _from_buffer(content: object, kind: object, shape: object, order: object) -> NDArray[Any]:
    return _of_type(kind).array(_as_bytes(content), _sizes(shape), "F" if order == "F" else "C")


def _encode(text: object, encoding: object) -> bytes:
    """Return what Python 3 writes bytes as, for Python 2."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnsafeInputError("it encodes a text by itself", expected="bytes written as Latin 1")
    return text.encode("latin1")


def _not_to_call(*_: object) -> Any:
    raise UnsafeInputError("it calls numpy.ndarray itself", expected="arrays as NumPy pickles them")


_NAMES: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _not_to_call,
    "numpy.dtype": _type,
    "_codecs.encode": _encode,
    **{f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
}
"""All that a pickle may name."""


class _Machine:
    """Does what the bytes of a pickle say; ``pickletools`` has what each of them means."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0
        self._made = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MOST_STEPS):
            code = self._take(1)
            if code == b".":
                (result,) = self._stack
                _check_finished(result)
                return result
            if code in _PUSH:
                self._stack.append(_PUSH[code](self))
            elif code in _DO:
                _DO[code](self)
            else:
                raise UnsafeInputError(f"it holds an object that is no data (code {code!r} at byte {self._at - 1})")
        raise UnsafeInputError(f"it has more than {MOST_STEPS} parts")

    def _take(self, count: int) -> bytes:
        if not 0 <= count <= len(self._content) - self._at:
            raise UnsafeInputError(f"it claims {count} bytes at byte {self._at} of {len(self._content)}")
        self._at += count
        return self._content[self._at - count : self._at]

    def number(self, layout: str) -> Any:
        """Read a number, laid out as ``struct`` has it."""
        (value,) = struct.unpack(layout, self._take(struct.calcsize(layout)))
        return value

    def counted(self, layout: str) -> bytes:
        """Read a count and as many bytes."""
        return self._take(self.number(layout))

    def line(self) -> bytes:
        """Read until the end of the line."""
        end = self._content.find(b"\n", self._at)
        return self._take(end + 1 - self._at)[:-1]

    def whole(self) -> int | bool:
        """Read a whole number or a truth value as text."""
        text = self.line()
        return text == b"01" if text in (b"00", b"01") else int(text.removesuffix(b"L"))

    def quoted(self) -> str:
        """Read a text of Python 2 with its quotation marks."""
        text = self.line()
        if len(text) < 2 or text[0] != text[-1] or text[:1] not in (b"'", b'"'):
            raise ValueError("a text without quotation marks")
        return codecs.escape_decode(text[1:-1])[0].decode("latin1")

    def again(self, place: int) -> Any:
        """Return what was put aside."""
        return self._memo[place]

    def put_aside(self, place: int) -> None:
        """Keep the last object for later."""
        self._memo[place] = self._stack[-1]
        if isinstance(self._stack[-1], _Array):
            self._stack[-1].places.append(place)

    def put_aside_next(self) -> None:
        """Keep the last object for later, in the next free place."""
        self.put_aside(len(self._memo))

    def last(self) -> Any:
        """Return the last object."""
        return self._stack[-1]

    def drop(self) -> None:
        """Forget the last object."""
        self._stack.pop()

    def mark(self) -> None:
        """Remember where a container begins."""
        self._marks.append(len(self._stack))

    def since_mark(self) -> list[Any]:
        """Take all objects since the last mark."""
        start = self._marks.pop()
        found = self._stack[start:]
        del self._stack[start:]
        return found

    def group(self, count: int) -> tuple[Any, ...]:
        """Take the last objects."""
        if len(self._stack) < count:
            raise IndexError("too few objects")
        found = tuple(self._stack[-count:])
        del self._stack[-count:]
        return found

    def extend(self, values: list[Any]) -> None:
        """Add to the list that is last."""
        if not isinstance(self._stack[-1], list):
            raise TypeError("no list to add to")
        self._stack[-1].extend(values)

    def update(self, pairs: list[Any]) -> None:
        """Add keys and values, in turn, to the dict that is last."""
        if not isinstance(self._stack[-1], dict):
            raise TypeError("no dict to add to")
        self._stack[-1].update(_dict(pairs))

    def name(self, module: bytes, name: bytes) -> _Name:
        """Return what is behind a name."""
        return _look_up(module.decode("latin1"), name.decode("latin1"))

    def name_of_stack(self) -> _Name:
        """Return what is behind the name that the last two objects are."""
        module, name = self.group(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is no text")
        return _look_up(module, name)

    def call(self) -> Any:
        """Make what a name and its arguments stand for."""
        name, arguments = self.group(2)
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise UnsafeInputError(f"it calls a {type(name).__name__}", expected="arrays as NumPy pickles them")
        return self._counted_in(name.make(*arguments))

    def set_state(self) -> None:
        """Complete the last object but one."""
        target, state = self.group(2)
        if isinstance(target, _Array):
            made = self._counted_in(target.with_state(state))
            self._memo.update(dict.fromkeys(target.places, made))
            target = made
        elif isinstance(target, _Type):
            target.set_state(state)
        else:
            raise UnsafeInputError(f"it changes a {type(target).__name__}", expected="arrays as NumPy pickles them")
        self._stack.append(target)

    def refuse_object(self) -> None:
        """Name the class of an object of Python 2."""
        _look_up(self.line().decode("latin1"), self.line().decode("latin1"))

    def _counted_in(self, made: Any) -> Any:
        self._made += made.nbytes if isinstance(made, np.ndarray) else len(made) if isinstance(made, bytes) else 0
        if self._made > _EXPANSION * len(self._content):
            raise UnsafeInputError(f"its arrays take {self._made} bytes, the file {len(self._content)}")
        return made


def _check_finished(result: object) -> None:
    """Refuse what is left of the making of arrays. Containers may hold one another, or themselves."""
    waiting, seen = [result], {id(result)}
    while waiting:
        value = waiting.pop()
        if isinstance(value, (_Name, _Type, _Array)):
            raise UnsafeInputError("it holds a part of an array", expected="whole arrays and plain containers")
        if isinstance(value, (list, tuple, dict)):
            for part in value.values() if isinstance(value, dict) else value:
                if id(part) not in seen:
                    seen.add(id(part))
                    waiting.append(part)


def _look_up(module: str, name: str) -> _Name:
    known = _NAMES.get(f"{module}.{name}")
    if known is None:
        raise UnsafeInputError(
            f"it holds objects that are not data: {f'{module}.{name}'!r:.100}", expected="arrays and plain containers"
        )
    return _Name(known)


def _dict(pairs: list[Any]) -> dict[Any, Any]:
    if strange := [type(key).__name__ for key in pairs[::2] if not isinstance(key, _KEYS)]:
        raise UnsafeInputError(f"a key of a dict is a {strange[0]}", expected="texts and numbers")
    return dict(zip(pairs[::2], pairs[1::2], strict=True))


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogatepass")


def _signed(content: bytes) -> int:
    return int.from_bytes(content, "little", signed=True)


_PUSH: dict[bytes, Callable[[_Machine], Any]] = {
    b"N": lambda _: None,
    b"\x88": lambda _: True,
    b"\x89": lambda _: False,
    b"I": _Machine.whole,
    b"L": _Machine.whole,
    b"K": lambda machine: machine.number("<B"),
    b"M": lambda machine: machine.number("<H"),
    b"J": lambda machine: machine.number("<i"),
    b"\x8a": lambda machine: _signed(machine.counted("<B")),
    b"F": lambda machine: float(machine.line()),
    b"G": lambda machine: machine.number(">d"),
    b"S": _Machine.quoted,
    b"T": lambda machine: machine.counted("<i").decode("latin1"),
    b"U": lambda machine: machine.counted("<B").decode("latin1"),
    b"V": lambda machine: machine.line().decode("raw-unicode-escape"),
    b"X": lambda machine: _text(machine.counted("<I")),
    b"\x8c": lambda machine: _text(machine.counted("<B")),
    b"\x8d": lambda machine: _text(machine.counted("<Q")),
    b"C": lambda machine: machine.counted("<B"),
    b"B": lambda machine: machine.counted("<I"),
    b"\x8e": lambda machine: machine.counted("<Q"),
    b"\x96": lambda machine: machine.counted("<Q"),
    b"]": lambda _: [],
    b"}": lambda _: {},
    b")": lambda _: (),
    b"l": _Machine.since_mark,
    b"d": lambda machine: _dict(machine.since_mark()),
    b"t": lambda machine: tuple(machine.since_mark()),
    b"\x85": lambda machine: machine.group(1),
    b"\x86": lambda machine: machine.group(2),
    b"\x87": lambda machine: machine.group(3),
    b"2": _Machine.last,
    b"g": lambda machine: machine.again(int(machine.line())),
    b"h": lambda machine: machine.again(machine.number("<B")),
    b"j": lambda machine: machine.again(machine.number("<I")),
    b"c": lambda machine: machine.name(machine.line(), machine.line()),
    b"\x93": _Machine.name_of_stack,
    b"R": _Machine.call,
}
"""What pushes an object."""
_DO: dict[bytes, Callable[[_Machine], object]] = {
    b"\x80": lambda machine: machine.number("<B"),
    b"\x95": lambda machine: machine.number("<Q"),
    b"(": _Machine.mark,
    b"0": _Machine.drop,
    b"1": _Machine.since_mark,
    b"p": lambda machine: machine.put_aside(int(machine.line())),
    b"q": lambda machine: machine.put_aside(machine.number("<B")),
    b"r": lambda machine: machine.put_aside(machine.number("<I")),
    b"\x94": _Machine.put_aside_next,
    b"a": lambda machine: machine.extend(list(machine.group(1))),
    b"e": lambda machine: machine.extend(machine.since_mark()),
    b"s": lambda machine: machine.update(list(machine.group(2))),
    b"u": lambda machine: machine.update(machine.since_mark()),
    b"b": _Machine.set_state,
    b"i": _Machine.refuse_object,
}
"""What changes objects, or is about the file itself."""
