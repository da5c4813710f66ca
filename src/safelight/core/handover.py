"""What a run hands to the fresh process that goes on with it, after it lost its device.

A CUDA context that met an illegal access or a failed device assertion is of no use any more, and only the end of the
process removes it. The journal says which items are done; this says the rest.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from safelight.core.errors import InputError
from safelight.core.files import atomic_write

FILE = "handover.json"
VARIABLE = "SAFELIGHT_HANDOVER"
"""The environment variable that names the file to the fresh process."""


class Handover(BaseModel):
    """The state of a run that the journal does not hold.

    Parameters
    ----------
    lost : tuple of str
        The items at which the device was lost, one entry per loss.
    seconds : float
        How long the run has taken so far.
    item_seconds : dict
        How long each item took that the run has finished.
    events : tuple of dict
        What happened so far, as ``Event.as_json`` returns it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lost: tuple[str, ...] = ()
    seconds: float = 0.0
    item_seconds: dict[str, float] = {}
    events: tuple[dict[str, Any], ...] = ()

    def write(self, folder: Path) -> Path:
        """Write the file into the run's folder and return its path."""
        path = folder / FILE
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(self.model_dump(), allow_nan=False), encoding="utf-8")
        return path

    @classmethod
    def take(cls) -> Self:
        """Return what the process before this one has handed over, once; an empty one where there was none.

        Raises
        ------
        InputError
            The file is not there or not of this kind.
        """
        name = os.environ.pop(VARIABLE, None)
        if name is None:
            return cls()
        path = Path(name)
        try:
            handover = cls.model_validate_json(path.read_text(encoding="utf-8"))
            path.unlink()
        except (OSError, ValueError) as error:
            raise InputError(
                "what the run before handed over cannot be read", path=path, remedy="run the same command again"
            ) from error
        return handover
