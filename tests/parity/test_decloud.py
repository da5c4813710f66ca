"""GLF-CR beside values of the original: the whole network, one layer, the filter, the metrics, data and masks."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from safelight.formats.geotiff import Raster
from safelight.kernels.dynamic_filter import dynamic_filter
from safelight.kernels.metrics import psnr
from safelight.pipelines.decloud.clouds import cloud_mask
from safelight.pipelines.decloud.network import GLFCR, Architecture, shift_regions
from safelight.pipelines.decloud.patches import Patch, middle, read_patch
from safelight.pipelines.decloud.scores import score, structural_similarity
from safelight.pipelines.decloud.triplets import read_data_set

TOLERANCE = 5e-6


@pytest.fixture(scope="module")
def pack(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "parity" / "decloud" / "golden.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def network(shared: Path) -> GLFCR:
    recipe = runpy.run_path(str(shared / "parity" / "decloud" / "recipe.py"))
    made = GLFCR(Architecture()).eval()
    made.load_state_dict(recipe["recipe_state_dict"](made.state_dict()))
    return made


def tensors(pack: dict[str, np.ndarray], *names: str) -> list[Tensor]:
    return [torch.from_numpy(pack[name]) for name in names]


def test_the_state_dict_is_that_of_published_checkpoints(shared: Path, network: GLFCR) -> None:
    listed = (shared / "parity" / "decloud" / "state_dict_keys.txt").read_text().splitlines()
    ours = [f"{name}\t{tuple(t.shape)}\t{t.dtype}" for name, t in network.state_dict().items()]
    assert ours == [line.rstrip() for line in listed]
    assert sum(parameter.numel() for parameter in network.parameters()) == 14_827_373


@torch.no_grad()
def test_the_network_gives_the_original_s_result(pack: dict[str, np.ndarray], network: GLFCR) -> None:
    cloudy, sar, expected = tensors(pack, "net64_cloudy", "net64_sar", "net64_out")
    assert (network(cloudy, sar) - expected).abs().max() <= TOLERANCE


@torch.no_grad()
def test_a_layer_gives_the_original_s_result_in_double_precision(pack: dict[str, np.ndarray], network: GLFCR) -> None:
    layer = network.RDBs[0].convs[1].double()
    x, x_sar, *expected = tensors(pack, "rdbconv_in", "rdbconv_in_sar", "rdbconv_out", "rdbconv_out_sar")
    found = layer(x, x_sar, shift_regions(16, 16, x.device))
    layer.float()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [3, 5])
def test_the_filter_and_its_gradients(pack: dict[str, np.ndarray], size: int) -> None:
    x, k, g, y, dx, dk = tensors(pack, *(f"fac{size}_{part}" for part in ("x", "k", "g", "y", "dx", "dk")))
    x.requires_grad_()
    k.requires_grad_()
    ours = dynamic_filter(nn.functional.pad(x, (size // 2,) * 4, mode="replicate"), k)
    ours.backward(g)
    for found, expected in ((ours, y), (x.grad, dx), (k.grad, dk)):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "stem"),
    [("ROIs2017winter", "ROIs2017_winter_112_p797"), ("ROIs1868summer", "ROIs1868_summer_s2_cloudy_19_p30")],
)
def test_cloud_and_shadow_masks(shared: Path, pack: dict[str, np.ndarray], name: str, stem: str) -> None:
    with Raster(shared / "data" / "sen12mscr" / "s2_cloudy" / f"{stem}.tif") as raster:
        reflectance = torch.from_numpy(raster.read_all().astype(np.float32)) / 10_000
    assert np.array_equal(cloud_mask(reflectance, 0.2).numpy(), pack[f"mask_{name}"])


@pytest.fixture(scope="module")
def winter(shared: Path) -> Patch:
    (triplet,) = read_data_set(shared / "data" / "sen12mscr", None).triplets
    return read_patch(triplet, 256)


def test_what_the_network_sees_of_the_winter_patch(pack: dict[str, np.ndarray], winter: Patch) -> None:
    sums = [image.double().sum().item() for image in (winter.sar, winter.cloudy, winter.clear)]
    pixels = [winter.sar[0, 100, 17].item(), winter.sar[1, 3, 250].item(), winter.cloudy[7, 128, 128].item()]
    np.testing.assert_allclose([*sums, *pixels], pack["dl_ROIs2017winter_sums"], rtol=1e-6)


@torch.no_grad()
def test_the_prediction_for_the_winter_patch(pack: dict[str, np.ndarray], winter: Patch, network: GLFCR) -> None:
    cloudy, sar = middle(winter.cloudy, 128)[None], middle(winter.sar, 128)[None]
    expected = torch.from_numpy(pack["winter112_centre128_pred"])
    assert (network(cloudy, sar) - expected).abs().max() <= TOLERANCE


@torch.no_grad()
def test_mixed_precision_is_within_50_db(winter: Patch, network: GLFCR) -> None:
    cloudy, sar = middle(winter.cloudy, 64)[None], middle(winter.sar, 64)[None]
    exact = network(cloudy, sar)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = network(cloudy, sar).float()
    assert mixed.isfinite().all()
    assert psnr(mixed, exact, exact.amax() - exact.amin()) >= 50


def test_metrics_have_the_original_s_values(pack: dict[str, np.ndarray]) -> None:
    a, b, mask = tensors(pack, "met_a", "met_b", "met_mask")
    whole, masked, ssim = pack["met_vals"]
    joined, reference = (image.transpose(0, 1).flatten(1, 2) for image in (a, b))  # the original pools the batch
    found = score(joined, reference, mask.flatten(0, 2))
    assert found["psnr"] == pytest.approx(whole, abs=1e-5)
    assert found["psnr_cloudy"] == pytest.approx(masked, abs=1e-4)
    assert structural_similarity(a.double(), b.double(), 5.5) == pytest.approx(ssim, abs=1e-6)


@pytest.mark.parametrize(
    ("side", "psnr_ssim"), [(128, (19.4415, 0.709998)), (256, (20.4007, 0.728851))], ids=["centre", "whole"]
)
def test_the_cloudy_winter_patch_itself(winter: Patch, side: int, psnr_ssim: tuple[float, float]) -> None:
    cloudy, clear = middle(winter.cloudy, side), middle(winter.clear, side)
    found = score(cloudy, clear, torch.zeros(side, side))
    assert (found["psnr"], found["ssim"]) == pytest.approx(psnr_ssim, abs=5e-5)
    if side == 128:
        assert found["ssim_centred"] == pytest.approx(0.709680, abs=1e-6)
        assert found["mae"] == pytest.approx(0.080643, abs=1e-6)
        assert found["sam"] == pytest.approx(21.721, abs=1e-3)
