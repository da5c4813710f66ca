"""The networks of Pixel2Mesh++ against the reference pack: as published, and with Design B's switches."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from safelight.cli import run
from safelight.formats.mesh import Mesh, read_mesh, write_mesh
from safelight.pipelines.mesh.cameras import Cameras, orbiting
from safelight.pipelines.mesh.networks import CoarseNetwork, RefineNetwork
from safelight.pipelines.mesh.template import Template, make_template
from safelight.pipelines.mesh.variant import Variant

HYPOTHESES = 43
DESIGN_B = Variant(unpool_first=True, signed_scores=True, border_sampling=True, unit_origin=True)

Arrays = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def pack(shared: Path) -> Path:
    return shared / "parity" / "mesh"


@pytest.fixture(scope="module")
def reference(pack: Path) -> Arrays:
    with np.load(pack / "reference_outputs.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def published(shared: Path) -> Arrays:
    with np.load(shared / "data" / "mesh" / "p2mpp_template_regenerated.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def template(published: Arrays) -> Template:
    return make_template(published["coord"], published["faces1"])


@pytest.fixture(scope="module")
def cameras(reference: Arrays) -> Cameras:
    azimuth, elevation, _, distance, _ = torch.from_numpy(reference["cameras"])[None].unbind(-1)
    return orbiting(azimuth, elevation, distance, 248.0)


@pytest.fixture(scope="module")
def images(reference: Arrays) -> Tensor:
    return torch.from_numpy(reference["img_tf_u8"])[None].float() / 255


@pytest.fixture(scope="module")
def design_b_images(shared: Path) -> Tensor:
    """The demo's views on white, resized as Pillow does, blue first."""
    views = []
    for number in (1, 2, 3):
        view = Image.open(shared / "data" / "mesh_demo" / f"plane{number}.png").convert("RGBA")
        white = Image.new("RGBA", view.size, (255, 255, 255, 255))
        small = Image.alpha_composite(white, view).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
        views.append(np.asarray(small)[..., ::-1].transpose(2, 0, 1))
    return torch.from_numpy(np.stack(views))[None].float() / 255


