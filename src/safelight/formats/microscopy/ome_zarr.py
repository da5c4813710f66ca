"""OME-Zarr 0.4 (zarr v2) and 0.5 (zarr v3): chunked images, larger than memory.

Moore et al. 2023, https://doi.org/10.1007/s00418-023-02209-1; https://ngff.openmicroscopy.org/.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import zarr
from zarr.storage import LocalStore

from safelight.core.errors import InputError, UnsafeInputError
from safelight.core.events import Event
from safelight.core.files import Limits, inside
from safelight.core.messages import format_bytes
from safelight.formats.microscopy.image import Channel, Content, Metadata
from safelight.formats.microscopy.units import micrometres, seconds
from safelight.formats.microscopy.writing import Canvas, Layout, Writer

_KINDS = {"t": ("time", "second"), "c": ("channel", None)} | dict.fromkeys("zyx", ("space", "micrometer"))
_DOCUMENTS = (".zarray", ".zattrs", ".zgroup", ".zmetadata", "zarr.json")
_HARMLESS_BYTES = 1 << 20  # chunks that hold one value compress without limit, or are left out
_CHUNK = {"Z": 16, "Y": 512, "X": 512}


class _ConfinedStore(LocalStore):
    """A store on disk that never follows a link out of its folder."""

    async def get(self, key: str, *arguments: Any, **keywords: Any) -> Any:
        inside(self.root, key)
        return await super().get(key, *arguments, **keywords)


def read(path: Path, limits: Limits, resources: ExitStack) -> Content:
    """Open the first image of an OME-Zarr at its highest resolution, or a zarr that is one array."""
    store = _ConfinedStore(path, read_only=True)
    resources.callback(store.close)
    node = zarr.open(store, mode="r")
    if isinstance(node, zarr.Array):
        notices = _check_array(path, node, limits)
        return Content(node, _axes(node, {}), _metadata({}, node, {}), notices)
    group, images = _image_group(node)
    attributes = _attributes(group)
    multiscale = _multiscale(path, attributes)
    array = _highest_resolution(path, group, multiscale)
    notices = _check_array(path, array, limits)
    if images > 1:
        notices += (Event("further_images", data={"file": str(path), "count": images - 1}),)
    return Content(array, _axes(array, multiscale), _metadata(attributes, array, multiscale), notices)


def _image_group(group: zarr.Group) -> tuple[zarr.Group, int]:
    """Return the group of the first image, and how many images there are (bioformats2raw numbers them)."""
    if "bioformats2raw.layout" not in _attributes(group):
        return group, 1
    numbers = sorted((name for name in group.group_keys() if name.isdigit()), key=int)
    if not numbers:
        return group, 1
    first = group[numbers[0]]
    return (first if isinstance(first, zarr.Group) else group), len(numbers)


def _attributes(group: zarr.Group) -> Mapping[str, Any]:
    """Return the OME attributes: 0.5 keeps them under one key."""
    attributes = dict(group.attrs)
    nested = attributes.get("ome")
    return nested if isinstance(nested, dict) else attributes


def _multiscale(path: Path, attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    if "plate" in attributes:
        raise InputError(
            "it is a plate of many images",
            path=path,
            expected="one image",
            remedy="give one field of it, for instance PLATE.zarr/A/1/0",
        )
    multiscales = attributes.get("multiscales") or [{}]
    return dict(multiscales[0])


def _highest_resolution(path: Path, group: zarr.Group, multiscale: Mapping[str, Any]) -> zarr.Array[Any]:
    datasets = multiscale.get("datasets")
    names = [str(datasets[0]["path"])] if datasets else sorted(group.array_keys())
    if len(names) != 1:
        raise InputError(
            f"it holds {len(names)} arrays and does not say which is the image",
            path=path,
            expected="an OME-Zarr with multiscales, or one array",
            remedy="give the array itself, for instance IMAGE.zarr/0",
        )
    inside(path, Path(group.path) / names[0])
    array = group[names[0]]
    if not isinstance(array, zarr.Array):
        raise InputError(f"{names[0]!r} is not an array", path=path, expected="the highest resolution")
    return array


def _check_array(path: Path, array: zarr.Array[Any], limits: Limits) -> tuple[Event, ...]:
    """Refuse codecs that run code, chunks that do not fit in memory, and sizes that the chunks cannot make up.

    Returns an event where chunks are missing: they are read as the fill value, by the format's rule.
    """
    document = array.metadata.to_dict()
    codecs = [document.get(key) for key in ("codecs", "compressor", "filters")]
    if any("pickle" in name for name in _codec_names(codecs)):
        raise UnsafeInputError("its chunks are pickled Python objects, which could run code", path=path)
    if 0 in array.chunks:
        raise InputError(f"its chunks of sizes {array.chunks} are empty", path=path)
    limits.check_allocation(path, math.prod(array.chunks) * array.dtype.itemsize)
    files = [file for file in inside(path, array.path).rglob("*") if file.name not in _DOCUMENTS and file.is_file()]
    claimed = math.prod(array.shape) * array.dtype.itemsize
    held = sum(file.stat().st_size for file in files)
    if claimed > (held + _HARMLESS_BYTES) * limits.expansion:
        raise UnsafeInputError(
            f"its header claims {format_bytes(claimed)} of pixels, its chunks have {format_bytes(held)}",
            path=path,
            expected="a header that agrees with the chunks",
            remedy="check whether the folder was copied whole",
        )
    stored = array.shards or array.chunks
    chunks = math.prod(math.ceil(size / step) for size, step in zip(array.shape, stored, strict=True))
    if len(files) >= chunks:
        return ()
    return (Event("chunks_missing", data={"file": str(path), "missing": chunks - len(files), "chunks": chunks}),)


def _codec_names(document: object) -> Iterator[str]:
    """Yield the names of codecs, however deep in an array's metadata."""
    if isinstance(document, Mapping):
        for key, value in document.items():
            if key in ("id", "name") and isinstance(value, str):
                yield value.lower()
            yield from _codec_names(value)
    elif isinstance(document, list | tuple):
        for part in document:
            yield from _codec_names(part)


