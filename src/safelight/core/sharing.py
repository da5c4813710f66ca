"""Shares the items of a run out among workers, and says and journals what these tell."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from safelight.core.books import Books
from safelight.core.events import Event
from safelight.core.pipeline import Item
from safelight.core.worker import Done, Failed, Lost, Share, Usage
from safelight.core.workers import Pool


def share_out(items: Sequence[Item], pool: Pool, books: Books, progress: Callable[..., None]) -> None:
    """Have workers do the items that are not done.

    Parameters
    ----------
    items : sequence of Item
    pool : Pool
    books : Books
        Are kept here, in the parent, only.
    progress : callable
        ``progress(done, total, key, data)``.
    """
    waiting, board = deque(items), Board(len(items), progress)

    def take() -> Item | None:
        while waiting:
            item = waiting.popleft()
            if books.is_to_do(item):
                board.begin(item.name)
                return item
            board.end(item.name)
        return None

    for item, told in pool.run(take):
        if isinstance(told, Event):
            books.events.add(replace(told, data={"item": item.name, **told.data}))
        elif isinstance(told, Share):
            board.move(item.name, told.done)
        elif isinstance(told, Usage):
            books.add_usage(told)
        elif isinstance(told, Lost):
            books.lose_device(told.device, item.name, told.reason)
            waiting.append(item)
        elif isinstance(told, Done | Failed):
            books.settle(item, told)
            board.end(item.name)
    books.sort_as(items)


class Board:
    """How far the items are that several workers have in hand, as one line of progress.

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
