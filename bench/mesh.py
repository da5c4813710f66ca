"""Pixel2Mesh++ as its formulas are written and as Safelight computes it: time and agreement, in one run.

    python bench/mesh.py               # one thread, some minutes
    python bench/mesh.py --repeats 3   # a quick look

The formulations of one part run in turn, so that whatever else the machine does meets them alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

import machine
from safelight.pipelines.mesh.cameras import SIDE, Cameras, orbiting
from safelight.pipelines.mesh.encoder import CHANNELS
from safelight.pipelines.mesh.inference import IN_CACHE
from safelight.pipelines.mesh.metrics import compare
from safelight.pipelines.mesh.networks import REFINE_SCALES, Reasoning, RefineNetwork
from safelight.pipelines.mesh.sampling import SPREAD
from safelight.pipelines.mesh.template import RADII, ellipsoid
from safelight.pipelines.mesh.variant import Variant

RESULT = Path(__file__).resolve().parent / "results" / "mesh.md"
VERTICES = 256
"""Whose places are looked up and scored."""
POINTS, TRUTH = 2466, 16384
MOST = {"block": 0.7, "block, mixed precision": 0.3, "projection": 0.4}
"""Of the plain formulation's time."""
MOST_CHAMFER = 0.030
"""Seconds."""


@dataclass(frozen=True)
class Measured:
    """Processor and clock seconds of each repeat, and the result."""

    cpu: Sequence[float]
    clock: Sequence[float]
    result: NDArray[np.float64]


Formulations = Mapping[str, Callable[[], NDArray[np.float64]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    lines = machine.describe("bench/mesh.py")
    with torch.no_grad():
        block = measure(reasoning(), options.repeats)
        lookup = measure(projection(), options.repeats)
        common = measure(common_projection(), options.repeats)
        chamfer = measure(nearest(), options.repeats)
    text = ["# Pixel2Mesh++ in parts", "", *lines, ""]
    text += ["## The block that scores places", "", *table(block, "largest difference of a share"), ""]
    text += ["## Features of places, by the published rule", "", *table(lookup, "largest difference"), ""]
    text += ["## Features of places, by the common bilinear rule", "", *table(common, "largest difference"), ""]
    text += [f"## Chamfer distance, {POINTS} × {TRUTH} points", "", *table(chamfer, "relative difference"), ""]
    text += [*targets(block, lookup, chamfer), ""]
    RESULT.write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))


def measure(formulations: Formulations, repeats: int) -> dict[str, Measured]:
    """Return what each formulation takes; the first round, which fills caches, does not count."""
    cpu: dict[str, list[float]] = {name: [] for name in formulations}
    clock: dict[str, list[float]] = {name: [] for name in formulations}
    results = {}
    for _ in range(repeats + 1):
        for name, compute in formulations.items():
            before, at = time.process_time(), time.perf_counter()
            results[name] = compute()
            cpu[name].append(time.process_time() - before)
            clock[name].append(time.perf_counter() - at)
    return {name: Measured(cpu[name][1:], clock[name][1:], results[name]) for name in formulations}


def reasoning() -> Formulations:
    """Shares of the places around some vertices."""
    network = RefineNetwork().eval()
    block, support = network.drb1, network.support
    seen = torch.rand(len(support), VERTICES, 3 + 3 * sum(CHANNELS[scale] for scale in REFINE_SCALES))
    by_vertex = seen.transpose(0, 1).contiguous()
    parts = [part.contiguous() for part in seen.split(IN_CACHE, dim=1)]

    def ours(mixed: bool) -> NDArray[np.float64]:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            return as_array(torch.cat([block(part, support) for part in parts], dim=1))

    return {
        "plain": lambda: as_array(plain_block(block, by_vertex, support).T),
        "ours": lambda: ours(False),
        "ours, mixed precision": lambda: ours(True),
    }


def plain_block(block: Reasoning, x: Tensor, support: Tensor) -> Tensor:
    """Vertices first, both matrices of the graph written out, as published; (n, places)."""
    one_each = torch.eye(len(support))

    def layer(number: int, x: Tensor) -> Tensor:
        convolution = block.get_submodule(f"local_conv{number}")
        first, second = (x @ weight for weight in convolution.get_submodule("weights").parameters())
        joined = torch.einsum("ij,njl->nil", one_each, first) + torch.einsum("ij,njl->nil", support, second)
        return joined + convolution.get_parameter("bias")

    one = layer(1, x).relu()
    two = layer(2, one).relu()
    three = layer(3, two).relu() + one
    four = layer(4, three).relu()
    five = layer(5, four).relu() + three
    return layer(6, five).relu()[..., 0].softmax(dim=1)


def projection() -> Formulations:
    """What three views show at the places around some vertices, by the published rule."""
    return lookups(RefineNetwork(), published_rule)


def common_projection() -> Formulations:
    """The same by the common rule, for which PyTorch has an operation."""
    return lookups(RefineNetwork(Variant(border_sampling=True)), grid_sampled)


