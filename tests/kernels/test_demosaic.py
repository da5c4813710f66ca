"""Demosaicing: each colour from its own sites, whatever the pattern."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safelight.kernels.demosaic import HALO, Pattern, demosaic, flipped, shifted, sites

PATTERNS: tuple[Pattern, ...] = ("RGGB", "BGGR", "GRBG", "GBRG")


def mosaic_of(colours: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Sample each pixel's own colour, as a sensor does."""
    return (colours * sites(pattern, *colours.shape[1:])).sum(0)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_linear_gradient_of_each_colour_comes_back(pattern: Pattern) -> None:
    y, x = torch.meshgrid(torch.arange(10.0), torch.arange(12.0), indexing="ij")
    colours = torch.stack([100 + 3 * y + x, 50 - y + 2 * x, 10 + y + y])
    result = demosaic(mosaic_of(colours, pattern), pattern)
    torch.testing.assert_close(result[:, 1:-1, 1:-1], colours[:, 1:-1, 1:-1])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_flat_colours_stay_flat_up_to_the_edge_and_beside_holes(pattern: Pattern) -> None:
    colours = torch.tensor([100.0, 200.0, 50.0])[:, None, None].expand(3, 7, 9)
    mosaic = mosaic_of(colours, pattern)
    mosaic[3, 4] = torch.nan
    result = demosaic(mosaic, pattern)
    assert result[:, 3, 4].isnan().all()
    result[:, 3, 4] = colours[:, 3, 4]
    torch.testing.assert_close(result, colours.contiguous())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_measured_values_are_kept_to_the_bit(pattern: Pattern) -> None:
    mosaic = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    kept = (demosaic(mosaic, pattern) * sites(pattern, 8, 8)).sum(0)
    torch.testing.assert_close(kept, mosaic, rtol=0, atol=0)


@pytest.mark.parametrize("pixels", [1, 90])
def test_blocks_of_any_size_give_the_same_bits(pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mosaic = 100 + torch.rand((13, 20), generator=torch.Generator().manual_seed(0))
    mosaic[6, 7] = mosaic[7, 3] = torch.nan
    whole = demosaic(mosaic, "GRBG")
    monkeypatch.setattr("safelight.kernels.demosaic.BLOCK_PIXELS", pixels)
    torch.testing.assert_close(demosaic(mosaic, "GRBG"), whole, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("rows", [8, 9])
def test_a_flipped_image_has_the_flipped_pattern(pattern: Pattern, rows: int) -> None:
    mosaic = torch.rand(rows, 10, generator=torch.Generator().manual_seed(1))
    upright = demosaic(mosaic, pattern)
    torch.testing.assert_close(demosaic(mosaic.flip(0), flipped(pattern, rows)).flip(1), upright)


@given(st.sampled_from(PATTERNS), st.integers(0, 3), st.integers(0, 3))
def test_a_crop_has_the_shifted_pattern(pattern: Pattern, down: int, right: int) -> None:
    mosaic = torch.rand(12, 12, generator=torch.Generator().manual_seed(2))
    part = demosaic(mosaic[down:, right:], shifted(pattern, down, right))
    inside = demosaic(mosaic, pattern)[:, down:, right:]
    torch.testing.assert_close(part[:, HALO:, HALO:], inside[:, HALO:, HALO:], rtol=0, atol=1e-6)


def test_an_unknown_pattern_is_no_pattern() -> None:
    with pytest.raises(ValueError, match="RGBG"):
        shifted("RGBG", 0, 0)  # type: ignore[arg-type]
