"""Training: it learns, resumes exactly, keeps the best, does not depend on memory; its weights say what they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy.spatial.distance import pdist
from torch import nn
from torch._dynamo.utils import counters

from safelight.core.device import Device
from safelight.core.errors import InputError, OutOfMemoryError, UsageError
from safelight.core.events import EventLog
from safelight.core.execute import Executor
from safelight.core.memory import VirtualDevice
from safelight.pipelines.mesh.camera_files import from_rows
from safelight.pipelines.mesh.cameras import Cameras
from safelight.pipelines.mesh.dataset import Rendered, find_objects
from safelight.pipelines.mesh.examples import read_example
from safelight.pipelines.mesh.hypotheses import icosahedron
from safelight.pipelines.mesh.losses import TERMS
from safelight.pipelines.mesh.networks import CoarseNetwork, unpool
from safelight.pipelines.mesh.options import DataOptions
from safelight.pipelines.mesh.sampling import bilinear, over_views
from safelight.pipelines.mesh.stages import Blocks, CoarseStage, RefineStage, Stage, decayed, start_coarse, start_refine
from safelight.pipelines.mesh.template import Template, ellipsoid, make_template
from safelight.pipelines.mesh.training import Trained, Training, TrainingSettings
from safelight.pipelines.mesh.variant import Variant

CPU = Device(torch.device("cpu"))
CAMERAS = "250.5 29.5 0 0.75 25\n8.4 26.5 0 0.71 25\n59.5 28.9 0 0.81 25\n"


def small_template() -> Template:
    """Twelve vertices, 162 at the last level."""
    corners = icosahedron()
    faces = np.array([face for face in combinations(range(12), 3) if pdist(corners[list(face)]).max() < 2.1])
    return make_template(corners * 0.1 + (0, 0, -0.8), faces)


TEMPLATE = small_template()


def add_object(home: Path, seed: int, normals: bool = True) -> None:
    """An ellipsoid with points, normals, and two views that show something."""
    random = np.random.default_rng(seed)
    outward = random.standard_normal((200, 3))
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    (home / "rendering").mkdir(parents=True)
    arrays = {"points": outward * (0.3, 0.2, 0.25), "normals": outward}
    np.savez(home / "points.npz", **(arrays if normals else {"points": arrays["points"]}))
    (home / "rendering" / "rendering_metadata.txt").write_text(CAMERAS)
    for number in range(2):
        view = Image.new("RGBA", (40, 40))
        ImageDraw.Draw(view).ellipse((8, 10 + seed, 32, 28), fill=(60 * seed, 90, 40 + 90 * number, 255))
        view.save(home / "rendering" / f"{number:02}.png")


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> tuple[Rendered, ...]:
    root = tmp_path_factory.mktemp("data")
    for seed, name in enumerate("abc"):
        add_object(root / "egg" / name, seed)
    return tuple(item.payload for item in find_objects(DataOptions(data=root, use_views=(0, 1))).items)


def coarse_stage(own_views: bool = False) -> CoarseStage:
    return CoarseStage(start_coarse(TEMPLATE, Variant(own_views=own_views), 0), TEMPLATE)


def seen_network() -> CoarseNetwork:
    """A coarse network whose mesh the views see: a small one in the middle."""
    network = start_coarse(TEMPLATE, Variant(own_views=True), 0)
    with torch.no_grad():
        for layers in (network.gcn1_layers, network.gcn2_layers, network.gcn3_layers):
            for number in range(2):
                layers[-1].get_parameter(f"weights.{number}").mul_(0.1)
    return network


def refine_stage() -> RefineStage:
    coarse = seen_network()
    return RefineStage(start_refine(coarse, 0), coarse, TEMPLATE)


class Undeformed(CoarseNetwork):
    """Stands in for a coarse network that has learnt: gives the template as it is."""

    def forward(self, images: torch.Tensor, cameras: Cameras) -> tuple[torch.Tensor, ...]:
        first = self.coordinates.expand(len(images), -1, -1)
        second = unpool(first, self.get_buffer("edges1"))
        return first, second, unpool(second, self.get_buffer("edges2"))


def full_stage() -> CoarseStage:
    template = ellipsoid()
    return CoarseStage(start_coarse(template, Variant(own_views=True), 0), template)


STAGES = {"coarse": coarse_stage, "refine": refine_stage}


class StoppedError(Exception):
    pass


def trained(
    objects: tuple[Rendered, ...],
    stage: Stage | None = None,
    checkpoint: Path | None = None,
    stop_at: int | None = None,
    virtual: VirtualDevice | None = None,
    on_step: Callable[[int], None] = lambda _: None,
    device: Device = CPU,
    **settings: Any,
) -> tuple[Trained, EventLog]:
    events = EventLog()
    executor = Executor(device, events, virtual=virtual)
    chosen = TrainingSettings(**{"steps": 4, "validate_every": 2, "learning_rate": 1e-4, **settings})
    training = Training(stage or coarse_stage(), 245.0, objects, objects[:1], chosen, device, executor)

    def stop() -> None:
        on_step(training.step)
        if training.step == stop_at:
            raise StoppedError

    return training.run(checkpoint, on_step=stop), events


def same(one: Stage, other: Stage) -> bool:
    weights = other.network.state_dict()
    return all(torch.equal(value, weights[name]) for name, value in one.network.state_dict().items())


def test_one_object_is_learnt(objects: tuple[Rendered, ...]) -> None:
    result, _ = trained(objects[:1], steps=6, validate_every=2)
    assert result.curve.steps == [2, 4, 6]
    assert result.curve.loss[-1] < result.curve.loss[0] / 4


def test_refining_brings_a_mesh_nearer(objects: tuple[Rendered, ...]) -> None:
    coarse = Undeformed(TEMPLATE)
    stage = RefineStage(start_refine(seen_network(), 0), coarse, TEMPLATE)
    result, _ = trained(objects[:1], stage, steps=10, validate_every=2, learning_rate=1e-3)
    assert min(result.curve.loss) < 0.85 * result.curve.loss[0]
    assert min(result.curve.chamfer) < 0.85 * result.curve.chamfer[0]


def test_a_stopped_training_goes_on_as_if_it_had_not_been(tmp_path: Path, objects: tuple[Rendered, ...]) -> None:
    whole, _ = trained(objects, steps=4)
    for stop_at in (2, 3):
        with pytest.raises(StoppedError):
            trained(objects, checkpoint=tmp_path / "c", stop_at=stop_at, steps=3)
    steps: list[int] = []
    resumed, _ = trained(objects, checkpoint=tmp_path / "c", on_step=steps.append, steps=3)
    assert steps == [3], "what was kept is not done again"
    longer, _ = trained(objects, checkpoint=tmp_path / "c", on_step=steps.append, steps=4)
    assert steps == [3, 4], "a later end goes on"
    assert same(longer.last, whole.last)
    assert same(longer.best, whole.best)
    assert longer.curve.chamfer[-1] == whole.curve.chamfer[-1]
    assert not same(resumed.last, whole.last)


def test_a_stopped_refining_goes_on_as_well(tmp_path: Path, objects: tuple[Rendered, ...]) -> None:
    whole, _ = trained(objects, refine_stage(), steps=2)
    with pytest.raises(StoppedError):
        trained(objects, refine_stage(), tmp_path / "c", stop_at=2, steps=2)
    resumed, _ = trained(objects, refine_stage(), tmp_path / "c", steps=2)
    assert same(resumed.last, whole.last)
    assert resumed.curve == whole.curve


@pytest.mark.slow
def test_threads_change_no_bit_from_run_to_run(objects: tuple[Rendered, ...]) -> None:
    """At the published size: what is small is not shared among threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        one, other = (trained(objects, full_stage(), steps=2)[0] for _ in range(2))
    finally:
        torch.set_num_threads(threads)
    assert same(one.last, other.last)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch hides it: here it would be an error
