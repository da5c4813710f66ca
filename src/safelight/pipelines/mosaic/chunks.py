"""How many rows are computed at a time where memory has room for more."""

from __future__ import annotations

from safelight.core.dry_run import row_bytes
from safelight.core.stream import Source

CHUNK_BYTES = 64 * 2**20
"""Input of a chunk from which more is no faster: the next one is read while it is computed."""


def enough_rows(source: Source) -> int:
    """Return the rows of a source that are enough for a chunk."""
    return max(CHUNK_BYTES // row_bytes(source), 1)
