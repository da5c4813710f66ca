"""Structural masks (structN2V): rows of 0 and 1 around a hidden pixel, 1 where the noise is correlated with its own."""

from __future__ import annotations

from typing import Literal

Structure = tuple[tuple[int, ...], ...]


def line(radius: int, axis: Literal["horizontal", "vertical", "cross"]) -> Structure:
    """Return the structural mask of noise correlated along rows, columns or both, ``radius`` pixels each way."""
    side = range(-radius, radius + 1)
    if axis == "horizontal":
        return ((1,) * len(side),)
    if axis == "vertical":
        return ((1,),) * len(side)
    return tuple(tuple(int(y == 0 or x == 0) for x in side) for y in side)


def check_structure(rows: Structure) -> Structure:
    """Return a structural mask that has a centre, or none.

    Raises
    ------
    ValueError
        The rows are not equally long, have even sides or hold other numbers than 0 and 1.
    """
    if any(len(row) != len(rows[0]) for row in rows):
        raise ValueError("the rows of a structural mask must be equally long")
    if rows and (len(rows) % 2 == 0 or len(rows[0]) % 2 == 0):
        raise ValueError("a structural mask has odd sides, so that it has a centre")
    if any(site not in (0, 1) for row in rows for site in row):
        raise ValueError("a structural mask is made of 0 and 1")
    return rows


def parse_structure(text: str) -> Structure:
    """Return a structural mask from rows such as ``010/111/010``; see ``check_structure`` for its errors."""
    return check_structure(tuple(tuple(map(int, row)) for row in text.split("/")))


def format_structure(structure: Structure) -> str:
    """Return a structural mask as ``--structure`` takes it: rows of 0 and 1; ``none`` without."""
    return "/".join("".join(map(str, row)) for row in structure) or "none"
