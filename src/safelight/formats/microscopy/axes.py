"""Which axis is which: what the file says, what the user says, and what may be assumed."""

from __future__ import annotations

from pathlib import Path

from safelight.core.errors import InputError
from safelight.core.events import Event

AXES = "STCZYX"
_EXAMPLES = {2: "YX", 3: "ZYX, TYX or CYX", 4: "CZYX or TZYX", 5: "TCZYX", 6: "STCZYX"}


def settle(path: Path, shape: tuple[int, ...], found: str | None, given: str | None) -> tuple[str, tuple[Event, ...]]:
    """Return one letter of STCZYX per axis, and events where they were assumed.

    The user's word counts more than the file's. Without either, two axes are taken for YX; more are not guessed.

    Parameters
    ----------
    path : Path
    shape : tuple of int
    found : str, optional
        What the file says.
    given : str, optional
        What the user says.

    Raises
    ------
    InputError
        The axes are unknown, or do not fit the image.
    """
    if len(shape) < 2:
        raise InputError(
            f"{'a list of numbers' if shape else 'a single number'} is no image",
            path=path,
            expected="at least the axes Y and X",
        )
    if given is not None:
        axes = given.upper()
        check(path, shape, axes)
        return axes, ()
    if found is None and len(shape) == 2:
        check(path, shape, "YX")
        return "YX", (Event("axes_assumed", data={"file": str(path), "axes": "YX"}),)
    if found is None:
        raise InputError(
            f"the file does not say what its {len(shape)} axes of sizes {shape} are",
            path=path,
            expected=f"one letter of {AXES} per axis",
            remedy=_suggestion(len(shape)),
        )
    unknown = [letter for letter in found if letter not in AXES]
    if unknown:  # a plain TIFF of several pages: tifffile says Q
        raise InputError(
            f"the file calls its axes of sizes {shape} {found}, which leaves open what {', '.join(unknown)} is",
            path=path,
            expected=f"one letter of {AXES} per axis",
            remedy=_suggestion(len(shape)),
        )
    check(path, shape, found)
    return found, ()


def implied(found: str | None, given: str | None) -> tuple[int, ...]:
    """Return the places of the axes that the user names beyond those of the file: they have size 1.

    ImageJ and OME-TIFF do not tell an axis of size 1 from none: the user may say TCZYX of a file that says ZYX.
    """
    if found is None or given is None or len(given) <= len(found):
        return ()
    given = given.upper()
    further = tuple(place for place, axis in enumerate(given) if axis not in found)
    return further if "".join(axis for axis in given if axis in found) == found else ()


def check(path: Path, shape: tuple[int, ...], axes: str) -> None:
    """Refuse axes that do not describe an image of this shape.

    Raises
    ------
    InputError
        There are not as many letters as axes, one is unknown or repeated, Y or X is missing, or there is no pixel.
    """
    if 0 in shape:
        raise InputError(f"the image is empty: its axes {axes} have the sizes {shape}", path=path)
    problem = _problem(shape, axes)
    if problem:
        raise InputError(
            problem,
            path=path,
            expected=f"one different letter of {AXES} per axis, Y and X among them",
            remedy=_suggestion(len(shape)),
        )


def _problem(shape: tuple[int, ...], axes: str) -> str | None:
    unknown = sorted(set(axes) - set(AXES))
    if unknown:
        return f"the axes {axes} of sizes {shape} have the unknown letter {', '.join(unknown)}"
    if len(axes) != len(shape):
        return f"the axes {axes} are {len(axes)}, but the image has {len(shape)} of sizes {shape}"
    if len(set(axes)) != len(axes):
        return f"the axes {axes} repeat a letter"
    if not {"Y", "X"} <= set(axes):
        return f"the axes {axes} lack Y or X"
    return None


def _suggestion(dimensions: int) -> str:
    examples = _EXAMPLES.get(dimensions)
    if examples is None:
        return "split the image into parts of at most six axes"
    return f"say what the axes are with --axes, for instance {examples}"
