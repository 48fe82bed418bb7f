"""The clocks of a measurement: a GPU's own with all launches queued, and the CPU's, which also serves without a GPU."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import torch

from benchmarks.speed.measure import Call

CALIBRATION = 20_000_000
"""Cycles of the sleep that finds out how long a cycle is: some 10 ms."""
MARGIN = 0.3
"""Milliseconds that the GPU sleeps beyond twice the time that queueing a call has taken."""
LONGEST = 400.0
"""Milliseconds of sleep beyond which a call is taken as it comes, because it waits for the GPU itself."""
TIMES_CACHE = 2
"""How often the buffer that empties the L2 cache holds it."""
LEAST_BUFFER = 1 << 28
"""Bytes; more than any L2 cache of today holds twice."""


class Clock(Protocol):
    """What measurements need of a device."""

    def ahead(self, call: Call) -> float:
        """How long the device has to be busy for a call to be queued meanwhile; milliseconds."""

    def device(self, call: Call, ahead: float) -> tuple[float, bool]:
        """Milliseconds of one call with cold caches, and whether its launches were all queued before it began."""

    def host(self, call: Call, ahead: float, number: int) -> float | None:
        """Milliseconds of CPU time of one of `number` calls while the device is busy; None if it ran out of work."""

    def wall(self, call: Call) -> float:
        """Milliseconds of one call from idle to idle."""


class HostClock:
    """Without a GPU a call is over when it returns; shows that a benchmark runs, and says nothing about speed."""

    def ahead(self, call: Call) -> float:
        call()
        return 0.0

    def device(self, call: Call, ahead: float) -> tuple[float, bool]:
        return self.wall(call), True

    def host(self, call: Call, ahead: float, number: int) -> float | None:
        start = time.perf_counter()
        for _ in range(number):
            call()
        return (time.perf_counter() - start) * 1e3 / number

    def wall(self, call: Call) -> float:
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3


class GpuClock:
    """Times by the events of a GPU.

    Before a call the GPU sleeps, then overwrites a buffer that is larger than its L2 cache, and reads it. So when the
    first event passes, all that the call launches is queued. The cache then holds nothing of its tensors, and nothing
    that is still to be written to memory. The event shows whether the launches were queued in time.
    """

    def __init__(self, cuda: Any = torch.cuda, where: str = "cuda") -> None:
        self.cuda = cuda
        cache = int(getattr(cuda.get_device_properties(0), "L2_cache_size", 0))
        self.buffer = torch.empty(max(LEAST_BUFFER, TIMES_CACHE * cache), dtype=torch.int8, device=where)
        # The shortest of a few, for an idle GPU takes a while to reach its clock.
        self.cycles = CALIBRATION / min(self._asleep(CALIBRATION) for _ in range(4))

    def _asleep(self, cycles: int) -> float:
        before, after = self._event(), self._event()
        before.record()
        self.cuda._sleep(cycles)
        after.record()
        self.cuda.synchronize()
        return float(before.elapsed_time(after))

    def _event(self) -> Any:
        return self.cuda.Event(enable_timing=True)

    def _sleep(self, milliseconds: float) -> None:
        self.cuda._sleep(int(milliseconds * self.cycles))

    def ahead(self, call: Call) -> float:
        call()  # compiles, and fills torch's cache of memory
        self.cuda.synchronize()
        times = []
        for _ in range(3):
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e3)
            self.cuda.synchronize()
        return min(LONGEST, 2 * min(times) + MARGIN)

    def device(self, call: Call, ahead: float) -> tuple[float, bool]:
        before, after = self._event(), self._event()
        self._sleep(ahead)
        self.buffer.zero_()
        self.buffer.max()  # else the call's time includes writing the zeros back to memory
        before.record()
        call()
        after.record()
        queued = not before.query()
        self.cuda.synchronize()
        return float(before.elapsed_time(after)), queued

    def host(self, call: Call, ahead: float, number: int) -> float | None:
        asleep = self._event()
        self._sleep(ahead * number)
        asleep.record()
        start = time.perf_counter()
        for _ in range(number):
            call()
        taken = (time.perf_counter() - start) * 1e3 / number
        busy = not asleep.query()
        self.cuda.synchronize()
        return taken if busy else None

    def wall(self, call: Call) -> float:
        self.cuda.synchronize()
        start = time.perf_counter()
        call()
        self.cuda.synchronize()
        return (time.perf_counter() - start) * 1e3


@dataclass(frozen=True)
class Times:
    """Of one contestant in milliseconds; `queued` is the share of its calls that the GPU did not wait for."""

    median: float
    least: float
    number: int
    queued: float = 1.0


def interleaved(calls: Mapping[str, Call], seconds: float, clock: Clock, least: int = 11) -> dict[str, Times]:
    """Device times of calls that take turns for about `seconds`, at least `least` times each.

    A call that the GPU was ready for too early is left out, and later ones get more time to be queued.
    """
    ahead = {name: clock.ahead(call) for name, call in calls.items()}
    good: dict[str, list[float]] = {name: [] for name in calls}
    late: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or any(len(good[name]) + len(late[name]) < least for name in calls):
        for name, call in calls.items():
            milliseconds, queued = clock.device(call, ahead[name])
            (good if queued else late)[name].append(milliseconds)
            if not queued:
                ahead[name] = min(LONGEST, 2 * ahead[name])
    times = {}
    for name in calls:
        counted = good[name] or late[name]
        share = len(good[name]) / (len(good[name]) + len(late[name]))
        times[name] = Times(statistics.median(counted), min(counted), len(counted), round(share, 3))
    return times


def host_times(calls: Mapping[str, Call], clock: Clock, repeats: int = 30, number: int = 20) -> dict[str, float | None]:
    """The least CPU time of a call, in milliseconds; None if the GPU ran out of work each time.

    A queue holds a thousand launches, so `number` calls of at most fifty launches fit.
    """
    ahead = {name: clock.ahead(call) for name, call in calls.items()}
    best = dict.fromkeys(calls, math.inf)
    for _ in range(repeats):
        for name, call in calls.items():
            taken = clock.host(call, ahead[name], number)
            best[name] = min(best[name], math.inf if taken is None else taken)
    return {name: None if math.isinf(value) else value for name, value in best.items()}


def wall_times(calls: Mapping[str, Call], seconds: float, clock: Clock, least: int = 5) -> dict[str, Times]:
    """The same from idle to idle, the CPU's share included, as a training loop has it."""
    for call in calls.values():
        clock.wall(call)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or any(len(values) < least for values in taken.values()):
        for name, call in calls.items():
            taken[name].append(clock.wall(call))
    return {name: Times(statistics.median(t), min(t), len(t)) for name, t in taken.items()}


