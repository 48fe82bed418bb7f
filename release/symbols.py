"""What a compiled library asks of the system and of torch, as `readelf` shows it, for any processor."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

OLDEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (8, 0, 0)}
"""The newest version of each name that manylinux_2_28 has: glibc 2.28 and GCC 8."""
_LINE = re.compile(r" (?P<bind>GLOBAL|WEAK) +\w+ +(?P<where>UND|\d+) (?P<name>[^@\s]+)(?:@+(?P<version>\S+))?")


@dataclass(frozen=True)
class Symbol:
    """A name that a library needs or has.

    Attributes:
        name: as the linker writes it.
        version: such as GLIBC_2.2.5; empty if it has none.
        is_needed: whether the library needs it; otherwise the library has it.
        is_weak: whether the library can do without it.
    """

    name: str
    version: str
    is_needed: bool
    is_weak: bool


def symbols(library: Path) -> list[Symbol]:
    """The names that a library needs from others, or that others may see.

    Args:
        library: a shared library, for any processor.
    """
    text = subprocess.run(["readelf", "-W", "--dyn-syms", library], capture_output=True, text=True, check=True).stdout
    found = [match for line in text.splitlines() if (match := _LINE.search(line))]
    return [
        Symbol(each["name"], each["version"] or "", each["where"] == "UND", each["bind"] == "WEAK") for each in found
    ]


def needed_libraries(library: Path) -> list[str]:
    """The libraries that it is linked with."""
    text = subprocess.run(["readelf", "-W", "-d", library], capture_output=True, text=True, check=True).stdout
    return re.findall(r"\(NEEDED\).*\[(.+)\]", text)


def is_of_torch(symbol: Symbol) -> bool:
    """Whether it belongs to torch's stable ABI, all of which is C."""
    return symbol.name.startswith(("aoti_torch_", "torch_"))


def unstable(found: Iterable[Symbol]) -> list[str]:
    """Needed names that neither torch's stable ABI nor the C and C++ run time has: of Python, or of torch's C++."""
    return [
        each.name
        for each in found
        if each.is_needed and not each.version and not each.is_weak and not is_of_torch(each)
    ]


def too_new(found: Iterable[Symbol]) -> list[str]:
    """Needed names with a version that a system of manylinux_2_28 does not have."""
    return [
        f"{each.name}@{each.version}" for each in found if each.is_needed and each.version and _is_new(each.version)
    ]


def _is_new(version: str) -> bool:
    kind, _, number = version.rpartition("_")
    digits = tuple(int(part) for part in number.split("."))
    return kind not in OLDEST or digits > OLDEST[kind]
