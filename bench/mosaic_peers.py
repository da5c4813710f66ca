"""Stack frames with rejection in a process of its own: Safelight, astropy or ccdproc. Called by mosaic.py.

python bench/mosaic_peers.py NAME frames.npy
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mosaic_reproject import peak_bytes

KAPPA = 3.0


def safelight(frames: np.ndarray) -> np.ndarray:
    import torch

    from safelight.kernels.combine import combine
    from safelight.kernels.rejection import Rejection

    torch.set_num_threads(1)
    rejection = Rejection("winsorized_sigma_clip", kappa_low=KAPPA, kappa_high=KAPPA)
    return combine(torch.from_numpy(frames).movedim(0, -1), rejection=rejection).image.numpy()


def sigma_clip(frames: np.ndarray) -> np.ndarray:
    from astropy.stats import sigma_clip

    clipped = sigma_clip(frames, sigma=KAPPA, maxiters=5, axis=0, masked=False, copy=False)
    return np.nanmean(clipped, axis=0)


def ccdproc(frames: np.ndarray) -> np.ndarray:
    from astropy.nddata import CCDData
    from ccdproc import Combiner

    combiner = Combiner([CCDData(frame, unit="adu") for frame in frames])
    combiner.sigma_clipping(low_thresh=KAPPA, high_thresh=KAPPA, func="median")
    return np.asarray(combiner.average_combine().data)


STACKERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "safelight": safelight,
    "sigma_clip": sigma_clip,
    "ccdproc": ccdproc,
}


def main() -> None:
    stacker, path = STACKERS[sys.argv[1]], Path(sys.argv[2])
    stacker(np.load(path, mmap_mode="r")[:, :8, :8].copy())  # imports, and what is compiled at the first call
    frames = np.load(path)
    before = peak_bytes()
    wall, cpu = time.perf_counter(), time.process_time()
    image = stacker(frames)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    measured = {"wall": wall, "cpu": cpu, "extra": peak_bytes() - before}
    print(json.dumps(measured | {"noise": float(image.std()), "mean": float(image.mean(dtype=np.float64))}))


if __name__ == "__main__":
    main()
