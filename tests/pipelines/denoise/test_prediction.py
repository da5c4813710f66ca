"""Prediction: any size, any axes, in tiles or whole, always the same result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from safelight.core.device import Device
from safelight.core.errors import InputError
from safelight.core.events import EventLog
from safelight.core.execute import Executor
from safelight.core.memory import VirtualDevice
from safelight.core.plan import Corrections
from safelight.pipelines.denoise.frames import ArrayImage, Frames
from safelight.pipelines.denoise.model import DenoiseModel, Normalisation
from safelight.pipelines.denoise.network import Architecture, UNet
from safelight.pipelines.denoise.prediction import Predictor, predict
from safelight.pipelines.denoise.structure import line


@pytest.fixture
def executor(tmp_path: Path) -> Executor:
    return Executor(Device(torch.device("cpu")), EventLog(), corrections=Corrections(tmp_path))


def a_model(
    dims: int = 2, channels: int = 1, structure: tuple[tuple[int, ...], ...] = (), **switches: object
) -> DenoiseModel:
    architecture = Architecture(dims=dims, channels=channels, features=4, **switches)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(architecture)
        with torch.no_grad():  # running statistics as after training
            for _ in range(20):
                network(torch.randn(2, channels, *(16,) * dims))
    normalisation = Normalisation((100.0,) * channels, (20.0,) * channels)
    return DenoiseModel(architecture, normalisation, network.state_dict(), structure=structure)


def an_image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(100, 20, shape).astype(np.float32)


def denoise(model: DenoiseModel, array: np.ndarray, axes: str, executor: Executor, **options: object) -> np.ndarray:
    result = np.full(array.shape, np.nan, np.float32)

    def write(region: tuple[slice, ...], pixels: np.ndarray) -> None:
        assert np.isnan(result[region]).all(), "a region was written twice"
        result[region] = pixels

    predict(model, Frames(ArrayImage(array, axes), model.architecture.dims), write, executor, **options)
    return result


def directly(model: DenoiseModel, frame: np.ndarray) -> np.ndarray:
    """The network on a whole (C, …) frame, mirrored to the next aligned size, written without any tiles."""
    more = [(0, -size % model.architecture.alignment) for size in frame.shape[1:]]
    padded = np.pad(frame, [(0, 0), *more], mode="reflect")
    with torch.no_grad():
        result = model.network()(torch.from_numpy((padded - 100) / 20)[None])[0].numpy() * 20 + 100
    return result[(slice(None), *(slice(0, size) for size in frame.shape[1:]))]


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("blur_pool", [False, True])
@pytest.mark.parametrize("size", [(510, 301), (256, 256)])
def test_tiles_give_the_whole_image(depth: int, blur_pool: bool, size: tuple[int, int], executor: Executor) -> None:
    # An earlier port's tiles were shifted by half a patch; CAREamics' differ at sizes such as 510.
    model = a_model(depth=depth, blur_pool=blur_pool, top_skip=True)
    image = an_image(*size)
    tiled = denoise(model, image, "YX", executor, tile=160)
    np.testing.assert_allclose(tiled / 20, directly(model, image[None])[0] / 20, atol=1e-5)
    whole = denoise(model, image, "YX", executor, tile=1024)
    np.testing.assert_allclose(tiled / 20, whole / 20, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (16, 16), (17, 33), (63, 64), (100, 7)])
def test_any_size_is_denoised(size: tuple[int, int], executor: Executor) -> None:
    model = a_model(depth=2)
    image = an_image(*size)
    result = denoise(model, image, "YX", executor)
    assert np.isfinite(result).all()
    if min(size) > 3:
        np.testing.assert_allclose(result, directly(model, image[None])[0], atol=1e-3)


@pytest.mark.parametrize("axes", ["CZYX", "ZCYX", "ZYXC"])
def test_volumes_and_channels_in_any_order(axes: str, executor: Executor) -> None:
    model = a_model(dims=3, channels=2, depth=1)
    frame = an_image(2, 21, 66, 50)
    order = ["CZYX".index(axis) for axis in axes]
    result = denoise(model, np.ascontiguousarray(frame.transpose(order)), axes, executor, tile=40)
    np.testing.assert_allclose(result, directly(model, frame).transpose(order), atol=1e-3)


def test_time_points_and_planes_are_denoised_one_by_one(executor: Executor) -> None:
    model = a_model(depth=1)
    stack = an_image(2, 3, 20, 24)
    result = denoise(model, stack, "TZYX", executor)
    for t in range(2):
        for z in range(3):
            np.testing.assert_allclose(result[t, z], directly(model, stack[t, z][None])[0], atol=1e-3)


def test_the_models_normalisation_is_used_not_the_images(executor: Executor) -> None:
    model = a_model(depth=1)
    image = an_image(32, 32)
    brighter = denoise(model, image + 50, "YX", executor)
    np.testing.assert_allclose(brighter, directly(model, image[None] + 50)[0], atol=1e-3)
    assert not np.allclose(brighter, denoise(model, image, "YX", executor) + 50, atol=1.0)


def test_an_image_larger_than_memory_is_read_tile_by_tile(executor: Executor) -> None:
    class Counting(ArrayImage):
        largest = 0

        def read(self, slices: tuple[slice, ...]) -> np.ndarray:
            part = super().read(slices)
            self.largest = max(self.largest, part.size)
            return part

    model, written = a_model(depth=1), []
    image = Counting(an_image(600, 500), "YX")
    predict(model, Frames(image, 2), lambda region, pixels: written.append(pixels.size), executor, tile=96)
    assert image.largest <= 96 * 96
    assert sum(written) == 600 * 500


def test_little_memory_gives_smaller_tiles_and_the_same_image(executor: Executor, tmp_path: Path) -> None:
    model, image = a_model(depth=1), an_image(400, 420)
    whole = denoise(model, image, "YX", executor)
    small = Executor(
        Device(torch.device("cpu")),
        EventLog(),
        virtual=VirtualDevice(cap_bytes=12 << 20),
        corrections=Corrections(tmp_path / "other"),
    )
    frames, result = Frames(ArrayImage(image, "YX"), 2), np.empty_like(image)
    layout = predict(model, frames, lambda region, pixels: result.__setitem__(region, pixels), small)
    assert len(layout) > 1
    np.testing.assert_allclose(result, whole, atol=1e-3)


@pytest.mark.parametrize(("structure", "count"), [((), 8), (line(1, "horizontal"), 4)], ids=["points", "rows"])
def test_augmentation_is_the_mean_over_the_orientations(structure: tuple[tuple[int, ...], ...], count: int) -> None:
    model = a_model(depth=1, structure=structure)
    image = torch.from_numpy(an_image(1, 1, 16, 24))
    views = [(torch.rot90, turns, flip) for turns in range(4) for flip in (False, True)]
    results = []
    for rotate, turns, flip in views:
        if count == 4 and turns % 2:
            continue
        view = rotate(image, turns, (-2, -1))
        view = view.flip(-1) if flip else view
        result = Predictor(model).eval()(view)
        results.append(rotate(result.flip(-1) if flip else result, -turns, (-2, -1)))
    assert len(results) == count
    torch.testing.assert_close(Predictor(model, augmented=True).eval()(image), torch.stack(results).mean(0))


def test_a_gap_is_filled_in_and_stays_local(executor: Executor) -> None:
    # One NaN zeroed a whole volume once.
    model, image = a_model(depth=1), an_image(64, 64)
    radius = model.architecture.receptive_radius
    gap = image.copy()
    gap[32, 32] = np.nan
    whole, result = denoise(model, image, "YX", executor), denoise(model, gap, "YX", executor)
    assert np.isfinite(result).all()
    np.testing.assert_allclose(result[: 32 - radius], whole[: 32 - radius], atol=1e-4)


def test_an_image_of_other_channels_is_refused(executor: Executor) -> None:
    with pytest.raises(InputError, match=r"2 channel\(s\)"):
        denoise(a_model(depth=1), an_image(2, 32, 32), "CYX", executor)


def test_axes_that_are_none_are_refused() -> None:
    for axes in ("QX", "YY", "ZX", "YXC"):
        with pytest.raises(InputError, match="axes"):
            Frames(ArrayImage(an_image(8, 8), axes), 2)
    with pytest.raises(InputError, match="axes YX, the network needs ZYX"):
        Frames(ArrayImage(an_image(8, 8), "YX"), 3)
