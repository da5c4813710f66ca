"""TIFF: OME-TIFF, ImageJ hyperstacks, plain and BigTIFF, read in parts and written in parts."""

from __future__ import annotations

import logging
import math
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import tifffile

from safelight.core.errors import InputError, OutputError
from safelight.core.events import Event
from safelight.core.files import Limits
from safelight.formats.microscopy import ome
from safelight.formats.microscopy.image import Content, Metadata, Pixels, parse_metadata
from safelight.formats.microscopy.pixels import RawArray
from safelight.formats.microscopy.writing import Canvas, Layout, Writer

_PAGE_BYTES = 64 << 20  # pages up to this size are decoded whole, larger ones by strips or tiles
_CLASSIC_BYTES = 4 << 30  # offsets of a classic TIFF have 32 bits
_HEADER_BYTES = 1 << 24  # room for the headers of the pages
_DECLARED = {"is_ome": "OME", "is_imagej": "ImageJ", "is_shaped": "tifffile"}
_OME_TYPES = ("int8", "int16", "int32", "uint8", "uint16", "uint32", "float32", "float64")
_IMAGEJ_TYPES = ("uint8", "uint16", "float32")


def read(path: Path, limits: Limits, resources: ExitStack) -> Content:
    """Open the first image of a TIFF at its highest resolution."""
    _check_chain(path)
    with _complaints(path) as complaints:
        tif = resources.enter_context(tifffile.TiffFile(path))
        root = ome.parse_xml(path, tif.ome_metadata) if tif.ome_metadata else None
        others = set() if root is None else ome.companions(path, root)
        series = tif.series[0]
        _check_series(path, tif, series, others, limits)
        axes = _axes(series)
        metadata = _metadata(path, tif, series, root)
        pixels = _pixels(path, series, limits, resources)
    notices = list(complaints)
    if len(tif.series) > 1:
        notices.append(Event("further_images", data={"file": str(path), "count": len(tif.series) - 1}))
    return Content(pixels, axes, metadata, tuple(notices))


def _check_chain(path: Path) -> None:
    """Refuse a file whose list of pages ends outside it: tifffile would read only the pages that are left."""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        order = {b"II": "<", b"MM": ">"}.get(stream.read(2))
        version = 0 if order is None else _unpack(stream, f"{order}H")
        if version not in (42, 43):
            raise InputError("it does not begin like a TIFF", path=path, expected="a TIFF image")
        count_format, entry, offset_format = ("H", 12, "I") if version == 42 else ("Q", 20, "Q")
        if version == 43:
            stream.seek(8)
        offset = _unpack(stream, f"{order}{offset_format}")
        seen: set[int] = set()
        while offset:
            if offset >= size or offset in seen:
                raise InputError(
                    f"the header of page {len(seen) + 1} is at byte {offset}, the file has {size}",
                    path=path,
                    expected="a whole TIFF",
                    remedy="check whether it was copied whole",
                )
            seen.add(offset)
            stream.seek(offset)
            stream.seek(_unpack(stream, f"{order}{count_format}") * entry, 1)
            offset = _unpack(stream, f"{order}{offset_format}")


def _unpack(stream: IO[bytes], code: str) -> int:
    size = struct.calcsize(code)
    text = stream.read(size)
    if len(text) < size:
        raise EOFError("it ends within the headers of its pages")
    number: int = struct.unpack(code, text)[0]
    return number


