"""Meshes come back as they were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh

from safelight.core.errors import InputError
from safelight.formats.mesh import Mesh, read_mesh, write_mesh

TETRAHEDRON = Mesh(
    np.array([(0, 0, 0), (1 / 3, 0, 1e-9), (0, 1, 0), (0, 0, -2.5)]),
    np.array([(0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3)]),
)


@pytest.mark.parametrize("suffix", [".obj", ".ply", ".glb", ".xyz"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    write_mesh(tmp_path / f"a{suffix}", TETRAHEDRON)
    mesh = read_mesh(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(mesh.vertices.astype(np.float32), TETRAHEDRON.vertices.astype(np.float32))
    np.testing.assert_array_equal(mesh.faces, TETRAHEDRON.faces if suffix != ".xyz" else np.empty((0, 3)))


@pytest.mark.parametrize("suffix", [".obj", ".ply", ".glb"])
def test_other_programs_see_the_colours(tmp_path: Path, suffix: str) -> None:
    colours = np.array([(255, 0, 0), (0, 128, 0), (0, 0, 64), (10, 20, 30)], np.uint8)
    write_mesh(tmp_path / f"a{suffix}", Mesh(TETRAHEDRON.vertices, TETRAHEDRON.faces, colours))
    loaded = trimesh.load(tmp_path / f"a{suffix}", process=False, maintain_order=True, force="mesh")
    np.testing.assert_array_equal(loaded.visual.vertex_colors[:, :3], colours)
    np.testing.assert_array_equal(read_mesh(tmp_path / f"a{suffix}").faces, TETRAHEDRON.faces)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.obj", b"", "has no vertices|cannot be read"),
        ("a.obj", b"v 0 0 nan\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "1 of its 3 vertices are not finite"),
        ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "cannot be read as a mesh"),
        ("a.glb", b"glTF\x02\x00", "cannot be read as a mesh"),
        ("a.ply", b"ply\nformat nothing\n", "cannot be read as a mesh"),
        ("a.xyz", b"1 2 three\n", "cannot be read as a mesh"),
        ("a.stl", b"solid", "its kind .stl is unknown"),
    ],
)
def test_what_is_no_mesh_is_named(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=problem) as caught:
        read_mesh(tmp_path / name)
    assert caught.value.path == tmp_path / name
