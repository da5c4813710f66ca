"""What a remote-sensing analyst types, with good and with bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from prompt import prompt
from safelight.formats.geotiff import Raster
from safelight.pipelines.decloud.model import CloudModel
from safelight.pipelines.decloud.network import GLFCR, Architecture
from sentinel import backscatter, clouded, ground, write_optical, write_sar, write_triplet

TINY = Architecture(features=8, growth=8, stages=1, layers=2)


def decloud(folder: Path, *arguments: str, status: int = 0) -> str:
    """Type a command, and return what is said."""
    done = prompt(folder, "decloud", *arguments)
    assert done.status == status, done.said
    return done.said


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CloudModel(TINY, GLFCR(TINY).state_dict()).save(tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def test_a_data_set_is_scored_and_its_bad_images_are_named(tmp_path: Path, weights: Path) -> None:
    data = tmp_path / "data"
    for seed, name in enumerate(("a.tif", "b.tif", "c.tif")):
        write_triplet(data, name, seed=seed)
    (data / "s1" / "c.tif").write_bytes(b"II*\0 damaged")
    lines = [f"3,s1,s2,s2_cloudy,{name}" for name in ("a.tif", "b.tif", "c.tif", "d.tif", "../../e.tif")]
    (data / "data.csv").write_text("\n".join(lines))
    arguments = ["test", "--data", "data", "--weights", weights.name, "--crop-size", "48", "--model-name", "m 1"]
    said = decloud(tmp_path, *arguments, "--notes", "first", status=1)
    for name in ("c.tif: it cannot be read", "d.tif: there is no such file", "leads out of the folder"):
        assert name in said
    assert "a: PSNR" in said

    record = json.loads((tmp_path / "decloud_test" / "run.json").read_text())
    assert [item["name"] for item in record["items"]] == ["a", "b"]
    assert [entry["name"] for entry in record["failed"]] == ["c"]
    metrics = [item["metrics"] for item in record["items"]]
    for name in ("psnr", "ssim", "ssim_centred", "mae", "sam", "psnr_cloudy", "psnr_clear"):
        mean = sum(found[name] for found in metrics) / 2
        assert record["averages"][f"avg_{name}"] == pytest.approx(mean)
        assert f"avg_identity_{name}" in record["averages"]
    assert set(record["items"][0]["details"]["bands"]) >= {"B1", "B8A", "B12"}
    assert (tmp_path / "decloud_test" / "report.html").stat().st_size > 10_000
    assert len(list((tmp_path / "decloud_test" / "pictures").glob("*.png"))) == 6
    with (tmp_path / "results" / "results_summary.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["model_name"], row["notes"]) == ("m 1", "first")
    assert float(row["avg_psnr"]) == pytest.approx(record["averages"]["avg_psnr"])
    assert (row["num_images"], float(row["avg_ssim"])) == ("2", pytest.approx(record["averages"]["avg_ssim"]))
    (own,) = (tmp_path / "results").glob("result_m_1_*.json")
    entry = json.loads(own.read_text())
    assert entry.keys() >= {"timestamp", "model_name", "notes", "avg_psnr", "avg_ssim", "by_band", "by_cloud_cover"}
    assert entry["num_test_images"] == 2
    assert entry["results_per_image"] == [
        {"image": item["name"], "psnr": item["metrics"]["psnr"], "ssim": item["metrics"]["ssim"]}
        for item in record["items"]
    ]


def test_operations_are_counted_on_request(tmp_path: Path, weights: Path) -> None:
    write_triplet(tmp_path / "data", "ROIs1_spring_9_p1.tif")
    (tmp_path / "data" / "data.csv").write_text("1,s1,s2,s2_cloudy,ROIs1_spring_9_p1.tif")
    arguments = ["test", "--data", "data", "--weights", weights.name, "--crop-size", "32"]
    said = decloud(tmp_path, *arguments, "--profile")
    assert "GLF-CR: " in said
    assert " GFLOP, " in said
    assert "No image of the data set is in the split test" in said
    assert "Already done" in decloud(tmp_path, *arguments)


def test_train_then_predict_a_scene(tmp_path: Path) -> None:
    for seed, name in enumerate(("a.tif", "b.tif")):
        write_triplet(tmp_path / "data", name, (48, 48), seed)
    (tmp_path / "data" / "data.csv").write_text("1,s1,s2,s2_cloudy,a.tif\n2,s1,s2,s2_cloudy,b.tif\n")
    small = ("--features", "8", "--growth", "8", "--stages", "1", "--layers", "2")
    arguments = ["train", "--data", "data", "--out", "model", "--crop-size", "32", *small]
    first = decloud(tmp_path, *arguments, "--epochs", "1")
    assert "Epoch 1 of 1: L1" in first
    longer = decloud(tmp_path, *arguments, "--epochs", "2")
    assert "Epoch 2 of 2: L1" in longer
    assert "Epoch 1 of 2: L1" not in longer, "it goes on where it was"
    assert "training glf-cr" in decloud(tmp_path, *arguments, "--dry-run")

    numbers = clouded(ground((100, 140)))
    write_optical(tmp_path / "s2.tif", numbers)
    write_sar(tmp_path / "s1.tif", backscatter((100, 140)))
    scene = ("--s2", "s2.tif", "--s1", "s1.tif", "--weights", "model/model.safetensors", "--out", "clear.tif")
    said = decloud(tmp_path, "predict", *scene, "--keep-clear", "--tile-size", "64", "--margin", "16")
    assert "tiles of 64 pixels" in said
    with Raster(tmp_path / "clear.tif") as result:
        assert result.read_all().shape == numbers.shape
    assert (tmp_path / "clear_run" / "report.html").exists()


def test_scenes_split_between_training_and_validation_are_refused(tmp_path: Path) -> None:
    names = ("ROIs1158_spring_1_p1.tif", "ROIs1158_spring_1_p2.tif")
    for name in names:
        write_triplet(tmp_path / "data", name, (32, 32))
    (tmp_path / "data" / "data.csv").write_text(f"1,s1,s2,s2_cloudy,{names[0]}\n2,s1,s2,s2_cloudy,{names[1]}\n")
    said = decloud(tmp_path, "train", "--data", "data", "--quiet", status=1)
    assert "spring 1 in train and val" in said


def test_a_checkpoint_is_converted(tmp_path: Path) -> None:
    state = GLFCR(Architecture()).state_dict()
    torch.save({"network": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "net.pth")
    decloud(tmp_path, "convert", "net.pth", "w.safetensors")
    model = CloudModel.load(tmp_path / "w.safetensors")
    assert torch.equal(model.weights["GFF.0.weight"], state["GFF.0.weight"])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["convert", "none.pth", "w2.safetensors"], "none.pth: there is no such file of weights"),
        (["convert", "w.safetensors", "w.pth"], "models are .safetensors files"),
        (["predict", "--s2", "none.tif", "--s1", "s1.tif", "--weights", "w.safetensors", "--out", "c.tif"], "none.tif"),
        (["test", "--data", "none", "--weights", "w.safetensors"], "none: there is no such folder"),
        (["test", "--data", ".", "--weights", "w.safetensors", "--crop-size", "100"], "--crop-size"),
        (["test", "--data", ".", "--weights", "w.safetensors"], "nothing usable was found"),
    ],
)
def test_bad_arguments_get_one_clear_error(tmp_path: Path, weights: Path, arguments: list[str], problem: str) -> None:
    said = decloud(tmp_path, *arguments, "--quiet", status=2 if "--crop-size" in problem or ".saf" in problem else 1)
    assert problem in said
    assert len([line for line in said.splitlines() if line.startswith("safelight:")]) == 1
