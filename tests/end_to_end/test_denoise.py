"""What a microscopist types, with good and with bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile

from prompt import Answer, prompt
from safelight.formats.microscopy import open_image


def noisy(*shape: int, seed: int = 0) -> np.ndarray:
    """Blurred blobs with Gaussian noise, uint16."""
    generator = np.random.default_rng(seed)
    y, x = np.indices(shape[-2:])
    clean = 300 + 200 * np.sin(y / 7) * np.cos(x / 9)
    return (clean + generator.normal(0, 40, shape)).clip(0, 65535).astype(np.uint16)


def denoise(folder: Path, *arguments: str) -> Answer:
    return prompt(folder, "denoise", *arguments)


def test_run_then_predict_then_export(tmp_path: Path) -> None:
    image, clean = noisy(2, 72, 60), noisy(2, 72, 60, seed=1)
    tifffile.imwrite(tmp_path / "a.tif", image, imagej=True, metadata={"axes": "TYX", "spacing": 0.5, "unit": "um"})
    tifffile.imwrite(tmp_path / "clean.tif", clean, imagej=True, metadata={"axes": "TYX"})
    before = (tmp_path / "a.tif").read_bytes()

    done = denoise(tmp_path, "run", "a.tif", "--steps", "20", "--features", "8", "--clean", "clean.tif", "--out", "o")
    assert done.status == 0, done.said
    with open_image(tmp_path / "o" / "a.tif") as result, open_image(tmp_path / "a.tif") as source:
        assert (result.shape, result.axes, result.dtype) == ((2, 72, 60), "TYX", np.float32)
        assert result.pixel_size == source.pixel_size
        whole = result.read()
    assert 100 < whole.mean() < 500, "the result is in the input's units"
    assert whole.std() < image.std()
    record = json.loads((tmp_path / "o" / "run.json").read_text())
    assert record["items"][0]["metrics"]["gaussian_psnr"] > record["items"][0]["metrics"]["input_psnr"]
    assert (tmp_path / "o" / "report.html").stat().st_size > 10_000

    again = denoise(tmp_path, "predict", "a.tif", "--model", "o", "--out", "p", "--tile-size", "56", "--dtype", "input")
    assert again.status == 0, again.said
    with open_image(tmp_path / "p" / "a.tif") as tiled:
        assert tiled.dtype == np.uint16
        np.testing.assert_allclose(tiled.read(), whole, atol=0.51)

    exported = denoise(tmp_path, "export", "o", "--out", "e", "--formats", "onnx")
    assert exported.status == 0, exported.said
    assert (tmp_path / "e" / "model.onnx").exists()
    assert (tmp_path / "a.tif").read_bytes() == before


def without_numbers(text: str) -> str:
    """Numbers and what is in brackets differ from machine to machine."""
    return re.sub(r"\(.*?\)", "()", re.sub(r"[0-9]+(\.[0-9]+)?", "0", text))


def test_the_readme_quotes_what_a_run_prints(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (quoted,) = re.findall(r"^\$ safelight denoise (run .*?)```", readme, re.DOTALL | re.MULTILINE)
    command, *lines = quoted.splitlines()
    tifffile.imwrite(tmp_path / "cells.tif", noisy(64, 64))
    done = denoise(tmp_path, *command.replace("10min", "1s").split(), "--features", "4")
    for line in lines:
        if line != "...":
            assert without_numbers(line) in without_numbers(done.said).splitlines()


def test_a_second_run_does_nothing_again(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noisy(64, 64))
    first = denoise(tmp_path, "run", "a.tif", "--steps", "3", "--out", "o")
    result = (tmp_path / "o" / "a.tif").read_bytes()
    second = denoise(tmp_path, "run", "a.tif", "--steps", "3", "--out", "o")
    assert (first.status, second.status) == (0, 0)
    assert "Already done: a" in second.said
    assert (tmp_path / "o" / "a.tif").read_bytes() == result


def test_a_folder_with_bad_files_gets_the_good_ones_done(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    tifffile.imwrite(folder / "good.tif", noisy(64, 64))
    tifffile.imwrite(folder / "other.tif", noisy(50, 70))
    tifffile.imwrite(folder / "tiny.tif", noisy(5, 5))
    np.save(folder / "which.npy", noisy(3, 64, 64))
    (folder / "notes.txt").write_text("hello")
    (folder / "junk.tif").write_bytes(b"II*\0junk")
    tifffile.imwrite(folder / "damaged.tif", noisy(64, 64), compression="zlib")
    whole = bytearray((folder / "damaged.tif").read_bytes())
    whole[300:340] = bytes(40)
    (folder / "damaged.tif").write_bytes(whole)
    done = denoise(tmp_path, "run", "in", "--steps", "3", "--out", "o")
    assert done.status == 1
    for name in ("tiny.tif", "which.npy", "notes.txt", "junk.tif", "damaged.tif"):
        assert name in done.said
    assert {path.name for path in (tmp_path / "o").glob("*.tif")} == {"good.tif", "other.tif"}


@pytest.mark.parametrize(
    ("make", "arguments", "expected"),
    [
        (None, ["run", "missing.tif"], "missing.tif: does not exist"),
        (lambda: np.full((64, 64), 7, np.uint16), ["run", "a.tif"], "the images are constant"),
        (lambda: np.full((64, 64), np.nan, np.float32), ["run", "a.tif"], "the images are constant"),
        (lambda: noisy(64, 64), ["run", "a.tif", "--axes", "QX"], "--axes QX"),
        (lambda: noisy(64, 64), ["run", "a.tif", "--axes", "TZ"], "lack Y or X"),
        (lambda: noisy(64, 64), ["run", "a.tif", "--patch-size", "128"], "smaller than a training patch"),
        (lambda: noisy(64, 64), ["run", "a.tif", "--out", "a.tif/below"], "a part of the path is a file"),
        (lambda: noisy(64, 64), ["run", "a.tif", "--out", "a.tif"], "the result would replace the input"),
        (lambda: noisy(64, 64), ["predict", "a.tif", "--model", "nowhere"], "nowhere: there is no trained model"),
        (lambda: noisy(64, 64), ["predict", "a.tif", "--model", "a.tif"], "no usable denoising model"),
        (lambda: noisy(64, 64), ["run", "a.tif", "--device", "tpu"], "--device tpu"),
        (lambda: noisy(64, 64), ["run", "a.tif", "--time-budget", "soon"], "not a duration"),
        (lambda: noisy(64, 64), ["run", "a.tif", "--structure", "0110"], "--structure 0110: a structural mask has odd"),
        (lambda: noisy(64, 64), ["run", "a.tif", "--clean", "none.tif"], "none.tif: does not exist"),
        (lambda: noisy(64, 64), ["run", "a.tif", "--memory-limit", "9MiB"], "does not fit, even in parts of one"),
    ],
)
def test_bad_input_gets_one_clear_error(tmp_path: Path, make: object, arguments: list[str], expected: str) -> None:
    if callable(make):
        tifffile.imwrite(tmp_path / "a.tif", make())
    done = denoise(tmp_path, *arguments, "--quiet")
    assert done.status != 0
    assert expected in done.said
    assert len([line for line in done.said.splitlines() if line.startswith("safelight:")]) == 1


def test_what_is_odd_about_channels_and_brightness_is_said(tmp_path: Path) -> None:
    plane = noisy(64, 64)
    flat = np.full_like(plane, 9)
    tifffile.imwrite(tmp_path / "a.tif", np.stack((plane, plane, flat)), imagej=True, metadata={"axes": "CYX"})
    tifffile.imwrite(
        tmp_path / "b.tif",
        (np.stack((plane, plane, flat)) / 900).astype(np.float32),
        imagej=True,
        metadata={"axes": "CYX"},
    )
    first = denoise(tmp_path, "run", "a.tif", "--steps", "3", "--features", "4", "--out", "o")
    assert first.status == 0, first.said
    for sentence in ("3 channels, each denoised by itself", "Channels 3 hold one value only", "hold the same image"):
        assert sentence in first.said
    assert "far from those the model was trained on" not in first.said
    other = denoise(tmp_path, "predict", "b.tif", "--model", "o", "--out", "p")
    assert "b_channel1: its pixels (mean 0.3" in other.said
    assert "far from those the model was trained on" in other.said


def test_missing_pixels_stay_missing(tmp_path: Path) -> None:
    image = noisy(64, 64).astype(np.float32)
    image[10, 20], image[30, 40] = np.nan, np.inf
    tifffile.imwrite(tmp_path / "a.tif", image)
    done = denoise(tmp_path, "run", "a.tif", "--steps", "3", "--out", "o")
    assert done.status == 0, done.said
    with open_image(tmp_path / "o" / "a.tif") as result:
        np.testing.assert_array_equal(result.read()[~np.isfinite(image)], image[~np.isfinite(image)])


def test_a_plan_is_printed_and_nothing_is_written(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noisy(64, 64))
    done = denoise(tmp_path, "run", "a.tif", "--dry-run")
    assert done.status == 0, done.said
    assert "Plan: training" in done.said
    assert "unet2d" in done.said
    assert {path.name for path in tmp_path.iterdir()} <= {"a.tif", "cache"}


def test_a_plan_of_several_images_has_one_training_on_all_of_them(tmp_path: Path) -> None:
    def planned_mib(*arguments: str) -> float:
        said = denoise(tmp_path, "run", *arguments, "--dry-run").said
        (line,) = (line for line in said.splitlines() if "Plan: training" in line)
        return float(re.findall(r"needs ([0-9.]+) MiB", line)[0])

    for name in "abc":
        tifffile.imwrite(tmp_path / f"{name}.tif", noisy(500, 500))
    two_more = 2 * 500**2 * 4 / 2**20
    assert planned_mib("a.tif", "b.tif", "c.tif") == pytest.approx(planned_mib("a.tif") + two_more, abs=0.2)


def test_several_inputs_are_what_a_shell_makes_of_a_glob(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "unlike"):
        tifffile.imwrite(tmp_path / "in" / f"{name}.tif", noisy(64, 64))
    done = denoise(tmp_path, "run", "in/a.tif", "in/b.tif", "./in/a.tif", "in/none.tif", "--steps", "3")
    assert done.status == 1
    assert "Left out none.tif: in/none.tif: does not exist" in done.said
    assert {path.name for path in tmp_path.glob("in_denoised/*.tif")} == {"a.tif", "b.tif"}
    again = denoise(tmp_path, "run", "in/[ab].tif", "--out", "in_denoised", "--steps", "3")
    assert again.said.count("Already done") == 2


def test_one_file_s_result_is_written_in_every_format_that_is_asked_for(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noisy(64, 64))
    assert denoise(tmp_path, "train", "a.tif", "--steps", "3", "--features", "4", "--out", "m").status == 0
    for name in ("o.tif", "o.ome.zarr"):
        assert denoise(tmp_path, "predict", "a.tif", "--model", "m", "--out", name).status == 0
        assert (tmp_path / name).exists()
    refused = denoise(tmp_path, "predict", "a.tif", "--model", "m", "--out", "o.jpg")
    assert refused.status == 2
    assert "--out o.jpg: .jpg cannot be written; it can be .tif" in refused.said


@pytest.mark.slow
def test_a_compiled_network_trains_and_denoises(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noisy(64, 64))
    done = denoise(tmp_path, "run", "a.tif", "--steps", "3", "--features", "8", "--compile", "--out", "o")
    assert done.status == 0, done.said
    assert "graphs" in json.loads((tmp_path / "o" / "run.json").read_text())["device"]["compile"]
