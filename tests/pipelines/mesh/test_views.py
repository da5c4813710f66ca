"""Photographs of any kind become what the networks were trained with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from safelight.core.errors import InputError
from safelight.pipelines.mesh.views import read_view, resize


def test_the_references_photographs_to_the_last_bit(shared: Path) -> None:
    with np.load(shared / "parity" / "mesh" / "reference_outputs.npz") as arrays:
        expected = arrays["img_tf_u8"]
    views = [read_view(shared / "data" / "mesh_demo" / f"plane{number}.png") for number in (1, 2, 3)]
    np.testing.assert_array_equal(np.stack([view.pixels for view in views]), expected)


@pytest.mark.parametrize("side", [97, 137, 224, 448])
def test_resizing_is_bilinear(side: int) -> None:
    rng = np.random.default_rng(side)
    image = rng.integers(0, 256, (side, side + 9, 3), np.uint8)
    float_image = np.pad(image.astype(float), ((1, 1), (1, 1), (0, 0)), mode="edge")
    y, x = (np.clip((np.arange(224) + 0.5) * size / 224 - 0.5, 0, size - 1) + 1 for size in image.shape[:2])
    y0, x0 = y.astype(int), x.astype(int)
    wy, wx = (y - y0)[:, None, None], (x - x0)[:, None]
    across = [float_image[rows][:, x0] * (1 - wx) + float_image[rows][:, x0 + 1] * wx for rows in (y0, y0 + 1)]
    exact = across[0] * (1 - wy) + across[1] * wy
    assert np.abs(resize(image) - exact).max() <= 1.01, "whole numbers differ by one level at most"


def test_opacity_that_is_full_everywhere_says_nothing(tmp_path: Path) -> None:
    grey = np.full((60, 80), 255, np.uint8)
    grey[20:40, 30:50] = 90
    Image.fromarray(grey).convert("RGBA").save(tmp_path / "a.png")
    view = read_view(tmp_path / "a.png")
    assert not view.transparent
    np.testing.assert_array_equal(view.silhouette, grey < 255)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_every_kind_of_picture(tmp_path: Path, mode: str) -> None:
    grey = np.full((60, 80), 255, np.uint8)
    grey[20:40, 30:50] = 90
    picture = Image.fromarray(grey).convert("RGB")
    if mode in ("RGBA", "LA"):
        picture.putalpha(Image.fromarray(np.where(grey < 255, 255, 0).astype(np.uint8)))
    picture.convert(mode).save(tmp_path / "a.png")
    view = read_view(tmp_path / "a.png")
    assert view.transparent == (mode in ("RGBA", "LA"))
    np.testing.assert_array_equal(view.silhouette, grey < 255)
    assert (view.pixels[:, 0, 0] == 255).all()
    assert (np.abs(view.pixels[:, 112, 112].astype(int) - 90) <= 2).all(), "a palette has few greys"


def test_sixteen_bits_are_not_cut_off(tmp_path: Path) -> None:
    grey = np.full((60, 80), 65535, np.uint16)
    grey[20:40, 30:50] = 90 << 8
    Image.fromarray(grey).save(tmp_path / "a.png")
    view = read_view(tmp_path / "a.png")
    np.testing.assert_array_equal(view.silhouette, grey < 65535)
    assert (view.pixels[:, 112, 112] == 90).all()
    Image.fromarray(np.zeros((60, 80), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="no known white"):
        read_view(tmp_path / "a.tif")


def test_blending_is_pillows(tmp_path: Path) -> None:
    """Half-transparent pixels keep their colour as published; blended, they become lighter."""
    Image.new("RGBA", (224, 224), (0, 0, 100, 51)).save(tmp_path / "a.png")
    assert read_view(tmp_path / "a.png").pixels[:, 9, 9].tolist() == [100, 0, 0]
    assert read_view(tmp_path / "a.png", blend=True).pixels[:, 9, 9].tolist() == [224, 204, 204]


def test_blue_comes_first(tmp_path: Path) -> None:
    Image.new("RGB", (50, 50), (200, 100, 0)).save(tmp_path / "a.png")
    assert read_view(tmp_path / "a.png").pixels[:, 9, 9].tolist() == [0, 100, 200]


@pytest.mark.parametrize("colour", [(255, 255, 255), (9, 9, 9, 0)], ids=["white", "transparent"])
def test_a_picture_of_nothing_is_refused(tmp_path: Path, colour: tuple[int, ...]) -> None:
    Image.new("RGB" if len(colour) == 3 else "RGBA", (50, 50), colour).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="shows no object"):
        read_view(tmp_path / "a.png")


def test_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG no")
    for name, problem in (("a.png", "cannot be read as a picture"), ("b.png", "there is no such picture")):
        with pytest.raises(InputError, match=problem) as caught:
            read_view(tmp_path / name)
        assert caught.value.path == tmp_path / name
