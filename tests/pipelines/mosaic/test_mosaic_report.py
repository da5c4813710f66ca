from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from safelight.pipelines.mosaic.report import SHOWN_PIXELS, write_report


def check(name, where="group-01", *, measured=0.01, threshold=0.02, bound="most", passed=True):
    return {
        "name": name,
        "where": where,
        "measured": measured,
        "threshold": threshold,
        "bound": bound,
        "passed": passed,
    }


def stack(*checks, name="group-01", frames=2):
    records = [
        {
            "name": f"light-{number}",
            "stars": 61,
            "fwhm": 3.25,
            "background": 993.5,
            "noise": 61.0,
            "residual": 0.35,
            "source": "solution" if number else "stars",
        }
        for number in range(frames)
    ]
    metrics = {"rejected_low": 0.005, "rejected_high": 0.0125}
    details = {"frames": records, "checks": list(checks)}
    return {"name": name, "seconds": 2.0, "metrics": metrics, "details": details, "outputs": []}


def mosaic(*checks):
    outputs = [{"path": f"mosaic_{name}", "sha256": "ab" * 32} for name in ("science.fits", "preview.png")]
    return {"name": "mosaic", "seconds": 1.0, "metrics": {}, "details": {"checks": list(checks)}, "outputs": outputs}


def document(*items, lang="en", **changes) -> dict[str, Any]:
    return {
        "pipeline": "mosaic",
        "command": "run",
        "options": {"lang": lang, "input": "lights"},
        "versions": {"safelight": "0.1.0"},
        "device": {"device": "cpu", "hardware": "a fine processor"},
        "seconds": 12.0,
        "memory": [],
        "averages": {},
        "items": list(items),
        "failed": [],
        "refused": [],
        "events": [],
        **changes,
    }


class Page(HTMLParser):
    """A page as text, with what is marked as missed and where its pictures come from."""

    def __init__(self, path):
        super().__init__()
        self.text, self.missed, self.pictures = "", "", []
        self._marked = False
        self.feed(re.sub(r"<(style|script)>.*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self._marked = attributes.get("class") == "missed"
        if tag == "img":
            self.pictures.append(attributes["src"])

    def handle_data(self, data):
        self.text = " ".join([*self.text.split(), *data.split()])
        if self._marked:
            self.missed += data
            self._marked = False


@pytest.fixture
def page(tmp_path):
    """Return the page of a document."""
    Image.fromarray(np.zeros((40, 2000, 3), np.uint8)).save(tmp_path / "mosaic_preview.png")
    return lambda *items, **changes: Page(write_report(tmp_path, document(*items, **changes)))


def test_a_passed_audit_says_so_and_nothing_is_red(page):
    shown = page(stack(check("flux_conservation")), mosaic())
    assert "Audit passed 1 of 1 checks" in shown.text
    assert "0.0100 ≤ 0.0200 passed" in shown.text
    assert shown.missed == ""


def test_a_miss_is_red_with_what_was_measured_and_allowed(page):
    missed = check("noise_gain", measured=1.02, threshold=2.94, bound="least", passed=False)
    shown = page(stack(missed), mosaic(check("seam_step")))
    assert "1 of 2 checks" in shown.text
    assert "1.02 ≥ 2.94 missed" in shown.text
    assert shown.missed == "Audit missedmissed"


def test_what_could_not_be_measured_is_a_dash_and_a_miss(page):
    shown = page(stack(), mosaic(check("fwhm_growth", measured=None, passed=False)))
    assert "– ≤ 0.0200 missed" in shown.text


@pytest.mark.parametrize(
    "name", ["noise_gain", "flux_conservation", "fwhm_growth", "astrometric_residual", "seam_step"]
)
def test_every_check_has_a_label_in_both_languages(page, name):
    english, french = (page(stack(), mosaic(check(name)), lang=lang).text for lang in ("en", "fr"))
    assert name not in english
    assert "Audit réussi" in french


def test_every_frame_says_who_placed_it(page):
    text = page(stack(), mosaic()).text
    assert "light-0 group-01 61 3.25 993.5 61.0 0.35 its stars" in text
    assert "light-1 group-01 61 3.25 993.5 61.0 0.35 its WCS" in text
    assert "0.50 % of the samples as too low, 1.25 % as too high" in text


def test_what_was_left_out_has_its_reason(page):
    shown = page(stack(), mosaic(), refused=[{"name": "bad.fits", "error": "bad.fits: is cut short"}])
    assert "2 frame(s) in 1 group(s), 1 left out" in shown.text
    assert "left out bad.fits bad.fits: is cut short" in shown.text


def test_the_picture_is_inside_and_small_enough_for_a_page(page, tmp_path):
    shown = page(stack(), mosaic())
    (picture,) = shown.pictures
    assert picture.startswith("data:image/png;base64,")
    with Image.open(tmp_path / "mosaic_preview.png") as preview:
        assert preview.width > SHOWN_PIXELS


def test_a_run_without_a_mosaic_still_has_a_report(page):
    shown = page(stack(), failed=[{"name": "mosaic", "error": "disk full"}])
    assert "failed mosaic disk full" in shown.text
    assert not shown.pictures
    assert "Audit passed" not in shown.text


def test_hundreds_of_frames_are_one_line_in_the_table_of_memory(page):
    used = [
        {"kernel": "resample", "device": "cpu", "rows": n, "predicted_bytes": 9 << 20, "measured_bytes": n << 20}
        for n in (3, 7, 5)
    ]
    text = page(stack(), mosaic(), memory=used).text
    assert text.count("resample") == 1
    assert "7.0 MiB" in text
