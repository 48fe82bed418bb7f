"""The folders of the study: each imports only from those before it, no import is circular, and none is too large."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from normkit import study

ROOT = Path(study.__file__).parent
NAME = study.__name__
FOLDERS = ["suite", "task", "training", "execution", "analysis", "claims", "report"]
FILES = sorted(ROOT.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join((NAME, *(part for part in parts if part != "__init__")))


MODULES = {module_of(path) for path in FILES}


def imported(source: str) -> Iterator[str]:
    """The modules of the study that a source imports anywhere: in functions, for types, as names of a package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def rank(module: str) -> int:
    """The position of a module's folder; modules in no folder come after all of them."""
    folder = module.removeprefix(NAME).lstrip(".").partition(".")[0]
    return FOLDERS.index(folder) if folder in FOLDERS else len(FOLDERS)


@functools.cache
def imports() -> dict[str, set[str]]:
    return {module_of(path): set(imported(path.read_text("utf-8"))) for path in FILES}


def test_every_form_of_an_import_is_seen() -> None:
    assert list(imported(f"from {NAME}.report.writing import formatting")) == [f"{NAME}.report.writing.formatting"]
    assert list(imported(f"from {NAME} import report")) == [f"{NAME}.report"]
    assert list(imported(f"from {NAME}.task import Task")) == [f"{NAME}.task"]
    assert list(imported(f"def f():\n    import {NAME}.setup")) == [f"{NAME}.setup"]


def test_a_folder_imports_only_from_those_before_it() -> None:
    found = {here: [other for other in others if rank(other) > rank(here)] for here, others in imports().items()}
    assert not {here: later for here, later in found.items() if later}, "these import from a later folder"


def test_no_import_is_circular() -> None:
    try:
        tuple(TopologicalSorter(imports()).static_order())
    except CycleError as error:
        pytest.fail(f"these modules import each other: {' <- '.join(error.args[1])}")


def test_every_room_is_there_and_none_is_too_large() -> None:
    assert set(FOLDERS) == {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    for folder in {path.parent for path in FILES}:
        files = [path for path in folder.iterdir() if path.suffix in (".py", ".html", ".css", ".js")]
        assert len(files) <= 14, f"{folder} has {len(files)} files: divide it"


def test_functions_are_short() -> None:
    """At most 80 lines; a public signature with its documentation may be longer than its body."""
    long = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                first = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0]
                if (node.end_lineno or 0) - first.lineno >= 80:
                    long.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert not long
