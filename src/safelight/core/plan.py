"""How a computation is cut so that it fits, and what earlier runs have taught about what it takes."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
import torch

from safelight.core.allocator import MOST_KEPT
from safelight.core.device import Device, hardware_name
from safelight.core.dry_run import Cost
from safelight.core.events import Value
from safelight.core.kernel import MapKernel
from safelight.core.memory import Budget

if TYPE_CHECKING:
    from safelight.core.stream import Source

_LEAST, _MOST = 0.1, 10.0
_NOTICEABLE = 0.01
"""Relative change of a correction that is worth a write."""
_CHUNK_ON_HOST = MOST_KEPT // 2
"""Bytes of rows that are enough for a chunk where device and host share their memory: with more, what is freed is not
kept for the next one, and three times the time goes by."""
_HALOS = 32
"""Such a chunk has at least so many halos' rows, as it computes two of them for nothing."""


@dataclass(frozen=True)
class Chunk:
    """A core region and what must be read for it, in rows along axis 0.

    Parameters
    ----------
    start, stop : int
        The rows that are written.
    read_start, read_stop : int
        The rows that are read: the core with its halo, inside the extent.
    """

    start: int
    stop: int
    read_start: int
    read_stop: int


@dataclass(frozen=True)
class Plan:
    """How one kernel runs over one source on one device; printable before running.

    Parameters
    ----------
    kernel, device : str
    extent : int
        Rows in all.
    rows : int
        Rows of a chunk, without its halo.
    halo : int
    dry_run, cost : Cost
        As the dry run found it, and corrected by measurements.
    budget : Budget
    smallest : int
        Fewest rows that a chunk can have.
    wanted : int
        Rows that a chunk would have if there were memory without end.
    """

    kernel: str
    device: str
    extent: int
    rows: int
    halo: int
    dry_run: Cost
    cost: Cost
    budget: Budget
    smallest: int
    wanted: int

    def chunk(self, start: int) -> Chunk:
        """Return the chunk that starts at a row."""
        stop = min(start + self.rows, self.extent)
        return Chunk(start, stop, max(start - self.halo, 0), min(stop + self.halo, self.extent))

    def chunks(self, start: int = 0) -> list[Chunk]:
        """Return the chunks from a row to the end."""
        return [self.chunk(at) for at in range(start, self.extent, self.rows)]

    @property
    def predicted_bytes(self) -> int:
        """The predicted peak of the largest chunk."""
        return self.cost.bytes(self._with_halo(self.rows))

    @property
    def smallest_bytes(self) -> int:
        """The smallest budget with which this could run."""
        return self.cost.bytes(self._with_halo(self.smallest))

    @property
    def fits(self) -> bool:
        """Whether the prediction is within the budget."""
        return self.predicted_bytes <= self.budget.bytes

    def with_rows(self, rows: int) -> Plan:
        """Return the plan with chunks of another size."""
        return replace(self, rows=rows)

    def halved(self) -> Plan | None:
        """Return the plan with chunks half as large, aligned; None where they cannot be smaller."""
        if self.rows <= self.smallest:
            return None
        return self.with_rows(_aligned(self.rows // 2, self.smallest))

    def describe(self) -> dict[str, Value]:
        """Return the plan as JSON values, as the event ``plan`` takes them."""
        return {
            "kernel": self.kernel,
            "device": self.device,
            "chunks": len(self.chunks()),
            "rows": self.rows,
            "extent": self.extent,
            "predicted_bytes": self.predicted_bytes,
            "budget_bytes": self.budget.bytes,
            "reason": self.budget.reason,
        }

    def _with_halo(self, rows: int) -> int:
        return min(rows + 2 * self.halo, self.extent)


def make_plan(
    dry_run: Cost,
    kernel: MapKernel,
    source: Source,
    device: Device,
    budget: Budget,
    *,
    host: Budget | None = None,
    accumulates: bool = False,
    correction: float = 1.0,
    most_rows: int | None = None,
) -> Plan:
    """Plan a kernel over a source: as many rows at once as the budgets allow and are wanted, aligned.

    Parameters
    ----------
    dry_run : Cost
        What ``predict_cost`` found.
    kernel : MapKernel
    source : Source
    device : Device
    budget : Budget
        Of the device.
    host : Budget, optional
        Of the host, which holds the chunk and the next one; None where device and host share their memory.
    accumulates : bool
        Whether the whole result stays on the device.
    correction : float
        Measured over predicted peak of earlier runs, constants left out of both.
    most_rows : int, optional
        Rows of a chunk that are enough, even if more would fit.

    Returns
    -------
    Plan
        Where not even the smallest chunk fits, a plan of smallest chunks with ``fits`` False.
    """
    cost = dry_run.scaled(correction)
    if accumulates:
        cost = replace(cost, accumulated=cost.output_row * source.extent)
    smallest = min(kernel.alignment, source.extent)
    room = (budget.bytes - cost.fixed - cost.accumulated) // (cost.per_row + cost.ahead_row)
    if host is not None:
        room = min(room, host.bytes // (2 * cost.input_row))
    fitting = source.extent if room >= source.extent else _aligned(room - 2 * kernel.halo, smallest)
    enough = source.extent if most_rows is None else most_rows
    if host is None:
        # By the dry run: what earlier runs have measured must not decide where chunks end, and with that last bits.
        enough = min(enough, max(_CHUNK_ON_HOST // dry_run.per_row, _HALOS * kernel.halo))
    wanted = source.extent if enough >= source.extent else _aligned(enough, smallest)
    return Plan(
        kernel=kernel.name,
        device=str(device.torch_device),
        extent=source.extent,
        rows=min(fitting, wanted),
        halo=kernel.halo,
        dry_run=dry_run,
        cost=cost,
        budget=budget,
        smallest=smallest,
        wanted=wanted,
    )


def _aligned(rows: int, smallest: int) -> int:
    return max(rows // smallest, 1) * smallest


class Corrections:
    """Measured over predicted peaks of earlier runs, per kernel, dtype, size of a row, precision, device and torch.

    What a kernel's constants take is left out of both: it is known, and the next run's may be of another size.
    Rows count by the power of two that their bytes reach: what a tiny image taught says little about a large one.

    Parameters
    ----------
    folder : Path, optional
        Where they are kept; by default the user's cache folder or SAFELIGHT_CACHE.
    """

    def __init__(self, folder: Path | None = None) -> None:
        chosen = folder or os.environ.get("SAFELIGHT_CACHE") or platformdirs.user_cache_path("safelight")
        self._path = Path(chosen) / "corrections.json"
        self._known = self._read()

    def get(self, kernel: str, dtype: torch.dtype, row_bytes: int, device: Device, unmeasured: float = 1.0) -> float:
        """Return the correction, or what is given for where nothing was measured yet."""
        return self._known.get(self._key(kernel, dtype, row_bytes, device), unmeasured)

    def put(self, kernel: str, dtype: torch.dtype, row_bytes: int, device: Device, correction: float) -> None:
        """Keep a correction, within 0.1 and 10. A cache folder that cannot be written is no reason to stop."""
        key, correction = self._key(kernel, dtype, row_bytes, device), min(max(correction, _LEAST), _MOST)
        before = self._known.get(key)
        self._known[key] = correction
        if before is None or not math.isclose(before, correction, rel_tol=_NOTICEABLE):
            self._known = {**self._known, **self._read(), key: correction}  # other processes write there as well
            self._write()

    def _write(self) -> None:
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Not flushed to the disk: what a power failure leaves of a cache is an old one or none.
            temporary.write_text(json.dumps(self._known, indent=1), encoding="utf-8")
            temporary.replace(self._path)
        except OSError:
            return

    def _read(self) -> dict[str, float]:
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
            return {str(key): float(value) for key, value in known.items() if _LEAST <= float(value) <= _MOST}
        except (OSError, ValueError, AttributeError, TypeError):  # a missing or damaged cache is an empty one
            return {}

    @staticmethod
    def _key(kernel: str, dtype: torch.dtype, row_bytes: int, device: Device) -> str:
        precision, rows = "mixed" if device.amp else "full", f"rows below {1 << row_bytes.bit_length()} B"
        hardware = hardware_name(device.torch_device)
        return " | ".join((kernel, str(dtype), rows, precision, hardware, torch.__version__))
