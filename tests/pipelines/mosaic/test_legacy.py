"""The configuration of the program that ``mosaic`` replaces: what it says counts, what is unknown stays."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from safelight.core.errors import InputError
from safelight.pipelines.mosaic.legacy import GPU_KEYS, LegacyConfiguration, load, save

STATES = (None, True, False)


def configured(tmp_path: Path, document: object, **environment: str) -> LegacyConfiguration:
    path = tmp_path / "configuration.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return load(path, environment)


def device(configuration: LegacyConfiguration) -> Any:
    return configuration.options["device"]


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
    configuration = configured(tmp_path, given)
    assert device(configuration) == ("auto" if decided else "cpu")
    assert configuration.document["use_gpu_phase5"] is decided
    assert configuration.document["stack_use_gpu"] is (decided if first is None else first)
    assert configuration.document["use_gpu_stack"] is (decided if second is None else second)


@pytest.mark.parametrize("value", ["1", "true", "YES", " on ", 1, True])
def test_what_means_yes(tmp_path: Path, value: object) -> None:
    configuration = configured(tmp_path, {"use_gpu_phase5": value, "stack_use_gpu": False})
    assert device(configuration) == "auto"
    assert configuration.document["use_gpu_phase5"] is True


@pytest.mark.parametrize("value", ["0", "false", "No", "off", 0, False])
def test_what_means_no(tmp_path: Path, value: object) -> None:
    configuration = configured(tmp_path, {"use_gpu_phase5": value, "stack_use_gpu": True})
    assert device(configuration) == "cpu"
    assert configuration.document["use_gpu_phase5"] is False


@pytest.mark.parametrize("value", ["", "none", "Auto", None])
def test_what_leaves_the_choice_to_the_next_name(tmp_path: Path, value: object) -> None:
    assert device(configured(tmp_path, {"use_gpu_phase5": value, "stack_use_gpu": "no"})) == "cpu"
    assert device(configured(tmp_path, {"use_gpu_phase5": value})) == "auto"


@pytest.mark.parametrize("value", ["maybe", 2, [], {}])
def test_a_flag_that_is_neither_is_named(tmp_path: Path, value: object) -> None:
    with pytest.raises(InputError, match=r"configuration\.json.*stack_use_gpu is .*auto for the default"):
        configured(tmp_path, {"stack_use_gpu": value})


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    document = {"use_gpu_phase5": True, "kappa_low": 2.5, "kappa_high": 4}
    configuration = configured(tmp_path, document, SAFELIGHT_USE_GPU_STACK="off", SAFELIGHT_KAPPA_LOW="1.5")
    assert device(configuration) == "cpu"
    assert (configuration.options["kappa_low"], configuration.options["kappa_high"]) == (1.5, 4.0)


def test_the_environment_does_not_get_into_the_file(tmp_path: Path) -> None:
    configuration = configured(tmp_path, {"kappa_low": 2.5}, SAFELIGHT_USE_GPU_PHASE5="0", SAFELIGHT_KAPPA_LOW="1")
    assert configuration.document == {"kappa_low": 2.5, **dict.fromkeys(GPU_KEYS, True)}


def test_settings_keep_their_names_and_none_is_a_choice(tmp_path: Path) -> None:
    document = {"normalisation": "linear_fit", "weighting": "none", "rejection": "kappa_sigma", "combine": "median"}
    options = dict(configured(tmp_path, {**document, "kappa_high": "3.5", "match_background": "no"}).options)
    assert options == {**document, "kappa_high": 3.5, "match_background": False, "device": "auto"}


def test_settings_that_are_not_given_keep_our_default(tmp_path: Path) -> None:
    assert configured(tmp_path, {"kappa_low": None, "rejection": ""}).options == {"device": "auto"}


@pytest.mark.parametrize(
    ("document", "complaint"),
    [({"kappa_low": -1}, "kappa_low is -1: .*greater than 0"), ({"rejection": "magic"}, "rejection is 'magic'")],
)
def test_an_impossible_setting_is_named_with_its_file(
    tmp_path: Path, document: dict[str, object], complaint: str
) -> None:
    with pytest.raises(InputError, match=rf"configuration\.json: {complaint}"):
        configured(tmp_path, document)


def test_an_impossible_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="SAFELIGHT_KAPPA_LOW is 'three'"):
        configured(tmp_path, {}, SAFELIGHT_KAPPA_LOW="three")
    with pytest.raises(InputError, match="SAFELIGHT_STACK_USE_GPU is 'perhaps'"):
        configured(tmp_path, {}, SAFELIGHT_STACK_USE_GPU="perhaps")


def test_what_is_unknown_survives_saving(tmp_path: Path) -> None:
    unknown = {"observer": "Élodie", "panels": [1, {"深": None}], "zoom": 1.25}
    configuration = configured(tmp_path, {**unknown, "use_gpu_stack": "no", "kappa_low": 2})
    save(tmp_path / "saved.json", configuration)
    again = load(tmp_path / "saved.json", {})
    assert again == configuration
    assert {key: again.document[key] for key in unknown} == unknown
    assert list(again.document)[:3] == list(unknown)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("{", "is not JSON"), ("[1]", "holds a JSON list"), ("[" * 100_000, "is not JSON"), ("é", "is not JSON")],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "configuration.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=complaint):
        load(path, {})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.json: cannot be read"):
        load(tmp_path / "nowhere.json", {})
