"""Without the optional packages an error names the extra; NumPy files need none."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from safelight.core.errors import UsageError
from safelight.formats.microscopy import check_output, open_image, write_image


@pytest.mark.parametrize(
    ("suffix", "module", "package"),
    [(".tif", "tiff", "tifffile"), (".zarr", "ome_zarr", "zarr"), (".png", "png", "imagecodecs")],
)
def test_a_missing_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, module: str, package: str
) -> None:
    path = tmp_path / f"a{suffix}"
    write_image(path, np.ones((4, 5), np.uint8), "YX")
    monkeypatch.delitem(sys.modules, f"safelight.formats.microscopy.{module}")
    monkeypatch.setitem(sys.modules, package, None)
    for attempt in (lambda: open_image(path), lambda: check_output(path, (4, 5), "YX", np.uint8)):
        with pytest.raises(UsageError, match=rf"package {package}.*pip install 'safelight\[micro\]'"):
            attempt()


def test_numpy_files_need_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("tifffile", "zarr", "imagecodecs"):
        monkeypatch.setitem(sys.modules, package, None)
    write_image(tmp_path / "a.npz", np.ones((4, 5)), "YX")
    with open_image(tmp_path / "a.npz") as image:
        assert image.shape == (4, 5)
