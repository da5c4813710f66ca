"""The report stands alone, says what happened in the reader's language, and shows what a microscopist wants to see."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from safelight.core.errors import UnsafeInputError
from safelight.kernels.gaussian import gaussian_filter
from safelight.pipelines.denoise import report
from safelight.pipelines.denoise.diagnostics import diagnose
from safelight.pipelines.denoise.pictures import CROP, CROP_SCALE, LARGEST_SIDE, draw_pictures
from safelight.pipelines.denoise.report import LOSSES, write_report

EVENTS = [
    {
        "time": 1e9,
        "severity": "info",
        "key": "gpu_info_summary",
        "data": {"device": "cpu", "hardware": "x", "free_bytes": 1},
    },
    {
        "time": 1e9,
        "severity": "warning",
        "key": "gpu_fallback_unavailable",
        "data": {"wanted": "cuda", "device": "cpu"},
    },
]
METRICS = {
    "psnr": 37.25,
    "input_psnr": 27.5,
    "gaussian_psnr": 36.5,
    "gaussian_sigma": 1.2,
    "scale_invariant_psnr": 37.75,
    "input_scale_invariant_psnr": 28.5,
    "gaussian_scale_invariant_psnr": 36.75,
}


def planes(shape: tuple[int, ...] = (200, 260)) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image of cells, and the clean one."""
    generator = torch.Generator().manual_seed(0)
    blobs = gaussian_filter(torch.randn(shape, generator=generator, dtype=torch.float64), 3.0)
    clean = 20 + 100 * (blobs / blobs.std()).clamp(min=0)
    return (clean + 20 * torch.randn(shape, generator=generator)).numpy(), clean.numpy()


def item(folder: Path, name: str, smoothing: float = 0.0, channels: int = 1) -> dict[str, Any]:
    """An item's record after denoising perfectly, or with ``smoothing`` σ too much."""
    noisy, clean = planes()
    result = gaussian_filter(torch.from_numpy(clean), smoothing).numpy()
    looks = []
    for number in range(channels):
        found = diagnose(torch.from_numpy(noisy), torch.from_numpy(result))
        label = f"{name}_channel{number}" if channels > 1 else name
        pictures = draw_pictures(folder, label, noisy, result, clean, found)
        paths = {kind: str(path.relative_to(folder)) for kind, path in pictures.items()}
        looks.append({"name": label, "diagnostics": found.as_json(), "pictures": paths})
    outputs = [{"path": f"{name}.tif", "sha256": "ab" * 32}]
    return {"name": name, "seconds": 2.0, "metrics": METRICS, "details": {"channels": looks}, "outputs": outputs}


def document(*items: dict[str, Any], lang: str = "en", **changes: Any) -> dict[str, Any]:
    return {
        "pipeline": "denoise",
        "command": "run",
        "options": {"lang": lang, "input": "cells.tif", "notes": "day <1> & night", "steps": 700},
        "versions": {"safelight": "0.1.0", "torch": "2.13.0"},
        "device": {"device": "cpu", "hardware": "a fine processor", "amp": "off", "compile": "off"},
        "seconds": 12.0,
        "memory": [
            {"kernel": "unet", "device": "cpu", "rows": 3, "predicted_bytes": 3 << 20, "measured_bytes": 2 << 20}
        ],
        "averages": METRICS,
        "items": list(items),
        "failed": [],
        "refused": [],
        "events": EVENTS,
        **changes,
    }


