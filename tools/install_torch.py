"""Install the CPU build of PyTorch into this environment, never gigabytes of CUDA by accident.

Asks pip what it would install; if that includes CUDA packages, takes PyTorch's own index of CPU builds instead.
With SAFELIGHT_TORCH=any, or with a torch already there, pip's choice stands.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

TORCH = "torch==2.13.0"
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"


def pip(*arguments: str) -> str:
    """Run pip in this environment and return what it prints."""
    command = [sys.executable, "-m", "pip", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def would_install() -> list[str]:
    """Return the names of the packages that installing torch would bring."""
    report = json.loads(pip("install", "--quiet", "--dry-run", "--report", "-", TORCH))
    return [package["metadata"]["name"].lower() for package in report["install"]]


def main() -> None:
    """Install torch unless it is there."""
    if importlib.util.find_spec("torch") is not None:
        return
    wants_any = os.environ.get("SAFELIGHT_TORCH") == "any"
    brings_cuda = not wants_any and any(name.startswith(("nvidia", "cuda", "triton")) for name in would_install())
    index = ["--index-url", CPU_BUILDS] if brings_cuda else []
    pip("install", "--quiet", *index, TORCH)


if __name__ == "__main__":
    main()
