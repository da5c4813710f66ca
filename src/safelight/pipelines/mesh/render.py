"""A training set from any mesh: views from all around with their cameras, and points on the surface."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image
from trimesh.ray.ray_pyembree import RayMeshIntersector

from safelight.core.errors import InputError
from safelight.core.files import atomic_folder
from safelight.core.pipeline import Context, Found, Item, Record
from safelight.formats.mesh import SUFFIXES, Mesh, read_mesh
from safelight.pipelines.mesh.camera_files import from_rows
from safelight.pipelines.mesh.cameras import SIDE, WORLD_SCALE, Cameras
from safelight.pipelines.mesh.dataset import CAMERAS, RENDERING
from safelight.pipelines.mesh.options import RenderOptions

Floats = NDArray[np.float64]

ELEVATION = (25.0, 30.0)
DISTANCE = (0.65, 0.95)
"""Of the cameras of 3D-R2N2's renderings, which Pixel2Mesh++ was trained with: degrees, and ratios."""
_FIELD_OF_VIEW = 25
"""Stands in every row as in theirs; nobody reads it."""

_DECIMALS = 8
"""Of the numbers in a row."""

SAMPLES = 2
"""Rays along each side of a pixel."""
_LIGHT = (0.3, 0.5, 1.0)
"""Where the light is, seen from the camera: to the right, above, behind."""
_AMBIENT = 0.3
_GREY = 200
"""Brightness of a white wall in full light."""


def find_meshes(options: RenderOptions) -> Found:
    """Return the mesh, or all meshes of a folder.

    Raises
    ------
    InputError
        There is none, or two of them would have one name.
    """
    if options.input.is_file():
        return Found((Item(options.input.stem, (options.input,)),))
    if not options.input.is_dir():
        raise InputError("there is no such mesh, nor folder", path=options.input)
    kinds = set(SUFFIXES) - {".xyz"}
    paths = [path for path in sorted(options.input.rglob("*")) if path.suffix.lower() in kinds]
    if not paths:
        raise InputError("holds no meshes", path=options.input, expected=", ".join(sorted(kinds)))
    names = [path.relative_to(options.input).with_suffix("").as_posix() for path in paths]
    return Found(tuple(Item(name, (path,)) for name, path in zip(names, paths, strict=True)))


def render(item: Item, options: RenderOptions, context: Context, prepared: None) -> Record:
    """Render one mesh in the layout of a data set."""
    (path,) = item.inputs
    try:
        mesh = normalised(read_mesh(path))
    except InputError as error:
        error.path = path
        raise
    seed = zlib.crc32(f"{options.seed} {item.name}".encode())  # each mesh has cameras of its own
    rows = sample_cameras(np.random.default_rng(seed), options.count)
    pictures = draw(mesh, from_rows(rows[None], options.focal), options.side)
    if cut := sum(_reaches_edge(picture) for picture in pictures):
        context.events.warning("views_cut", name=item.name, cut=cut, views=len(pictures))
    points, normals = sample_points(mesh, options.points, seed)
    home = context.folder / item.name
    with atomic_folder(home) as temporary:
        _write(temporary, rows, pictures)
        np.savez(temporary / "points.npz", points=points.astype(np.float32), normals=normals.astype(np.float32))
    context.events.info("mesh_rendered", name=item.name, views=len(rows), points=len(points), path=str(home))
    views = [home / RENDERING / f"{number:02}.png" for number in range(len(rows))]
    return Record((*views, home / RENDERING / CAMERAS, home / "points.npz"))


def normalised(mesh: Mesh) -> Mesh:
    """Return a mesh as ShapeNet has it: the middle of its bounding box is the origin, the box's diagonal is 1.

    Raises
    ------
    InputError
        It has no faces, or no size.
    """
    if not len(mesh.faces):
        raise InputError("has no faces", expected="a surface")
    corners = mesh.vertices[mesh.faces.ravel()]
    least, most = corners.min(axis=0), corners.max(axis=0)
    size = float(np.linalg.norm(most - least))
    if not 0 < size < math.inf:
        raise InputError(f"its bounding box has a diagonal of {size:g}", expected="a surface")
    placed = Mesh((mesh.vertices - (least + most) / 2) / size, mesh.faces)
    if not _triangles(placed).area > 0:
        raise InputError("its faces have no area", expected="a surface")
    return placed


