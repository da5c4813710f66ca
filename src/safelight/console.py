"""What a person sees while a job runs: sentences, a progress line, or JSON lines for a program."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, TextIO, cast

from safelight.core.events import Event, Severity, Value
from safelight.core.messages import choose_language, translate
from safelight.core.options import CommonOptions
from safelight.streams import Patient, lead_to_nothing

if TYPE_CHECKING:
    from rich.console import Console as Terminal
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
        self._language = choose_language(options.lang)
        self._json = options.json_events
        self._quiet = options.quiet
        everything = options.verbose or options.json_events  # a program picks what it wants
        self._least = Severity.WARNING if options.quiet else Severity.DEBUG if everything else Severity.INFO
        self._terminal = _terminal(stream or sys.stderr)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._task_key = ""
        self._started = self._last_line = time.monotonic()
        self._first_share = 0.0

    def show(self, event: Event) -> None:
        """Show one event; subscribe this to an EventLog."""
        if _RANK[event.severity] < _RANK[self._least]:
            return
        if self._json:
            self._write_line(json.dumps(event.as_json()))
        else:
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

    def _write_line(self, line: str) -> None:
        """Write a line to standard output. A reader that goes away stops no run."""
        try:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        except OSError as error:
            lead_to_nothing(sys.stdout)
            self._json, self._quiet, self._least = False, True, Severity.WARNING
            self.show(Event("output_closed", Severity.WARNING, {"reason": error.strerror or str(error)}))

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
                TextColumn("{task.description}", markup=False),
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
        now, share = time.monotonic(), done / total if total else 1.0
        if key != self._task_key:
            self._task_key, self._started, self._last_line = key, now, now
            self._first_share = share
        if done >= total or now - self._last_line < SECONDS_BETWEEN_LINES:  # its end is an event of its own
            return
        self._last_line = now
        done_here = share - self._first_share  # a resumed job begins in the middle
        if not done_here:  # there is no saying how long it takes
            return
        left = (now - self._started) * (1 - share) / done_here
        line = Event("progress_line", data={"what": sentence, "percent": round(100 * share), "seconds": round(left)})
        self._terminal.print(translate(line, self._language), markup=False)


def _terminal(stream: TextIO) -> Terminal:
    from rich.console import Console as Terminal

    return Terminal(file=cast("TextIO", Patient(stream)), highlight=False, soft_wrap=True)