def made_weights(pack: Path, stage: str) -> Arrays:
    spec = importlib.util.spec_from_file_location("make_weights", pack / "make_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Arrays = module.make_weights(stage)
    return made


def weighted(network: nn.Module, pack: Path, stage: str) -> nn.Module:
    network.load_state_dict({name: torch.from_numpy(value) for name, value in made_weights(pack, stage).items()})
    return network.eval()


def errors(points: Tensor, expected: np.ndarray) -> np.ndarray:
    """The largest error of each vertex."""
    return np.abs(points[0].numpy() - expected).max(axis=1)


@torch.no_grad()
def test_coarse_network(template: Template, images: Tensor, cameras: Cameras, pack: Path, reference: Arrays) -> None:
    deformed = weighted(CoarseNetwork(template), pack, "stage1")(images, cameras)
    for number, points in enumerate(deformed, start=1):
        assert errors(points, reference[f"tf_coords{number}"]).max() <= 1e-5


@torch.no_grad()
def test_fine_network(images: Tensor, cameras: Cameras, pack: Path, reference: Arrays, published: Arrays) -> None:
    network = weighted(RefineNetwork(), pack, "stage2")
    assert isinstance(network, RefineNetwork)
    maps = network.maps(images)
    points = torch.from_numpy(reference["tf_coords3"])[None]

    vertex, place = np.divmod(reference["sel"], HYPOTHESES)
    distances = np.linalg.norm(published["sample_coord"][:, None] - network.offsets.numpy(), axis=-1)
    assert distances.min(axis=1).max() < 1e-8, "our hypotheses are the published ones, in another order"
    seen = network.seen(points[:, vertex], maps, cameras)[distances.argmin(axis=1)[place], 0, np.arange(len(vertex))]
    assert np.abs(seen.numpy() - reference["tf_proj1_sel"]).max() <= 2e-5

    first, second = network(points, maps, cameras)
    # A vertex with a hypothesis at a whole pixel jumps by the last bit; the pack says how many may.
    assert (errors(first, reference["tf_blk1"]) <= 1e-5).mean() >= 0.998
    assert (errors(second, reference["tf_blk2"]) <= 1e-5).mean() >= 0.997
    assert errors(second, reference["tf_blk2"]).max() <= 5e-3


@torch.no_grad()
def test_both_networks_in_a_row(
    template: Template, images: Tensor, cameras: Cameras, pack: Path, reference: Arrays
) -> None:
    coarse, refine = weighted(CoarseNetwork(template), pack, "stage1"), weighted(RefineNetwork(), pack, "stage2")
    assert isinstance(refine, RefineNetwork)
    points = coarse(images, cameras)[-1]
    _, refined = refine(points, refine.maps(images), cameras)
    assert (errors(refined, reference["tf_blk2"]) <= 1e-5).mean() >= 0.985


@torch.no_grad()
def test_encoder_on_design_b_images(template: Template, design_b_images: Tensor, pack: Path, reference: Arrays) -> None:
    coarse = weighted(CoarseNetwork(template), pack, "stage1").get_submodule("cnn")
    refine = weighted(RefineNetwork(), pack, "stage2").get_submodule("cnn")
    coarsest, third = (cnn(design_b_images[0])[-1] for cnn in (coarse, refine))
    np.testing.assert_allclose(coarsest[:, ::8], reference["seed_feat_s1_x5"], atol=2e-5)
    np.testing.assert_allclose(third[:, ::8, ::4, ::4], reference["seed_feat_s2_x2"], atol=2e-5)


@torch.no_grad()
def test_design_b(template: Template, design_b_images: Tensor, cameras: Cameras, pack: Path, reference: Arrays) -> None:
    coarse, refine = CoarseNetwork(template, DESIGN_B), RefineNetwork(DESIGN_B)
    weighted(coarse, pack, "stage1")
    weighted(refine, pack, "stage2")
    assert errors(coarse(design_b_images, cameras)[-1], reference["seed_coords3"]).max() <= 1e-5
    points = torch.from_numpy(reference["seed_coords3"])[None]
    _, refined = refine(points, refine.maps(design_b_images), cameras)
    assert errors(refined, reference["seed_blk2"]).max() <= 1e-5


def test_design_b_as_typed(pack: Path, reference: Arrays, shared: Path, tmp_path: Path) -> None:
    """Both stages of the command line with Design B's switches; the second from the pack's coarse mesh."""
    for stage in ("stage1", "stage2"):
        np.savez(tmp_path / f"{stage}.npz", **made_weights(pack, stage))
        convert = ["mesh", "convert", str(tmp_path / f"{stage}.npz"), str(tmp_path / f"{stage}.safetensors")]
        template = ["--template", str(shared / "data" / "mesh" / "p2mpp_template_regenerated.npz")]
        assert run([*convert, *(template if stage == "stage1" else []), *quietly(tmp_path)]) == 0
    demo = shared / "data" / "mesh_demo"
    views = ["--views", *(str(demo / f"plane{number}.png") for number in (1, 2, 3)), "--blend-alpha"]
    views += ["--cameras", str(demo / "cameras.txt"), *quietly(tmp_path)]
    coarse = ["--weights", str(tmp_path / "stage1.safetensors"), "--unpool-first", "--out", str(tmp_path / "c.obj")]
    assert run(["mesh", "predict", *views, *coarse]) == 0
    assert np.abs(read_mesh(tmp_path / "c.obj").vertices - reference["seed_coords3"]).max() <= 1e-5

    start = Mesh(reference["seed_coords3"], read_mesh(tmp_path / "c.obj").faces)
    write_mesh(tmp_path / "start.obj", start)
    switches = ["--signed-scores", "--border-sampling", "--unit-origin"]
    refine = ["--weights", str(tmp_path / "stage2.safetensors"), "--out", str(tmp_path / "r.obj")]
    assert run(["mesh", "refine", str(tmp_path / "start.obj"), *views, *refine, *switches]) == 0
    assert np.abs(read_mesh(tmp_path / "r.obj").vertices - reference["seed_blk2"]).max() <= 1e-5


def quietly(folder: Path) -> list[str]:
    return ["--device", "cpu", "--quiet", "--results", str(folder / "results")]


def test_template(template: Template, published: Arrays, shared: Path) -> None:
    for number, level in enumerate(template.levels, start=1):
        rows, columns = published[f"cheb{number}_idx"].T
        support = np.zeros((level.vertices, level.vertices))
        support[rows, columns] = published[f"cheb{number}_val"]
        np.testing.assert_allclose(level.support.toarray(), support, atol=5e-14)
    for level, pool in zip(template.levels, ("pool1", "pool2"), strict=False):
        np.testing.assert_array_equal(level.edges, np.sort(published[pool], axis=1))
    lines = (shared / "data" / "mesh" / "face3_oriented.obj").read_text().splitlines()
    faces = np.array([[int(corner.split("/")[0]) for corner in line.split()[1:]] for line in lines if line[:1] == "f"])
    np.testing.assert_array_equal(template.levels[-1].faces, faces - 1)
