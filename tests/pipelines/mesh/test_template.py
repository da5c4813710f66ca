"""A template is a closed mesh whose faces all look outwards, at every level."""

from __future__ import annotations

import numpy as np
import pytest

from safelight.core.errors import InputError
from safelight.pipelines.mesh.template import Template, ellipsoid, make_template, oriented, signed_volume

TETRAHEDRON = np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)], float)
FACES = np.array([(0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3)])


@pytest.fixture(scope="module")
def template() -> Template:
    return ellipsoid()


def test_our_ellipsoid_has_the_published_sizes(template: Template) -> None:
    assert [(level.vertices, len(level.faces), len(level.edges)) for level in template.levels] == [
        (156, 308, 462),
        (618, 1232, 1848),
        (2466, 4928, 7392),
    ]


def test_every_level_is_watertight_and_looks_outwards(template: Template) -> None:
    points = template.coordinates
    for level in template.levels:
        directed = level.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
        assert len(np.unique(directed, axis=0)) == len(directed) == 2 * len(level.edges)
        assert signed_volume(points, level.faces) == pytest.approx(4 / 3 * np.pi * 0.28 * 0.2 * 0.2, rel=0.05)
        points = np.concatenate([points, points[level.edges].mean(axis=1)])


def test_faces_turned_at_random_are_turned_outwards() -> None:
    for turned in range(16):
        faces = np.array([face[::-1] if turned >> number & 1 else face for number, face in enumerate(FACES)])
        assert signed_volume(TETRAHEDRON, oriented(TETRAHEDRON, faces)) == pytest.approx(1 / 6)


def test_two_bodies_are_turned_outwards_each() -> None:
    points = np.concatenate([TETRAHEDRON, TETRAHEDRON + 5])
    faces = np.concatenate([FACES, FACES[:, ::-1] + 4])
    assert signed_volume(points, oriented(points, faces)) == pytest.approx(2 / 6)


def test_a_hole_is_named() -> None:
    with pytest.raises(InputError, match="the edge between vertices 0 and 1 belongs to 1 face"):
        make_template(TETRAHEDRON, FACES[1:])


def test_a_vertex_of_no_face_is_named() -> None:
    with pytest.raises(InputError, match="vertex 4 belongs to no face"):
        make_template(np.concatenate([TETRAHEDRON, [(5, 5, 5)]]), FACES)


def test_a_vertex_that_is_no_number_is_refused() -> None:
    with pytest.raises(InputError, match="not finite"):
        make_template(TETRAHEDRON * np.nan, FACES)


def test_a_surface_of_one_side_is_refused() -> None:
    """The projective plane with six vertices is closed, and has no inside."""
    faces = [
        (0, 1, 4),
        (0, 1, 5),
        (0, 2, 3),
        (0, 2, 5),
        (0, 3, 4),
        (1, 2, 3),
        (1, 2, 4),
        (1, 3, 5),
        (2, 4, 5),
        (3, 4, 5),
    ]
    with pytest.raises(InputError, match="one side only"):
        oriented(np.eye(6)[:, :3], np.array(faces))


def test_the_digest_tells_templates_apart(template: Template) -> None:
    moved = make_template(template.coordinates + 1e-3, template.levels[0].faces)
    assert moved.digest != template.digest == ellipsoid().digest


def test_the_support_is_that_of_a_normalised_laplacian(template: Template) -> None:
    support = template.levels[0].support.toarray()
    eigenvalues = np.linalg.eigvalsh(support)
    assert eigenvalues[[0, -1]] == pytest.approx([-1, 1], abs=1e-9)