@contextmanager
def _complaints(path: Path) -> Iterator[list[Event]]:
    """Gather as events what tifffile says about a file; it only logs."""
    events: list[Event] = []
    thread = threading.get_ident()

    class Gather(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread:
                data = {"file": str(path), "complaint": record.getMessage()}
                events.append(Event("reader_complaint", data=data))

    handler = Gather(logging.WARNING)
    logger = logging.getLogger("tifffile")
    logger.addHandler(handler)
    try:
        yield events
    finally:
        logger.removeHandler(handler)


def _check_series(
    path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, others: set[Path], limits: Limits
) -> None:
    """Refuse an image that the file cannot hold, or of which pages are missing."""
    compressed = series.keyframe.compression != 1
    held = sum(other.stat().st_size for other in others if other.is_file())
    claimed = math.prod(series.shape) * series.dtype.itemsize
    own = max(claimed - round(held * (limits.expansion if compressed else 1)), 0)
    limits.check_claim(path, own, compressed)
    unmet = [name for flag, name in _DECLARED.items() if getattr(tif, flag)]
    if unmet and series.kind in ("generic", "uniform"):
        raise InputError(f"its {unmet[0]} header does not agree with its pages", path=path)
    if _offset(series) is None:
        missing = sum(page is None for page in series.pages)
        if missing:
            raise InputError(
                f"{missing} of its {len(series)} planes are missing",
                path=path,
                expected="all planes, in this file or beside it",
                remedy="copy all files of the image into one folder",
            )


def _offset(series: tifffile.TiffPageSeries) -> int | None:
    """Return where the pixels are, if they lie in one piece in one file."""
    return None if series.is_multifile else series.dataoffset


def _axes(series: tifffile.TiffPageSeries) -> str:
    """Return the letters of the axes; tifffile's S is colour where a pixel has several samples."""
    axes = str(series.axes)
    if series.keyframe.samplesperpixel > 1 and "C" not in axes:
        return axes.replace("S", "C")
    return axes


def _pixels(path: Path, series: tifffile.TiffPageSeries, limits: Limits, resources: ExitStack) -> Pixels:
    offset = _offset(series)
    if offset is not None:
        stored = series.dtype.newbyteorder(series.keyframe.parent.byteorder)
        file = series.keyframe.parent.filehandle.path
        limits.check_claim(Path(file), offset + math.prod(series.shape) * stored.itemsize, compressed=False)
        return np.memmap(file, stored, "r", offset, series.shape)
    import zarr

    by_page = series.keyframe.nbytes <= _PAGE_BYTES
    store = series.aszarr(level=0, chunkmode=2 if by_page else 0)
    resources.callback(store.close)
    array = zarr.open_array(store, mode="r")
    limits.check_allocation(path, math.prod(array.chunks) * array.dtype.itemsize)
    return array


def _metadata(path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, root: Any) -> Metadata:
    resolution = _resolution(series.keyframe)
    if root is not None:
        return ome.from_xml(root)
    if tif.imagej_metadata is not None:
        sizes = dict(zip(series.axes, series.shape, strict=True))
        return ome.from_imagej(tif.imagej_metadata, resolution, sizes.get("C", 1))
    if tif.shaped_metadata:
        text = tif.shaped_metadata[0].get("safelight")
        if isinstance(text, str):
            return parse_metadata(path, text).model_copy(update={"flavour": "shaped"})
    centimetres = series.keyframe.tags.valueof("ResolutionUnit") == 3
    lengths = {axis: 1e4 / value for axis, value in resolution.items() if centimetres and value > 0}
    return Metadata(pixel_size=lengths, flavour="shaped")


def _resolution(page: tifffile.TiffPage) -> dict[str, float]:
    """Return pixels per unit along Y and X."""
    values = {}
    for axis, tag in (("Y", "YResolution"), ("X", "XResolution")):
        numerator, denominator = page.tags.valueof(tag, (0, 1))
        values[axis] = numerator / denominator if denominator else 0.0
    return values


def _flavour(path: Path, layout: Layout) -> str:
    """Return the variant to write: by the suffix, else the input's, else ImageJ's; else one that can hold the image."""
    if _is_ome_name(path):
        return "ome"
    able = {"imagej": _imagej_holds(layout), "ome": _ome_holds(layout), "shaped": True}
    wanted = (layout.metadata.flavour, "imagej", "ome", "shaped")
    return next(flavour for flavour in wanted if able.get(flavour))


def _is_ome_name(path: Path) -> bool:
    return path.stem.lower().endswith(".ome")


def _imagej_holds(layout: Layout) -> bool:
    in_order = [axis for axis in "TZCYX" if axis in layout.axes] == list(layout.axes)
    fits = layout.nbytes + _HEADER_BYTES < _CLASSIC_BYTES
    return in_order and fits and layout.dtype.name in _IMAGEJ_TYPES


def _ome_holds(layout: Layout) -> bool:
    planes = set(layout.axes[:-2]) <= set("TZC") and layout.axes.endswith("YX")
    return (planes or _channels_in_samples(layout)) and layout.dtype.name in _OME_TYPES


def _channels_in_samples(layout: Layout) -> bool:
    """Return whether the channels are the samples of each pixel: red, green, blue."""
    return layout.axes.endswith("YXC") and set(layout.axes[:-3]) <= set("TZ") and layout.shape[-1] in (3, 4)


def _check(path: Path, layout: Layout) -> None:
    if _is_ome_name(path) and not _ome_holds(layout):
        raise OutputError(
            f"OME-TIFF cannot hold {layout.dtype} pixels with axes {layout.axes}",
            path=path,
            expected="axes T, Z and C before YX, and 8 to 32-bit whole or 32 or 64-bit real numbers",
            remedy="use --format tif or --format ome.zarr",
        )


@contextmanager
def _create(path: Path, layout: Layout) -> Iterator[Canvas]:
    stored = layout.dtype.newbyteorder("<")
    flavour = _flavour(path, layout)
    with tifffile.TiffWriter(
        path,
        bigtiff=layout.nbytes + _HEADER_BYTES >= _CLASSIC_BYTES,
        byteorder="<",
        imagej=flavour == "imagej",
        ome=flavour == "ome",
        shaped=flavour == "shaped",
    ) as writer:
        place = writer.write(
            shape=layout.shape,
            dtype=stored,
            returnoffset=True,
            software="safelight",
            **_write_options(layout, flavour),
        )
    if place is None:
        raise OutputError("the pixels would not lie in one piece", path=path)
    with path.open("r+b") as stream:
        yield RawArray(stream, place[0], layout.shape, stored)


def _write_options(layout: Layout, flavour: str) -> dict[str, Any]:
    sizes = layout.metadata.pixel_size
    samples = flavour == "ome" and _channels_in_samples(layout)
    options: dict[str, Any] = {"photometric": "rgb" if samples else "minisblack"}
    if "Y" in sizes and "X" in sizes:
        per_unit = 1.0 if flavour == "imagej" else 1e4  # ImageJ's unit is micrometres, TIFF's is centimetres
        options["resolution"] = (per_unit / sizes["X"], per_unit / sizes["Y"])
        options["resolutionunit"] = "NONE" if flavour == "imagej" else "CENTIMETER"
    axes = layout.axes[:-1] + "S" if samples else layout.axes
    options["metadata"] = {"axes": axes} | _entries(layout, flavour, samples)
    return options


def _entries(layout: Layout, flavour: str, samples: bool) -> dict[str, Any]:
    if flavour == "imagej":
        return ome.to_imagej(layout)
    if flavour == "ome":
        return ome.to_ome(layout, samples)
    return {"safelight": layout.metadata.model_dump_json(exclude_defaults=True)}


def _held(path: Path, layout: Layout) -> set[str]:
    flavour = _flavour(path, layout)
    everything = set(Metadata.model_fields)
    if flavour == "imagej":
        channels = {"channels"} if ome.imagej_holds_channels(layout) else set()
        return {"description", "pixel_size", "time_interval", "imagej"} | channels
    if flavour == "ome" and not ome.xml_holds_channels(layout, _channels_in_samples(layout)):
        return everything - {"imagej", "channels"}
    return everything - {"imagej"}


WRITER = Writer(_create, _held, _check)
