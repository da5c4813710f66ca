"""What a kernel takes, found by running it on the meta device: in milliseconds, once per kernel and shape of a row."""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from safelight.core.kernel import MapKernel
from safelight.core.memory import Ledger

if TYPE_CHECKING:
    from safelight.core.stream import Source

_META = torch.device("meta")
_MOST_KNOWN = 256
_PLAIN = (bool, int, float, str, bytes, type, type(None), Enum, torch.dtype, torch.device)


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


class DryRuns:
    """What dry runs have found, so that a kernel that runs over frame after frame is tried once.

    Kernels count as the same where their functions, the shapes and types of their tensors and every other value are
    the same (``signature``): numbers that change from frame to frame belong in a kernel's constants.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, Cost] = {}

    @staticmethod
    def key(kernel: MapKernel, source: Source) -> Hashable:
        """Return what is the same for computations that take the same memory for a number of rows."""
        return (signature(kernel), tuple(source.shape), source.dtype, _rows_tried(kernel, source))

    def cost(self, kernel: MapKernel, source: Source, shared: bool) -> Cost:
        """Return what ``predict_cost`` says, from a dry run of now or of an earlier frame."""
        key = (self.key(kernel, source), shared)
        if key not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[key] = predict_cost(kernel, source, shared)
        return self._known[key]


def signature(value: object) -> Hashable:
    """Return what of a kernel can change the memory that it takes: of tensors shape and type, all else by value.

    Objects of which only they themselves know what they hold (networks, closures) equal nothing but themselves. They
    are not kept alive.
    """
    if isinstance(value, Tensor | np.ndarray):
        return (type(value), tuple(value.shape), value.dtype)
    if isinstance(value, _PLAIN):
        return (type(value), value)
    if isinstance(value, MethodType):
        return (MethodType, signature(value.__self__), signature(value.__func__))
    if isinstance(value, partial):
        return (partial, signature(value.func), signature(value.args), signature(value.keywords))
    if isinstance(value, Mapping):
        return (type(value), *((signature(key), signature(held)) for key, held in value.items()))
    if isinstance(value, tuple | list):
        return (type(value), *map(signature, value))
    if dataclasses.is_dataclass(value):
        return (type(value), *(signature(getattr(value, field.name)) for field in dataclasses.fields(value)))
    return _Itself(value)


class _Itself:
    """Equals another one of the same living object."""

    def __init__(self, value: object) -> None:
        self._id = id(value)
        try:
            self._value: Callable[[], object] = weakref.ref(value)
        except TypeError:  # of a type that cannot be told apart from the next one at its address
            self._value = lambda: None

    def __eq__(self, other: object) -> bool:
        mine = self._value()
        return isinstance(other, _Itself) and mine is not None and mine is other._value()

    def __hash__(self) -> int:
        return self._id


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
    few, many = _rows_tried(kernel, source)
    peak_few, constants, output_row = _dry_run(kernel, few, source)
    peak_many = _dry_run(kernel, many, source)[0] if many > few else peak_few
    per_row = -(-(peak_many - peak_few) // (many - few)) if many > few else -(-(peak_few - constants) // few)
    per_row = max(per_row, 1)
    input_row = row_bytes(source)
    fixed = max(peak_few - per_row * few, constants)
    return Cost(fixed, per_row, constants, input_row, output_row, input_row if shared else 0)


def _rows_tried(kernel: MapKernel, source: Source) -> tuple[int, int]:
    few = min(max(kernel.alignment, 2 * kernel.halo + 1), source.extent)
    return few, min(2 * few, source.extent)


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
    torch.ops.aten.roll.default: _like,
}


def row_bytes(source: Source) -> int:
    """Return the bytes of one row of a source."""
    return math.prod(source.shape) * source.dtype.itemsize