@pytest.mark.parametrize(("name", "parts"), [("coarse", 1), ("refine", 2)])
def test_the_compiler_captures_each_part_once(
    objects: tuple[Rendered, ...], name: str, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One graph of each that learns and one that validates; none for the second object, nor for the second block."""
    torch._dynamo.reset()
    counters.clear()
    # Without the compiler's second half, which makes code of the graphs.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain, _ = trained(objects[:2], STAGES[name](), steps=2)
    compiled, _ = trained(objects[:2], STAGES[name](), device=Device(CPU.torch_device, compiles=True), steps=2)
    assert counters["stats"]["unique_graphs"] == 2 * parts
    assert not counters["graph_break"]
    assert compiled.curve.loss == pytest.approx(plain.curve.loss, rel=1e-4)


def test_a_checkpoint_of_another_training_is_replaced_and_a_damaged_one_named(
    tmp_path: Path, objects: tuple[Rendered, ...]
) -> None:
    trained(objects, checkpoint=tmp_path / "c", steps=1)
    _, events = trained(objects, checkpoint=tmp_path / "c", steps=1, learning_rate=1e-3)
    assert "checkpoint_replaced" in events.keys()
    (tmp_path / "c").write_bytes(b"PK broken")
    with pytest.raises(InputError, match="checkpoint is damaged"):
        trained(objects, checkpoint=tmp_path / "c")


def test_the_switch_of_the_views_makes_another_training(tmp_path: Path, objects: tuple[Rendered, ...]) -> None:
    """Though both begin with the same weights."""
    trained(objects, coarse_stage(own_views=True), tmp_path / "c", steps=1)
    _, events = trained(objects, coarse_stage(own_views=False), tmp_path / "c", steps=1)
    assert "checkpoint_replaced" in events.keys()


def test_it_ends_at_the_first_end(objects: tuple[Rendered, ...]) -> None:
    assert trained(objects, steps=5, epochs=1, batch_size=2, validate_every=None)[0].curve.steps == [2]
    assert trained(objects, steps=50, time_budget=1e-6)[0].curve.steps == [1]


def test_the_best_is_the_one_with_the_smallest_chamfer_distance(objects: tuple[Rendered, ...]) -> None:
    result, _ = trained(objects[:1], steps=4, validate_every=1, learning_rate=3e-3)
    best = result.curve.best
    assert result.curve.chamfer[best] == min(result.curve.chamfer)
    assert best < 3, "or this test shows nothing"
    again, _ = trained(objects[:1], steps=best + 1, validate_every=1, learning_rate=3e-3)
    assert same(result.best, again.last)


def test_memory_that_runs_short_splits_the_batch_and_changes_nothing_else(objects: tuple[Rendered, ...]) -> None:
    plenty, _ = trained(objects[:2], steps=1, batch_size=2)
    short, events = trained(objects[:2], steps=1, batch_size=2, virtual=VirtualDevice(fail_at=[300]))
    assert "micro_batch" in events.keys()
    assert short.curve.loss == pytest.approx(plenty.curve.loss, rel=1e-4)


def test_not_even_one_object_fits(objects: tuple[Rendered, ...]) -> None:
    with pytest.raises(OutOfMemoryError):
        trained(objects, steps=1, virtual=VirtualDevice(cap_bytes=50 << 20))


def test_a_loss_that_is_no_number_says_what_to_do(objects: tuple[Rendered, ...]) -> None:
    with pytest.raises(UsageError, match="--learning-rate"):
        trained(objects, steps=20, learning_rate=1e12)


def test_an_object_that_cannot_be_trained_on_is_named_and_the_others_are(
    tmp_path: Path, objects: tuple[Rendered, ...]
) -> None:
    add_object(tmp_path / "egg" / "bare", 0, normals=False)
    (bare,) = (item.payload for item in find_objects(DataOptions(data=tmp_path, use_views=(0, 1))).items)
    _, events = trained((*objects[:1], bare), steps=4, validate_every=4)
    (left_out,) = [event for event in events if event.key == "left_out_of_training"]
    assert "bare" in str(left_out.data["error"])
    assert "has no normals" in str(left_out.data["error"])
    with pytest.raises(InputError, match="can be trained on"):
        trained((bare,), steps=1)


@pytest.mark.parametrize("name", STAGES)
def test_every_weight_that_is_used_learns(objects: tuple[Rendered, ...], name: str) -> None:
    """All of the coarse stage; of the refining one all but the encoder's coarse scales, which nothing looks at.

    What its scores have in common the softmax does not see: the last biases pull by rounding only.
    """
    stage = STAGES[name]()
    after = trained(objects, stage, steps=1)[0].last.network.state_dict()
    still = {key for key, value in stage.network.state_dict().items() if torch.equal(value, after[key])}
    unused = {f"cnn.conv{n}.{kind}" for n in range(9, 19) for kind in ("weight", "bias")}
    unseen = {f"drb{n}.local_conv6.bias" for n in (1, 2)}
    assert still - unseen == (unused if name == "refine" else set())


@pytest.mark.parametrize(("name", "change"), [("coarse", 1e-2), ("refine", 3e-5)])
def test_the_gradient_is_how_the_mesh_changes(objects: tuple[Rendered, ...], name: str, change: float) -> None:
    """Along the gradient itself, through projection, lookup, mean and spread over views, and all layers."""
    stage = refine_stage() if name == "refine" else CoarseStage(seen_network(), TEMPLATE)
    examples = read_example(objects[0], 245.0)
    wanted = torch.rand(162, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss() -> torch.Tensor:
        blocks: Blocks = stage(examples.images, examples.cameras)
        return (blocks[-1][1][0].double() * wanted).sum()

    parameters = list(stage.network.parameters())
    pulls = torch.autograd.grad(loss(), parameters, allow_unused=True)
    steepness = sum(pull.double().square().sum().item() for pull in pulls if pull is not None)
    step = change / steepness
    values = []
    for sign in (1, -2):
        with torch.no_grad():
            for parameter, pull in zip(parameters, pulls, strict=True):
                if pull is not None:
                    parameter += sign * step * pull
            values.append(loss().item())
    assert values[0] - values[1] == pytest.approx(2 * change, rel=0.1)


def test_lookup_and_statistics_have_exact_gradients() -> None:
    random = torch.Generator().manual_seed(0)
    maps = torch.rand(1, 2, 4, 4, 3, generator=random, dtype=torch.float64, requires_grad=True)
    pixels = (200 * torch.rand(1, 2, 5, 2, generator=random, dtype=torch.float64)).requires_grad_()
    points = torch.rand(1, 5, 3, generator=random, dtype=torch.float64, requires_grad=True)

    def seen(maps: torch.Tensor, pixels: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        return over_views(points, bilinear([maps], pixels, "tf"))

    assert torch.autograd.gradcheck(seen, (maps, pixels, points))


def test_as_published_only_the_first_view_teaches_the_encoder(objects: tuple[Rendered, ...]) -> None:
    """With own views the others do as well: another second view changes the maps that are looked at."""
    images = torch.rand(1, 2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    other = images.clone()
    other[:, 1] = 0
    cameras = from_rows(objects[0].rows()[None], 245.0)
    for own_views in (True, False):
        stage = coarse_stage(own_views)
        one, two = (stage(seen, cameras)[-1][1] for seen in (images, other))
        assert torch.equal(one, two) != own_views


def test_decay_is_the_published_one() -> None:
    """Kernels of the encoder 0.3 · 10⁻⁵, its biases nothing, graph convolutions 5 · 10⁻⁶: of half the squares."""
    network = coarse_stage().network
    decays = {id(p): group["weight_decay"] for group in decayed(network) for p in group["params"]}
    for name, parameter in network.named_parameters():
        expected = 5e-6 if name.startswith("gcn") else 3e-6 if name.endswith("weight") else 0.0
        assert decays[id(parameter)] == pytest.approx(expected), name


def test_a_start_depends_on_the_seed_and_on_nothing_else() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = start_coarse(TEMPLATE, Variant(), 1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    other, third = start_coarse(TEMPLATE, Variant(), 1), start_coarse(TEMPLATE, Variant(), 2)
    assert equal(one, other)
    assert not equal(one, third)


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_refining_stage_starts_with_the_coarse_encoder(objects: tuple[Rendered, ...]) -> None:
    stage = refine_stage()
    assert equal(stage.network.cnn, stage.coarse.cnn)
    result, _ = trained(objects, stage, steps=1)
    assert isinstance(result.last, RefineStage)
    assert equal(result.last.coarse, stage.coarse), "it is not trained any more"
    assert set(result.curve.terms) == set(TERMS)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_one_rendered_object_is_overfitted(shared: Path) -> None:
    """The whole network and our own ellipsoid; two minutes of one core."""
    found = find_objects(DataOptions(data=shared / "data" / "mesh_rendered")).items
    duck = tuple(item.payload for item in found if "pb_duck" in item.name)
    result, _ = trained(duck, full_stage(), steps=90, validate_every=15)
    best = result.curve.best
    assert result.curve.chamfer[best] <= 1.2e-3
    assert result.curve.f1[best] >= 30