def bandwidth(clock: Clock, size: int, where: str, seconds: float = 0.3) -> float:
    """Bytes per millisecond, read and written, of a copy of `size` bytes: what limits are relative to."""
    x = torch.ones(size, dtype=torch.int8, device=where)
    y = torch.empty_like(x)
    times = interleaved({"copy": lambda: y.copy_(x)}, seconds, clock)
    return 2 * size / times["copy"].median


def facts() -> dict[str, object]:
    """The GPU of the measurement, its driver, the versions of what runs there, and torch's own replacements."""
    known: dict[str, object] = {"gpu": "none: a dry run on the CPU", "triton": _version("triton")}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        known |= {
            "gpu": properties.name,
            "units": properties.multi_processor_count,
            "memory": properties.total_memory,
            "L2": getattr(properties, "L2_cache_size", None),
            "cuda": torch.version.cuda or torch.version.hip,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _driver(),
        }
    names = ("liger-kernel", "quack-kernels", "flashinfer-python", "apex", "nvidia-cutlass-dsl", "timm")
    return {**known, "native": native_overrides(), "packages": {name: _version(name) for name in names}}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception:  # the driver's version is worth no failure
        return None


def native_overrides() -> str:
    """Which of torch's own operators are replaced by kernels that it ships in a DSL, such as quack's RMS norm."""
    try:
        from torch._native import registry

        active = {dsl: registry.get_dsl_operations(dsl) for dsl in ("cutedsl", "triton")}
    except (ImportError, AttributeError) as error:
        return f"none known: {error}"
    return "; ".join(f"{dsl}: {', '.join(names)}" for dsl, names in active.items() if names) or "none active"
