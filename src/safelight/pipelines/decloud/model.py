"""A trained network in one file: safetensors of ours, or a checkpoint as published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from safelight.core.errors import InputError
from safelight.core.events import Value
from safelight.formats.weights import Weights, read_weights, write_weights
from safelight.pipelines.decloud.network import GLFCR, PUBLISHED_SIDE, Architecture, attention_mask, window_regions

FORMAT = "safelight-decloud"
VERSION = 1
_MASK = ".attn_mask"
_MOST_NAMED = 3


@dataclass(frozen=True)
class CloudModel:
    """A trained network.

    Parameters
    ----------
    architecture : Architecture
    weights : mapping of str to Tensor
        Its ``state_dict`` on the CPU, whole.
    facts : mapping
        How it was trained; JSON types only.
    """

    architecture: Architecture
    weights: Mapping[str, Tensor] = field(repr=False)
    facts: Mapping[str, Value] = field(default_factory=dict)

    @classmethod
    def untrained(cls, architecture: Architecture) -> CloudModel:
        """Return a model with random weights, to plan with."""
        return cls(architecture, GLFCR(architecture).state_dict())

    def network(self) -> GLFCR:
        """Return the network with its weights, in evaluation mode, on the CPU."""
        with torch.device("meta"):
            network = GLFCR(self.architecture)
        network.load_state_dict(dict(self.weights), assign=True)
        return network.eval()

    def save(self, path: Path) -> None:
        """Write the model whole, or not at all.

        Raises
        ------
        OutputError
            The file cannot be written.
        """
        description = {"architecture": self.architecture.model_dump(), "facts": dict(self.facts)}
        metadata = {"format": FORMAT, "version": str(VERSION), "model": json.dumps(description)}
        write_weights(path, self.weights, metadata)

    @classmethod
    def load(cls, path: Path) -> CloudModel:
        """Read a model or a published checkpoint; every weight must be there, and no other.

        Only ``attn_mask`` may have any size or be missing: it depends on the size of the images trained on, and is made
        anew.

        Raises
        ------
        InputError
            The file is missing, damaged, newer than this program, or of another network; names what does not fit.
        UnsafeInputError
            The checkpoint holds objects that would run code.
        """
        found = read_weights(path)
        architecture, facts = _description(path, found)
        with torch.device("meta"):
            expected = GLFCR(architecture).state_dict()
        _check_weights(path, expected, found.tensors)
        made = attention_mask(window_regions(PUBLISHED_SIDE // 2, PUBLISHED_SIDE // 2))
        weights = {
            name: made.clone() if _is_mask(name) else found.tensors[name].to(e.dtype) for name, e in expected.items()
        }
        return cls(architecture, weights, facts)


def _description(path: Path, found: Weights) -> tuple[Architecture, dict[str, Any]]:
    """Return the architecture and how it was trained, as published where the file does not say."""
    if found.metadata.get("format") != FORMAT:
        return Architecture(), {}
    version = found.metadata.get("version", "")
    if version != str(VERSION):
        raise InputError(
            f"the model has format version {version!r}",
            path=path,
            expected=f"version {VERSION}",
            remedy="use the Safelight that wrote it, or a newer one",
        )
    try:
        description = json.loads(found.metadata["model"])
        return Architecture.model_validate(description["architecture"]), dict(description["facts"])
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise InputError(f"the model's description is damaged ({type(error).__name__})", path=path) from None


def _check_weights(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    missing = [name for name in expected if name not in found and not _is_mask(name)]
    unknown = [name for name in found if name not in expected]
    misshapen = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and not _is_mask(name) and found[name].shape != tensor.shape
    ]
    broken = [name for name, tensor in found.items() if not bool(tensor.isfinite().all())]
    problems = {"missing": missing, "unknown": unknown, "of another shape": misshapen, "not finite": broken}
    said = [f"{len(names)} {problem}: {_named(names)}" for problem, names in problems.items() if names]
    if said:
        raise InputError(
            f"the weights are of another network; {'; '.join(said)}",
            path=path,
            expected=f"the {len(expected)} entries of GLF-CR",
            remedy="name a GLF-CR checkpoint, or a model of 'safelight decloud train'",
        )


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _is_mask(name: str) -> bool:
    return name.endswith(_MASK)