def _axes(array: zarr.Array[Any], multiscale: Mapping[str, Any]) -> str | None:
    """Return the axes by the multiscale (0.4: objects, 0.3: letters), else by the array's own names."""
    named = multiscale.get("axes") or getattr(array.metadata, "dimension_names", None)
    named = named or array.attrs.get("_ARRAY_DIMENSIONS")
    if not isinstance(named, list | tuple):
        return None
    names = [axis.get("name") if isinstance(axis, Mapping) else axis for axis in named]
    return "".join(str(name)[:1].upper() for name in names) if all(names) else None


def _metadata(attributes: Mapping[str, Any], array: zarr.Array[Any], multiscale: Mapping[str, Any]) -> Metadata:
    version = "0.5" if array.metadata.zarr_format == 3 else "0.4"
    axes = multiscale.get("axes") or []
    if not axes or not all(isinstance(axis, Mapping) for axis in axes):
        return Metadata(flavour=version)
    scale = _scale(multiscale, len(axes))
    lengths: dict[str, float] = {}
    interval = None
    for axis, factor in zip(axes, scale, strict=True):
        name = str(axis.get("name", "")).upper()
        if name == "T":
            interval = seconds(factor, axis.get("unit"))
        elif name in "ZYX" and (length := micrometres(factor, axis.get("unit"))):
            lengths[name] = length
    return Metadata(
        name=str(multiscale.get("name") or ""),
        pixel_size=lengths,
        time_interval=interval,
        channels=_channels(attributes),
        flavour=version,
    )


def _scale(multiscale: Mapping[str, Any], dimensions: int) -> list[float]:
    """Return the scale of the highest resolution: its own times the one common to all."""
    scale = [1.0] * dimensions
    for holder in (multiscale["datasets"][0], multiscale):
        for step in holder.get("coordinateTransformations", []):
            if step.get("type") == "scale" and len(step.get("scale", [])) == dimensions:
                scale = [a * float(b) for a, b in zip(scale, step["scale"], strict=True)]
    return scale


def _channels(attributes: Mapping[str, Any]) -> tuple[Channel, ...]:
    described = attributes.get("omero", {}).get("channels", [])
    channels = [Channel(name=str(each.get("label") or ""), color=_color(each.get("color"))) for each in described]
    return tuple(channels) if any(channel != Channel() for channel in channels) else ()


def _color(text: object) -> str | None:
    digits = str(text or "").lstrip("#")
    return digits.upper() if len(digits) == 6 and set(digits.upper()) <= set("0123456789ABCDEF") else None


@contextmanager
def _create(path: Path, layout: Layout) -> Iterator[Canvas]:
    version = layout.metadata.flavour if layout.metadata.flavour in ("0.4", "0.5") else "0.4"
    zarr_format: Literal[2, 3] = 3 if version == "0.5" else 2
    names = list(layout.axes.lower())
    attributes = _image_attributes(layout, names, version)
    store = LocalStore(path)
    try:
        group = zarr.create_group(
            store,
            zarr_format=zarr_format,
            attributes={"ome": {"version": version} | attributes} if version == "0.5" else attributes,
        )
        yield group.create_array(
            "0",
            shape=layout.shape,
            chunks=tuple(min(size, _CHUNK.get(axis, 1)) for axis, size in zip(layout.axes, layout.shape, strict=True)),
            dtype=layout.dtype,
            fill_value=0,
            dimension_names=names if zarr_format == 3 else None,
            chunk_key_encoding={"name": "default" if zarr_format == 3 else "v2", "separator": "/"},
        )
    finally:
        store.close()


def _image_attributes(layout: Layout, names: list[str], version: str) -> dict[str, Any]:
    metadata = layout.metadata
    sizes: dict[str, float] = {axis.lower(): size for axis, size in metadata.pixel_size.items()}
    if metadata.time_interval is not None:
        sizes["t"] = metadata.time_interval
    multiscale = {
        "axes": [_axis(name, name in sizes) for name in names],
        "datasets": [
            {
                "path": "0",
                "coordinateTransformations": [{"type": "scale", "scale": [sizes.get(name, 1.0) for name in names]}],
            }
        ],
        "name": metadata.name,
    }
    if version == "0.4":
        multiscale["version"] = version
    channels = [
        {"label": channel.name, "color": channel.color or "FFFFFF", "active": True} for channel in metadata.channels
    ]
    return {"multiscales": [multiscale]} | ({"omero": {"channels": channels}} if channels else {})


def _axis(name: str, known: bool) -> dict[str, str]:
    """Return an axis; the unit only where the size is known."""
    kind, unit = _KINDS.get(name, ("sample", None))
    return {"name": name, "type": kind} | ({"unit": unit} if unit and known else {})


def _held(path: Path, layout: Layout) -> set[str]:
    plain = all(channel == Channel(name=channel.name, color=channel.color) for channel in layout.metadata.channels)
    return {"name", "pixel_size", "time_interval"} | ({"channels"} if plain else set())


WRITER = Writer(_create, _held, folder=True)
