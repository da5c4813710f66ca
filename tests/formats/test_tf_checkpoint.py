"""Checkpoints of TensorFlow, written here byte by byte as its documentation describes them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from safelight.core.errors import InputError
from safelight.formats.tf_checkpoint import masked_checksum, read_checkpoint

TENSORS = {
    "net/cnn/conv2d_1/W": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "net/cnn/conv2d_1/b": np.linspace(-1, 1, 300, dtype=np.float32),
    "net/global_step": np.array(7, np.int64),
}
NUMBERS = {"float32": 1, "int64": 9}


def varint(value: int) -> bytes:
    text = b""
    while value >= 0x80:
        text, value = text + bytes([value & 0x7F | 0x80]), value >> 7
    return text + bytes([value])


def number(place: int, value: int) -> bytes:
    return varint(place << 3) + varint(value)


def content(place: int, value: bytes) -> bytes:
    return varint(place << 3 | 2) + varint(len(value)) + value


def block(pairs: list[tuple[bytes, bytes]]) -> bytes:
    written, before = b"", b""
    for key, value in pairs:
        shared = next(
            (n for n, (a, b) in enumerate(zip(before, key, strict=False)) if a != b), min(len(before), len(key))
        )
        own = key[shared:]
        written += varint(shared) + varint(len(own)) + varint(len(value)) + own + value
        before = key
    return written + struct.pack("<II", 0, 1)


def write_checkpoint(prefix: Path, tensors: dict[str, np.ndarray]) -> None:
    data = b""
    pairs = [(b"", number(1, 1) + content(3, number(1, 1)))]
    for name in sorted(tensors):
        tensor = np.asarray(tensors[name])
        shape = b"".join(content(2, number(1, size)) for size in tensor.shape)
        entry = number(1, NUMBERS[tensor.dtype.name]) + content(2, shape)
        entry += number(4, len(data)) + number(5, tensor.nbytes)
        entry += varint(6 << 3 | 5) + struct.pack("<I", masked_checksum(tensor.tobytes()))
        pairs.append((name.encode(), entry))
        data += tensor.tobytes()
    table, handles = b"", []
    for part in (pairs[:2], pairs[2:], []):
        body = block(part or [(b"z", handle) for handle in handles])
        handles.append(varint(len(table)) + varint(len(body)))
        table += body + b"\0" + struct.pack("<I", masked_checksum(body + b"\0"))
    footer = (handles[-1] + handles[-1]).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    prefix.with_name(f"{prefix.name}.index").write_bytes(table + footer)
    prefix.with_name(f"{prefix.name}.data-00000-of-00001").write_bytes(data)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "net.ckpt-50", TENSORS)
    return tmp_path / "net.ckpt-50.index"


def data_of(index: Path) -> Path:
    return index.with_name(f"{index.stem}.data-00000-of-00001")


def test_tensors_come_back(index: Path) -> None:
    read = read_checkpoint(index)
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(read[name], tensor)
        assert read[name].dtype == tensor.dtype


def test_the_checksum_is_that_of_the_standard() -> None:
    """RFC 3720, B.4: thirty-two bytes of zeros have the CRC-32C 8a9136aa."""
    assert masked_checksum(bytes(32)) == ((0x8A9136AA >> 15 | 0x8A9136AA << 17) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.mark.parametrize("place", [0, 40, 400])
def test_a_changed_byte_is_noticed(index: Path, place: int) -> None:
    data = bytearray(data_of(index).read_bytes())
    data[place] ^= 1
    data_of(index).write_bytes(data)
    with pytest.raises(InputError, match="differs from its checksum"):
        read_checkpoint(index)


def test_a_cut_off_file_is_noticed(index: Path) -> None:
    data_of(index).write_bytes(data_of(index).read_bytes()[:-1])
    with pytest.raises(InputError, match="global_step is cut off"):
        read_checkpoint(index)


def test_a_missing_part_is_named(index: Path) -> None:
    data_of(index).unlink()
    with pytest.raises(InputError, match="there is no such part") as caught:
        read_checkpoint(index)
    assert caught.value.path == data_of(index)


def test_any_damage_of_the_index_is_an_error(index: Path) -> None:
    whole = index.read_bytes()
    for length in range(0, len(whole), 7):
        index.write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_checkpoint(index)
    rng = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole) - 60)] ^= int(rng.integers(1, 256))
        index.write_bytes(damaged)
        with pytest.raises(InputError):
            read_checkpoint(index)
