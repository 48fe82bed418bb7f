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
from normkit.kernels.triton.passes import CHUNK, MOST_WARPS, Gaps, Pass
from normkit.kernels.triton.schedule import Schedule, schedule

Numbers = tuple[tuple[int, int, int, int], int, int, int, int, Gaps]
"""View, period and inner of a plan, bytes of an element, slabs and gaps of the plan."""


def is_on() -> bool:
    return settings.AUTOTUNE.is_on


def candidates(numbers: Numbers) -> Iterator[tuple[int, float]]:
    """Pairs (elements of a tile that is walked, factor for the warps) to try; the untuned schedule comes first."""
    for chunk in (CHUNK, CHUNK // 2, 2 * CHUNK):
        yield from ((chunk, factor) for factor in (1, 0.5, 2))


def tuned(numbers: Numbers, where: str, milliseconds: Callable[[Schedule, int], float]) -> Schedule:
    """The fastest schedule of a plan on the GPU named `where`: measured once, afterwards read from the file."""
    path = Path(settings.CACHE.value or Path.home() / ".cache" / "normkit") / "schedules.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    key = f"{where}: {numbers}"
    if key not in kept:
        kept[key] = min(candidates(numbers), key=lambda choice: milliseconds(made(numbers, *choice), numbers[3]))
        path.parent.mkdir(parents=True, exist_ok=True)
        # Replaced as a whole, because other processes read the file, too.
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        fresh.replace(path)
    return made(numbers, *kept[key])


def made(numbers: Numbers, chunk: int, factor: float) -> Schedule:
    s = schedule(*numbers, chunk=chunk)
    fields = ("forward", "backward", "gated", "parts", "sums", "apply")
    passes: dict[str, Pass | None] = {field: getattr(s, field) for field in fields}
    scaled = {
        field: None if p is None else replace(p, warps=max(1, min(MOST_WARPS, int(p.warps * factor))))
        for field, p in passes.items()
    }
    return replace(s, **scaled)  # type: ignore[arg-type]
