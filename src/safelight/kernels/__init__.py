"""Tensors in, tensors out: maths without files, devices or settings."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from safelight.core.kernel import KernelInfo


def all_kernels() -> tuple[KernelInfo, ...]:
    """Return what every module of this folder declares in its ``KERNELS``."""
    modules = (import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__))
    return tuple(info for module in modules for info in getattr(module, "KERNELS", ()))
