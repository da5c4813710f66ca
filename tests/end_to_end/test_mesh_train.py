"""``safelight mesh train`` as it is typed: both stages, what they leave, and what they say of bad input."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.spatial.distance import pdist

from safelight.cli import run
from safelight.formats.mesh import Mesh, read_mesh, write_mesh
from safelight.formats.weights import read_weights
from safelight.pipelines.mesh.hypotheses import icosahedron

CAMERAS = "250.5 29.5 0 0.75 25\n8.4 26.5 0 0.71 25\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two objects and one without normals, and a template of 162 vertices at its last level."""
    folder = tmp_path_factory.mktemp("mesh")
    outward = np.random.default_rng(0).standard_normal((200, 3))
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    for number, name in enumerate(("egg/0-bare", "egg/a", "egg/b")):
        rendering = folder / "data" / name / "rendering"
        rendering.mkdir(parents=True)
        (rendering / "rendering_metadata.txt").write_text(CAMERAS)
        for view in range(2):
            picture = Image.new("RGBA", (40, 40))
            ImageDraw.Draw(picture).ellipse((8, 10 + number, 32, 28), fill=(200, 90 * number, 90 * view, 255))
            picture.save(rendering / f"{view:02}.png")
        normals = {} if name == "egg/0-bare" else {"normals": outward}
        np.savez(rendering.parent / "points.npz", points=outward * (0.3, 0.2, 0.25), **normals)
    corners = icosahedron()
    faces = np.array([face for face in combinations(range(12), 3) if pdist(corners[list(face)]).max() < 2.1])
    write_mesh(folder / "template.obj", Mesh(corners * 0.1 + (0, 0, -0.8), faces))
    return folder


def train(folder: Path, *arguments: str) -> int:
    common = ["--use-views", "0", "1", "--device", "cpu", "--lang", "en", "--results", str(folder / "results")]
    return run(["mesh", "train", *arguments, "--data", str(folder / "data"), *common])


@pytest.fixture(scope="module")
def coarse(folder: Path) -> Path:
    out = folder / "coarse"
    ends = ["--steps", "3", "--validate-every", "2", "--learning-rate", "1e-4"]
    assert train(folder, "coarse", "--template", str(folder / "template.obj"), "--out", str(out), *ends) == 0
    return out


def test_both_stages_make_weights_that_predict_takes(folder: Path, coarse: Path, tmp_path: Path) -> None:
    weights = coarse / "model.safetensors"
    refine = tmp_path / "refine"
    assert train(folder, "refine", "--coarse", str(weights), "--out", str(refine), "--steps", "2") == 0
    rendering = folder / "data/egg/a/rendering"
    seen = ["--views", f"{rendering}/00.png", f"{rendering}/01.png", "--cameras", f"{rendering}/rendering_metadata.txt"]
    both = ["--weights", str(weights), str(refine / "model.safetensors"), "--out", str(tmp_path / "egg.obj")]
    assert run(["mesh", "predict", *seen, *both, "--device", "cpu", "--results", str(tmp_path / "results")]) == 0
    assert len(read_mesh(tmp_path / "egg.obj").vertices) == 162


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch hides it: here it would be an error
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("stage", ["coarse", "refine"])
def test_a_compiled_training_goes_as_a_plain_one(folder: Path, coarse: Path, tmp_path: Path, stage: str) -> None:
    start = {"coarse": ["--template", f"{folder}/template.obj"], "refine": ["--coarse", f"{coarse}/model.safetensors"]}
    ends = ["--steps", "2", "--validate-every", "1", "--learning-rate", "1e-4"]
    records = {}
    for name, more in (("plain", []), ("compiled", ["--compile"])):
        assert train(folder, stage, *start[stage], *ends, *more, "--out", str(tmp_path / name)) == 0
        records[name] = json.loads((tmp_path / name / "run.json").read_text())
    assert re.fullmatch(r"default \([1-9]\d* graphs\)", records["compiled"]["device"]["compile"])
    plain, compiled = (records[name]["items"][0]["details"]["curve"] for name in ("plain", "compiled"))
    assert compiled["chamfer"] == pytest.approx(plain["chamfer"], rel=1e-3)
    for term, values in plain["terms"].items():
        # Of a loss of hundreds; absolutely as well, for a vertex of which a place is at a whole pixel jumps.
        assert compiled["terms"][term] == pytest.approx(values, rel=1e-3, abs=1e-4), term


