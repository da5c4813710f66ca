"""Triangle meshes and points in files: GLB, OBJ, PLY and XYZ."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray

from safelight.core.errors import InputError
from safelight.core.files import Limits, atomic_write

SUFFIXES = (".glb", ".obj", ".ply", ".xyz")
_POINTS_ONLY = ".xyz"
_DECIMALS = "%.9g"
"""As many as tell any two float32 apart."""

_WHITE = 255

_DAMAGE = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, AssertionError, NotImplementedError),
    UnboundLocalError,  # trimesh forgets to say that a part is missing
)
"""What readers raise at damaged files."""


@dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh; points alone where it has no faces.

    Parameters
    ----------
    vertices : array
        (n, 3) float64.
    faces : array
        (m, 3) int64.
    colours : array, optional
        (n, 3) uint8 of the vertices, red first; written, not read.
    """

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]
    colours: NDArray[np.uint8] | None = None


def read_mesh(path: Path, limits: Limits | None = None) -> Mesh:
    """Read a mesh; vertices keep their order.

    Raises
    ------
    InputError
        The file is missing or damaged, of another kind, has no vertices, or some that are not finite.
    UnsafeInputError
        It is larger than memory allows.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"its kind {path.suffix or '(none)'} is unknown", path=path, expected=", ".join(SUFFIXES))
    if not path.is_file():
        raise InputError("there is no such mesh", path=path)
    (limits or Limits()).check_allocation(path, path.stat().st_size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # missing points, and numbers that are none, are told below
            mesh = _READERS.get(path.suffix.lower(), _read_triangles)(path)
    except _DAMAGE as error:
        raise InputError(f"cannot be read as a mesh ({error})", path=path) from None
    if not len(mesh.vertices):
        raise InputError("has no vertices", path=path)
    if lost := int((~np.isfinite(mesh.vertices)).any(axis=1).sum()):
        raise InputError(f"{lost} of its {len(mesh.vertices)} vertices are not finite", path=path)
    return mesh


def write_mesh(path: Path, mesh: Mesh) -> None:
    """Write a mesh whole, or not at all; ``.xyz`` keeps its vertices only.

    Raises
    ------
    InputError
        The kind is unknown.
    OutputError
        The file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"its kind {suffix or '(none)'} is unknown", path=path, expected=", ".join(SUFFIXES))
    content = _as_text(mesh, suffix) if suffix in (".obj", _POINTS_ONLY) else _exported(mesh, suffix)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def _read_points(path: Path) -> Mesh:
    points = np.atleast_2d(np.loadtxt(path, dtype=np.float64, usecols=(0, 1, 2)))
    return Mesh(points, np.empty((0, 3), np.int64))


def _read_obj(path: Path) -> Mesh:
    """Read vertices and faces, polygons as fans of triangles; everything else in the file is for looks."""
    vertices: list[tuple[float, ...]] = []
    faces: list[tuple[int, int, int]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        kind, *values = line.split() or [""]
        if kind == "v":
            x, y, z = map(float, values[:3])
            vertices.append((x, y, z))
        elif kind == "f":
            corners = [int(value.split("/")[0]) for value in values]
            first, *others = [corner - 1 if corner > 0 else corner + len(vertices) for corner in corners]
            faces += [(first, second, third) for second, third in pairwise(others)]
    return _checked(np.array(vertices, np.float64).reshape(-1, 3), np.array(faces, np.int64).reshape(-1, 3))


def _read_triangles(path: Path) -> Mesh:
    loaded: Any = trimesh.load(path, process=False, maintain_order=True, force="mesh")
    faces = np.asarray(getattr(loaded, "faces", np.empty((0, 3))), np.int64).reshape(-1, 3)
    vertices = np.asarray(loaded.vertices, np.float64).reshape(-1, 3)
    return _checked(vertices, faces)


def _checked(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> Mesh:
    if faces.size and not 0 <= faces.min() <= faces.max() < len(vertices):
        raise ValueError("a face has a corner that is no vertex")
    return Mesh(vertices, faces)


_READERS = {_POINTS_ONLY: _read_points, ".obj": _read_obj}
"""Of text; trimesh reads the others."""


def _as_text(mesh: Mesh, suffix: str) -> bytes:
    start = "" if suffix == _POINTS_ONLY else "v "
    point = f"{start}{_DECIMALS} {_DECIMALS} {_DECIMALS}\n"
    if suffix != _POINTS_ONLY and mesh.colours is not None:
        coloured = f"{point.strip()} %.4f %.4f %.4f\n"  # after the place, as most programs read them
        rows = np.hstack([mesh.vertices, mesh.colours / _WHITE])
        lines = [coloured % tuple(row) for row in rows]
    else:
        lines = [point % tuple(vertex) for vertex in mesh.vertices]
    if suffix != _POINTS_ONLY:
        lines += [f"f {a} {b} {c}\n" for a, b, c in mesh.faces + 1]
    return "".join(lines).encode()


def _exported(mesh: Mesh, suffix: str) -> bytes:
    triangles = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=mesh.colours, process=False)
    content: Any = triangles.export(file_type=suffix.removeprefix("."))
    return bytes(content)
