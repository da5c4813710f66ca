"""Patches: drawn evenly from images of any sizes, augmented as the noise allows, also where memory is too small."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from safelight.core.errors import InputError
from safelight.pipelines.denoise.frames import ArrayImage, Frames
from safelight.pipelines.denoise.sampling import Moments, PatchSampler, Pool, Symmetries
from safelight.pipelines.denoise.structure import line

CPU = torch.device("cpu")
NO_SYMMETRY = Symmetries(False, False, False)


class CountingImage(ArrayImage):
    """Remembers the largest region that was read at once."""

    largest = 0

    def read(self, slices: tuple[slice, ...]) -> np.ndarray:
        part = super().read(slices)
        self.largest = max(self.largest, part.size)
        return part


def pool_of(*arrays: np.ndarray, axes: str = "YX", dims: int = 2, limit: int = 1 << 30, seed: int = 0) -> Pool:
    frames = [Frames(ArrayImage(array, axes), dims) for array in arrays]
    return Pool(frames, CPU, limit, (16,) * dims, seed)


def draw(sampler: PatchSampler, batch: int, seed: int = 0) -> torch.Tensor:
    return sampler.gather(*sampler.draw(batch, torch.Generator().manual_seed(seed)))


def test_every_origin_is_equally_likely_the_last_too() -> None:
    pool = pool_of(np.arange(6 * 7).reshape(6, 7))
    corners = draw(PatchSampler(pool, (4, 4), NO_SYMMETRY), 60_000)[:, 0, 0, 0]
    counts = Counter(corners.int().tolist())
    assert set(counts) == {7 * y + x for y in range(3) for x in range(4)}
    assert max(abs(count - 5000) for count in counts.values()) < 5 * 5000**0.5


def test_patches_are_parts_of_images_of_different_sizes_channels_and_times() -> None:
    sizes = [(2, 3, 20, 30), (1, 3, 17, 16), (3, 3, 40, 18)]
    arrays = [
        np.random.default_rng(n).permutation(np.prod(size)).reshape(size).astype(np.float32)
        for n, size in enumerate(sizes)
    ]
    patches = draw(PatchSampler(pool_of(*arrays, axes="TCYX"), (8, 8), NO_SYMMETRY), 64).numpy()
    seen = set()
    for patch in patches:
        places = [
            (n, *place)
            for n, array in enumerate(arrays)
            for place in np.argwhere(array[:, 0] == patch[0, 0, 0])
            if place[1] + 8 <= array.shape[2] and place[2] + 8 <= array.shape[3]
        ]
        exact = [(n, t) for n, t, y, x in places if np.array_equal(arrays[n][t, :, y : y + 8, x : x + 8], patch)]
        assert len(exact) == 1
        seen.add(exact[0])
    assert len(seen) == 6


def test_three_dimensional_patches_keep_their_planes_in_order() -> None:
    volume = np.arange(10 * 12 * 14, dtype=np.float32).reshape(10, 12, 14)
    patch = draw(PatchSampler(pool_of(volume, axes="ZYX", dims=3), (4, 8, 8), NO_SYMMETRY), 1)[0, 0].numpy()
    z, y, x = np.unravel_index(int(patch[0, 0, 0]), volume.shape)
    np.testing.assert_array_equal(patch, volume[z : z + 4, y : y + 8, x : x + 8])


def test_all_eight_orientations_occur_and_no_other() -> None:
    square = np.arange(16, dtype=np.float32).reshape(4, 4)
    expected = {np.rot90(flipped, turns).tobytes() for flipped in (square, square[:, ::-1]) for turns in range(4)}
    patches = draw(PatchSampler(pool_of(square), (4, 4)), 200).numpy()
    assert {patch.tobytes() for patch in patches[:, 0]} == expected
    # Test-time augmentation uses the same orientations.
    turned = set()
    for flips, transpose in Symmetries().orientations():
        view = torch.from_numpy(square).flip(flips)
        turned.add((view.mT if transpose else view).numpy().tobytes())
    assert turned == expected


def test_noise_along_rows_stays_along_rows() -> None:
    symmetries = Symmetries.of(line(3, "horizontal"))
    assert symmetries == Symmetries(flip_y=True, flip_x=True, transpose=False)
    assert Symmetries.of(line(3, "cross")) == Symmetries.of(()) == Symmetries()
    assert Symmetries.of(((0, 1, 1),)) == Symmetries(flip_y=True, flip_x=False, transpose=False)
    rows = np.repeat(np.arange(8, dtype=np.float32)[:, None], 8, 1)
    patches = draw(PatchSampler(pool_of(rows), (8, 8), symmetries), 50)
    assert bool((patches == patches[..., :1]).all())


def test_a_frame_smaller_than_a_patch_is_refused() -> None:
    with pytest.raises(InputError, match="smaller than a training patch"):
        PatchSampler(pool_of(np.zeros((20, 10))), (16, 16))


def test_an_image_larger_than_memory_is_read_in_crops_that_are_replaced() -> None:
    image = CountingImage(np.arange(400 * 300, dtype=np.float32).reshape(400, 300), "YX")
    pool = Pool([Frames(image, 2)], CPU, limit_bytes=10 * 32 * 32 * 4, crop=(32, 32))
    assert not pool.whole
    assert pool.values.nbytes <= 10 * 32 * 32 * 4
    assert image.largest == 32 * 32
    sampler = PatchSampler(pool, (16, 16), NO_SYMMETRY)
    before = set(draw(sampler, 500).flatten().tolist())
    pool.refresh(crops=10)
    after = set(draw(sampler, 500).flatten().tolist())
    assert len(after - before) > 0.8 * len(after)
    assert len(after) <= 10 * 32 * 32


def test_the_seed_alone_decides_which_crops_are_read() -> None:
    image = np.arange(200 * 300, dtype=np.float32).reshape(200, 300)
    limit = 6 * 16 * 16 * 4
    first, again, other = (pool_of(image, limit=limit, seed=seed) for seed in (5, 5, 6))
    for pool in (first, again, other):
        pool.refresh(2)
    assert torch.equal(first.values, again.values)
    assert not torch.equal(first.values, other.values)


def test_a_restored_ring_holds_and_reads_the_same_crops() -> None:
    image = np.random.default_rng(0).normal(size=(200, 300)).astype(np.float32)
    limit = 6 * 16 * 16 * 4
    pool = pool_of(image, limit=limit)
    pool.normalise(pool.moments.normalisation())
    pool.refresh(2)
    state = pool.state()
    resumed = pool_of(image, limit=limit, seed=99)
    resumed.normalise(pool.normalisation)
    resumed.restore(state)
    for one in (pool, resumed):
        one.refresh(3)
    assert torch.equal(pool.values, resumed.values)


def test_mean_and_deviation_are_exact_per_channel_and_leave_out_gaps() -> None:
    values = np.random.default_rng(0).normal([[[10_000.0]], [[3.0]]], [[[2.0]], [[0.1]]], size=(2, 64, 64))
    values = values.astype(np.float32)
    values[0, :5] = np.nan
    moments = Moments(2)
    moments.add(values[:, :20])
    moments.add(values[:, 20:])
    normalisation = moments.normalisation()
    exact = values.astype(np.float64)
    np.testing.assert_allclose(normalisation.mean, np.nanmean(exact, (1, 2)), rtol=1e-12)
    np.testing.assert_allclose(normalisation.std, np.nanstd(exact, (1, 2)), rtol=1e-9)


def test_a_constant_channel_is_named_and_not_divided_by_zero() -> None:
    moments = Moments(2)
    moments.add(np.stack([np.full((8, 8), 7.0), np.arange(64.0).reshape(8, 8)]).astype(np.float32))
    assert moments.constant() == [0]
    assert moments.normalisation().std[0] == 1.0
