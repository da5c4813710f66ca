"""The guard: runs kernels over extents of any size in whatever memory there is.

The ladder, one event per step: smaller chunks → accumulators to the host → the CPU, going on at the chunk that
failed → an error that says the smallest amount that would have worked. This is the only place that goes on after
out-of-memory. A retry always happens outside the ``except`` block: an exception keeps every frame's tensors alive.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from safelight.core.device import Device
from safelight.core.dry_run import DryRuns, row_bytes
from safelight.core.errors import OutOfMemoryError
from safelight.core.events import EventLog, Value
from safelight.core.kernel import MapKernel
from safelight.core.memory import Budget, VirtualDevice, device_budget, host_budget, is_out_of_memory
from safelight.core.options import CommonOptions
from safelight.core.plan import Chunk, Corrections, Plan, make_plan
from safelight.core.stage import Stage
from safelight.core.stream import AccumulatingSink, Sink, Source, read_ahead
from safelight.core.timing import ChunkTimes

_MAY_BE_OUT_OF_MEMORY = (RuntimeError, MemoryError, OSError)


@dataclass(frozen=True)
class Measured:
    """What a kernel really took on its first chunk, against the plan."""

    kernel: str
    device: str
    rows: int
    predicted_bytes: int
    measured_bytes: int


@dataclass(frozen=True)
class _Job:
    """What ``map`` was asked for."""

    kernel: MapKernel
    source: Source
    sink: Sink | AccumulatingSink
    most_rows: int | None

    def stays_on_device(self) -> bool:
        """Whether the results are not to be moved to the host."""
        return isinstance(self.sink, AccumulatingSink) and self.sink.on_device


class Executor:
    """Runs kernels within a memory budget.

    Parameters
    ----------
    device : Device
    events : EventLog
    budget : Budget, optional
        What may be used on the device; measured by default.
    cpu_fallback : bool
        Whether the CPU may take over.
    memory_limit : int, optional
        Most bytes, on the device and on the host.
    safety_fraction : float
        Share of the device's free memory that may be planned for.
    virtual : VirtualDevice, optional
        Stands in for the device: computes on the CPU with the memory of another device.
    corrections : Corrections, optional
        What earlier runs measured.
    warmup : int
        Chunks of each kernel that do not count in its timings.
    workers : int
        Processes that share this machine, and with it ``memory_limit``.
    """

    def __init__(
        self,
        device: Device,
        events: EventLog,
        *,
        budget: Budget | None = None,
        cpu_fallback: bool = True,
        memory_limit: int | None = None,
        safety_fraction: float = 0.75,
        virtual: VirtualDevice | None = None,
        corrections: Corrections | None = None,
        warmup: int = 0,
        workers: int = 1,
    ) -> None:
        self.device = device
        self.events = events
        self.measured: list[Measured] = []
        self._budget = budget
        self._cpu_fallback = cpu_fallback
        self._memory_limit = None if memory_limit is None else memory_limit // workers
        self._workers = workers
        self._safety_fraction = safety_fraction
        self._virtual = virtual
        self._corrections = corrections or Corrections()
        self._warmup = warmup
        self._dry_runs = DryRuns()
        self._factors: dict[Hashable, float] = {}
        self._times: dict[tuple[str, str], ChunkTimes] = {}

    @classmethod
    def from_options(cls, device: Device, options: CommonOptions, events: EventLog, workers: int = 1) -> Executor:
        """Return the executor that a command's options ask for, in one of so many workers of this machine."""
        return cls(
            device,
            events,
            cpu_fallback=options.cpu_fallback,
            memory_limit=options.memory_limit,
            safety_fraction=options.safety_fraction,
            warmup=options.warmup_iters,
            workers=workers,
        )

    @property
    def budget(self) -> Budget:
        """What may be used on the device now."""
        if self._budget is None and self._virtual is not None and self._virtual.cap_bytes is not None:
            return Budget(self._virtual.cap_bytes - self._virtual.current, "free")
        if self._budget is not None:
            return self._budget
        if self.device.is_cpu:
            return self._host_budget()
        return device_budget(self.device, self._safety_fraction, self._memory_limit)

    def _host_budget(self) -> Budget:
        return host_budget(self._memory_limit, self._workers)

    def plan(self, kernel: MapKernel, source: Source, unmeasured: float = 1.0, *, most_rows: int | None = None) -> Plan:
        """Return how a kernel would run over a source, without running it.

        Parameters
        ----------
        kernel : MapKernel
        source : Source
        unmeasured : float
            Peak over that of the dry run to expect where none was measured yet.
        most_rows : int, optional
            As ``map`` takes it.
        """
        return self._plan(self._first_stage(), kernel, source, unmeasured=unmeasured, most_rows=most_rows)

    def map(
        self,
        kernel: MapKernel,
        source: Source,
        sink: Sink | AccumulatingSink,
        *,
        most_rows: int | None = None,
    ) -> None:
        """Run a kernel over a source into a sink: every row once, in order, within the budget.

        Parameters
        ----------
        kernel : MapKernel
        source : Source
        sink : Sink or AccumulatingSink
        most_rows : int, optional
            Rows that are enough for a chunk however many would fit, rounded down to the kernel's alignment: for
            results that are to flow, or for parts that are to stay in a cache.

        Raises
        ------
        OutOfMemoryError
            Not even the smallest chunk fits; says what would have.
        RuntimeError
            Any other failure of the kernel, a lost device (``is_sticky``) included.
        """
        job = _Job(kernel, source, sink, most_rows)
        stage: Stage | None = self._first_stage()
        start = 0
        refused: list[Plan] = []
        while start < source.extent:
            if stage is None:
                raise _does_not_fit(refused)
            plan = self._plan_job(stage, job)
            if plan.fits:
                start = self._run_stage(job, stage, plan, start)
            if start < source.extent:
                refused.append(plan)
                stage = self._next_stage(job, stage, plan)

    def step(
        self, loss_of: Callable[[int, int], Tensor], batch_size: int, reset: Callable[[], None], at_once: int
    ) -> tuple[Tensor, int]:
        """Do the backward passes of one training step, in micro-batches where memory runs short.

        The gradient of a sum of shares is the sum of their gradients, so the optimisation is unchanged. Only batch
        normalisation sees smaller batches: its statistics are those of each micro-batch.

        Parameters
        ----------
        loss_of : callable
            ``(start, stop) -> Tensor``: the share of the batch's loss that samples ``start`` to ``stop`` contribute.
        batch_size : int
        reset : callable
            Clears the gradients, before a step is tried again.
        at_once : int
            Samples of a micro-batch; the batch's size for all of them.

        Returns
        -------
        Tensor
            The loss of the batch, detached, on the device.
        int
            Samples of the micro-batches that fitted, for the next step.

        Raises
        ------
        OutOfMemoryError
            Not even a single sample fits.
        """
        size = at_once
        while True:
            loss, failure = self._backward(loss_of, batch_size, size)
            if failure is None:
                assert loss is not None
                return loss, size
            reset()
            self.device.empty_cache()
            if size == 1:
                allowed = self.budget.bytes
                raise OutOfMemoryError(
                    "training does not fit with one sample at a time",
                    needed=allowed + 1,
                    allowed=allowed,
                    remedy="smaller patches or a smaller network, where there are options for them, or --device cpu",
                )
            size = -(-size // 2)
            self.events.warning("micro_batch", size=size, batch=batch_size, reason=failure)

    def learn(self, plan: Plan, rows: int, dtype: torch.dtype, measured_bytes: int) -> None:
        """Keep what a planned computation outside ``map`` really took, constants included."""
        self._learn(self._first_stage(), plan, rows, dtype, measured_bytes)

    def memory_record(self) -> list[dict[str, Value]]:
        """Return predicted and measured peaks of this run, as JSON values."""
        return [dict(vars(measured)) for measured in self.measured]

    def timing_record(self) -> list[dict[str, Value]]:
        """Return how long the chunks of each kernel took on each device, as JSON values."""
        return [
            {"kernel": kernel, "device": device, **times.record()} for (kernel, device), times in self._times.items()
        ]

    def _first_stage(self) -> Stage:
        return Stage(self.device, self.budget, self._virtual)

    def _next_stage(self, job: _Job, stage: Stage, plan: Plan) -> Stage | None:
        """Return the next rung of the ladder after the smallest chunk failed, or None at its end."""
        if isinstance(job.sink, AccumulatingSink) and job.sink.on_device:
            job.sink.to_host()
            self.device.empty_cache()
            self.events.warning("accumulators_to_host", kernel=plan.kernel, device=stage.name)
            return self._first_stage()
        if not self._cpu_fallback or stage.is_host:
            return None
        self.events.warning(
            "gpu_fallback_insufficient_memory",
            kernel=plan.kernel,
            device=stage.name,
            needed_bytes=plan.smallest_bytes,
            budget_bytes=plan.budget.bytes,
        )
        cpu = replace(self.device, torch_device=torch.device("cpu"))
        return Stage(cpu, self._host_budget())

    def _plan_job(self, stage: Stage, job: _Job) -> Plan:
        return self._plan(stage, job.kernel, job.source, job.stays_on_device(), most_rows=job.most_rows)

    def _plan(
        self,
        stage: Stage,
        kernel: MapKernel,
        source: Source,
        accumulates: bool = False,
        unmeasured: float = 1.0,
        most_rows: int | None = None,
    ) -> Plan:
        return make_plan(
            self._dry_runs.cost(kernel, source, shared=stage.is_host),
            kernel,
            source,
            stage.device,
            stage.budget,
            host=None if stage.is_host else self._host_budget(),
            accumulates=accumulates,
            correction=self._correction(stage, kernel, source, unmeasured),
            most_rows=most_rows,
        )

    def _correction(self, stage: Stage, kernel: MapKernel, source: Source, unmeasured: float = 1.0) -> float:
        """Return measured over predicted: of this very computation, else of the last one like it."""
        known = self._factors.get((stage.name, self._dry_runs.key(kernel, source)))
        like = self._corrections.get(kernel.name, source.dtype, row_bytes(source), stage.device, unmeasured)
        return like if known is None else known

    def _run_stage(self, job: _Job, stage: Stage, plan: Plan, start: int) -> int:
        """Run from row ``start`` on one device; return the first row that is not done."""
        self.events.debug("plan", **plan.describe())
        stage.keep_freed_memory(plan.predicted_bytes)
        ready = self._load(stage, job.kernel)
        if ready is None:
            return start
        extent = job.source.extent
        largest, computation = extent, (stage.name, self._dry_runs.key(job.kernel, job.source))
        measure = computation not in self._factors  # frame after frame takes the same
        while start < extent:
            if plan.rows < plan.wanted and start == 0:
                self.events.info("gpu_chunking_rows", kernel=plan.kernel, rows=plan.rows, extent=extent)
            start, failure = self._run_chunks(job, stage, plan, ready, start, measure)
            if failure is None:
                if measure:
                    self._factors[computation] = self._correction(stage, job.kernel, job.source)
                measure = False
                plan = self._plan_job(stage, job)
                plan = plan.with_rows(min(plan.rows, largest))
                continue
            stage.device.empty_cache()
            smaller = plan.halved()
            if smaller is None:
                return start
            self.events.warning("chunk_shrunk", kernel=plan.kernel, before=plan.rows, rows=smaller.rows, why=failure)
            plan, largest = smaller, smaller.rows
        return start

    def _load(self, stage: Stage, kernel: MapKernel) -> Callable[[Tensor], Tensor] | None:
        """Return the kernel with its constants on the device, or None where these alone do not fit."""
        try:
            with stage.accounting():
                return stage.load(kernel)
        except _MAY_BE_OUT_OF_MEMORY as error:
            _message_of(error)
            return None

    def _run_chunks(
        self, job: _Job, stage: Stage, plan: Plan, ready: Callable[[Tensor], Tensor], start: int, measure: bool
    ) -> tuple[int, str | None]:
        """Run chunks from ``start``: all of them, or only the first one where it is to be measured.

        Returns
        -------
        tuple of int and str or None
            The first row that is not done, and the message of an out-of-memory.
        """
        chunks = plan.chunks(start)[: 1 if measure else None]
        times = self._times.setdefault((plan.kernel, stage.name), ChunkTimes(stage.device, self._warmup))
        failure = None
        try:
            with read_ahead(job.source, chunks) as tensors:
                for chunk, tensor in zip(chunks, tensors, strict=True):
                    with times.chunk(chunk.stop - chunk.start):
                        result = self._compute(stage, plan, ready, chunk, tensor, measure)
                        if not job.stays_on_device():
                            result = result.cpu()
                    job.sink.write(chunk.start, chunk.stop, result)
                    start = chunk.stop
                    del tensor, result
        except _MAY_BE_OUT_OF_MEMORY as error:
            failure = _message_of(error)
        return start, failure

    def _compute(
        self, stage: Stage, plan: Plan, ready: Callable[[Tensor], Tensor], chunk: Chunk, tensor: Tensor, measure: bool
    ) -> Tensor:
        """Return the result of a chunk's core region, on the device."""
        rows = chunk.read_stop - chunk.read_start
        with torch.no_grad(), stage.device.autocast():
            if not measure:
                with stage.accounting():
                    result = ready(stage.take(tensor))
            else:
                with stage.measuring(tensor) as peak:
                    result = ready(stage.take(tensor))
                if peak.bytes is not None:
                    self._learn(stage, plan, rows, tensor.dtype, peak.bytes + plan.cost.constants)
        if result.shape[0] != rows:
            raise ValueError(f"kernel {plan.kernel} returned {result.shape[0]} rows for {rows}")
        return result[chunk.start - chunk.read_start : chunk.stop - chunk.read_start]

    def _learn(self, stage: Stage, plan: Plan, rows: int, dtype: torch.dtype, measured_bytes: int) -> None:
        """Keep what rows really took, constants included, for the chunks and the runs to come."""
        self.measured.append(Measured(plan.kernel, stage.name, rows, plan.cost.peak(rows), measured_bytes))
        constants = plan.cost.constants
        correction = (measured_bytes - constants) / (plan.dry_run.peak(rows) - constants)
        self._corrections.put(plan.kernel, dtype, plan.cost.input_row, stage.device, correction)

    def _backward(
        self, loss_of: Callable[[int, int], Tensor], batch_size: int, size: int
    ) -> tuple[Tensor | None, str | None]:
        """Return the loss of a batch done in micro-batches, or the message of an out-of-memory."""
        total: Tensor | None = None
        stage = self._first_stage()
        stage.keep_freed_memory(0)
        try:
            with stage.accounting():
                for start in range(0, batch_size, size):
                    share = loss_of(start, min(start + size, batch_size))
                    share.backward()  # type: ignore[no-untyped-call]
                    total = share.detach() if total is None else total + share.detach()
        except _MAY_BE_OUT_OF_MEMORY as error:
            return None, _message_of(error)
        return total, None


def _message_of(error: BaseException) -> str:
    """Return the message of an out-of-memory; raise everything else.

    Only the message leaves the ``except`` block, so that the memory is free when the chunk is tried again.
    """
    if not is_out_of_memory(error):
        raise error
    return str(error).split("\n", 1)[0] or type(error).__name__


def _does_not_fit(refused: list[Plan]) -> OutOfMemoryError:
    cheapest = min(refused, key=lambda plan: plan.smallest_bytes)
    kept = "" if cheapest.fits else " by the prediction"
    tried = ", ".join(dict.fromkeys(plan.device for plan in refused))
    return OutOfMemoryError(
        f"{cheapest.kernel} does not fit{kept} on {tried}, even {cheapest.smallest} row(s) at a time",
        needed=cheapest.smallest_bytes,
        allowed=cheapest.budget.bytes,
        remedy="a higher --memory-limit, smaller tiles, or a machine with more memory",
    )
