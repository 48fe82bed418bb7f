"""Where records go: files, TensorBoard, a function."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import IO, Any, Protocol, cast

from normkit.errors import ArgumentError, DtypeError, StateError
from normkit.tools.watch.record import FIELDS, FIGURES, NormRecord


class Writer(Protocol):
    """What a `torch.utils.tensorboard.SummaryWriter` has."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Keep one number."""


Destination = str | PathLike[str] | Writer | Callable[[NormRecord], Any]
Sink = Callable[[Sequence[NormRecord]], None]
"""Takes the records of one step."""


def opened(to: Destination | Iterable[Destination] | None, stack: ExitStack) -> list[Sink]:
    """A sink for each destination; files are closed with the stack.

    Raises:
        DtypeError: something that is no destination.
        ArgumentError: a path of another ending, or in a folder that is not there.
        StateError: a file with something else in it.
    """
    several = to is not None and not _is_one(to)
    targets = [] if to is None else list(cast("Iterable[Destination]", to if several else [to]))
    for target in targets:
        if isinstance(target, str | PathLike):
            _check_path(Path(target))
        elif not hasattr(target, "add_scalar") and not callable(target):
            raise DtypeError(
                "to= takes a path, a function of a record, or a writer with add_scalar, or several of these, "
                f"got {type(target).__name__}: give 'norms.csv' or 'norms.jsonl', or None to keep records in memory"
            )
    return [_sink(target, stack) for target in targets]


def _is_one(to: object) -> bool:
    return isinstance(to, str | PathLike) or hasattr(to, "add_scalar") or callable(to) or not isinstance(to, Iterable)


def _check_path(path: Path) -> None:
    if path.suffix not in (".csv", ".jsonl"):
        raise ArgumentError(f"to= writes .csv or .jsonl, got {str(path)!r}: end the name in one of them")
    if not path.parent.is_dir():
        raise ArgumentError(f"to= writes into a folder that is there, got {str(path)!r}: make {path.parent} first")
    if not path.exists():
        return
    with path.open(encoding="utf-8", newline="") as file:
        first = file.readline()
    if first.strip() and not _is_ours(path.suffix, first):
        raise StateError(
            f"to= adds to a file of its own, got {str(path)!r}, which begins with {first[:40]!r}: give another name"
        )


def _is_ours(suffix: str, line: str) -> bool:
    if suffix == ".csv":
        return line.strip() == ",".join(FIELDS)
    try:
        return set(json.loads(line)) == set(FIELDS)
    except (ValueError, TypeError):
        # The only line of a run that was killed while it wrote it.
        return not line.endswith("\n") and line.startswith('{"step"')


def _sink(target: Destination, stack: ExitStack) -> Sink:
    if isinstance(target, str | PathLike):
        return _file(Path(target), stack)
    if hasattr(target, "add_scalar"):
        return _writer(cast(Writer, target))
    function = target

    def call(records: Sequence[NormRecord]) -> None:
        for record in records:
            function(record)

    return call


def _file(path: Path, stack: ExitStack) -> Sink:
    _drop_torn_line(path)
    file: IO[str] = stack.enter_context(path.open("a", encoding="utf-8", newline=""))
    table = csv.DictWriter(file, FIELDS, lineterminator="\n")
    if path.suffix == ".csv" and not path.stat().st_size:
        table.writeheader()

    def write(records: Sequence[NormRecord]) -> None:
        rows = [record.to_dict() for record in records]
        if path.suffix == ".csv":
            table.writerows(rows)
        else:
            file.write("".join(json.dumps({k: _plain(v) for k, v in row.items()}) + "\n" for row in rows))
        # Then the operating system has it: a killed run loses nothing.
        file.flush()

    return write


def _drop_torn_line(path: Path) -> None:
    """Cut the incomplete last line of a run that was killed while writing."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def _plain(value: Any) -> Any:
    """JSON has no inf and no nan; the number of such values is kept instead."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _writer(writer: Writer) -> Sink:
    def write(records: Sequence[NormRecord]) -> None:
        for record in records:
            name = f"{record.norm}.call{record.call}" if record.call else record.norm
            for figure in FIGURES:
                value = getattr(record, figure)
                if value is not None:
                    writer.add_scalar(f"{figure}/{name}", value, record.step)
        flush = getattr(writer, "flush", None)
        if callable(flush):
            flush()

    return write
