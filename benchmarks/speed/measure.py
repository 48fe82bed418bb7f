"""Timing: contestants interleaved in one process, medians, and facts about the machine."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path

import torch

Call = Callable[[], object]
"""What is timed."""
RESULTS = Path(__file__).parents[1] / "results"
# glibc returns large blocks to the system when they are freed, and the page faults of fresh ones cost several
# times the kernels, for every contestant alike.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TOP_PAD_": str(1 << 28)}
# Calls shorter than this are timed several at a time, so that reading the clock does not count.
AT_LEAST = 5e-5


def keep_memory() -> None:
    """Start this process again with an allocator that keeps freed memory."""
    if any(os.environ.get(name) != value for name, value in KEEP_MEMORY.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **KEEP_MEMORY})


Medians = tuple[dict[str, float], dict[str, float]]


def quiet(calls: Mapping[str, Call], seconds: float, tries: int = 4) -> tuple[dict[str, float], bool]:
    """`interleaved`, repeated after a pause while another process disturbs it; and whether it was quiet at the end.

    While another process runs, threads wait for each other for time slices of milliseconds, so all contestants take
    about the same time: then the median of even a plain copy is far from its minimum.
    """
    for attempt in range(tries):
        medians, least = interleaved(calls, seconds)
        if all(medians[name] < 2 * least[name] for name in medians):
            return medians, True
        time.sleep(min(seconds, 1) * 5 * (attempt + 1))
    return medians, False


def interleaved(calls: Mapping[str, Call], seconds: float) -> Medians:
    """Median and least milliseconds of each call; calls alternate for about `seconds`, at least 7 times each."""
    many: dict[str, int] = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        many[name] = max(1, round(AT_LEAST / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(times))]) < 7:
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(many[name]):
                call()
            times[name].append((time.perf_counter() - start) / many[name])
    medians = {name: statistics.median(values) * 1e3 for name, values in times.items()}
    return medians, {name: min(values) * 1e3 for name, values in times.items()}


def machine() -> dict[str, object]:
    """The machine of the measurement."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "caches": _caches(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "lowered": any(isa in os.environ for isa in ("NORMKIT_ISA", "ATEN_CPU_CAPABILITY")),
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}".rstrip(", "),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "allocator": {name: os.environ.get(name) for name in KEEP_MEMORY},
        "date": date.today().isoformat(),
    }


def _caches() -> dict[str, str]:
    """The cache sizes of the first core, as the system gives them."""
    found = {}
    for cache in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((cache / fact).read_text().strip() for fact in ("level", "type", "size"))
        if kind != "Instruction":
            found[f"L{level}"] = size
    return found