def sample_cameras(random: np.random.Generator, count: int) -> Floats:
    """Return rows (count, 5) of cameras around an object: azimuth, elevation, yaw, distance, field of view.

    Rounded as they are written, so that pictures are taken with the very cameras in the file.
    """
    rows = np.zeros((count, 5))
    rows[:, 0] = random.uniform(0, 360, count)
    rows[:, 1] = random.uniform(*ELEVATION, count)
    rows[:, 3] = random.uniform(*DISTANCE, count)
    rows[:, 4] = _FIELD_OF_VIEW
    return rows.round(_DECIMALS)


def draw(mesh: Mesh, cameras: Cameras, side: int) -> list[NDArray[np.uint8]]:
    """Return a picture (side, side, 4) of a mesh of ShapeNet's size from each camera.

    Colour is not weighted with opacity, which is the share of a pixel's rays that meet the mesh.
    """
    triangles = _triangles(Mesh(mesh.vertices * WORLD_SCALE, mesh.faces))
    caster = RayMeshIntersector(triangles)
    normals = np.asarray(triangles.face_normals)
    return [_picture(caster, normals, cameras, view, side) for view in range(cameras.views)]


def sample_points(mesh: Mesh, count: int, seed: int) -> tuple[Floats, Floats]:
    """Return points spread evenly over a surface, and its normals there, each (count, 3)."""
    triangles = _triangles(mesh)
    points, faces = trimesh.sample.sample_surface(triangles, count, seed=seed)
    return np.asarray(points, np.float64), np.asarray(triangles.face_normals, np.float64)[faces]


def _triangles(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


def _picture(caster: RayMeshIntersector, normals: Floats, cameras: Cameras, view: int, side: int) -> NDArray[np.uint8]:
    fine = side * SAMPLES
    axes = cameras.axes[0, view].numpy()
    rays = _directions(cameras, view, fine) @ axes
    met = caster.intersects_first(np.broadcast_to(cameras.origin[0, view].numpy(), rays.shape), rays)
    shade = _shades(normals[met], rays, np.array(_LIGHT) @ axes)
    hit = (met >= 0).reshape(side, SAMPLES, side, SAMPLES)
    rays_hit = hit.sum(axis=(1, 3))
    light = np.where(hit, shade.reshape(hit.shape), 0).sum(axis=(1, 3)) / rays_hit.clip(min=1)
    grey = (_GREY * light).round().astype(np.uint8)
    opacity = (255 * rays_hit / SAMPLES**2).round().astype(np.uint8)
    return np.stack([grey, grey, grey, opacity], axis=-1)


def _reaches_edge(picture: NDArray[np.uint8]) -> bool:
    opacity = picture[..., 3]
    return any(edge.any() for edge in (opacity[0], opacity[-1], opacity[:, 0], opacity[:, -1]))


def _directions(cameras: Cameras, view: int, side: int) -> Floats:
    """Return the ray through the middle of each pixel, row by row, in the frame of the camera: (side², 3)."""
    middles = (np.arange(side) + 0.5) * (SIDE / side)
    (across, down), (x, y) = cameras.focal[0, view].numpy(), cameras.centre[0, view].numpy()
    vertical, horizontal = np.meshgrid((y - middles) / down, (middles - x) / across, indexing="ij")
    return np.stack([horizontal, vertical, np.full_like(vertical, -1)], axis=-1).reshape(-1, 3)


def _shades(normals: Floats, rays: Floats, light: Floats) -> Floats:
    """Return how bright faces are, 0 to 1 (Lambert): both of their sides are seen, whichever way they are turned."""
    facing = np.einsum("ni,ni->n", normals, rays)
    turned = np.where(facing[:, None] > 0, -normals, normals)
    shades: Floats = _AMBIENT + (1 - _AMBIENT) * (turned @ (light / np.linalg.norm(light))).clip(min=0)
    return shades


def _write(folder: Path, rows: Floats, pictures: Sequence[NDArray[np.uint8]]) -> None:
    views = folder / RENDERING
    views.mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(views / f"{number:02}.png")
    np.savetxt(views / CAMERAS, rows, fmt=f"%.{_DECIMALS}f", encoding="utf-8")
