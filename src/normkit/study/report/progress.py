"""Progress of a study: bars in a terminal, a line every ten seconds where there is none."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from normkit.study.report.writing import formatting

Notify = Callable[[int, int, str], None]
"""Called with (runs finished, runs in all, the name of the stage)."""
Announce = Callable[[str], None]
"""Called with a message to show above the bars, or as a line."""
EVERY = 10.0
"""Seconds between two lines."""


@contextmanager
def shown(progress: bool | Notify) -> Iterator[tuple[Notify, Announce]]:
    """Bars or lines on stderr for True, nothing for False, or the given function."""
    if callable(progress):
        yield progress, _nothing
    elif not progress:
        yield _nothing, _nothing
    else:
        from rich.console import Console

        console = Console(stderr=True)
        if console.is_terminal or console.is_jupyter:
            with _bars(console) as found:
                yield found
        else:
            with Lines(sys.stderr) as lines:
                yield lines.notify, lines.announce


def _nothing(*_: object) -> None:
    pass


@contextmanager
def _bars(console: object) -> Iterator[tuple[Notify, Announce]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bars:  # type: ignore[arg-type]
        line = bars.add_task("starting", total=None)

        def notify(done: int, total: int, what: str) -> None:
            bars.update(line, completed=done, total=total, description=what)

        yield notify, lambda text: bars.console.print(text, highlight=False)


class Lines:
    """Writes a line about the last known state every ten seconds, also while no run ends.

    Args:
        stream: where to write.
        every: seconds between two lines.
    """

    def __init__(self, stream: TextIO, every: float = EVERY) -> None:
        self.stream, self.every = stream, every
        self.state: tuple[int, int, str] = (0, 0, "starting")
        self.first: int | None = None
        self.start = time.monotonic()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._repeat, daemon=True)

    def __enter__(self) -> Lines:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def notify(self, done: int, total: int, what: str) -> None:
        """Keep the state for the next line."""
        self.first = done if self.first is None else self.first
        self.state = (done, total, what)

    def announce(self, text: str) -> None:
        """Write a message at once."""
        print(text, file=self.stream, flush=True)

    def line(self) -> str:
        """The state as a line: runs, stage, time, and the time that is left at the pace until now."""
        (done, total, what), seconds = self.state, time.monotonic() - self.start
        counted = f"{done} of {total} runs, " if total else ""
        ran = done - (self.first or 0)
        left = f", about {formatting.duration(seconds / ran * (total - done))} left" if ran > 0 and done < total else ""
        return f"normkit compare: {counted}{what}, {formatting.duration(seconds)}{left}"

    def _repeat(self) -> None:
        while not self.ended.wait(self.every):
            self.announce(self.line())
