"""Facts about the machine, for readers who compare times or repeat a run."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

import normkit


def cpu_name() -> str:
    """The name of the processor, if the system gives one.

    >>> bool(cpu_name())
    True
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown processor"


def cores() -> int:
    """The number of cores that this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def facts() -> dict[str, Any]:
    """Processor, system, versions, and the kernels normkit uses here."""
    return {
        "processor": cpu_name(),
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "normkit": normkit.__version__,
        "kernels": str(normkit.show_backends()),
    }
