"""Metadata of OME-TIFF (OME-XML) and of ImageJ's TIFF, to and from ours.

OME-XML: Linkert et al. 2010, https://docs.openmicroscopy.org/ome-model/6.3.1/.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5
from xml.etree import ElementTree

import numpy as np

from safelight.core.errors import InputError
from safelight.core.files import inside
from safelight.formats.microscopy.image import Channel, Metadata
from safelight.formats.microscopy.units import micrometres, seconds
from safelight.formats.microscopy.writing import Layout

_NAMESPACE = UUID("1f0a7a0e-6a4b-5d0c-9c59-5afe119474e5")
_IMAGEJ_DISPLAY = ("Ranges", "LUTs", "mode", "min", "max")


def parse_xml(path: Path, xml: str) -> ElementTree.Element:
    """Return the root of OME-XML.

    Raises
    ------
    InputError
        It is not XML.
    """
    try:
        return ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise InputError(f"its OME-XML is damaged: {error}", path=path) from error


def companions(path: Path, root: ElementTree.Element) -> set[Path]:
    """Return the other files over which an OME-TIFF is spread.

    Raises
    ------
    UnsafeInputError
        A file's name leads out of the folder.
    """
    names = {uuid.get("FileName") for uuid in root.iterfind(".//{*}TiffData/{*}UUID")} - {None, "", path.name}
    return {inside(path.parent, str(name)) for name in names}


def from_xml(root: ElementTree.Element) -> Metadata:
    """Return the metadata of the first image."""
    image = root.find("{*}Image")
    pixels = None if image is None else image.find("{*}Pixels")
    if image is None or pixels is None:
        return Metadata(flavour="ome")
    sizes = {
        axis: micrometres(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        for axis in "ZYX"
    }
    return Metadata(
        name=image.get("Name", ""),
        description=(image.findtext("{*}Description") or "").strip(),
        acquired=(image.findtext("{*}AcquisitionDate") or "").strip(),
        pixel_size={axis: size for axis, size in sizes.items() if size is not None},
        time_interval=seconds(pixels.get("TimeIncrement"), pixels.get("TimeIncrementUnit", "s")),
        channels=_with_content([_channel(element) for element in pixels.iterfind("{*}Channel")]),
        flavour="ome",
    )


def _channel(element: ElementTree.Element) -> Channel:
    return Channel(
        name=element.get("Name", ""),
        color=_color_from_ome(element.get("Color")),
        emission=_nanometres(element, "Emission"),
        excitation=_nanometres(element, "Excitation"),
    )


def _nanometres(element: ElementTree.Element, kind: str) -> float | None:
    unit = element.get(f"{kind}WavelengthUnit", "nm")
    length = micrometres(element.get(f"{kind}Wavelength"), unit)
    return None if length is None else length * 1000


def _color_from_ome(text: str | None) -> str | None:
    if text is None or not re.fullmatch(r"-?\d{1,10}", text):
        return None
    return f"{(int(text) & 0xFFFFFFFF) >> 8:06X}"  # a signed 32-bit RGBA


def _color_to_ome(color: str) -> int:
    rgba = int(color, 16) << 8 | 0xFF
    return rgba - (1 << 32) if rgba >= 1 << 31 else rgba


def _with_content(channels: list[Channel]) -> tuple[Channel, ...]:
    """Return the channels; none where nothing is known about any."""
    return tuple(channels) if any(channel != Channel() for channel in channels) else ()


def to_ome(layout: Layout, channels_in_samples: bool) -> dict[str, Any]:
    """Return the metadata as tifffile takes them for OME-TIFF.

    Parameters
    ----------
    layout : Layout
    channels_in_samples : bool
        Whether the channels are the samples of each pixel, which OME-XML cannot name one by one.
    """
    metadata = layout.metadata
    entries: dict[str, Any] = {"Name": metadata.name, "Description": metadata.description}
    entries["AcquisitionDate"] = metadata.acquired
    for axis, size in metadata.pixel_size.items():
        entries |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    if metadata.time_interval is not None:
        entries |= {"TimeIncrement": metadata.time_interval, "TimeIncrementUnit": "s"}
    if not channels_in_samples:
        entries["Channel"] = _channels_to_ome(metadata.channels, layout)
    entries["UUID"] = str(uuid5(_NAMESPACE, repr(layout)))  # tifffile draws one: the same result would be other bytes
    return {name: entry for name, entry in entries.items() if entry}


def _channels_to_ome(channels: tuple[Channel, ...], layout: Layout) -> dict[str, list[Any]]:
    count = layout.shape[layout.axes.index("C")] if "C" in layout.axes else 1
    if len(channels) != count:
        return {}
    columns: dict[str, list[Any]] = {
        "Name": [channel.name for channel in channels],
        "Color": [_color_to_ome(channel.color or "FFFFFF") for channel in channels],
        "EmissionWavelength": [channel.emission for channel in channels],
        "ExcitationWavelength": [channel.excitation for channel in channels],
    }
    return {name: column for name, column in columns.items() if None not in column}


def xml_holds_channels(layout: Layout, channels_in_samples: bool) -> bool:
    """Return whether OME-XML, as tifffile writes it, can hold what is known about the channels: all or nothing."""
    channels = layout.metadata.channels
    for wavelengths in ([each.emission for each in channels], [each.excitation for each in channels]):
        if any(wavelengths) and None in wavelengths:
            return False
    return not (channels_in_samples and channels)


def from_imagej(entries: Mapping[str, Any], resolution: Mapping[str, float], channels: int) -> Metadata:
    """Return ImageJ's metadata as ours.

    Parameters
    ----------
    entries : mapping
        As tifffile returns them.
    resolution : mapping
        Pixels per unit along Y and X.
    channels : int
        Number of channels, by which the labels of the planes are told from names of channels.
    """
    unit = str(entries.get("unit", "")).encode().decode("unicode_escape", "replace")
    sizes = {axis: micrometres(1 / value, unit) for axis, value in resolution.items() if value > 0}
    sizes["Z"] = micrometres(entries.get("spacing"), unit)
    return Metadata(
        description=str(entries.get("Info", "")),
        pixel_size={axis: size for axis, size in sizes.items() if size is not None},
        time_interval=seconds(entries.get("finterval"), str(entries.get("tunit", "s"))),
        channels=_named(entries.get("Labels"), channels),
        flavour="imagej",
        imagej={name: _plain(entries[name]) for name in _IMAGEJ_DISPLAY if name in entries},
    )


def _named(labels: object, channels: int) -> tuple[Channel, ...]:
    """Return channels called as the planes are labelled, where all planes of a channel have one label."""
    if not isinstance(labels, list | tuple) or channels < 2 or len(labels) < channels:
        return ()
    names = [str(label) for label in labels[:channels]]
    if any(str(label) != names[number % channels] for number, label in enumerate(labels)):
        return ()
    return tuple(Channel(name=name) for name in names)


def _plain(entry: Any) -> Any:
    """Return arrays as lists, so that metadata can be compared."""
    if isinstance(entry, list | tuple):
        return [_plain(part) for part in entry]
    return entry.tolist() if isinstance(entry, np.ndarray) else entry


def to_imagej(layout: Layout) -> dict[str, Any]:
    """Return the metadata as tifffile takes them for ImageJ."""
    metadata = layout.metadata
    entries: dict[str, Any] = dict(metadata.imagej)
    if "LUTs" in entries:
        entries["LUTs"] = [np.array(table, np.uint8) for table in entries["LUTs"]]
    if metadata.pixel_size:
        entries["unit"] = "um"
    if "Z" in metadata.pixel_size:
        entries["spacing"] = metadata.pixel_size["Z"]
    if metadata.time_interval is not None:
        entries["finterval"] = metadata.time_interval
    if metadata.description:
        entries["Info"] = metadata.description
    names = [channel.name for channel in metadata.channels]
    sizes = dict(zip(layout.axes, layout.shape, strict=True))
    if any(names) and len(names) == sizes.get("C", 1):
        entries["Labels"] = names * (math.prod(sizes.get(axis, 1) for axis in "TZ"))
    return entries


def imagej_holds_channels(layout: Layout) -> bool:
    """Return whether labels of planes can hold everything known about the channels."""
    return all(channel == Channel(name=channel.name) for channel in layout.metadata.channels)
