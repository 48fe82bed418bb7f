"""Progress where the output is no terminal, and the pages that are written during a study."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from normkit.errors import StateError
from normkit.study import run_study as module
from normkit.study.comparison import Comparison
from normkit.study.report import progress
from normkit.study.run_study import _Conclusion, _Pages


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_a_line_is_written_even_if_no_run_ends() -> None:
    stream = io.StringIO()
    with progress.Lines(stream, every=0.02) as lines:
        lines.notify(3, 20, "measuring")
        wait_for(lambda: stream.getvalue().count("3 of 20 runs, measuring") >= 2)
        lines.announce("a message")
    written = stream.getvalue()
    assert "a message\n" in written
    assert all(line.startswith("normkit compare: ") for line in written.splitlines() if line != "a message")
    time.sleep(0.06)
    assert stream.getvalue() == written, "nothing is written after the end"
    assert not any(thread is lines.thread for thread in threading.enumerate())


def test_the_time_left_counts_the_runs_of_this_call() -> None:
    lines = progress.Lines(io.StringIO())
    assert lines.line().startswith("normkit compare: starting, ")
    lines.notify(100, 200, "measuring")
    assert "left" not in lines.line(), "the first hundred were stored before"
    lines.start -= 50
    lines.notify(125, 200, "measuring")
    assert "125 of 200 runs, measuring, 50 s, about 2 min 30 s left" in lines.line()
    lines.notify(200, 200, "timing")
    assert "left" not in lines.line()


def test_without_a_terminal_there_are_lines_and_with_a_function_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[object, ...]] = []
    with progress.shown(lambda *now: seen.append(now)) as (notify, announce):
        notify(1, 2, "measuring")
        announce("text")
    with progress.shown(False) as (notify, announce):
        notify(1, 2, "measuring")
        announce("text")
    assert seen == [(1, 2, "measuring")]
    assert capsys.readouterr().err == ""
    with progress.shown(True) as (_, announce):
        announce("text")
    assert capsys.readouterr().err == "text\n"


class _Recorded(_Conclusion):
    """Counts how often conclusions were drawn."""

    def __init__(self) -> None:
        self.drawn = 0

    def so_far(self) -> Comparison:
        self.drawn += 1
        return None  # type: ignore[return-value]


def test_a_page_is_written_after_the_comparison_and_every_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    conclusion, said = _Recorded(), []
    pages = _Pages(conclusion, lambda *_: None, lambda _: Path("index.html"), said.append)
    now[0] += 1000
    pages.notify(1, 9, "measuring")
    assert conclusion.drawn == 0, "there is no page before the comparison is finished"
    pages.compared()
    assert conclusion.drawn == 1
    assert said == ["The comparison is finished, claims are still being measured. Report: index.html"]
    pages.notify(2, 9, "claims: measuring")
    now[0] += module.REWRITTEN + 1
    pages.notify(3, 9, "claims: measuring")
    pages.notify(4, 9, "claims: measuring")
    assert conclusion.drawn == 2
    assert len(said) == 1


def test_a_page_that_cannot_be_written_ends_no_study() -> None:
    def full(_: Comparison) -> Path:
        raise StateError("no space")

    conclusion, said = _Recorded(), []
    _Pages(conclusion, lambda *_: None, full, said.append).compared()
    assert (conclusion.drawn, said) == (1, [])
    _Pages(conclusion, lambda *_: None, None, said.append).compared()
    assert conclusion.drawn == 1, "nothing is concluded for a report that nobody writes"
