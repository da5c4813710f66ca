"""The job of ``mesh test``: the mesh of every object of a data set, held against its ground truth."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from safelight.core.errors import InputError
from safelight.core.files import atomic_write, digest
from safelight.core.pipeline import Context, Item, Prepared, Record
from safelight.formats.mesh import Mesh, write_mesh
from safelight.pipelines.mesh import inference
from safelight.pipelines.mesh.cameras import Cameras
from safelight.pipelines.mesh.dataset import in_camera_frame, read_truth, read_views
from safelight.pipelines.mesh.metrics import Distances, compare, sample_surface
from safelight.pipelines.mesh.model import Model, read_model
from safelight.pipelines.mesh.options import TestOptions
from safelight.pipelines.mesh.process import draw_silhouettes, shown_views

MESHES = "meshes"
RESULTS, SUMMARY, TIMINGS = "metrics_results.csv", "metrics_summary.txt", "combined_timings.txt"
_COMPONENTS = ("coarse", "refine", "total")


def load_model(items: Sequence[Item], options: TestOptions, context: Context) -> Prepared:
    """Read the weights, and compute the first object as often as is not to count in the timings."""
    model = read_model(options.weights)
    if model.coarse is None:
        raise InputError("has no coarse stage", path=options.weights[0], remedy="give both stages with --weights")
    for number in range(options.warmup_iters):
        context.progress(number, options.warmup_iters, "warmup_progress")
        _, cameras, images = read_views(items[0].payload, options.focal or model.focal)
        _timed_mesh(model, images, cameras, context)
    return Prepared(model, " ".join(digest(path) for path in options.weights))


def test(item: Item, options: TestOptions, context: Context, model: Model) -> Record:
    """Make the mesh of one object and measure it."""
    assert model.template is not None
    views, cameras, images = read_views(item.payload, options.focal or model.focal)
    points, milliseconds = _timed_mesh(model, images, cameras, context)
    vertices, faces = points.double().numpy(), model.template.levels[-1].faces
    truth = in_camera_frame(read_truth(item.payload.truth), cameras)
    metrics = _measures(compare(vertices, truth), options.tau, "")
    metrics |= _measures(compare(sample_surface(vertices, faces), truth), options.tau, "surface_")
    metrics |= {f"{name}_ms": value for name, value in milliseconds.items()}
    meshes = tuple(context.folder / MESHES / f"{item.name}_predict{suffix}" for suffix in (".obj", ".xyz"))
    meshes[0].parent.mkdir(exist_ok=True)
    for path in meshes:
        write_mesh(path, Mesh(vertices, faces))
    pictures = context.folder / MESHES / item.name
    pictures.mkdir(exist_ok=True)
    agreements = draw_silhouettes(points, faces, views, cameras, pictures)
    metrics["silhouette_iou"] = sum(agreements.values()) / len(agreements)
    shown = shown_views(item.payload.views, agreements, f"{MESHES}/{item.name}")
    return Record(meshes, metrics, {"category": item.payload.category, "views": shown})


def summarise(item: Item, options: TestOptions, context: Context, model: Model) -> Record:
    """Write the tables over all objects."""
    records: Mapping[str, Record] = item.payload
    texts = {RESULTS: _results(records), SUMMARY: _summary(records), TIMINGS: _timings(records)}
    paths = tuple(context.folder / name for name in texts)
    for path, text in zip(paths, texts.values(), strict=True):
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return Record(paths)


def _timed_mesh(model: Model, images: Tensor, cameras: Cameras, context: Context) -> tuple[Tensor, dict[str, float]]:
    """Return the vertices, and the milliseconds of each stage: results are on the host, so nothing is pending."""
    coarse, refine = model.coarse, model.refine
    assert coarse is not None
    points, first = _timed(lambda: inference.deform(coarse, images, cameras, context.executor))
    second = 0.0
    if refine is not None:
        points, second = _timed(lambda: inference.refine(refine, points, images, cameras, context.executor))
    return points, {"coarse": first, "refine": second, "total": first + second}


def _timed(compute: Callable[[], Tensor]) -> tuple[Tensor, float]:
    started = time.perf_counter()
    return compute(), 1000 * (time.perf_counter() - started)


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


def _timings(records: Mapping[str, Record]) -> str:
    lines = [f"{'ms':<8} {'mean':>10} {'median':>10} {'p95':>10} {'objects/s':>10}"]
    for component in _COMPONENTS:
        values = np.array([record.metrics[f"{component}_ms"] for record in records.values()])
        shown = (values.mean(), np.median(values), np.percentile(values, 95), 1000 / max(values.mean(), 1e-9))
        lines.append(" ".join([f"{component:<8}", *(f"{value:>10.2f}" for value in shown)]))
    return "\n".join(lines) + "\n"
