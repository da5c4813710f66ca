"""The pairs as a PyTorch Dataset, read from the manifest."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from safelight.core.errors import InputError, NothingToDoError
from safelight.core.files import inside
from safelight.pipelines.pairs.crops import COLOUR_SUFFIXES, read_crop
from safelight.pipelines.pairs.manifest import MANIFEST, read_lines

_MASKS_KEPT = 2


class PairDataset(Dataset[dict[str, Tensor]]):
    """The crops of a run of ``pairs``.

    One entry is a dict of tensors: ``gt`` and ``noisy`` (C, H, W) float32, 0 black and 1 white, C being 4 (Bayer) or
    9 (X-Trans) planes of one colour, or 3 for crops in colour; ``mask`` (1, H, W) bool, true where a loss may count;
    ``gain`` (1,), by which ``noisy`` is as bright as ``gt``.

    Parameters
    ----------
    folder : Path
        What ``pairs run`` wrote.
    accepted : bool
        Only pairs that the manifest calls accepted; otherwise all that could be aligned.
    patch : int, optional
        Side of a random square of each crop, so that entries can be batched; smaller crops are left out. The random
        numbers are torch's.

    Raises
    ------
    InputError
        There is no manifest.
    NothingToDoError
        No crop is left.
    """

    def __init__(self, folder: Path | str, *, accepted: bool = True, patch: int | None = None) -> None:
        self._folder, self._patch = Path(folder), patch
        lines = [line for line in read_lines(self._folder / MANIFEST) if line["accepted"] or not accepted]
        self._entries = [(line, crop) for line in lines for crop in line["crops"] if self._is_large(line, crop)]
        if not self._entries:
            raise NothingToDoError("no crop can be used", path=self._folder, expected="crops of accepted pairs")

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Read one crop.

        Raises
        ------
        InputError
            A file is missing or damaged.
        UnsafeInputError
            The manifest names a file outside its folder.
        """
        line, crop = self._entries[index]
        gt, noisy = (torch.from_numpy(read_crop(inside(self._folder, crop[name]))) for name in ("gt", "noisy"))
        (x, y), (width, height) = crop["coordinates"], crop["size"]
        bits = read_mask(inside(self._folder, line["mask"]))[y : y + height, x : x + width]
        entry = {"gt": gt, "noisy": noisy, "mask": _usable(bits, height // gt.shape[1])}
        if self._patch is not None:
            entry = _random_patch(entry, self._patch)
        return {**entry, "gain": torch.tensor([line["raw_gain"]])}

    def _is_large(self, line: dict[str, object], crop: dict[str, list[int]]) -> bool:
        side = 1 if Path(str(crop["gt"])).suffix in COLOUR_SUFFIXES else 2 if line["sensor"] == "bayer" else 3
        return self._patch is None or min(crop["size"]) >= self._patch * side


@lru_cache(maxsize=_MASKS_KEPT)
def read_mask(path: Path) -> NDArray[np.uint8]:
    """Read a mask, (H, W) uint8 bits: 1 moved, 2 ground truth clipped, 4 noisy frame clipped, 8 outside.

    Raises
    ------
    InputError
        The file is missing, damaged, or no mask.
    """
    try:
        with Image.open(path) as picture:
            mode, bits = picture.mode, np.asarray(picture)
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise InputError(f"is no mask: {error}", path=path, remedy="run 'pairs run' again") from error
    if mode != "L":
        raise InputError(f"is a picture of mode {mode}", path=path, expected="a mask of 8-bit numbers")
    return bits


def _usable(bits: NDArray[np.uint8], side: int) -> Tensor:
    """Return where all sites of a packed pixel are good, (1, H, W) bool."""
    height, width = bits.shape[0] // side, bits.shape[1] // side
    sites = (bits == 0).reshape(height, side, width, side)
    return torch.from_numpy(sites.all(axis=(1, 3)))[None]


def _random_patch(entry: dict[str, Tensor], side: int) -> dict[str, Tensor]:
    height, width = entry["gt"].shape[1:]
    y, x = (int(torch.randint(size - side + 1, (1,))) for size in (height, width))
    return {name: values[:, y : y + side, x : x + side] for name, values in entry.items()}