def lookups(network: RefineNetwork, rule: Callable[[Tensor, Tensor], Tensor]) -> Formulations:
    vertices = vertices_in_view()[:, :VERTICES]
    cameras = three_cameras()
    maps = [torch.rand(1, 3, SIDE >> scale, SIDE >> scale, CHANNELS[scale]) for scale in REFINE_SCALES]
    of_views = [[values[0, view].permute(2, 0, 1).contiguous() for values in maps] for view in range(3)]
    places = (vertices.double() + network.offsets[:, None].double()).reshape(1, -1, 3)

    def plain() -> NDArray[np.float64]:
        views = zip(of_views, cameras.pixels(places)[0].float(), strict=True)
        features = torch.stack([torch.cat([rule(each, pixels) for each in view], dim=1) for view, pixels in views])
        mean = features.mean(dim=0)
        spread = ((features - mean).square().mean(dim=0) + SPREAD).sqrt()
        return as_array(torch.cat([places[0].float(), features.amax(dim=0), mean, spread], dim=1))

    def ours() -> NDArray[np.float64]:
        parts = [network.seen(part, maps, cameras) for part in vertices.split(IN_CACHE, dim=1)]
        return as_array(torch.cat(parts, dim=2).flatten(0, 2))

    return {"plain": plain, "ours": ours}


def published_rule(values: Tensor, pixels: Tensor) -> Tensor:
    """Four corners, weighted; a corner beyond the map counts as 0."""
    size = values.shape[-1]
    x, y = (pixels.clamp(0, SIDE - 1) / (SIDE // size)).unbind(-1)
    left, right, top, bottom = x.floor(), x.ceil(), y.floor(), y.ceil()

    def corner(row: Tensor, column: Tensor, weight: Tensor) -> Tensor:
        inside = ((row < size) & (column < size)) * weight
        return values[:, row.long().clamp(max=size - 1), column.long().clamp(max=size - 1)].T * inside[:, None]

    upper = corner(top, left, (right - x) * (bottom - y)) + corner(top, right, (x - left) * (bottom - y))
    lower = corner(bottom, left, (right - x) * (y - top)) + corner(bottom, right, (x - left) * (y - top))
    return upper + lower


def grid_sampled(values: Tensor, pixels: Tensor) -> Tensor:
    """As Design B: PyTorch's operation, its pixels from −1 to 1."""
    size = values.shape[-1]
    grid = pixels / (SIDE // size) / (size - 1) * 2 - 1
    found = functional.grid_sample(values[None], grid[None, None], padding_mode="border", align_corners=True)
    return found[0, :, 0].T


def nearest() -> Formulations:
    """Chamfer distance of two sets of points on an ellipsoid."""
    random = np.random.default_rng(0)
    first, second = (
        np.stack([axis / np.linalg.norm(axis) for axis in random.standard_normal((count, 3))]) * RADII
        for count in (POINTS, TRUTH)
    )

    def plain() -> NDArray[np.float64]:
        a, b = torch.from_numpy(first), torch.from_numpy(second)
        distances = torch.stack([(b - point).square().sum(dim=1) for point in a])
        return as_array(distances.amin(dim=1).mean() + distances.amin(dim=0).mean())

    return {"plain": plain, "ours": lambda: np.array(compare(first, second).chamfer)}


def vertices_in_view() -> Tensor:
    return torch.from_numpy(ellipsoid().coordinates).float().repeat(1, 2, 1) + 1e-3 * torch.rand(1, 312, 3)


def three_cameras() -> Cameras:
    rows = torch.tensor([[250.5, 8.4, 59.5], [29.5, 26.5, 28.9], [0.65, 0.71, 0.81]], dtype=torch.float64)
    return orbiting(*rows[:, None], focal=248.0)


def as_array(values: Tensor) -> NDArray[np.float64]:
    return values.double().numpy()


def table(found: Mapping[str, Measured], difference: str) -> list[str]:
    lines = [
        f"| formulation | CPU ms | clock ms | of the plain one's CPU time | {difference} |",
        "|---|---|---|---|---|",
    ]
    plain = found["plain"]
    for name, one in found.items():
        error = np.abs(one.result - plain.result).max() / (np.abs(plain.result) if one.result.ndim == 0 else 1)
        times = " | ".join(f"{1000 * np.median(seconds):.1f}" for seconds in (one.cpu, one.clock))
        lines.append(f"| {name} | {times} | {share(one, plain):.2f} | {error:.1e} |")
    return lines


def share(one: Measured, plain: Measured) -> float:
    """Return the median over the rounds: what else the machine did meets both formulations of a round alike."""
    return float(np.median(np.array(one.cpu) / np.array(plain.cpu)))


def targets(
    block: Mapping[str, Measured], lookup: Mapping[str, Measured], chamfer: Mapping[str, Measured]
) -> list[str]:
    shares = {
        "block": share(block["ours"], block["plain"]),
        "block, mixed precision": share(block["ours, mixed precision"], block["plain"]),
        "projection": share(lookup["ours"], lookup["plain"]),
    }
    checks = [(f"{name} {value:.2f}, at most {MOST[name]}", value <= MOST[name]) for name, value in shares.items()]
    seconds = float(np.median(chamfer["ours"].cpu))
    checks.append((f"Chamfer {1000 * seconds:.1f} ms, at most {1000 * MOST_CHAMFER:.0f}", seconds <= MOST_CHAMFER))
    return [f"- {'reached' if reached else 'MISSED'}: {what}" for what, reached in checks]


if __name__ == "__main__":
    main()
