"""How far the items are that several workers have in hand, as one line of progress."""

from __future__ import annotations

from collections.abc import Callable


class Board:
    """Adds up the shares of all items.

    Parameters
    ----------
    items : int
        How many there are.
    show : callable
        ``show(done, total, key, data)``, the progress of the run.
    """

    def __init__(self, items: int, show: Callable[..., None]) -> None:
        self._items = items
        self._show = show
        self._ended = 0
        self._shares: dict[str, float] = {}

    def begin(self, name: str) -> None:
        """Note that a worker has got an item."""
        self._shares[name] = 0.0

    def move(self, name: str, share: float) -> None:
        """Note a share done. An item of several passes begins again; the line does not go back."""
        self._shares[name] = max(self._shares[name], min(share, 1.0))
        self._tell()

    def end(self, name: str) -> None:
        """Note that an item is done, has failed, or was done before."""
        self._shares.pop(name, None)
        self._ended += 1
        self._tell()

    def _tell(self) -> None:
        done = self._ended + sum(self._shares.values())
        self._show(
            done, self._items, "workers_progress", ended=self._ended, items=self._items, in_hand=len(self._shares)
        )
