"""Decides which stored runs are still valid, by a fingerprint of data, design and executed code."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import normkit
from normkit import catalog
from normkit.catalog import Paper, Text
from normkit.study.task import Task
from normkit.study.training.design import Design

EXECUTED = (
    "*.so",
    "pattern.py",
    "plan.py",
    "evaluation.py",
    "merging.py",
    "kernels/",
    "functional/",
    "layers/",
    "parametrize/",
    "study/suite/",
    "study/task/scoring/",
    *(
        f"study/task/{name}.py"
        for name in ("batches", "masks", "own", "part", "probes", "recipe", "recurrent", "task", "variants")
    ),
    "study/training/",
)
"""Folders and files of the package that a run executes. The tools that these files import are added to them."""
_PROSE = ("aliases", "formula", "layers", "mark", "compared")
"""Fields of a row of the catalog that do not affect a run; neither do those of type `Text` and `Paper`."""


def fingerprint(task: Task, design: Design) -> str:
    """Equal only if the same trial gives the same run: data, design, torch and the executed code are the same."""
    facts: dict[str, Any] = {
        "task": task.fingerprint(),
        # With epochs the steps of a batch size do not depend on the other batch sizes.
        "training": (design.window, design.gap_images, design.device, design.dtype),
        "steps": design.steps if task.max_epochs is None else f"{task.max_epochs} epochs",
        "torch": torch.__version__,
        "code": code_digest(),
    }
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


@lru_cache(maxsize=1)
def code_digest() -> str:
    """The digest of this package; computed once, because the files do not change during a run."""
    return digest_of(Path(normkit.__file__).parent)


def digest_of(root: Path) -> str:
    """A digest of all code in `EXECUTED` and of the facts in the catalog; claims and messages do not change it.

    Args:
        root: the folder of the package.
    """
    digest = hashlib.sha256()
    for path in executed(root):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    digest.update(repr([_facts(method) for method in catalog.METHODS]).encode())
    return digest.hexdigest()


def executed(root: Path) -> list[Path]:
    """The files in `EXECUTED` and the tools that they import, directly or indirectly, in a fixed order."""
    files = {path for place in EXECUTED for path in root.glob(f"{place}**/*.py" if place.endswith("/") else place)}
    waiting = [path for path in files if path.is_relative_to(root / "study")]
    while waiting:
        tools = set(_imported_tools(root, waiting.pop())) - files
        files |= tools
        waiting += tools
    return sorted(files)


def _imported_tools(root: Path, path: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("normkit.tools."):
            for name in (f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)):
                place = root.joinpath(*name.split(".")[1:])
                yield from (file for file in (place.with_suffix(".py"), place / "__init__.py") if file.exists())


def _facts(method: catalog.Method) -> dict[str, Any]:
    """The fields of a row that decide how a norm is recognised, built and computed."""
    found = {field.name: getattr(method, field.name) for field in fields(method) if field.name not in _PROSE}
    return {name: value for name, value in found.items() if not _is_prose(value)}


def _is_prose(value: Any) -> bool:
    return isinstance(value, (Text, Paper)) or (isinstance(value, tuple) and any(map(_is_prose, value)))
