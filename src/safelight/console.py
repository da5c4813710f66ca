"""What a person sees while a job runs: sentences, a progress line, or JSON lines for a program."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, TextIO

from safelight.core.events import Event, Severity, Value
from safelight.core.messages import choose_language, translate
from safelight.core.options import CommonOptions

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SECONDS_BETWEEN_LINES = 10.0
_STYLES = {Severity.DEBUG: "dim", Severity.INFO: "", Severity.WARNING: "yellow", Severity.ERROR: "bold red"}
_RANK = {severity: rank for rank, severity in enumerate(Severity)}


class Console:
    """Shows events and progress. Sentences and progress go to ``stream``, JSON lines to standard output.

    Parameters
    ----------
    options : CommonOptions
        ``lang``, ``quiet``, ``verbose`` and ``json`` are read.
    stream : text stream, optional
        Standard error by default.
    """

    def __init__(self, options: CommonOptions, stream: TextIO | None = None) -> None:
        from rich.console import Console as Terminal

        self._language = choose_language(options.lang)
        self._json = options.json_events
        self._quiet = options.quiet
        self._least = Severity.DEBUG if options.verbose else Severity.WARNING if options.quiet else Severity.INFO
        self._terminal = Terminal(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._task_key = ""
        self._started = self._last_line = time.monotonic()

    def show(self, event: Event) -> None:
        """Show one event; subscribe this to an EventLog."""
        if self._json:
            sys.stdout.write(json.dumps(event.as_json()) + "\n")
            sys.stdout.flush()
        elif _RANK[event.severity] >= _RANK[self._least]:
            self._terminal.print(translate(event, self._language), style=_STYLES[event.severity], markup=False)

    def progress(self, done: float, total: float, key: str, /, **data: Value) -> None:
        """Show how far a long job is: a bar on a terminal, now and then a line elsewhere.

        Parameters
        ----------
        done, total : float
            In any one unit.
        key : str
            The message that says what is being done; ``data`` fills its placeholders.
        """
        if self._quiet or self._json:
            return
        sentence = translate(Event(key, data=data), self._language)
        if self._terminal.is_terminal:
            self._move_bar(done, total, key, sentence)
        else:
            self._print_line(done, total, key, sentence)

    def close(self) -> None:
        """Remove the progress bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _move_bar(self, done: float, total: float, key: str, sentence: str) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        if self._bar is None or key != self._task_key:
            self.close()
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._terminal, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(sentence, total=total)
            self._task_key = key
        assert self._task is not None
        self._bar.update(self._task, completed=done, total=total, description=sentence)
        if done >= total:
            self.close()

    def _print_line(self, done: float, total: float, key: str, sentence: str) -> None:
        now = time.monotonic()
        if key != self._task_key:
            self._task_key, self._started, self._last_line = key, now, now
        if done < total and now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        share = done / total if total else 1.0
        left = (now - self._started) * (1 - share) / share if share else 0.0
        line = Event("progress_line", data={"what": sentence, "percent": round(100 * share), "seconds": round(left)})
        self._terminal.print(translate(line, self._language), markup=False)
