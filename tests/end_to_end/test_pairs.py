"""What the builder of a dataset types, with good scenes and with broken ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dng import BAYER, XTRANS, SceneMaker, make_dataset, with_sha1, write_dng
from safelight.cli import run
from safelight.pipelines.pairs import decoding, process
from safelight.pipelines.pairs.loader import PairDataset
from safelight.pipelines.pairs.manifest import read_yaml

SHIFT_ERROR = 0.05
"""Pixels by which a shift may be off."""
OBJECT_IOU = 0.7


@pytest.fixture(autouse=True)
def _surroundings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("SAFELIGHT_LANG", "en")


def pairs(dataset: Path, out: Path, *options: str) -> int:
    return run(["pairs", "run", str(dataset), "--out", str(out), "--results", str(out.parent / "results"), *options])


def verify(out: Path, *options: str) -> int:
    return run(["pairs", "verify", str(out), "--results", str(out.parent / "results"), *options])


def manifest(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def result_bytes(out: Path) -> dict[str, bytes]:
    """Return everything that must be the same however a run went."""
    names = [*out.glob("manifest.*"), *(out / "masks").rglob("*.png"), *(out / "crops").rglob("*.*")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in names}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dataset")
    make_dataset(root)
    return root


@pytest.fixture(scope="module")
def done(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over the dataset. Only read it."""
    out = tmp_path_factory.mktemp("done") / "pairs"
    assert pairs(dataset, out) == 0
    return out


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    return shutil.copytree(done, tmp_path / "pairs")


def test_a_dataset_becomes_pairs(done: Path, tmp_path: Path) -> None:
    shifts = make_dataset(tmp_path)
    lines = manifest(done)
    assert [Path(line["noisy"]).name for line in lines] == sorted(shifts)
    for line in lines:
        shift = shifts[Path(line["noisy"]).name]
        assert line["status"] == "ok"
        assert line["shift"] == pytest.approx(shift, abs=0.1)
        assert tuple(line["shift_integer"]) == shift
        assert line["raw_gain"] == pytest.approx(1.5, rel=0.05), "0.6 over 0.4 of exposure"
        assert line["mask_mean"] > 0.95
        assert line["crops"]
        with Image.open(done / line["mask"]) as mask:
            assert mask.mode == "L"
            assert list(mask.size) == line["noisy_size"]
    assert [entry["f_fpath"] for entry in read_yaml(done / "manifest.yaml")] == [line["noisy"] for line in lines]
    assert "Contact sheet" in (done / "report.html").read_text()
    assert (done / "report.html").read_text().count("data:image/png") == len(lines)


def test_the_crops_of_a_pair_show_the_same(done: Path) -> None:
    for line in manifest(done):
        for crop in line["crops"]:
            clean, noisy = (np.load(done / crop[name])["packed"] for name in ("gt", "noisy"))
            assert clean.shape == noisy.shape
            correlation = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(clean, noisy, strict=True)]
            assert min(correlation) > 0.9, "a plane of another colour would not fit"
            assert np.median(noisy * line["raw_gain"] - clean) == pytest.approx(0, abs=0.02)


def test_what_was_written_can_be_trained_on(done: Path) -> None:
    entries = [PairDataset(done, accepted=False)[index] for index in range(4)]
    for entry in entries:
        assert entry["gt"].shape == entry["noisy"].shape
        assert entry["mask"].shape[1:] == entry["gt"].shape[1:]
        usable = entry["mask"].expand_as(entry["gt"])
        assert float((entry["noisy"] * entry["gain"] - entry["gt"])[usable].mean().abs()) < 0.01


def test_the_samples_are_aligned_to_a_fraction_of_a_pixel(shared: Path, tmp_path: Path) -> None:
    sample = shared / "data" / "rawnind"
    assert pairs(sample, tmp_path / "pairs", "--format", "none") == 0
    truth = {entry["noisy"]: entry for entry in json.loads((sample / "truth.json").read_text())}
    lines = {Path(line["noisy"]).name: line for line in manifest(tmp_path / "pairs")}
    assert lines.keys() == truth.keys()
    for name, line in lines.items():
        assert line["status"] == "ok", name
        assert line["shift"] == pytest.approx(truth[name]["shift"], abs=SHIFT_ERROR), name
        assert line["raw_gain"] == pytest.approx(1 / truth[name]["exposure"], rel=0.022), name
        inserted = truth[name]["object_in_target"]
        if inserted:
            assert _overlap_of(tmp_path / "pairs" / line["mask"], inserted) >= OBJECT_IOU, name
        else:
            assert line["mask_fractions"]["moved"] <= 0.05, name


