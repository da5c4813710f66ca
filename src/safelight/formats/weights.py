"""Files of network weights: safetensors, and PyTorch's checkpoints, of which nothing is ever executed."""

from __future__ import annotations

import argparse
import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from safelight.core.checkpoint import DAMAGE
from safelight.core.errors import InputError, UnsafeInputError
from safelight.core.files import atomic_write

SAFETENSORS = ".safetensors"
CONTAINERS = ("network", "model_state_dict", "state_dict")
"""Under which names checkpoints keep the weights; without any, they are the checkpoint."""

_PREFIX = "module."
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.float64(0).__reduce__()[0],  # how NumPy pickles a number, such as the best PSNR
    np.dtype,
    *(type(np.dtype(name)) for name in ("float32", "float64", "int64", "int32", "bool")),
]
"""What training scripts leave beside the weights; made again, these only hold values."""


@dataclass(frozen=True)
class Weights:
    """The content of a file.

    Parameters
    ----------
    tensors : dict of str to Tensor
        By name, on the CPU, without the prefix of distributed training.
    metadata : dict of str to str
        Of safetensors; else empty.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_weights(path: Path) -> Weights:
    """Read the weights of a network.

    Parameters
    ----------
    path : Path
        ``.safetensors``, or a checkpoint of PyTorch: a state dict, or one that holds it under a name of ``CONTAINERS``.

    Raises
    ------
    InputError
        The file is missing, damaged or holds no weights.
    UnsafeInputError
        It holds objects that would run code.
    """
    if not path.is_file():
        raise InputError("there is no such file of weights", path=path)
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:9] == b"{"
    return _read_safetensors(path) if is_safetensors else Weights(_read_checkpoint(path), {})


def write_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whole, or not at all; the same weights are the same bytes.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    with atomic_write(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, dict(metadata))
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file: the library writes them in another order each time."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        file.seek(8)
        file.write(text.ljust(size))  # in another order it is as long as before; blanks fill it up, as the format says


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, "pt") as file:
            return Weights({name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"the safetensors file is damaged ({error})", path=path) from None


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a strange number of the pickle's protocol
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(path, str(error)) from None
    except (*DAMAGE, SafetensorError) as error:
        raise InputError(
            f"it cannot be read as a checkpoint ({type(error).__name__})",
            path=path,
            expected="a safetensors file, or a checkpoint of PyTorch",
        ) from None
    return _tensors_of(path, content)


def _refused(path: Path, why: str) -> InputError:
    if "Unsupported global" not in why and "GLOBAL" not in why:
        return InputError("the checkpoint is damaged", path=path, expected="a safetensors file, or one of PyTorch")
    return UnsafeInputError(
        f"it holds objects that are not data: {why.splitlines()[0]}",
        path=path,
        expected="tensors, numbers, texts and options only",
        remedy="save only the state dict where the checkpoint was made, with torch.save(network.state_dict(), …)",
    )


def _tensors_of(path: Path, content: Any) -> dict[str, Tensor]:
    name = next((name for name in CONTAINERS if isinstance(content, Mapping) and name in content), None)
    state = content if name is None else content[name]
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(
            "it holds no weights",
            path=path,
            expected=f"a state dict, or one under a name of {', '.join(CONTAINERS)}",
        )
    return {str(name).removeprefix(_PREFIX): tensor for name, tensor in state.items()}
