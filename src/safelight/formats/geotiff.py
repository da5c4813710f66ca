"""Georeferenced images: read and written window by window, with all that says where they lie."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from safelight.core.errors import InputError, OutputError, UsageError
from safelight.core.files import Limits, atomic_write

try:
    import rasterio
    from rasterio.enums import ColorInterp, Resampling
    from rasterio.errors import NotGeoreferencedWarning, RasterioError
    from rasterio.shutil import copy as copy_raster
    from rasterio.vrt import WarpedVRT
    from rasterio.windows import Window
except ImportError as error:
    raise UsageError(
        "reading georeferenced images needs the package rasterio", remedy="pip install 'safelight[geo]'"
    ) from error

_BLOCK = 512
_SMALLEST_BLOCK = 128
_LONGEST_NAME = 40
_COG = {
    "driver": "COG",
    "compress": "deflate",
    "predictor": 2,
    "bigtiff": "if_safer",
    "overview_resampling": "average",  # the default, cubic, is slow and overshoots at the edges of missing data
}
_CACHE_MEGABYTES = 64
"""What GDAL may keep of blocks that were read or are to be written; by default it takes a share of all memory."""

Transform = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class Grid:
    """Where the pixels of an image lie.

    Parameters
    ----------
    crs : str
        The coordinate reference system as WKT; empty where the file has none.
    transform : tuple of float
        From column and row to x and y: (a, b, c, d, e, f), x = a·column + b·row + c, y = d·column + e·row + f.
    height, width : int
        In pixels.
    """

    crs: str
    transform: Transform
    height: int
    width: int

    @property
    def is_georeferenced(self) -> bool:
        """Whether the file says where it lies."""
        return bool(self.crs)

    def describe(self) -> str:
        """Return the grid in a few words, for messages."""
        name = rasterio.CRS.from_wkt(self.crs).to_string() if self.crs else "no CRS"
        name = name if len(name) <= _LONGEST_NAME else "a CRS of its own"
        a, _, x, _, _, y = self.transform
        return f"{name}, {self.width}×{self.height} pixels of {a:g}, corner at {x:.2f}, {y:.2f}"


@dataclass(frozen=True)
class Header:
    """What a file says about itself.

    Parameters
    ----------
    grid : Grid
    bands : int
    dtype : dtype
    nodata : float, optional
        The value of pixels without data.
    names : tuple of str
        Of the bands; empty texts where they have none.
    offsets, scales : tuple of float
        Of the bands: value = scale · number + offset; 0 and 1 where the file does not say.
    tags : mapping of str to str
    band_tags : tuple of mapping of str to str
        Of each band, for instance its wavelength; may be empty, as the two that follow.
    units, colours : tuple of str
        Of the bands: the unit of their values, and what GDAL calls their colour, for instance ``red``.
    """

    grid: Grid
    bands: int
    dtype: np.dtype[Any]
    nodata: float | None
    names: tuple[str, ...]
    offsets: tuple[float, ...]
    scales: tuple[float, ...]
    tags: Mapping[str, str]
    band_tags: tuple[Mapping[str, str], ...] = ()
    units: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()


class Raster:
    """An image opened for reading; a context manager. Not for use by two threads at once.

    Parameters
    ----------
    path : Path
    onto : Grid, optional
        Read as if resampled (bilinear) onto this grid; what it does not cover is NaN.

    Raises
    ------
    InputError
        The file is missing or no readable image.
    UnsafeInputError
        Its header claims more pixels than the file can hold.
    """

    def __init__(self, path: Path, onto: Grid | None = None) -> None:
        if not path.is_file():
            raise InputError("there is no such file", path=path)
        self.path = path
        with ExitStack() as opened:
            with _errors(path):
                self._file = opened.enter_context(rasterio.open(path))
            self.header = _header(self._file)
            claimed = self._file.width * self._file.height * self._file.count * self.header.dtype.itemsize
            Limits().check_claim(path, claimed, self._file.compression is not None)
            self._view = self._file if onto is None else opened.enter_context(self._warped(onto))
            self._opened = opened.pop_all()
        if onto is not None:
            self.header = replace(self.header, grid=onto)

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Return a window as (bands, rows, columns), in the type of the file.

        Raises
        ------
        InputError
            The file is damaged there.
        """
        height, width = rows.stop - rows.start, columns.stop - columns.start
        Limits().check_allocation(self.path, self.header.bands * height * width * self.header.dtype.itemsize)
        with _errors(self.path):
            window = Window(columns.start, rows.start, width, height)
            pixels: np.ndarray = self._view.read(window=window)
        return pixels

    def read_all(self) -> np.ndarray:
        """Return the whole image, (bands, Y, X)."""
        return self.read(slice(0, self.header.grid.height), slice(0, self.header.grid.width))

    def overview(self, most: int) -> np.ndarray:
        """Return the whole image, no side longer than so many pixels: every so many pixels one.

        GDAL would decode every block anew for each row that it takes from it: blocks are read whole.
        """
        height, width = self.header.grid.height, self.header.grid.width
        step = max(-(-max(height, width) // most), 1)
        side = max(_BLOCK // step, 1) * step
        pixels = np.empty((self.header.bands, -(-height // step), -(-width // step)), self.header.dtype)
        for row in range(0, height, side):
            for column in range(0, width, side):
                part = self.read(slice(row, min(row + side, height)), slice(column, min(column + side, width)))
                small = part[:, ::step, ::step]
                top, left = row // step, column // step
                pixels[:, top : top + small.shape[1], left : left + small.shape[2]] = small
        return pixels

    def close(self) -> None:
        """Close the file."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _warped(self, onto: Grid) -> WarpedVRT:
        return WarpedVRT(
            self._file,
            crs=onto.crs,
            transform=rasterio.Affine(*onto.transform),
            height=onto.height,
            width=onto.width,
            resampling=Resampling.bilinear,
            src_nodata=self.header.nodata,
            nodata=np.nan,
            dtype="float32",
        )


class RasterWriter:
    """Takes windows of a new image, in any order."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, row: int, column: int, pixels: np.ndarray) -> None:
        """Write (bands, rows, columns) with their first pixel at a place."""
        window = Window(column, row, pixels.shape[2], pixels.shape[1])
        self._file.write(pixels, window=window)


@contextmanager
def create_cog(path: Path, header: Header) -> Iterator[RasterWriter]:
    """Yield a writer of a new cloud-optimised GeoTIFF, which appears whole or not at all.

    Parameters
    ----------
    path : Path
    header : Header
        What the file says about itself: grid, type, nodata, names and tags.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    side = min(_BLOCK, -(-max(header.grid.height, header.grid.width) // _SMALLEST_BLOCK) * _SMALLEST_BLOCK)
    profile = {
        "driver": "GTiff",
        "height": header.grid.height,
        "width": header.grid.width,
        "count": header.bands,
        "dtype": header.dtype,
        "nodata": header.nodata,
        "crs": header.grid.crs or None,
        "transform": rasterio.Affine(*header.grid.transform),
        "tiled": True,
        "blockxsize": side,
        "blockysize": side,
        "interleave": "band",
        "bigtiff": "if_safer",
    }
    with atomic_write(path) as temporary:
        draft = temporary.with_name(f"{temporary.name}.draft.tif")  # a COG is written from the end: it needs a draft
        try:
            with _output_errors(path):
                with rasterio.open(draft, "w", **profile) as file:
                    _describe(file, header)
                    yield RasterWriter(file)
                with rasterio.Env(COG_TMP_COMPRESSION="NONE"):  # compressing the draft's overviews takes longest of all
                    copy_raster(draft, temporary, blocksize=side, **_COG)
        finally:
            draft.unlink(missing_ok=True)


def write_geotiff(path: Path, pixels: np.ndarray, header: Header) -> None:
    """Write an image (bands, Y, X) at once."""
    with create_cog(path, header) as writer:
        writer.write(0, 0, pixels)


def _header(file: Any) -> Header:
    return Header(
        Grid(file.crs.to_wkt() if file.crs else "", tuple(file.transform)[:6], file.height, file.width),
        file.count,
        np.dtype(file.dtypes[0]),
        file.nodata,
        tuple(name or "" for name in file.descriptions),
        tuple(file.offsets),
        tuple(file.scales),
        dict(file.tags()),
        tuple(_without_statistics(file.tags(band)) for band in file.indexes),
        tuple(unit or "" for unit in file.units),
        tuple(colour.name for colour in file.colorinterp),
    )


def _without_statistics(tags: Mapping[str, str]) -> dict[str, str]:
    """Return a band's tags without what GDAL has computed of its pixels: it would be wrong for other ones."""
    return {name: value for name, value in tags.items() if not name.startswith("STATISTICS_")}


def _describe(file: Any, header: Header) -> None:
    file.update_tags(**header.tags)
    for band, name in enumerate(header.names, start=1):
        if name:
            file.set_band_description(band, name)
    for band, tags in enumerate(header.band_tags, start=1):
        file.update_tags(band, **tags)
    if any(header.units):
        file.units = header.units
    if header.colours:
        file.colorinterp = [ColorInterp[colour] for colour in header.colours]
    if any(header.offsets) or any(scale != 1 for scale in header.scales):
        file.offsets, file.scales = header.offsets, header.scales


@contextmanager
def _gdal() -> Iterator[None]:
    with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=_CACHE_MEGABYTES):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # the header says so as well
        yield


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        with _gdal():
            yield
    except RasterioError as error:
        raise InputError(
            f"it cannot be read as an image ({_reason(error)})",
            path=path,
            expected="a georeferenced image, for instance GeoTIFF",
            remedy="check whether it was copied whole",
        ) from None


@contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    try:
        with _gdal():
            yield
    except RasterioError as error:
        raise OutputError(
            f"it cannot be written ({_reason(error)})", path=path, remedy="another folder or disk"
        ) from None


def _reason(error: RasterioError) -> str:
    cause = error.__cause__ or error
    return str(cause).split("\n", 1)[0]