def pixels_of(path: Path) -> np.ndarray:
    """A picture's brightness, (Y, X)."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L"))


class Page(HTMLParser):
    """What a browser would read: text, and every address that it would fetch."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.addresses, self.open = "", [], []  # type: ignore[var-annotated]
        self.feed(path.read_text(encoding="utf-8"))
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("img", "br", "meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.text += " " if tag in ("td", "th", "p", "li", "h2", "h3", "figcaption") else ""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    tmp_path = tmp_path_factory.mktemp("run")
    (tmp_path / LOSSES).write_text(json.dumps({"steps": [1, 2], "training": [2.0, 1.0], "validation": [2.0, 1.0]}))
    records = item(tmp_path, "cells"), item(tmp_path, "smoothed", smoothing=3.0)
    return Page(write_report(tmp_path, document(*records)))


def test_everything_is_inside(page: Page) -> None:
    assert page.addresses
    for address in page.addresses:
        kind, _, data = address.partition(",")
        assert kind == "data:image/png;base64"
        Image.open(BytesIO(base64.b64decode(data))).verify()
    assert page.open == []


def test_before_after_removed_and_clean_are_shown_with_the_curves(page: Page) -> None:
    for words in ("Before: the noisy image", "After: denoised", "What was removed", "Clean reference", "by brightness"):
        assert words in page.text
    # Per image: 2 crops and the whole of 4 views, 3 curves and a spectrum; and the losses once.
    assert len(page.addresses) == 2 * (3 * 4 + 4) + 1


def test_verdicts_are_in_plain_words(page: Page) -> None:
    good, bad = page.text.split("smoothed", 1)
    assert "What was removed is noise." in good
    assert "Structure was removed together with the noise." in bad
    assert "of 12 tiles" in bad


def test_metrics_stand_beside_the_best_gaussian(page: Page) -> None:
    assert "PSNR (dB) 27.50 36.50 37.25" in page.text
    assert "SI-PSNR (dB) 28.50 36.75 37.75" in page.text
    assert "best Gaussian (σ 1.20)" in page.text


def test_what_was_done_and_with_what_is_said(page: Page) -> None:
    for words in ("a fine processor", "2.13.0", "steps 700", "3.0 MiB", "2.0 MiB", "cells.tif", "sha256 " + "ab" * 32):
        assert words in page.text
    assert "The device cuda is not there; computing on cpu" in page.text


def test_text_of_the_user_is_text(page: Page) -> None:
    assert "day <1> & night" in page.text


def test_failures_and_what_was_left_out_are_named(tmp_path: Path) -> None:
    failed = [{"name": "broken", "error": "broken.tif: not a TIFF file."}]
    refused = [{"name": "<b>notes</b>", "error": "notes.txt: not an image."}]
    said = {"time": 1e9, "severity": "error", "key": "item_failed", "data": {"name": "broken", "error": "said already"}}
    page = Page(write_report(tmp_path, document(failed=failed, refused=refused, averages={}, events=[*EVENTS, said])))
    assert page.text.count("said already") == 1  # in the log only: failures have a table of their own
    assert "1 failed" in page.text
    assert "broken.tif: not a TIFF file." in page.text
    assert "<b>notes</b> notes.txt: not an image." in page.text


def test_french_readers_read_french(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path, document(item(tmp_path, "cellules"), lang="fr")))
    assert "Rapport de débruitage" in page.text
    assert "Ce qui a été retiré est du bruit." in page.text
    assert "27,50 36,50 37,25" in page.text
    assert "Le périphérique cuda est absent ; calcul sur cpu" in page.text
    assert not re.search(r"\b(the|removed|with)\b", page.text)


def test_channels_are_shown_one_by_one(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path, document(item(tmp_path, "cells", channels=2))))
    assert "cells_channel0" in page.text
    assert "cells_channel1" in page.text


def test_many_images_keep_the_report_light(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MOST_PICTURED", 2)
    record = item(tmp_path, "cells")
    page = Page(write_report(tmp_path, document(record, record, record)))
    assert "Its pictures are in the folder pictures/cells" in page.text
    assert len(page.addresses) == 2 * 16


def test_training_alone_has_a_report(tmp_path: Path) -> None:
    record = {"name": "model", "metrics": {"training_loss": 0.4}, "details": {"model": {}}, "outputs": []}
    page = Page(write_report(tmp_path, document(record, command="train", averages={"training_loss": 0.4})))
    assert "safelight denoise train" in page.text


def test_pictures_of_a_volume_show_its_middle_plane_at_one_contrast(tmp_path: Path) -> None:
    noisy, clean = planes()
    volume = np.stack((np.zeros_like(clean), clean, np.full_like(clean, 1e6)))
    pictures = draw_pictures(tmp_path, "volume", volume + 0 * noisy, volume)
    assert set(pictures) >= {"noisy", "denoised", "residual", "crop1_noisy", "crop2_denoised"}
    shown = [pixels_of(pictures[kind]) for kind in ("noisy", "denoised")]
    np.testing.assert_array_equal(*shown)
    assert np.ptp(shown[0]) > 200
    assert pixels_of(pictures["crop1_noisy"]).shape == (CROP * CROP_SCALE, CROP * CROP_SCALE)


@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (1500, 900)])
def test_pictures_of_any_size_fit(tmp_path: Path, shape: tuple[int, int]) -> None:
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    pictures = draw_pictures(tmp_path, "odd", image, image)
    assert max(pixels_of(pictures["noisy"]).shape) <= LARGEST_SIDE


def test_gaps_and_constant_images_can_be_drawn(tmp_path: Path) -> None:
    image = np.full((40, 50), 3.0)
    image[3] = np.nan
    assert draw_pictures(tmp_path, "gaps", image, np.full((40, 50), 3.0))["residual"].is_file()
    assert draw_pictures(tmp_path, "empty", np.full((40, 50), np.nan), np.full((40, 50), np.nan))


def test_pictures_stay_in_the_folder(tmp_path: Path) -> None:
    with pytest.raises(UnsafeInputError, match="leads out"):
        draw_pictures(tmp_path, "../../elsewhere", np.zeros((9, 9)), np.zeros((9, 9)))


def test_pictures_are_named_as_the_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pictures = draw_pictures(Path("run"), "cells", np.zeros((9, 9)), np.zeros((9, 9)))
    assert pictures["noisy"] == Path("run/pictures/cells/noisy.png")
    assert pictures["noisy"].is_file()
