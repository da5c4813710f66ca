"""Tiles: every pixel has one owner, far enough from its tile's edge, on the network's grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safelight.kernels.tiles import Layout, reflect, spans

axes = st.tuples(st.integers(1, 700), st.integers(0, 60), st.sampled_from([1, 2, 4, 8, 16]), st.integers(1, 200))


@given(axes)
def test_every_pixel_is_owned_once_and_far_enough_from_inner_edges(axis: tuple[int, int, int, int]) -> None:
    size, halo, alignment, more = axis
    tile = 2 * halo + alignment + more
    tiles = spans(size, tile, halo, alignment)
    owned = np.zeros(size, int)
    for span in tiles:
        owned[span.core] += 1
        assert span.start % alignment == 0
        assert span.start == 0 or span.core_start - span.start >= halo
        assert span.stop >= size or span.stop - span.core_stop >= halo
    assert (owned == 1).all()
    assert len({span.stop - span.start for span in tiles}) == 1


@given(axes)
def test_tiles_end_at_the_next_aligned_size(axis: tuple[int, int, int, int]) -> None:
    size, halo, alignment, more = axis
    last = spans(size, 2 * halo + alignment + more, halo, alignment)[-1].stop
    assert last % alignment == 0
    assert size <= last < size + alignment


def test_a_tile_no_longer_than_its_halos_is_refused() -> None:
    with pytest.raises(ValueError, match="no core"):
        spans(500, 64, 32, 4)


def test_layout_numbers_tiles_in_the_order_of_the_axes() -> None:
    layout = Layout.of((5, 300, 200), (8, 128, 128), 20, 4)
    assert layout.tile == (8, 128, 128)
    assert [layout.numbers(n) for n in range(len(layout))] == sorted(layout.numbers(n) for n in range(len(layout)))
    owned = np.zeros((5, 300, 200), int)
    for number in range(len(layout)):
        owned[tuple(span.core for span in layout[number])] += 1
    assert (owned == 1).all()
    with pytest.raises(IndexError):
        layout[len(layout)]


@pytest.mark.parametrize(("size", "more"), [(1, 5), (2, 7), (5, 3), (5, 23), (64, 15)])
def test_reflect_mirrors_as_numpy_does(size: int, more: int) -> None:
    expected = np.pad(np.arange(size), (more, more), mode="reflect")
    assert reflect(-more, size + more, size) == expected.tolist()
