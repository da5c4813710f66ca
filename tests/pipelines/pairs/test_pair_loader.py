"""The Dataset gives what the manifest says, and nothing from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from safelight.core.errors import InputError, NothingToDoError, UnsafeInputError
from safelight.pipelines.pairs.loader import PairDataset

SIDES = {"bayer": 2, "x-trans": 3}


def write(folder: Path, sensor: str = "bayer", **changed: Any) -> Path:
    """Write one pair with two crops, in the first of which a 1 marks the pixel that belongs to mask site (12, 6)."""
    side, size = SIDES[sensor], 24
    crops = []
    for number, (x, y) in enumerate(((0, 0), (12, 6))):
        crop: dict[str, Any] = {"coordinates": [x, y], "size": [size, size]}
        for name in ("gt", "noisy"):
            planes = np.full((side * side, size // side, size // side), number + (name == "gt") / 2, np.float32)
            crop[name] = f"{number}_{name}.npz"
            np.savez(folder / crop[name], packed=planes)
        crops.append(crop)
    mask = np.zeros((48, 48), np.uint8)
    mask[12, 18] = 1
    Image.fromarray(mask).save(folder / "mask.png")
    line = {"gt": "a", "noisy": "b", "sensor": sensor, "accepted": True, "mask": "mask.png", "raw_gain": 2.0}
    (folder / "manifest.jsonl").write_text(json.dumps({**line, "crops": crops, **changed}) + "\n")
    return folder


@pytest.mark.parametrize("sensor", ["bayer", "x-trans"])
def test_a_packed_pixel_is_good_where_all_its_sites_are(tmp_path: Path, sensor: str) -> None:
    side = SIDES[sensor]
    dataset = PairDataset(write(tmp_path, sensor))
    assert len(dataset) == 2
    first, second = dataset[0], dataset[1]
    assert first["gt"].shape == (side * side, 24 // side, 24 // side)
    assert (float(first["gt"].mean()), float(second["noisy"].mean())) == (0.5, 1.0)
    assert first["gain"].tolist() == [2.0]
    for entry, (y, x) in ((first, (12, 18)), (second, (6, 6))):
        assert entry["mask"].dtype == torch.bool
        assert (~entry["mask"]).nonzero().tolist() == [[0, y // side, x // side]]


def test_patches_can_be_batched_and_are_the_seeds(tmp_path: Path) -> None:
    dataset = PairDataset(write(tmp_path), patch=8)
    batches = []
    for _ in range(2):
        torch.manual_seed(3)
        batches.append(next(iter(DataLoader(dataset, batch_size=2))))
    assert batches[0]["gt"].shape == (2, 4, 8, 8)
    assert batches[0]["mask"].shape == (2, 1, 8, 8)
    assert batches[0]["gain"].shape == (2, 1)
    assert all((batches[0][name] == batches[1][name]).all() for name in batches[0])


def test_crops_too_small_for_a_patch_are_left_out(tmp_path: Path) -> None:
    with pytest.raises(NothingToDoError):
        PairDataset(write(tmp_path), patch=13)


def test_what_is_not_accepted_comes_only_when_asked_for(tmp_path: Path) -> None:
    folder = write(tmp_path, accepted=False)
    with pytest.raises(NothingToDoError):
        PairDataset(folder)
    assert len(PairDataset(folder, accepted=False)) == 2


def test_a_manifest_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    Image.new("L", (48, 48)).save(tmp_path / "elsewhere.png")
    with pytest.raises(UnsafeInputError):
        PairDataset(write(folder, mask="../elsewhere.png"))[0]


def test_a_damaged_mask_is_named(tmp_path: Path) -> None:
    dataset = PairDataset(write(tmp_path))
    (tmp_path / "mask.png").write_bytes(b"garbage")
    with pytest.raises(InputError) as caught:
        dataset[0]
    assert caught.value.path == tmp_path / "mask.png"
