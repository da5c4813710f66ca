"""What registration knows about every frame, and the groups of frames that are stacked together."""

from __future__ import annotations

from dataclasses import dataclass

from astropy.wcs import WCS

from safelight.pipelines.mosaic.canvas import Canvas, Footprint, bounding_box, crop, group_frames
from safelight.pipelines.mosaic.discovery import FrameFacts
from safelight.pipelines.mosaic.refinement import Alignment
from safelight.pipelines.mosaic.stars import StarField


@dataclass(frozen=True, eq=False)
class PlacedFrame:
    """A frame that has its place on the sky.

    Parameters
    ----------
    name : str
        Unique within the run.
    facts : FrameFacts
        What its header says.
    field : StarField
        Its stars.
    alignment : Alignment
        Where it lies, and how well its stars agree.
    """

    name: str
    facts: FrameFacts
    field: StarField
    alignment: Alignment

    @property
    def wcs(self) -> WCS:
        """The refined solution."""
        assert self.alignment.wcs is not None
        return self.alignment.wcs

    @property
    def footprint(self) -> Footprint:
        """Where the frame lies on the sky."""
        return Footprint(self.name, self.wcs, (self.facts.height, self.facts.width))


@dataclass(frozen=True, eq=False)
class Group:
    """Frames of one field and orientation, stacked on a window of the common canvas.

    Parameters
    ----------
    frames : tuple of PlacedFrame
    window : tuple of int
        Rows and columns y0, y1, x0, x1 of the canvas. The pixels of all windows fall on one another, so that frames
        are resampled once and never again.
    canvas : Canvas
        Of the whole mosaic.
    """

    frames: tuple[PlacedFrame, ...]
    window: tuple[int, int, int, int]
    canvas: Canvas

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the window."""
        y0, y1, x0, x1 = self.window
        return y1 - y0, x1 - x0

    @property
    def wcs(self) -> WCS:
        """The WCS of the window."""
        return crop(self.canvas.wcs, *self.window)


def make_groups(frames: tuple[PlacedFrame, ...], canvas: Canvas) -> tuple[Group, ...]:
    """Return the groups of frames, in the order of their frames' names."""
    members = group_frames([frame.footprint for frame in frames])
    groups = (tuple(frames[index] for index in indices) for indices in members)
    return tuple(Group(group, _window(group, canvas), canvas) for group in groups)


def _window(frames: tuple[PlacedFrame, ...], canvas: Canvas) -> tuple[int, int, int, int]:
    y0, y1, x0, x1 = zip(*(bounding_box(canvas, frame.footprint) for frame in frames), strict=True)
    return min(y0), max(y1), min(x0), max(x1)
