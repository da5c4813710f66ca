"""The state of a training in a file: one that was stopped goes on as if it had not been."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safelight.core.device import Device
from safelight.core.errors import InputError
from safelight.core.events import EventLog
from safelight.core.files import atomic_write

DAMAGE = (
    *(OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError, IndexError, AssertionError),
    *(struct.error, pickle.UnpicklingError),
)
"""What torch raises at a damaged file."""
_LARGEST_SHARE = 1 / 20
"""Of the time between two saves that a save may take."""


class Checkpoint:
    """The file that a training keeps its state in.

    Parameters
    ----------
    path : Path, optional
        Without one nothing is kept.
    identity : str
        What decides how the training goes, see ``identity_of``: the state of another one is not continued.
    events : EventLog
    """

    def __init__(self, path: Path | None, identity: str, events: EventLog) -> None:
        self._path, self._identity, self._events = path, identity, events
        self._saved_at, self._save_seconds = time.monotonic(), 0.0

    def load(self) -> dict[str, Any] | None:
        """Return the state, on the CPU; None where there is none, or that of another training, which is said.

        Raises
        ------
        InputError
            The file is damaged.
        """
        if self._path is None or not self._path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=True)
            identity = state.get("identity")
        except DAMAGE as error:
            raise InputError(
                f"the checkpoint is damaged ({type(error).__name__})", path=self._path, remedy="run again with --fresh"
            ) from None
        if identity != self._identity:
            self._events.warning("checkpoint_replaced", file=self._path.name)
            return None
        return state

    def is_due(self) -> bool:
        """Return whether a save would take little of the time since the last one."""
        return self._save_seconds <= _LARGEST_SHARE * (time.monotonic() - self._saved_at)

    def save(self, state: Mapping[str, Any]) -> None:
        """Write tensors, numbers, texts and containers of them, whole or not at all.

        Raises
        ------
        OutputError
            It cannot be written.
        """
        if self._path is None:
            return
        before = time.monotonic()
        # By a file of Python's: else torch keeps to itself why it could not be written, for instance a quota.
        with atomic_write(self._path) as temporary, temporary.open("wb") as file:
            torch.save({**state, "identity": self._identity}, file)
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - before


def identity_of(*parts: object) -> str:
    """Return the digest of JSON values that decide how a training goes."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of weights on the CPU."""
    total = hashlib.sha256()
    for name, tensor in tensors.items():
        total.update(name.encode())
        total.update(tensor.contiguous().numpy().tobytes())
    return total.hexdigest()


def seeded(*parts: int) -> torch.Generator:
    """Return a source of random numbers that depends on some numbers only, for instance seed, epoch and step."""
    text = " ".join(map(str, parts))
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))


@contextmanager
def repeatable(device: Device) -> Iterator[None]:
    """Compute with the same bits every time in a block, on the CPU; threads may otherwise add in any order."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or device.is_cpu)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
