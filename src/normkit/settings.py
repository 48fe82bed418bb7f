"""The environment variables of normkit. No other module reads them."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """One environment variable.

    Attributes:
        name: the name of the variable.
        values: the values that it can have.
        default: the behaviour if it is not set.
        meaning: what it does.
        read: when it is read.
    """

    name: str
    values: str
    default: str
    meaning: str
    read: str

    @property
    def value(self) -> str:
        """Its present value; empty if it is not set."""
        return os.environ.get(self.name, "")

    @property
    def is_on(self) -> bool:
        """Whether it is 1."""
        return self.value == "1"

    @property
    def turned_off(self) -> str:
        """The reason to report if it is 0, else an empty string.

        >>> NATIVE.turned_off or NATIVE.default
        'in use'
        """
        return f"turned off by {self.name}=0" if self.value == "0" else ""


NATIVE = Setting("NORMKIT_NATIVE", "`0`", "in use", "`0` turns off the C++ kernels.", "once, at the first call")
FASTPATH = Setting(
    "NORMKIT_FASTPATH",
    "`0`",
    "in use",
    "`0` turns off the C++ fast path for eager calls. If set during an installation from source, it is not built.",
    "at import, and by `setup.py`",
)
ISA = Setting(
    "NORMKIT_ISA",
    "`baseline`, `avx2`, `avx512`, `avx512_bf16`",
    "the best of the processor",
    "The instruction set of the C++ kernels; it can be a lesser one than the best of the processor.",
    "once, at the first call, by the C++ kernels",
)
TRITON = Setting("NORMKIT_TRITON", "`0`", "in use", "`0` turns off the GPU kernels.", "once, at the first call")
AUTOTUNE = Setting(
    "NORMKIT_AUTOTUNE",
    "`1`",
    "off",
    "`1` measures several schedules of a GPU kernel for each new shape, and keeps the fastest.",
    "at each new shape",
)
CACHE = Setting(
    "NORMKIT_CACHE",
    "a folder",
    "`~/.cache/normkit`",
    "The folder for the fast paths that `python -m normkit.build` builds, and the schedules that `NORMKIT_AUTOTUNE=1` "
    "chooses.",
    "at import, and at each new shape",
)
STORE = Setting(
    "NORMKIT_STORE",
    "the URL of a database",
    "a file in `--out`",
    "The database of finished runs, for `normkit compare` without `--store`.",
    "by each `normkit compare`",
)

SETTINGS = (NATIVE, FASTPATH, ISA, TRITON, AUTOTUNE, CACHE, STORE)


def markdown() -> str:
    """All settings as a page; `docs/en/engine/settings.md` is generated from it."""
    rows = [("Variable", "Values", "Default", "Meaning", "Read"), ("---",) * 5]
    rows += [(f"`{each.name}`", each.values, each.default, each.meaning, each.read) for each in SETTINGS]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        "# Settings\n\nEnvironment variables that normkit reads. Each is optional. "
        "`normkit.show_backends()` shows which kernels are in use, and why.\n\n" + table + "\n"
    )
