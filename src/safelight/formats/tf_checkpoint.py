"""Checkpoints of TensorFlow ("bundles") without TensorFlow: PREFIX.index, and PREFIX.data-00000-of-00001 beside it.

The index is a table of LevelDB: blocks of keys that share prefixes with their neighbours, and at the end of the file
where the block of blocks is. A value is a small protocol buffer: type, shape, and where the tensor's bytes are.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from safelight.core.errors import InputError
from safelight.core.files import Limits

INDEX = ".index"

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_TRAILER = 5
"""Bytes after each block: its compression, and a checksum."""
_LARGEST_INDEX = 64 << 20
_MASK_DELTA = 0xA282EAD8
"""What masks checksums that are stored beside the data that they are of."""
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}
"""By TensorFlow's numbers of types."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DTYPE, _SHAPE, _SHARD, _OFFSET, _SIZE, _CHECKSUM, _SLICES = range(1, 8)
_SHARDS, _BIG_ENDIAN = 1, 2
"""Fields of the header, which has an empty key."""


@dataclass(frozen=True)
class _Entry:
    """Where a tensor is."""

    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int


@dataclass
class _Message:
    """The fields of a protocol buffer by number; the last one where one comes twice, all of those of bytes."""

    numbers: dict[int, int] = field(default_factory=dict)
    contents: dict[int, list[bytes]] = field(default_factory=dict)


def read_checkpoint(index: Path, limits: Limits | None = None) -> dict[str, NDArray[np.generic]]:
    """Read all tensors of a checkpoint, each held against its checksum.

    Parameters
    ----------
    index : Path
        The file ``PREFIX.index``.

    Raises
    ------
    InputError
        A file is missing, damaged or not of a checkpoint; a tensor is of an unknown type or differs from its checksum.
    UnsafeInputError
        A file is larger than memory allows.
    """
    limits = limits or Limits()
    content = _read(index, limits, _LARGEST_INDEX)
    try:
        table = dict(_table(content))
        header = _message(table.pop(b""))
        entries = {name.decode(): _entry(_message(value)) for name, value in table.items()}
    except (ValueError, KeyError, IndexError, struct.error, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read as the index of a TensorFlow checkpoint ({error})", path=index) from None
    if header.numbers.get(_BIG_ENDIAN):
        raise InputError("was written on a big-endian machine", path=index)
    shards = header.numbers.get(_SHARDS, 1)
    numbers = sorted({entry.shard for entry in entries.values()})
    paths = {number: index.with_name(f"{index.stem}.data-{number:05}-of-{shards:05}") for number in numbers}
    data = {path: _read(path, limits) for path in paths.values()}
    return {name: _tensor(name, entry, paths[entry.shard], data) for name, entry in sorted(entries.items())}


def masked_checksum(content: bytes) -> int:
    """Return the CRC-32C of bytes as TensorFlow stores it: turned by 15 bits, and a constant added."""
    checksum: int = google_crc32c.value(content)
    return (((checksum >> 15) | (checksum << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def _read(path: Path, limits: Limits, most: int | None = None) -> bytes:
    if not path.is_file():
        raise InputError("there is no such part of the checkpoint", path=path)
    size = path.stat().st_size
    if most is not None and size > most:
        raise InputError("is too large for the index of a checkpoint", path=path)
    limits.check_allocation(path, size)
    return path.read_bytes()


def _tensor(name: str, entry: _Entry, path: Path, data: Mapping[Path, bytes]) -> NDArray[np.generic]:
    dtype = np.dtype(entry.dtype)
    content = data[path][entry.offset : entry.offset + entry.size]
    if len(content) != entry.size or math.prod(entry.shape) * dtype.itemsize != entry.size:
        raise InputError(f"{name} is cut off, or its size is not that of its shape {entry.shape}", path=path)
    if masked_checksum(content) != entry.checksum:
        raise InputError(f"{name} differs from its checksum", path=path, remedy="copy the checkpoint again")
    return np.frombuffer(content, dtype).reshape(entry.shape).copy()


def _table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a table."""
    if len(content) < _FOOTER or struct.unpack("<Q", content[-8:])[0] != _MAGIC:
        raise ValueError("its last bytes are not those of a table")
    footer = content[-_FOOTER:]
    _, place = _handle(footer, 0)
    blocks, _ = _handle(footer, place)
    for _, where in _block(content, *blocks):
        block, _ = _handle(where, 0)
        yield from _block(content, *block)


def _block(content: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block."""
    block = content[offset : offset + size + _TRAILER]
    if len(block) != size + _TRAILER:
        raise ValueError("it is cut off")
    if block[size]:
        raise ValueError("a block is compressed")
    if masked_checksum(block[: size + 1]) != struct.unpack("<I", block[size + 1 :])[0]:
        raise ValueError("a block differs from its checksum")
    (restarts,) = struct.unpack("<I", block[size - 4 : size])
    place, end, key = 0, size - 4 * (restarts + 1), b""
    while place < end:
        shared, place = _varint(block, place)
        own, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + block[place : place + own]
        yield key, block[place + own : place + own + length]
        place += own + length


def _handle(content: bytes, place: int) -> tuple[tuple[int, int], int]:
    """Return the offset and the size of a block, and where the next handle begins."""
    offset, place = _varint(content, place)
    size, place = _varint(content, place)
    return (offset, size), place


def _varint(content: bytes, place: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = content[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80:
            return value, place
        if shift > 63:
            raise ValueError("a number is too long")


def _message(content: bytes) -> _Message:
    message, place = _Message(), 0
    while place < len(content):
        tag, place = _varint(content, place)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            message.numbers[number], place = _varint(content, place)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
            message.numbers[number] = int.from_bytes(content[place : place + size], "little")
            place += size
        elif kind == _BYTES:
            size, place = _varint(content, place)
            message.contents.setdefault(number, []).append(content[place : place + size])
            place += size
        else:
            raise ValueError(f"a field is of the unknown kind {kind}")
    return message


def _entry(message: _Message) -> _Entry:
    if _SLICES in message.contents:
        raise ValueError("a tensor is stored in slices")
    number = message.numbers.get(_DTYPE, 0)
    if number not in _DTYPES:
        raise ValueError(f"a tensor is of the unknown type {number}")
    (shape,) = message.contents.get(_SHAPE, [b""])
    sizes = tuple(_message(dimension).numbers.get(1, 0) for dimension in _message(shape).contents.get(2, []))
    shard, offset, size, checksum = (message.numbers.get(name, 0) for name in (_SHARD, _OFFSET, _SIZE, _CHECKSUM))
    return _Entry(_DTYPES[number], sizes, shard, offset, size, checksum)
