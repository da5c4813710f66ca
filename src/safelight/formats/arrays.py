"""Arrays in NumPy's files, ``.npy`` and ``.npz``: numbers only, nothing in them is executed."""

from __future__ import annotations

import zlib
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from safelight.core.errors import InputError

ONLY = ""
"""Name of the array of an ``.npy``, which has none."""
_BEGINNINGS = (b"\x93NUMPY", b"PK\x03\x04", b"PK\x05\x06")
"""Of an ``.npy``, an ``.npz`` and an empty ``.npz``."""
_DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    MemoryError,
    NotImplementedError,
    SyntaxError,
    TokenError,
    BadZipFile,
    zlib.error,
)
"""What NumPy lets out, by where the damage is; out of memory where a header claims more than there is."""


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file by name; the one of an ``.npy`` is called ``ONLY``.

    Raises
    ------
    InputError
        The file is missing or damaged, or holds anything but arrays of numbers or text.
    """
    try:
        with path.open("rb") as stream:
            if not stream.read(max(map(len, _BEGINNINGS))).startswith(_BEGINNINGS):
                raise InputError("is no file of NumPy's", path=path, expected="an .npy or .npz of numbers")
            stream.seek(0)
            loaded = np.load(stream)
            arrays = {ONLY: loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except _DAMAGE as error:
        raise InputError(f"cannot be read as arrays ({error})", path=path) from None
    if foreign := [name for name, values in arrays.items() if not isinstance(values, np.ndarray)]:
        raise InputError(f"its {foreign[0]} is no array", path=path)
    return arrays
