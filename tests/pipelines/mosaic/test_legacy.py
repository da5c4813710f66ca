"""The configuration of the program that ``mosaic`` replaces: what it says counts, what is unknown stays."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from safelight.core.errors import InputError, UsageError
from safelight.core.pipeline import ForeignFile
from safelight.core.settings import Gathered, gather
from safelight.pipelines.mosaic import PIPELINE, RUN
from safelight.pipelines.mosaic.legacy import GPU_KEYS, load, save
from safelight.pipelines.mosaic.options import RunOptions

STATES = (None, True, False)


def written(tmp_path: Path, document: object) -> Path:
    path = tmp_path / "configuration.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def loaded(tmp_path: Path, document: object) -> ForeignFile:
    return load(written(tmp_path, document))


def gathered(tmp_path: Path, document: object, environment: dict[str, str] | None = None, **given: Any) -> Gathered:
    """Return the settings of ``mosaic run`` with the document as its ``--config``."""
    return gather(PIPELINE, RUN, {"config": written(tmp_path, document), **given}, environment or {})


def device(tmp_path: Path, document: object, **environment: str) -> str:
    settings = gathered(tmp_path, document, environment, input=Path("lights"), out=Path("m94"))
    options = settings.options()
    assert isinstance(options, RunOptions)
    return options.device


@pytest.mark.parametrize(("canonical", "first", "second"), tuple(product(STATES, repeat=3)))
def test_all_27_combinations_of_the_gpu_flag_and_its_synonyms(
    tmp_path: Path, canonical: bool | None, first: bool | None, second: bool | None
) -> None:
    given = {key: flag for key, flag in zip(GPU_KEYS, (canonical, first, second), strict=True) if flag is not None}
    if canonical is not None:
        decided = canonical
    elif first is not None:
        decided = first
    else:
        decided = True if second is None else second
    assert device(tmp_path, given) == ("auto" if decided else "cpu")
    document = loaded(tmp_path, given).document
    assert document["use_gpu_phase5"] is decided
    assert document["stack_use_gpu"] is (decided if first is None else first)
    assert document["use_gpu_stack"] is (decided if second is None else second)


@pytest.mark.parametrize("value", ["1", "true", "YES", " on ", 1, True])
def test_what_means_yes(tmp_path: Path, value: object) -> None:
    document = {"use_gpu_phase5": value, "stack_use_gpu": False}
    assert device(tmp_path, document) == "auto"
    assert loaded(tmp_path, document).document["use_gpu_phase5"] is True


@pytest.mark.parametrize("value", ["0", "false", "No", "off", 0, False])
def test_what_means_no(tmp_path: Path, value: object) -> None:
    document = {"use_gpu_phase5": value, "stack_use_gpu": True}
    assert device(tmp_path, document) == "cpu"
    assert loaded(tmp_path, document).document["use_gpu_phase5"] is False


@pytest.mark.parametrize("value", ["", "none", "Auto", None])
def test_what_leaves_the_choice_to_the_next_name(tmp_path: Path, value: object) -> None:
    assert device(tmp_path, {"use_gpu_phase5": value, "stack_use_gpu": "no"}) == "cpu"
    assert device(tmp_path, {"use_gpu_phase5": value}) == "auto"


@pytest.mark.parametrize("value", ["maybe", 2, [], {}])
def test_a_flag_that_is_neither_is_named(tmp_path: Path, value: object) -> None:
    with pytest.raises(UsageError, match=r"configuration\.json.*stack_use_gpu is .*auto for the default"):
        loaded(tmp_path, {"stack_use_gpu": value})


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    document = {"use_gpu_phase5": True, "kappa_low": 2.5, "kappa_high": 4, "combine": "median"}
    environment = {"SAFELIGHT_USE_GPU_STACK": "off", "SAFELIGHT_KAPPA_LOW": "1.5", "SAFELIGHT_KAPPA_HIGH": "5"}
    values = gathered(tmp_path, document, environment, kappa_high=6.0).values()
    assert [values[name] for name in ("device", "kappa_low", "kappa_high", "combine")] == ["cpu", 1.5, 6.0, "median"]


def test_the_first_flag_of_the_environment_decides_and_a_device_goes_before_it(tmp_path: Path) -> None:
    both = {"SAFELIGHT_USE_GPU_PHASE5": "auto", "SAFELIGHT_STACK_USE_GPU": "no", "SAFELIGHT_USE_GPU_STACK": "yes"}
    assert device(tmp_path, {}, **both) == "cpu"
    assert device(tmp_path, {}, **both, SAFELIGHT_DEVICE="mps") == "mps"


def test_a_flag_of_the_environment_needs_no_file() -> None:
    values = gather(PIPELINE, RUN, {}, {"SAFELIGHT_USE_GPU_STACK": "0"}).values()
    assert values == {"device": "cpu"}


def test_settings_keep_their_names_and_none_is_a_choice(tmp_path: Path) -> None:
    document = {"normalisation": "linear_fit", "weighting": "none", "rejection": "kappa_sigma", "combine": "median"}
    values = gathered(tmp_path, {**document, "kappa_high": "3.5", "match_background": "no"}).values()
    del values["config"]
    assert values == {**document, "kappa_high": 3.5, "match_background": False}


def test_settings_that_are_not_given_keep_our_default(tmp_path: Path) -> None:
    assert list(gathered(tmp_path, {"kappa_low": None, "rejection": ""}).values()) == ["config"]


@pytest.mark.parametrize(
    ("document", "complaint"),
    [({"kappa_low": -1}, "kappa_low is -1: .*greater than 0"), ({"rejection": "magic"}, 'rejection is "magic"')],
)
def test_an_impossible_setting_is_named_with_its_file(
    tmp_path: Path, document: dict[str, object], complaint: str
) -> None:
    with pytest.raises(UsageError, match=rf"configuration\.json: {complaint}"):
        gathered(tmp_path, document)


def test_an_impossible_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="SAFELIGHT_STACK_USE_GPU is 'perhaps'"):
        gathered(tmp_path, {}, {"SAFELIGHT_STACK_USE_GPU": "perhaps"})


def test_what_is_unknown_is_said_and_survives_saving(tmp_path: Path) -> None:
    unknown = {"observer": "Élodie", "panels": [1, {"深": None}], "zoom": 1.25}
    settings = gathered(tmp_path, {**unknown, "use_gpu_stack": "no", "kappa_low": 2}, kappa_low=1.5)
    (said,) = [event.data for event in settings.said if event.key == "settings_foreign"]
    assert said["settings"] == list(unknown)
    save(tmp_path / "saved.json", settings.document, settings.values())
    again = load(tmp_path / "saved.json")
    assert again.options == {"kappa_low": ("kappa_low", 1.5), "device": ("use_gpu_phase5", "cpu")}
    assert again.document == {**unknown, **dict.fromkeys(GPU_KEYS, False), "kappa_low": 1.5}
    assert list(again.document)[:3] == list(unknown)


def test_another_device_is_saved_as_the_canonical_flag(tmp_path: Path) -> None:
    document = {"stack_use_gpu": True, "use_gpu_stack": False}
    settings = gathered(tmp_path, document, device="cpu")
    save(tmp_path / "saved.json", settings.document, settings.values())
    assert load(tmp_path / "saved.json").document == {"use_gpu_phase5": False, **document}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("{", "is not JSON"), ("[1]", "holds a JSON list"), ("[" * 100_000, "is not JSON"), ("é", "is not JSON")],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "configuration.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=rf"configuration\.json: {complaint}"):
        load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.json: cannot be read"):
        load(tmp_path / "nothing.json")
