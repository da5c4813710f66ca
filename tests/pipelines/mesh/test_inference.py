"""Both stages within a memory budget: any size of batch or part gives the same mesh, and plans are kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from scipy.spatial import ConvexHull
from torch import Tensor, nn
from torch._dynamo.utils import counters

from safelight.core.device import Device
from safelight.core.errors import OutOfMemoryError
from safelight.core.events import EventLog
from safelight.core.execute import Executor
from safelight.core.memory import Budget, VirtualDevice
from safelight.core.plan import Corrections, Plan
from safelight.pipelines.mesh.cameras import Cameras, orbiting
from safelight.pipelines.mesh.hypotheses import RADIUS, icosahedron
from safelight.pipelines.mesh.inference import IN_CACHE, deform, encode_views, plan_deform, plan_refine, refine
from safelight.pipelines.mesh.networks import CoarseNetwork, RefineNetwork
from safelight.pipelines.mesh.template import make_template

NetworkT = TypeVar("NetworkT", bound=nn.Module)

SAMPLES, VIEWS, VERTICES = 3, 2, 300
PLENTY = Budget(1 << 40, "unknown")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def coarse() -> CoarseNetwork:
    corners = icosahedron()
    network = CoarseNetwork(make_template(corners * 0.1 + (0, 0, -0.8), ConvexHull(corners).simplices)).eval()
    with torch.no_grad():
        for layers in (network.gcn1_layers, network.gcn2_layers, network.gcn3_layers):
            layers[-1].bias.copy_(torch.tensor([0.0, 0.0, -0.8]))
    return lively(network)


@pytest.fixture(scope="module")
def fine() -> RefineNetwork:
    network = lively(RefineNetwork().eval())
    for block in (network.drb1, network.drb2):
        nn.init.constant_(block.local_conv6.bias, 3.0)  # else most scores are 0, and vertices stay
        nn.init.normal_(block.local_conv6.weights[0], std=0.5)
    return network


def lively(network: NetworkT) -> NetworkT:
    """Give the encoder features that differ from place to place; with PyTorch's first weights they hardly do."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return network


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(SAMPLES, VIEWS, 3, 224, 224)


@pytest.fixture(scope="module")
def cameras() -> Cameras:
    shape = (SAMPLES, VIEWS)
    return orbiting(360 * torch.rand(shape), 25 + 5 * torch.rand(shape), 0.7 + 0.2 * torch.rand(shape), 248.0)


@pytest.fixture(scope="module")
def points() -> Tensor:
    return 0.2 * torch.rand(VERTICES, 3) - torch.tensor([0.1, 0.1, 0.8])