def _overlap_of(mask: Path, inserted: list[int]) -> float:
    """Return the intersection over union of what moved with the inserted object, (y, x, height, width)."""
    with Image.open(mask) as picture:
        moved = (np.asarray(picture) & 1) > 0
    y, x, height, width = inserted
    there = np.zeros(moved.shape, bool)
    there[y : y + height, x : x + width] = True
    return float((moved & there).sum() / (moved | there).sum())


def test_a_dataset_full_of_broken_files_is_done_as_far_as_it_goes(
    dataset: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(dataset, tmp_path / "in")
    scene = root / "src" / "Bayer" / "wall"
    flat = np.full((60, 80), 2000, np.uint16)
    (scene / "lfs.cr2").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (scene / "xmp.arw").write_bytes(b"<x:xmpmeta/>" * 50)
    (scene / "empty.dng").touch()
    write_dng(scene / "liar.dng", flat, BAYER["RGGB"], claimed=(30_000, 30_000))
    write_dng(scene / f"Bayer_wall_ISO1_sha1={'0' * 40}.dng", flat, BAYER["RGGB"])
    whole = next(scene.glob("*ISO800*"))
    (scene / "cut.dng").write_bytes(whole.read_bytes()[:90_000])
    shutil.copy(whole, scene / "copy.dng")
    write_dng(root / "src" / "Bayer" / "no-truth" / "a.dng", flat, BAYER["RGGB"])
    write_dng(root / "src" / "Bayer" / "alone" / "gt" / "a.dng", flat, BAYER["RGGB"])
    for strict in (False, True):
        assert pairs(root, tmp_path / "pairs", *(("--strict",) if strict else ())) == strict
        said = capsys.readouterr().err
        at_once = {"lfs.cr2", "xmp.arw", "empty.dng", "liar.dng"}
        for name in {*at_once, "Bayer/no-truth", "Bayer/alone"}:
            assert f"{name}:" in said, name
        assert "6 left out" in said
        assert "frames_left_out of Bayer/wall is 3" in said
    left_out = json.loads((tmp_path / "pairs" / "run.json").read_text())["items"][0]["details"]["left_out"]
    assert {Path(name).name: True for name in left_out} == {
        "copy.dng": True,
        "cut.dng": True,
        f"Bayer_wall_ISO1_sha1={'0' * 40}.dng": True,
    }
    report = (tmp_path / "pairs" / "report.html").read_text()
    for name in ("cut.dng", "copy.dng", "sha1=" + "0" * 40, "liar.dng"):
        assert name in report
    assert {line["noisy"] for line in manifest(tmp_path / "pairs")} == {line["noisy"] for line in manifest(done)}


def test_frames_that_are_no_pair_are_flagged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    maker = SceneMaker()
    scene = tmp_path / "in" / "desk"
    maker.write(scene / "gt" / "a.dng")
    maker.write(scene / "good.dng", (2, 2), seed=2)
    SceneMaker(seed=7).write(scene / "unrelated.dng", seed=3)
    maker.write(scene / "dark.dng", exposure=0.0, seed=4)
    assert pairs(tmp_path / "in", tmp_path / "pairs") == 0
    lines = {Path(line["noisy"]).stem: line for line in manifest(tmp_path / "pairs")}
    assert (lines["good"]["status"], lines["good"]["reason"]) == ("ok", None)
    for name in ("unrelated", "dark"):
        assert lines[name]["status"] == "failed"
        assert lines[name]["reason"]
        assert lines[name]["mask"] is None
        assert lines[name]["mask_mean"] == 0
        assert not lines[name]["crops"]
    said = capsys.readouterr().err
    assert "desk/dark.dng cannot be paired with desk/gt/a.dng" in said


def test_a_plan_says_the_peak_and_decodes_nothing(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decoding, "read_raw", lambda *_: pytest.fail("decoded a frame"))
    assert run(["plan", "pairs", "run", str(dataset), "--out", str(tmp_path / "pairs")]) == 0
    said = capsys.readouterr().err
    assert "1 ground truth(s) and 2 noisy frame(s) of up to 360×240 pixels" in said
    assert "MiB at most" in said
    for kernel in ("pair_grey", "pair_sample", "pair_mask_noise"):
        assert said.count(f"Plan: {kernel}") == 2, "a scene each"
    assert not (tmp_path / "pairs").exists()


def test_frames_of_another_sensor_than_asked_for_are_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = tmp_path / "in" / "desk"
    SceneMaker().write(scene / "gt" / "a.dng")
    SceneMaker().write(scene / "b.dng", (2, 2), seed=2)
    SceneMaker(size=(246, 366), pattern=XTRANS).write(scene / "c.dng", seed=3)
    assert pairs(tmp_path / "in", tmp_path / "pairs", "--sensor", "bayer", "--strict") == 0
    assert "Passed over desk/c.dng: its sensor is x-trans" in capsys.readouterr().err
    assert [Path(line["noisy"]).name for line in manifest(tmp_path / "pairs")] == ["b.dng"]


def test_it_is_said_why_aligned_pairs_are_not_accepted(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = ("--max-alignment-loss", "0.001")
    assert pairs(dataset, tmp_path / "pairs", "--scene", "wall", "--format", "none", *limit) == 0
    assert "2 pair(s) by their loss (--max-alignment-loss 0.001), 0 by their mask" in capsys.readouterr().err
    assert "(not accepted: loss)" in (tmp_path / "pairs" / "report.html").read_text()


@pytest.mark.parametrize("pattern", ["BGGR", "GRBG", "GBRG"])
def test_frames_of_another_size_and_phase_are_brought_together(tmp_path: Path, pattern: str) -> None:
    scene = tmp_path / "in" / "desk"
    SceneMaker().write(scene / "gt" / "a.dng")
    SceneMaker(size=(220, 330), pattern=BAYER[pattern]).write(scene / "b.dng", (5, -3), seed=2)
    assert pairs(tmp_path / "in", tmp_path / "pairs") == 0
    (line,) = manifest(tmp_path / "pairs")
    assert line["status"] == "ok"
    assert line["shift"] == pytest.approx((5, -3), abs=0.1)
    assert line["noisy_size"] == [330, 220]
    assert line["crops"]
    assert verify(tmp_path / "pairs") == 0


def test_a_dataset_without_any_pair_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = tmp_path / "in" / "desk"
    SceneMaker().write(scene / "gt" / "a.dng")
    shutil.copy(scene / "gt" / "a.dng", scene / "b.dng")
    assert pairs(tmp_path / "in", tmp_path / "pairs") == 1
    assert "no pair came of any scene" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tiff", "dng"])
def test_other_formats_verifies(dataset: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "pairs"
    sizes = ("--crop-size", "120", "--overlap", "12")
    assert pairs(dataset, out, "--scene", "tree", "--format", kind, *sizes) == 0
    assert {path.suffix for path in (out / "crops").rglob("*.*")} == {f".{kind}"}
    assert verify(out) == 0


def test_another_run_decodes_nothing(
    dataset: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decoding, "read_raw", lambda *_: pytest.fail("decoded a frame"))
    before = result_bytes(copy)
    assert pairs(dataset, copy) == 0
    assert "3 already done" in capsys.readouterr().err
    assert result_bytes(copy) == before


def test_a_new_frame_does_its_scene_again_and_no_other(
    dataset: Path, done: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(dataset, tmp_path / "in")
    path = SceneMaker().write(root / "src" / "Bayer" / "wall" / "Bayer_wall_ISO50.dng", (1, 1), seed=9)
    with_sha1(path)
    assert pairs(root, copy) == 0
    assert "1 already done" in capsys.readouterr().err
    assert len(manifest(copy)) == len(manifest(done)) + 1


def test_workers_and_order_do_not_change_a_byte(
    dataset: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pairs(dataset, tmp_path / "two" / "pairs", "--workers", "2") == 0
    assert result_bytes(tmp_path / "two" / "pairs") == result_bytes(done)


@pytest.mark.slow
def test_scenes_one_after_the_other_make_the_same_manifest(dataset: Path, done: Path, tmp_path: Path) -> None:
    for scene in ("tree", "wall"):
        assert pairs(dataset, tmp_path / "pairs", "--scene", scene) == 0
    assert pairs(dataset, tmp_path / "pairs") == 0
    assert result_bytes(tmp_path / "pairs") == result_bytes(done)


KILLED = """
import os, signal, sys
from safelight import cli
from safelight.pipelines.pairs import process

write = process.write_preview
def write_and_die(path, *more):
    write(path, *more)
    if "tree" in path.parts:
        os.kill(os.getpid(), signal.SIGKILL)
process.write_preview = write_and_die
cli.run(sys.argv[1:])
"""


@pytest.mark.skipif(os.name == "nt", reason="kills with a signal")
def test_a_killed_run_goes_on_to_the_same_manifest(dataset: Path, done: Path, tmp_path: Path) -> None:
    out = tmp_path / "pairs"
    command = [sys.executable, "-c", KILLED, "pairs", "run", str(dataset), "--out", str(out)]
    killed = subprocess.run([*command, "--results", str(tmp_path / "results")], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(out.glob("masks/*/wall/*.png"))
    assert not (out / "manifest.jsonl").exists()
    assert pairs(dataset, out) == 0
    assert result_bytes(out) == result_bytes(done)


def test_a_run_stopped_within_a_scene_goes_on_at_the_next_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = tmp_path / "in" / "desk"
    for number, shift in enumerate(((0, 0), (2, 2))):
        SceneMaker().write(scene / "gt" / f"{number}.dng", shift, seed=10 + number)
    for number, shift in enumerate(((4, -2), (-6, 2))):
        SceneMaker().write(scene / f"{number}.dng", shift, seed=20 + number)
    (scene / "copy.dng").write_bytes((scene / "0.dng").read_bytes())
    assert pairs(tmp_path / "in", tmp_path / "whole") == 0
    real, made = process.align, []

    def stopped(*given: Any, **more: Any) -> Any:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(real(*given, **more))
        return made[-1]

    monkeypatch.setattr(process, "align", stopped)
    assert pairs(tmp_path / "in", tmp_path / "pairs") != 0
    monkeypatch.setattr(process, "align", lambda *given, **more: (made.append(None), real(*given, **more))[1])
    next((tmp_path / "pairs").glob("crops/desk/*/*.npz")).unlink()
    made.clear()
    capsys.readouterr()
    assert pairs(tmp_path / "in", tmp_path / "pairs") == 0
    assert "Going on with desk: 2 pair(s)" in capsys.readouterr().err
    assert len(made) == 2, "the one that was missing, and the one whose crop has gone"
    assert result_bytes(tmp_path / "pairs") == result_bytes(tmp_path / "whole")
    assert not list((tmp_path / "pairs").rglob("*.unfinished.jsonl"))


@pytest.mark.parametrize("held", [10**9, 1], ids=["all at once", "in turn"])
def test_frames_are_decoded_once_for_all_ground_truths_that_memory_holds(
    tmp_path: Path, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = tmp_path / "in" / "desk"
    for number in range(2):
        SceneMaker().write(scene / "gt" / f"{number}.dng", seed=10 + number)
        SceneMaker().write(scene / f"{number}.dng", (2, 4), seed=20 + number)
    monkeypatch.setattr(decoding, "ANCHORS_BYTES", held)
    real, decoded = decoding.read_raw, []
    monkeypatch.setattr(decoding, "read_raw", lambda path: (decoded.append(path.relative_to(scene)), real(path))[1])
    assert pairs(tmp_path / "in", tmp_path / "pairs", "--format", "none") == 0
    assert len(manifest(tmp_path / "pairs")) == 4
    turns = 1 if held > 1 else 2
    assert sorted(map(str, decoded)) == sorted(["gt/0.dng", "gt/1.dng", *["0.dng", "1.dng"] * turns])


def test_what_was_written_verifies(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(done) == 0
    assert "2 pair(s)" in capsys.readouterr().err


def _swap_sign(out: Path) -> None:
    lines = manifest(out)
    lines[0]["shift_lattice"] = [-value for value in lines[0]["shift_lattice"]]
    _write_manifest(out, lines)


def _leave_lattice(out: Path) -> None:
    lines = manifest(out)
    lines[0]["shift_lattice"][0] += 1
    _write_manifest(out, lines)


def _change_sha1(out: Path) -> None:
    lines = manifest(out)
    lines[0]["noisy_sha1"] = "0" * 40
    _write_manifest(out, lines)


def _write_manifest(out: Path, lines: list[dict[str, Any]]) -> None:
    (out / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _good_mask(out: Path) -> None:
    path = next(out.glob("masks/*/wall/*.png"))
    with Image.open(path) as mask:
        size = mask.size
    Image.new("L", size).save(path)


def _change_crop(out: Path) -> None:
    path = next(out.glob("crops/*/wall/*/*_noisy.npz"))
    packed = np.load(path)["packed"]
    packed[0, 0, 0] += 1e-3
    np.savez(path, packed=packed)


def _remove_crop(out: Path) -> None:
    next(out.glob("crops/*/wall/*/*_noisy.npz")).unlink()


def _cut_table(out: Path) -> None:
    path = out / "manifest.parquet"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_swap_sign, "not inside its frame|not what the frame has there"),
        (_leave_lattice, "not on the lattice"),
        (_change_sha1, "another sha1"),
        (_good_mask, "the mask has"),
        (_change_crop, "is not what the frame has there"),
        (_remove_crop, "_noisy.npz"),
        (_cut_table, "no Parquet file"),
    ],
)
def test_verify_finds_what_is_wrong(copy: Path, damage: Any, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(copy) == 0
    damage(copy)
    capsys.readouterr()
    assert verify(copy) == 1, "what verified once is looked at again"
    said = capsys.readouterr().err
    assert any(part in said for part in problem.split("|")), said


def test_verify_says_when_the_dataset_has_gone(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(copy, "--dataset", str(tmp_path / "nowhere")) == 1
    assert "--dataset" in capsys.readouterr().err
