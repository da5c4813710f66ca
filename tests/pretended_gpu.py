"""A device named ``pretended`` that computes on the CPU and is as strict as a GPU, for machines without one.

Tensors on it do not mix with the host's, and NumPy cannot see them: what forgets to move a tensor fails here as it
would there. It is registered as PyTorch's PrivateUse1 backend, once per process and for good, so never in a process
that has other tests to run. As a program this is safelight's command line on a machine that has this device:

    python tests/pretended_gpu.py denoise run cells.tif --device pretended
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from prompt import Answer, prompt
from safelight import cli
from safelight.core import device as devices_of_core
from safelight.core.device import DeviceInfo

NAME = "pretended"
WANTED = "TEST_ON_PRETENDED_GPU"
"""Variable of the environment that asks for it."""

_aten = torch.ops.aten
_MAY_CROSS = {"_to_copy", "copy_", "copy"}
_MAY_BE_INDEXED_FROM_THE_HOST = {"index", "index_put", "index_put_", "_index_put_impl_"}
_FACTORIES = (
    "empty.memory_format",
    "empty_strided",
    "arange",
    "arange.start",
    "arange.start_step",
    "linspace",
    "eye",
    "eye.m",
    "hann_window",
    "hann_window.periodic",
    "randperm",
    "randperm.generator",
)
_AT_ONCE = {_aten._conj.default: _aten.conj_physical.default, _aten._neg_view.default: _aten.neg.default}
"""Operations that mark a tensor for later, which would be missed here, and those that compute."""


class PretendedTensor(Tensor):
    """A tensor on the device.

    Parameters
    ----------
    real : Tensor
        On the CPU; what this one pretends to be.
    """

    real_: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> PretendedTensor:
        shape = torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device="meta")
        made: PretendedTensor = Tensor._make_subclass(
            cls, shape, False, dispatch_device=True, device_for_backend_keys=torch.device(NAME, 0)
        )
        made.real_ = real
        return made

    def __repr__(self, **_: Any) -> str:
        return f"PretendedTensor({self.real_!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.real_.detach().__reduce_ex__(protocol)

    def numpy(self, **_: Any) -> NoReturn:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy")

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        self.numpy()

    def tolist(self) -> Any:
        return self.real_.tolist()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:
            return torch.device(NAME, 0)
        return _compute(func, tuple(args), dict(kwargs or {}))


def _compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given, structure = tree_flatten((args, kwargs))
    _refuse_the_hosts(func, given)
    real = [_real(value) for value in given]
    real_args, real_kwargs = tree_unflatten(real, structure)
    result = _AT_ONCE.get(func, func)(*real_args, **real_kwargs)
    target = kwargs.get("device")
    if target is not None and torch.device(target).type != NAME:
        return result
    for pretended, one in zip(given, real, strict=True):
        if isinstance(pretended, PretendedTensor) and pretended.shape != one.shape:
            raise NotImplementedError(f"{func} changes a tensor's shape in place: register it as a factory")
    changed = [value for value, is_changed in _arguments(func, args, kwargs) if is_changed]
    if changed:  # in place, or into what was given
        returned = changed[: len(func._schema.returns)]
        return returned[0] if len(returned) == 1 else tuple(returned) or None
    return tree_map(lambda value: PretendedTensor(value) if isinstance(value, Tensor) else value, result)


def _refuse_the_hosts(func: Any, given: Sequence[Any]) -> None:
    """Raise what PyTorch raises where tensors of the device and of the host meet; numbers without a shape may."""
    name = func.overloadpacket.__name__
    tensors = [value for value in given if isinstance(value, Tensor)]
    if name in _MAY_CROSS or (name in _MAY_BE_INDEXED_FROM_THE_HOST and isinstance(tensors[0], PretendedTensor)):
        return
    for tensor in tensors:
        if tensor.dim() > 0 and not isinstance(tensor, PretendedTensor):
            raise RuntimeError(
                f"{func}: expected all tensors to be on the same device, found {NAME}:0 and {tensor.device}"
            )


def _arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[Any, bool]]:
    """Return the arguments of an operation, and whether it writes into them."""
    if not func._schema.is_mutable:
        return []
    described = func._schema.arguments
    return [
        (args[number] if number < len(args) else kwargs[one.name], bool(one.alias_info and one.alias_info.is_write))
        for number, one in enumerate(described)
        if number < len(args) or one.name in kwargs
    ]


def _real(value: Any) -> Any:
    if isinstance(value, PretendedTensor):
        return value.real_
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value


def _made_by(factory: Any) -> Any:
    """Return a factory of tensors, such as ``aten.empty.memory_format``, as that of the device."""

    def make(*args: Any, device: object = None, pin_memory: object = None, **kwargs: Any) -> Tensor:
        return PretendedTensor(factory(*args, device="cpu", **kwargs))

    return make


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _real(target).copy_(_real(source))
    return target


class _Backend:
    """What PyTorch asks of a backend's module."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def manual_seed_all(self, seed: int) -> None:
        """Its numbers come from the CPU's generator, which is seeded already."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def is_wanted() -> bool:
    """Return whether this process is to test kernels on the device."""
    return WANTED in os.environ


@cache
def register() -> torch.library.Library:
    """Make the device known to PyTorch; the library must be kept."""
    _setup_privateuseone_for_python_backend(NAME, _Backend())
    library = torch.library.Library("aten", "IMPL")
    for name in _FACTORIES:
        packet, _, overload = name.partition(".")
        library.impl(name, _made_by(getattr(getattr(_aten, packet), overload or "default")), "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    return library


class _Generator(torch._C.Generator):
    """A generator of the CPU, whatever device it is asked for."""

    def __new__(cls, device: object = "cpu") -> Any:
        return torch._C.Generator()


def pretend() -> None:
    """Make this process one of a machine that has the device beside its CPU."""
    register()
    torch.Generator = _Generator  # type: ignore[misc]
    there = (DeviceInfo(f"{NAME}:0", NAME, 1 << 33, 1 << 33), *devices_of_core.devices())
    devices_of_core.devices = lambda: there


def answer_lines() -> None:
    """Do each line of the standard input, a folder and what is typed there, and write the answer as a line."""
    pretend()
    for line in sys.stdin:
        folder, *arguments = json.loads(line)
        try:
            answer = prompt(Path(folder), *arguments)
        except (RuntimeError, TypeError) as mistake:  # what the device raises
            answer = Answer(1, "", "".join(traceback.format_exception(mistake)))
        sys.stdout.write(json.dumps(asdict(answer)) + "\n")
        sys.stdout.flush()


def main() -> int:
    """Run safelight's command line on a machine that has the device beside its CPU."""
    pretend()
    return cli.run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
