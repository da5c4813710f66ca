"""The job of ``mesh test``: the mesh of every object of a data set, held against its ground truth."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safelight.core.errors import SafelightError
from safelight.core.files import atomic_write, digest
from safelight.core.pipeline import Context, Item, Prepared, Record
from safelight.core.plan import Plan
from safelight.formats.mesh import Mesh, write_mesh
from safelight.pipelines.mesh import inference
from safelight.pipelines.mesh.cameras import Cameras
from safelight.pipelines.mesh.dataset import Rendered, in_camera_frame, read_truth, read_views
from safelight.pipelines.mesh.metrics import Distances, compare, sample_surface
from safelight.pipelines.mesh.model import Model
from safelight.pipelines.mesh.options import TestOptions
from safelight.pipelines.mesh.process import deforming, draw_silhouettes, open_model, plan_stages, shown_views
from safelight.pipelines.mesh.views import View

ResultT = TypeVar("ResultT")

MESHES = "meshes"
RESULTS, SUMMARY, TIMINGS = "metrics_results.csv", "metrics_summary.txt", "combined_timings.txt"
_COMPONENTS = ("read", "coarse", "encode", "refine", "total")
"""Reading is not part of the total."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What the networks see of an object, and its ground truth: all that is read, before anything is computed.

    Parameters
    ----------
    views : list of View
    cameras : Cameras
        Of one sample.
    images : Tensor
        (views, 3, 224, 224).
    truth : array
        (n, 3) float64, in the first camera's frame.
    milliseconds : float
        That reading the views and cameras took.
    """

    views: list[View]
    cameras: Cameras
    images: Tensor
    truth: NDArray[np.float64]
    milliseconds: float


@dataclass(frozen=True, eq=False)
class Made:
    """The vertices (n, 3) of an object, and the milliseconds of each component."""

    seen: Seen
    points: Tensor
    milliseconds: Mapping[str, float]


class Maker:
    """Makes the meshes of objects as they are asked for; with each of them those that follow, up to a batch.

    Before the first one in each process, the same path is run as often as is not to count in the timings.

    Parameters
    ----------
    model : Model
    items : sequence of Item
        All objects, in the order in which they are asked for.
    options : TestOptions

    Attributes
    ----------
    faces : array
        (m, 3): of every mesh.

    Raises
    ------
    InputError
        The weights have no coarse stage.
    """

    def __init__(self, model: Model, items: Sequence[Item], options: TestOptions) -> None:
        self._coarse, level = deforming(model, options)
        self._refine, self._focal, self._options = model.refine, options.focal or model.focal, options
        self._objects: dict[str, Rendered] = {item.name: item.payload for item in items}
        self._made: dict[str, Made] = {}
        self._warm = False
        self.faces = level.faces

    def make(self, name: str, context: Context) -> Made:
        """Return the mesh of an object.

        Raises
        ------
        InputError
            A view, the cameras or the ground truth cannot be read.
        """
        if name not in self._made:
            batch = {name: self._read(self._objects[name])}
            following = self._readable(list(self._objects).index(name) + 1)
            batch |= islice(following, self._options.batch_size - 1)
            self._warm_up(list(batch.values()), context)
            self._made = dict(zip(batch, self._compute(list(batch.values()), context), strict=True))
        return self._made.pop(name)

    def _warm_up(self, batch: Sequence[Seen], context: Context) -> None:
        for number in range(0 if self._warm else self._options.warmup_iters):
            context.progress(number, self._options.warmup_iters, "warmup_progress")
            self._compute(batch, context)
        self._warm = True

    def _readable(self, start: int) -> Iterator[tuple[str, Seen]]:
        """Yield the objects from a number on that can be read; what is wrong with others is said in their turn."""
        for name, rendered in islice(self._objects.items(), start, None):
            with suppress(SafelightError, OSError):
                yield name, self._read(rendered)

    def _read(self, rendered: Rendered) -> Seen:
        truth = read_truth(rendered.truth)
        found, milliseconds = _timed(partial(read_views, rendered, self._focal, self._options.blend_alpha))
        views, cameras, images = found
        return Seen(views, cameras, images, in_camera_frame(truth, cameras), milliseconds)

    def _compute(self, batch: Sequence[Seen], context: Context) -> list[Made]:
        """Return the meshes of some objects; each bears its share of what is done for all of them together."""
        images, cameras = torch.stack([seen.images for seen in batch]), Cameras.joined([seen.cameras for seen in batch])
        deformed, coarse = _timed(partial(inference.deform, self._coarse, images, cameras, context.executor))
        made = []
        for seen, points in zip(batch, deformed, strict=True):
            times = {"coarse": coarse / len(batch)}
            if self._refine is not None:
                encode = partial(inference.encode_views, self._refine, seen.images, context.executor)
                maps, times["encode"] = _timed(encode)
                refine = partial(inference.refine, self._refine, points, maps, seen.cameras, context.executor)
                points, times["refine"] = _timed(refine)
            times |= {"total": sum(times.values()), "read": seen.milliseconds}
            made.append(Made(seen, points, times))
        return made


def load_model(items: Sequence[Item], options: TestOptions, context: Context) -> Prepared:
    """Read the weights."""
    maker = Maker(open_model(options, context), items, options)
    return Prepared(maker, " ".join(digest(path) for path in options.weights))


def plan(item: Item, options: TestOptions, context: Context) -> list[Plan]:
    """Return the memory plans of a batch of objects."""
    return plan_stages(options, options.batch_size, len(options.use_views), context)


def test(item: Item, options: TestOptions, context: Context, maker: Maker) -> Record:
    """Make the mesh of one object and measure it."""
    made = maker.make(item.name, context)
    seen, points = made.seen, made.points
    vertices, faces = points.double().numpy(), maker.faces
    metrics = _measures(compare(vertices, seen.truth), options.tau, "")
    metrics |= _measures(compare(sample_surface(vertices, faces), seen.truth), options.tau, "surface_")
    metrics |= {f"{name}_ms": value for name, value in made.milliseconds.items()}
    meshes = tuple(context.folder / MESHES / f"{item.name}_predict{suffix}" for suffix in (".obj", ".xyz"))
    meshes[0].parent.mkdir(exist_ok=True)
    for path in meshes:
        write_mesh(path, Mesh(vertices, faces))
    pictures = context.folder / MESHES / item.name
    pictures.mkdir(exist_ok=True)
    agreements = draw_silhouettes(points, faces, seen.views, seen.cameras, pictures)
    metrics["silhouette_iou"] = sum(agreements.values()) / len(agreements)
    shown = shown_views(item.payload.views, agreements, f"{MESHES}/{item.name}")
    return Record(meshes, metrics, {"category": item.payload.category, "views": shown})


def summarise(item: Item, options: TestOptions, context: Context, maker: Maker) -> Record:
    """Write the tables over all objects."""
    records: Mapping[str, Record] = item.payload
    texts = {RESULTS: _results(records), SUMMARY: _summary(records), TIMINGS: _timings(records, options, context)}
    paths = tuple(context.folder / name for name in texts)
    for path, text in zip(paths, texts.values(), strict=True):
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return Record(paths)


def _timed(compute: Callable[[], ResultT]) -> tuple[ResultT, float]:
    """Return a result and the milliseconds that it took: it is on the host, so nothing is pending."""
    started = time.perf_counter()
    result = compute()
    return result, 1000 * (time.perf_counter() - started)


def _measures(distances: Distances, tau: float, prefix: str) -> dict[str, float]:
    return {
        f"{prefix}chamfer": distances.chamfer,
        f"{prefix}f1_tau": distances.f_score(tau),
        f"{prefix}f1_2tau": distances.f_score(2 * tau),
    }


def _results(records: Mapping[str, Record]) -> str:
    lines = ["sample_id,time_ms,CD,F1@tau,F1@2tau"]
    for name, record in records.items():
        values = (record.metrics[key] for key in ("total_ms", "chamfer", "f1_tau", "f1_2tau"))
        lines.append(",".join([name, *(f"{value:.8g}" for value in values)]))
    return "\n".join(lines) + "\n"


def _summary(records: Mapping[str, Record]) -> str:
    """Return the means over all objects, over categories, and of each category."""
    categories = sorted({str(record.details["category"]) for record in records.values()})
    of_each = {
        category: _means([record for record in records.values() if record.details["category"] == category])
        for category in categories
    }
    micro = _means(list(records.values()))
    macro = {key: sum(means[key] for means in of_each.values()) / len(of_each) for key in micro}
    rows = {f"mean of {len(records)} objects": micro, f"mean of {len(of_each)} categories": macro, **of_each}
    width = max(map(len, rows))
    lines = [" ".join([" " * width, *(f"{key:>16}" for key in micro)])]
    lines += [
        " ".join([f"{name:<{width}}", *(f"{value:>16.6g}" for value in row.values())]) for name, row in rows.items()
    ]
    return "\n".join(lines) + "\n"


def _means(records: Sequence[Record]) -> dict[str, float]:
    names = [name for name in records[0].metrics if not name.endswith("_ms")]
    return {name: sum(record.metrics[name] for record in records) / len(records) for name in names}


def _timings(records: Mapping[str, Record], options: TestOptions, context: Context) -> str:
    """Return the statistics of each component that there is."""
    precision = "mixed precision" if context.device.amp else "full precision"
    where = f"{len(records)} objects on {context.device.torch_device} in {precision}"
    lines = [f"{where}, {options.batch_size} at a time, after {options.warmup_iters} warm-ups"]
    lines += [f"{'ms':<8} {'mean':>10} {'median':>10} {'p95':>10} {'objects/s':>10}"]
    for component in _COMPONENTS:
        key = f"{component}_ms"
        values = np.array([record.metrics[key] for record in records.values() if key in record.metrics])
        if len(values):
            shown = (values.mean(), np.median(values), np.percentile(values, 95), 1000 / max(values.mean(), 1e-9))
            lines.append(" ".join([f"{component:<8}", *(f"{value:>10.2f}" for value in shown)]))
    return "\n".join(lines) + "\n"