def test_the_weights_say_how_they_were_trained(coarse: Path) -> None:
    metadata = read_weights(coarse / "model.safetensors").metadata
    assert json.loads(metadata["coarse.variant"]) == {"own_views": True}
    assert float(metadata["focal"]) == 245
    assert metadata["template"]


def test_the_folder_holds_a_report_with_curves_and_the_mesh_beside_the_truth(coarse: Path) -> None:
    record = json.loads((coarse / "run.json").read_text())
    (item,) = record["items"]
    assert item["details"]["curve"]["steps"] == [2, 3]
    assert item["metrics"]["validation_chamfer"] == min(item["details"]["curve"]["chamfer"])
    report = (coarse / "report.html").read_text()
    assert report.count("data:image/png") == 3 + 2 * 3, "curves; views, meshes, ground truths"
    assert (coarse / "model_last.safetensors").is_file()
    for kind in ("mesh", "truth"):
        shown = np.asarray(Image.open(coarse / f"{kind}-01.png"))
        assert (shown < 250).any()


def test_an_object_without_normals_is_named_and_the_others_are_trained_on(
    folder: Path, coarse: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = [json.loads(line) for line in (coarse / "events.jsonl").read_text().splitlines()]
    (left_out,) = [event for event in events if event["key"] == "left_out_of_training"]
    assert "0-bare/points.npz: has no normals" in left_out["data"]["error"]
    assert "validated_on_training" in {event["key"] for event in events}


def test_the_same_command_again_does_nothing_and_a_later_end_goes_on(
    folder: Path, coarse: Path, tmp_path: Path
) -> None:
    template = ["--template", str(folder / "template.obj"), "--out", str(coarse)]
    ends = ["--validate-every", "2", "--learning-rate", "1e-4"]
    before = (coarse / "model_last.safetensors").stat().st_mtime_ns
    assert train(folder, "coarse", *template, *ends, "--steps", "3") == 0
    assert (coarse / "model_last.safetensors").stat().st_mtime_ns == before
    assert train(folder, "coarse", *template, *ends, "--steps", "4") == 0
    (item,) = json.loads((coarse / "run.json").read_text())["items"]
    assert item["details"]["curve"]["steps"] == [2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["refine"], "coarse goes with the stage refine"),
        (["coarse", "--coarse", "{coarse}"], "coarse goes with the stage refine"),
        (["refine", "--coarse", "{coarse}", "--focal", "248"], "focal does not go with them"),
        (["coarse", "--weights", "{coarse}", "--no-own-views"], "own_views does not go with them"),
        (["coarse", "--weights", "none.safetensors"], "there is no such file"),
        (["coarse", "--validation-data", "{data}"], "holds no objects"),
        (["coarse", "--use-views", "0", "7"], "lacks 07.png"),
        (["sideways"], "sideways"),
    ],
)
def test_what_does_not_fit_gets_one_clear_error(
    folder: Path,
    coarse: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"coarse": coarse / "model.safetensors", "data": tmp_path / "empty"}
    typed = [argument.format(**places) for argument in arguments]
    assert train(folder, *typed, "--out", str(tmp_path / "out"), "--steps", "1") != 0
    captured = capsys.readouterr()
    text = " ".join((captured.out + captured.err).replace("│", " ").split())
    assert said in text
    assert "Traceback" not in text


def test_objects_in_both_sets_are_told_and_a_plan_needs_no_training(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = ["--template", str(folder / "template.obj"), "--out", str(tmp_path / "out")]
    assert train(folder, "coarse", *template, "--dry-run") == 0
    assert "training coarse, 162 vertices" in " ".join("".join(capsys.readouterr()).split())
    (folder / "data" / "list.txt").write_text("egg_a_00.dat\n")
    watching = ["--validation-data", str(folder / "data" / "list.txt")]
    assert train(folder, "coarse", *template, *watching, "--steps", "2") == 0
    assert "1 object(s) are trained on and validated on" in " ".join("".join(capsys.readouterr()).split())
