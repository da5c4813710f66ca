"""How a computation is cut so that it fits: predicted by a dry run on the meta device, in milliseconds."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
import torch
from torch import Tensor

from safelight.core.device import Device, hardware_name
from safelight.core.events import Value
from safelight.core.kernel import MapKernel
from safelight.core.memory import Budget, Ledger

if TYPE_CHECKING:
    from safelight.core.stream import Source

_META = torch.device("meta")
_LEAST, _MOST = 0.1, 10.0
_NOTICEABLE = 0.01
"""Relative change of a correction that is worth a write."""


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
class Cost:
    """Bytes that n rows take while a kernel computes them: ``fixed + per_row · n``.

    Parameters
    ----------
    fixed, per_row : int
        Of the computation, input and output included.
    constants : int
        The part of ``fixed`` that the kernel's constants take.
    input_row, output_row : int
        One row of the input and of the output.
    ahead_row : int
        One row of the next chunk, read ahead into the same memory.
    accumulated : int
        The results of all chunks, where they stay on the device.
    """

    fixed: int
    per_row: int
    constants: int
    input_row: int
    output_row: int
    ahead_row: int
    accumulated: int = 0

    def peak(self, rows: int) -> int:
        """Return the computation's peak for a number of rows, halo included."""
        return self.fixed + self.per_row * rows

    def bytes(self, rows: int) -> int:
        """Return the peak with what is read ahead and what has been accumulated."""
        return self.peak(rows) + self.ahead_row * rows + self.accumulated

    def scaled(self, factor: float) -> Cost:
        """Return the cost corrected by a measurement; what constants take is known without one."""
        fixed = self.constants + math.ceil((self.fixed - self.constants) * factor)
        return replace(self, fixed=fixed, per_row=math.ceil(self.per_row * factor))


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
        half = max(self.rows // 2 // self.smallest, 1) * self.smallest
        return self.with_rows(half)

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
) -> Plan:
    """Plan a kernel over a source: as many rows at once as the budgets allow, aligned.

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
    aligned = max((room - 2 * kernel.halo) // smallest, 1) * smallest
    rows = source.extent if room >= source.extent else aligned
    return Plan(
        kernel.name, str(device.torch_device), source.extent, rows, kernel.halo, dry_run, cost, budget, smallest
    )


def predict_cost(kernel: MapKernel, source: Source, shared: bool) -> Cost:
    """Return what a kernel takes per row, from two dry runs on the meta device.

    The meta device knows no mixed precision: with it, the first measured chunk corrects what is too much here.

    Parameters
    ----------
    kernel : MapKernel
    source : Source
    shared : bool
        Whether the next chunk is read ahead into the device's own memory.
    """
    few = min(max(kernel.alignment, 2 * kernel.halo + 1), source.extent)
    many = min(2 * few, source.extent)
    peak_few, constants, output_row = _dry_run(kernel, few, source)
    peak_many = _dry_run(kernel, many, source)[0] if many > few else peak_few
    per_row = -(-(peak_many - peak_few) // (many - few)) if many > few else -(-(peak_few - constants) // few)
    per_row = max(per_row, 1)
    input_row = row_bytes(source)
    fixed = max(peak_few - per_row * few, constants)
    return Cost(fixed, per_row, constants, input_row, output_row, input_row if shared else 0)


def _dry_run(kernel: MapKernel, rows: int, source: Source) -> tuple[int, int, int]:
    """Return the peak of a number of rows, the part that constants take, and the bytes of a row of the result."""
    with torch.no_grad(), _DryRun() as ledger:
        on_meta = kernel.to(_META)
        constants = ledger.current
        result = on_meta(torch.empty((rows, *source.shape), dtype=source.dtype, device=_META))
    return ledger.peak, constants, math.prod(result.shape[1:]) * result.dtype.itemsize


class _DryRun(Ledger):  # type: ignore[no-untyped-call]
    """A ledger for the meta device that asks only for shapes where torch spells an operation out in Python.

    A plan of a network with batch normalisation would otherwise take three times as long.
    """

    def _run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        on_meta = bool(args) and isinstance(args[0], Tensor) and args[0].is_meta
        return super()._run(_SHAPES.get(func, func) if on_meta else func, args, kwargs)


def _batch_norm(x: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[1]), x.new_empty(x.shape[1])


def _batch_norm_backward(gradient: Tensor, *others: Any) -> tuple[Tensor | None, ...]:
    wanted = others[-1]
    return tuple(shape if is_wanted else None for shape, is_wanted in zip(_batch_norm(gradient), wanted, strict=True))


def _like(first: Tensor, *_: object) -> Tensor:
    return torch.empty_like(first)


_SHAPES: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.native_batch_norm.default: _batch_norm,
    torch.ops.aten.native_batch_norm_backward.default: _batch_norm_backward,
    torch.ops.aten.threshold_backward.default: _like,
}


def row_bytes(source: Source) -> int:
    """Return the bytes of one row of a source."""
    return math.prod(source.shape) * source.dtype.itemsize


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
