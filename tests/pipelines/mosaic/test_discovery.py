"""What headers say, and which frames are left out with which reason."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from safelight.core.errors import InputError
from safelight.pipelines.mosaic.discovery import find_frames, read_facts


def frame(path: Path, size: tuple[int, int] = (40, 30), **cards: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    hdu = fits.PrimaryHDU(np.zeros(size, np.uint16))
    hdu.header.update(cards)
    hdu.writeto(path)
    return path


def test_the_real_frames_say_what_they_are(shared: Path) -> None:
    frames, refused = find_frames(shared / "data" / "m94", "auto")
    assert (len(frames), refused) == (18, [])
    facts = frames[0]
    assert (facts.width, facts.height, facts.pattern, facts.colours) == (1080, 1920, "GRBG", 3)
    assert (facts.exposure, facts.filter, facts.object) == (10.0, "IRCUT", "M 94")
    assert facts.scale == pytest.approx(2.393, abs=0.001)
    assert (facts.ra, facts.dec) == (pytest.approx(193.04166), pytest.approx(40.970556))
    assert facts.saturation is not None
    assert 60_000 < facts.saturation < 65_536


@pytest.mark.parametrize("pattern", ["RGGB", "BGGR", "GRBG", "GBRG"])
def test_the_pattern_follows_the_order_of_rows_and_the_offsets(tmp_path: Path, pattern: str) -> None:
    top, bottom = pattern[:2], pattern[2:]
    cases = {
        "plain": ({}, 40, pattern),
        "down": ({"ROWORDER": "TOP-DOWN"}, 40, pattern),
        "up": ({"ROWORDER": "BOTTOM-UP"}, 40, bottom + top),
        "odd": ({"ROWORDER": "BOTTOM-UP"}, 41, pattern),
        "below": ({"YBAYROFF": 1}, 40, bottom + top),
        "right": ({"XBAYROFF": 1}, 40, top[::-1] + bottom[::-1]),
    }
    for name, (cards, height, expected) in cases.items():
        path = frame(tmp_path / f"{name}.fits", (height, 30), BAYERPAT=pattern, **cards)
        assert read_facts(path, "auto").pattern == expected, name


def test_a_pattern_is_never_guessed(tmp_path: Path) -> None:
    mono = frame(tmp_path / "mono.fits")
    assert read_facts(mono, "auto").pattern is None
    seestar = frame(tmp_path / "seestar.fits", INSTRUME="Seestar S50")
    with pytest.raises(InputError, match=r"BAYERPAT is missing.*--bayer-pattern"):
        read_facts(seestar, "auto")
    assert read_facts(seestar, "none").pattern is None
    assert read_facts(seestar, "GRBG").pattern == "GRBG"
    odd = frame(tmp_path / "odd.fits", BAYERPAT="CYYM")
    with pytest.raises(InputError, match="CYYM"):
        read_facts(odd, "auto")


def test_hints_are_read_in_degrees_and_sexagesimal(tmp_path: Path) -> None:
    path = frame(tmp_path / "a.fits", OBJCTRA="12 50 53", OBJCTDEC="+41 07 14")
    facts = read_facts(path, "auto")
    assert (facts.ra, facts.dec) == (pytest.approx(192.7208, abs=1e-3), pytest.approx(41.1206, abs=1e-3))
    half = read_facts(frame(tmp_path / "b.fits", RA=10.0), "auto")
    assert (half.ra, half.dec) == (None, None)


def test_the_few_that_differ_from_the_many_are_left_out(tmp_path: Path) -> None:
    for number in range(4):
        frame(tmp_path / f"light{number}.fits", FILTER="L")
    frame(tmp_path / "red.fits", FILTER="R")
    frame(tmp_path / "small.fits", (20, 20), FILTER="L")
    frames, refused = find_frames(tmp_path, "auto")
    assert [facts.path.name for facts in frames] == [f"light{number}.fits" for number in range(4)]
    reasons = {refusal.name: str(refusal.error) for refusal in refused}
    assert set(reasons) == {"red.fits", "small.fits"}
    assert "filter R" in reasons["red.fits"]
    assert "20 × 20" in reasons["small.fits"]


def test_bad_files_are_named_and_other_files_ignored(tmp_path: Path) -> None:
    frame(tmp_path / "night 1" / "a.fits")
    frame(tmp_path / ".hidden" / "b.fits")
    (tmp_path / "junk.fit").write_bytes(b"no FITS")
    (tmp_path / "notes.txt").write_text("seeing was bad")
    os.link(tmp_path / "night 1" / "a.fits", tmp_path / "other.fits")
    (tmp_path / "again.fits").symlink_to(tmp_path / "night 1" / "a.fits")
    frames, refused = find_frames(tmp_path, "auto")
    assert [facts.path.name for facts in frames] == ["again.fits", "other.fits"], "a hard link is a file of its own"
    reasons = {refusal.name: str(refusal.error) for refusal in refused}
    assert reasons.keys() == {"junk.fit", "a.fits"}
    assert "is the same file as" in reasons["a.fits"]


def test_the_order_does_not_depend_on_the_disk(tmp_path: Path) -> None:
    for name in ("c", "a", "b"):
        frame(tmp_path / name / "light.fits")
    frames, _ = find_frames(tmp_path, "auto")
    assert [facts.path.parent.name for facts in frames] == ["a", "b", "c"]


def test_the_results_of_a_run_are_no_frames(tmp_path: Path) -> None:
    frame(tmp_path / "a.fits")
    frame(tmp_path / "out" / "tiles" / "group-01.fits")
    frames, refused = find_frames(tmp_path, "auto", tmp_path / "out")
    assert ([facts.path.name for facts in frames], refused) == (["a.fits"], [])


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        find_frames(tmp_path / "nowhere", "auto")


@pytest.mark.parametrize("image_type", ["Dark", "Master Flat", "Bias Frame", "FLATFIELD"])
def test_calibration_frames_among_the_lights_are_left_out_even_if_they_are_more(
    tmp_path: Path, image_type: str
) -> None:
    frame(tmp_path / "light.fits", IMAGETYP="Light Frame", FILTER="L")
    for number in range(3):
        frame(tmp_path / "others" / f"{number}.fits", IMAGETYP=image_type)
    frames, refused = find_frames(tmp_path, "auto")
    assert [facts.path.name for facts in frames] == ["light.fits"]
    assert all(f"IMAGETYP is '{image_type}'" in str(refusal.error) for refusal in refused)
    assert len(refused) == 3
