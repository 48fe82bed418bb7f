"""Schedules chosen by measurement, on request, and kept for the next process.

``NORMKIT_AUTOTUNE=1`` turns it on. Results are kept in ``NORMKIT_CACHE``, by default ``~/.cache/normkit``, separately
for each GPU and version of Triton. Another order of summation changes the last bits, so two machines may then differ.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from normkit import settings
from normkit.kernels.triton.arguments import Walk
from normkit.kernels.triton.schedule import CHUNK, Schedule, schedule

Numbers = tuple[tuple[int, int, int, int], int, int]


def is_on() -> bool:
    return settings.AUTOTUNE.is_on


def candidates(numbers: Numbers) -> Iterator[tuple[int, int]]:
    """Pairs (elements of a tile, warps) to try; the untuned schedule comes first."""
    first = schedule(*numbers)
    for chunk in (CHUNK,) if first.walk is Walk.WHOLE else (CHUNK, CHUNK // 2, 2 * CHUNK):
        own = schedule(*numbers, chunk=chunk).warps
        yield from ((chunk, warps) for warps in (own, own // 2, 2 * own) if 1 <= warps <= 16)


def tuned(numbers: Numbers, where: str, milliseconds: Callable[[Schedule], float]) -> Schedule:
    """The fastest schedule of a plan on the GPU named `where`: measured once, afterwards read from the file."""
    path = Path(settings.CACHE.value or Path.home() / ".cache" / "normkit") / "schedules.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    key = f"{where}: {numbers}"
    if key not in kept:
        kept[key] = min(candidates(numbers), key=lambda choice: milliseconds(made(numbers, *choice)))
        path.parent.mkdir(parents=True, exist_ok=True)
        # Replaced as a whole, because other processes read the file, too.
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        fresh.replace(path)
    return made(numbers, *kept[key])


def made(numbers: Numbers, chunk: int, warps: int) -> Schedule:
    return replace(schedule(*numbers, chunk=chunk), warps=warps)
