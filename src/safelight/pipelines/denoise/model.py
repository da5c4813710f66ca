"""A trained model: weights and everything needed to use them again, in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from safelight.core.errors import InputError
from safelight.core.events import Value
from safelight.formats.weights import write_weights
from safelight.pipelines.denoise.network import Architecture, UNet

FORMAT = "safelight-denoise"
VERSION = 1


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of the training data, one of each per channel, in the data's units.

    Stored with the model: another image is brought to the same units as the training data, not to its own.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, values: Tensor, channel_axis: int = 0) -> Tensor:
        """Bring values to normalised units; what is not finite stays so."""
        mean, std = self._along(values, channel_axis)
        return (values - mean) / std

    def undo(self, values: Tensor, channel_axis: int = 0) -> Tensor:
        """Bring normalised values back to the data's units."""
        mean, std = self._along(values, channel_axis)
        return values * std + mean

    def _along(self, values: Tensor, channel_axis: int) -> tuple[Tensor, Tensor]:
        shape = [-1 if axis == channel_axis else 1 for axis in range(values.ndim)]
        mean, std = (torch.tensor(numbers, device=values.device).view(shape) for numbers in (self.mean, self.std))
        return mean, std


@dataclass(frozen=True)
class DenoiseModel:
    """A trained network with what is needed to use it on other images.

    Parameters
    ----------
    architecture : Architecture
    normalisation : Normalisation
    weights : mapping of str to Tensor
        The network's ``state_dict``, float32 on the CPU.
    axes : str
        Axes of the images it was trained on, letters of STCZYX.
    structure : tuple of tuple of int
        The structural mask it was trained with (structN2V); empty for none.
    facts : mapping
        How it was trained: settings, steps, losses, versions; JSON types only.
    """

    architecture: Architecture
    normalisation: Normalisation
    weights: Mapping[str, Tensor] = field(repr=False)
    axes: str = "YX"
    structure: tuple[tuple[int, ...], ...] = ()
    facts: Mapping[str, Value] = field(default_factory=dict)

    @classmethod
    def untrained(cls, architecture: Architecture) -> DenoiseModel:
        """Return a model with random weights, to plan with before there is a trained one."""
        channels = architecture.channels
        normalisation = Normalisation((0.0,) * channels, (1.0,) * channels)
        return cls(architecture, normalisation, UNet(architecture).state_dict())

    def network(self) -> UNet:
        """Return the network with its weights, in evaluation mode, on the CPU."""
        network = UNet(self.architecture)
        network.load_state_dict(dict(self.weights))
        return network.eval()

    def save(self, path: Path) -> None:
        """Write the model whole, or not at all.

        Raises
        ------
        OutputError
            The file cannot be written.
        """
        description = {
            "architecture": self.architecture.model_dump(),
            "mean": self.normalisation.mean,
            "std": self.normalisation.std,
            "axes": self.axes,
            "structure": self.structure,
            "facts": dict(self.facts),
        }
        metadata = {"format": FORMAT, "version": str(VERSION), "model": json.dumps(description)}
        write_weights(path, self.weights, metadata)

    @classmethod
    def load(cls, path: Path) -> DenoiseModel:
        """Read a model. Nothing in the file is ever executed.

        Raises
        ------
        InputError
            The file is missing, is not a model of ours, is newer than this program, or lacks weights.
        """
        if not path.is_file():
            raise InputError(
                "there is no such model", path=path, expected="a file written by 'safelight denoise train'"
            )
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise _not_a_model(path, f"it is not a safetensors file ({error})") from None
        if metadata.get("format") != FORMAT:
            raise _not_a_model(path, "it holds the weights of something else")
        _check_version(path, metadata)
        model = cls._from_description(path, metadata.get("model", ""), weights)
        _check_weights(path, model)
        return model

    @classmethod
    def _from_description(cls, path: Path, text: str, weights: dict[str, Tensor]) -> DenoiseModel:
        try:
            description: dict[str, Any] = json.loads(text)
            model = cls(
                Architecture.model_validate(description["architecture"]),
                Normalisation(tuple(map(float, description["mean"])), tuple(map(float, description["std"]))),
                weights,
                str(description["axes"]),
                tuple(tuple(map(int, row)) for row in description["structure"]),
                dict(description["facts"]),
            )
        except (KeyError, TypeError, ValueError, ValidationError) as error:
            raise _not_a_model(path, f"its description is damaged ({type(error).__name__}: {error})") from None
        channels = model.architecture.channels
        if {len(model.normalisation.mean), len(model.normalisation.std)} != {channels}:
            raise _not_a_model(path, f"its normalisation does not fit its {channels} channel(s)")
        return model


def _check_version(path: Path, metadata: Mapping[str, str]) -> None:
    version = metadata.get("version", "")
    if not version.isdigit():
        raise _not_a_model(path, f"its version {version!r} is not a number")
    if int(version) > VERSION:
        raise InputError(
            f"the model has format version {version}",
            path=path,
            expected=f"version {VERSION} or older",
            remedy="use a newer Safelight",
        )


def _check_weights(path: Path, model: DenoiseModel) -> None:
    with torch.device("meta"):
        expected = UNet(model.architecture).state_dict()
    missing = sorted(expected.keys() - model.weights.keys())
    unknown = sorted(model.weights.keys() - expected.keys())
    misshapen = [
        f"{name} {tuple(model.weights[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in model.weights and model.weights[name].shape != tensor.shape
    ]
    for problem, names in (("lacks", missing), ("has unknown", unknown), ("has misshapen", misshapen)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise _not_a_model(path, f"it {problem} weights: {', '.join(names[:3])}{more}")
    broken = [name for name, tensor in model.weights.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise _not_a_model(path, f"its weights are not finite: {broken[0]}")


def _not_a_model(path: Path, why: str) -> InputError:
    return InputError(
        f"this is no usable denoising model: {why}",
        path=path,
        expected="a model.safetensors written by 'safelight denoise train'",
        remedy="train again, or name another file",
    )
