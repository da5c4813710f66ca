"""Triplets as tensors: normalisation, the offset of newer products, and everything that is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from safelight.core.errors import InputError
from safelight.pipelines.decloud.patches import middle, read_patch
from safelight.pipelines.decloud.radiometry import declared_offset, normalise_optical, normalise_sar
from safelight.pipelines.decloud.triplets import Triplet
from sentinel import backscatter, clouded, ground, header, write_optical, write_sar

SIZE = (48, 48)


def triplet(folder: Path, sar: Any = None, clear: Any = None, cloudy: Any = None, **cloudy_header: Any) -> Triplet:
    numbers = ground(SIZE)
    return Triplet(
        "x",
        "test",
        None,
        write_sar(folder / "s1.tif", backscatter(SIZE) if sar is None else sar),
        write_optical(folder / "s2.tif", numbers if clear is None else clear),
        write_optical(folder / "cloudy.tif", clouded(numbers) if cloudy is None else cloudy, **cloudy_header),
    )


def test_decibels_are_clipped_at_a_floor_of_each_polarisation() -> None:
    decibels = np.array([[[-30.0, -25.0, -10.0, 5.0]], [[-40.0, -32.5, -13.0, 5.0]]], np.float32)
    expected = torch.tensor([[[0, 0, 0.6, 1]], [[0, 0, 0.6, 1]]])
    torch.testing.assert_close(normalise_sar(decibels), expected)


def test_gaps_take_the_mean_of_both_polarisations_before_normalisation() -> None:
    decibels = np.array([[[-10.0, np.nan]], [[-20.0, np.nan]]], np.float32)
    mean = -15.0
    torch.testing.assert_close(normalise_sar(decibels)[:, 0, 1], torch.tensor([(mean + 25) / 25, (mean + 32.5) / 32.5]))


def test_numbers_become_reflectances() -> None:
    numbers = np.array([0, 1000, 6000, 12000], np.uint16)
    torch.testing.assert_close(normalise_optical(numbers), torch.tensor([0, 0.1, 0.6, 1.0]))
    torch.testing.assert_close(normalise_optical(numbers, 1000), torch.tensor([0, 0, 0.5, 1.0]))


@pytest.mark.parametrize(
    ("name", "changes", "offset"),
    [
        ("a.tif", {}, 0),
        ("a.tif", {"tags": {"PROCESSING_BASELINE": "03.01"}}, 0),
        ("a.tif", {"tags": {"PROCESSING_BASELINE": "04.00"}}, 1000),
        ("a.tif", {"tags": {"PROCESSING_BASELINE": "soon"}}, 0),
        ("a.tif", {"tags": {"RADIO_ADD_OFFSET_0": "-1000"}}, 1000),
        ("a.tif", {"tags": {"PRODUCT_URI": "S2A_MSIL1C_20230101T1_N0509_R008.SAFE"}}, 1000),
        ("S2A_MSIL1C_20230101T105441_N0400_R051_T31UFS.tif", {}, 1000),
        ("S2A_MSIL1C_20200101T105441_N0208_R051_T31UFS.tif", {}, 0),
        ("a.tif", {"offsets": (-0.1,) * 13, "scales": (0.0001,) * 13}, 1000),
    ],
)
def test_the_metadata_say_what_was_added(name: str, changes: dict[str, Any], offset: int) -> None:
    assert declared_offset(Path(name), header(13, SIZE, np.uint16, **changes)) == offset


def test_the_offset_of_newer_products_is_taken_away_once(tmp_path: Path) -> None:
    tags = {"PROCESSING_BASELINE": "04.00"}
    numbers = clouded(ground(SIZE))
    plain = read_patch(triplet(tmp_path / "a"), 48)
    added = read_patch(triplet(tmp_path / "b", cloudy=numbers + np.uint16(1000), tags=tags), 48)
    harmonised = read_patch(triplet(tmp_path / "c", cloudy=numbers, tags=tags), 48)
    for patch in (added, harmonised):
        torch.testing.assert_close(patch.cloudy, plain.cloudy, rtol=0, atol=1e-7)
        torch.testing.assert_close(patch.reflectance, plain.reflectance, rtol=0, atol=1e-7)
    assert (plain.harmonised, added.harmonised, harmonised.harmonised) == ((), ("cloudy.tif",), ())
    assert (plain.already, added.already, harmonised.already) == ((), (), ("cloudy.tif",))


def bad_names(folder: Path) -> Triplet:
    made = triplet(folder)
    write_sar(made.sar, backscatter(SIZE), names=("VH", "VV"))
    return made


def other_grid(folder: Path) -> Triplet:
    made = triplet(folder)
    write_sar(made.sar, backscatter((48, 64)))
    return made


def shifted(folder: Path) -> Triplet:
    made = triplet(folder)
    grid = header(2, SIZE, np.float32).grid
    a, b, x, d, e, y = grid.transform
    write_sar(made.sar, backscatter(SIZE), grid=type(grid)(grid.crs, (a, b, x + 10, d, e, y), 48, 48))
    return made


def corrupt(folder: Path) -> Triplet:
    made = triplet(folder)
    made.clear.write_bytes(made.clear.read_bytes()[:600])
    return made


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda f: triplet(f, cloudy=ground(SIZE)[:12]), r"cloudy\.tif: it has 12 bands, as Sentinel-2 L2A.*B10"),
        (lambda f: triplet(f, clear=ground(SIZE)[:4]), r"s2\.tif: it has 4 band"),
        (lambda f: triplet(f, cloudy=(ground(SIZE) / 1e4).astype(np.float32)), r"cloudy\.tif: its pixels are float32"),
        (lambda f: triplet(f, sar=backscatter(SIZE)[:1]), r"s1\.tif: it has 1 band"),
        (lambda f: triplet(f, sar=10 ** (backscatter(SIZE) / 10)), r"s1\.tif: 100 % .* linear power"),
        (lambda f: triplet(f, sar=backscatter(SIZE)[::-1].copy()), r"s1\.tif: its polarisations are reversed"),
        (bad_names, r"s1\.tif: its polarisations are reversed"),
        (other_grid, r"s1\.tif: it lies on another grid than cloudy\.tif"),
        (shifted, r"s1\.tif: it lies on another grid than cloudy\.tif"),
        (corrupt, r"s2\.tif"),
    ],
)
def test_bad_input_is_refused_with_the_file_and_the_reason(tmp_path: Path, make: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        read_patch(make(tmp_path), 48)


def test_a_patch_smaller_than_the_crop_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"48×48 pixels.*at least 64×64"):
        read_patch(triplet(tmp_path), 64)


def test_the_middle_of_256_is_64_to_192() -> None:
    image = torch.arange(256 * 256).view(1, 256, 256)
    assert torch.equal(middle(image, 128), image[:, 64:192, 64:192])