@pytest.fixture(scope="module")
def maps(fine: RefineNetwork, images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    return encode_views(fine, images[0], executor(tmp_path_factory.mktemp("cache")))


def executor(
    cache: Path,
    budget: Budget | None = PLENTY,
    *,
    amp: bool = False,
    compiles: bool = False,
    events: EventLog | None = None,
    virtual: VirtualDevice | None = None,
) -> Executor:
    return Executor(
        Device(CPU, amp=amp, compiles=compiles),
        EventLog() if events is None else events,
        budget=budget,
        corrections=Corrections(cache),
        virtual=virtual,
        cpu_fallback=False,
    )


def one_by_one(coarse: CoarseNetwork, images: Tensor, cameras: Cameras, cache: Path) -> Tensor:
    run = executor(cache)
    return torch.cat([deform(coarse, images[n : n + 1], cameras[n : n + 1], run) for n in range(SAMPLES)])


def short_of_memory(compute: Callable[[Executor], Tensor], events: EventLog, cache: Path) -> Tensor:
    """Run out of memory once, late in the computation."""
    whole = VirtualDevice()
    compute(executor(cache, virtual=whole))
    return compute(executor(cache, events=events, virtual=VirtualDevice(fail_at=[whole.operations * 3 // 4])))


def test_a_batch_gives_the_meshes_of_its_objects(
    coarse: CoarseNetwork, images: Tensor, cameras: Cameras, tmp_path: Path
) -> None:
    together = deform(coarse, images, cameras, executor(tmp_path))
    single = one_by_one(coarse, images, cameras, tmp_path)
    torch.testing.assert_close(together, single, rtol=0, atol=1e-5)
    assert (single[0] - single[1]).abs().max() > 1e-3, "objects differ, or this test could not fail"


def test_a_batch_that_does_not_fit_becomes_smaller(
    coarse: CoarseNetwork, images: Tensor, cameras: Cameras, tmp_path: Path
) -> None:
    events = EventLog()
    shrunk = short_of_memory(lambda run: deform(coarse, images, cameras, run), events, tmp_path)
    assert [(event.data["before"], event.data["rows"]) for event in events if event.key == "chunk_shrunk"] == [(3, 1)]
    torch.testing.assert_close(shrunk, one_by_one(coarse, images, cameras, tmp_path), rtol=0, atol=1e-5)


def test_vertices_that_do_not_fit_are_done_some_at_a_time(
    fine: RefineNetwork, points: Tensor, maps: Tensor, cameras: Cameras, tmp_path: Path
) -> None:
    events = EventLog()
    parts = short_of_memory(lambda run: refine(fine, points, maps, cameras[:1], run), events, tmp_path)
    assert [(event.data["before"], event.data["rows"]) for event in events if event.key == "chunk_shrunk"] == [
        (IN_CACHE, IN_CACHE // 2)
    ]
    torch.testing.assert_close(parts, refine(fine, points, maps, cameras[:1], executor(tmp_path)), rtol=0, atol=0)


def test_what_can_never_fit_says_how_much_would_have(
    fine: RefineNetwork, points: Tensor, maps: Tensor, cameras: Cameras, tmp_path: Path
) -> None:
    little = executor(tmp_path, Budget(1 << 20, "memory_limit"))
    with pytest.raises(OutOfMemoryError, match="refine does not fit"):
        refine(fine, points, maps, cameras[:1], little)


@pytest.mark.parametrize("amp", [False, True])
def test_no_stage_takes_more_than_its_plan(
    coarse: CoarseNetwork,
    fine: RefineNetwork,
    images: Tensor,
    cameras: Cameras,
    points: Tensor,
    tmp_path: Path,
    amp: bool,
) -> None:
    plans: list[Plan] = [plan_deform(coarse, SAMPLES, VIEWS, executor(tmp_path))]
    plans += plan_refine(fine, VERTICES, VIEWS, executor(tmp_path))
    run = executor(tmp_path, amp=amp)
    deform(coarse, images, cameras, run)
    refine(fine, points, encode_views(fine, images[0], run), cameras[:1], run)
    measured = {taken.kernel: taken.measured_bytes for taken in run.measured}
    assert list(measured) == [plan.kernel for plan in plans]
    for plan in plans:
        assert 0.7 * plan.predicted_bytes <= measured[plan.kernel] <= plan.predicted_bytes


def test_mixed_precision_moves_vertices_a_little_only(
    coarse: CoarseNetwork,
    fine: RefineNetwork,
    images: Tensor,
    cameras: Cameras,
    points: Tensor,
    maps: Tensor,
    tmp_path: Path,
) -> None:
    """The coarse mesh not at all; of a refined one, the mean vertex by a tenth of what the blocks move it."""
    full, mixed = executor(tmp_path), executor(tmp_path, amp=True)
    torch.testing.assert_close(
        deform(coarse, images, cameras, mixed), deform(coarse, images, cameras, full), rtol=0, atol=0
    )
    moved = refine(fine, points, maps, cameras[:1], full)
    difference = (refine(fine, points, maps, cameras[:1], mixed) - moved).norm(dim=1).mean()
    way = (moved - points).norm(dim=1).mean()
    assert way > RADIUS / 10, "vertices move, or this test could not fail"
    assert 0 < difference <= way / 10


def test_the_compiler_captures_stages_whole_and_for_all_objects(
    coarse: CoarseNetwork,
    fine: RefineNetwork,
    images: Tensor,
    cameras: Cameras,
    points: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One graph for each stage, and one more for the last chunk, of another size; none for the second object."""
    torch._dynamo.reset()
    counters.clear()
    # Without the compiler's second half, which takes minutes to make code of the graphs.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    run = executor(tmp_path, compiles=True)
    for number in range(2):
        deform(coarse, images[number : number + 1], cameras[number : number + 1], run)
        refine(fine, points, encode_views(fine, images[number], run), cameras[number : number + 1], run)
    assert counters["stats"]["unique_graphs"] == 4
    assert not counters["graph_break"]
