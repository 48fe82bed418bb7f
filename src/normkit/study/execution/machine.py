"""Facts about the machine that a reader needs to judge times and to repeat a run."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

import normkit


def cpu_name() -> str:
    """The processor in words, as well as the system can say.

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
    """Cores this process may use, which can be fewer than there are."""
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
