"""Tells code of the user from installed packages, which count by name and version."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path


@lru_cache(maxsize=4096)
def package_of(module: str) -> str | None:
    """Name and version of the installed package that a module is part of; None for code of the user.

    >>> package_of("os.path"), package_of("torch.nn").partition(" ")[0]
    ('python', 'torch')
    """
    root = module.partition(".")[0]
    if root == "normkit":
        # Code that a run executes counts in `normkit.study.execution.fingerprint`.
        return "normkit"
    if root in ("__main__", "__mp_main__"):
        # A script or notebook, also if a program of a package runs it.
        return None
    loaded = sys.modules.get(module) or sys.modules.get(root)
    file = getattr(loaded, "__file__", None) or (_origin(root) if loaded is None else None)
    if root in sys.stdlib_module_names and (file is None or _is_inside(file, "stdlib")):
        return "python"
    if file is None or not (
        _is_inside(file, "purelib", "platlib") or {"site-packages", "dist-packages"} & {*Path(file).parts}
    ):
        return None
    return f"{root} {_version(root)}"


def _origin(root: str) -> str | None:
    try:
        spec = find_spec(root)
    except (ImportError, ValueError):
        return None
    return spec.origin if spec else None


def _is_inside(file: str, *kinds: str) -> bool:
    return any(Path(file).is_relative_to(sysconfig.get_paths()[kind]) for kind in kinds)


def _version(root: str) -> str:
    """The version of a package; with the digest of its files if it was installed from a folder, as own packages are."""
    try:
        package = metadata.distribution(root)
    except metadata.PackageNotFoundError:
        # It is distributed under another name, as scikit-learn is.
        return f"{getattr(sys.modules.get(root), '__version__', '')}"
    own = package.read_text("direct_url.json") and package.read_text("RECORD")
    return package.version + (f" {hashlib.sha256(own.encode()).hexdigest()}" if own else "")
