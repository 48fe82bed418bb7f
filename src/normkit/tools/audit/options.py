"""The options of `normkit audit`: from the command line, and from the table [tool.normkit.audit] of a file."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from normkit.catalog import LANGUAGES
from normkit.errors import ArgumentError, DtypeError, nearest
from normkit.tools.audit.report import SEVERITIES, rank

FORMATS = ("text", "json", "sarif")
TABLE = ("tool", "normkit", "audit")
FILE = Path("pyproject.toml")


@dataclass(frozen=True)
class Options:
    """All options of the command, under the names in the table.

    Attributes:
        target: ``"pkg.module:factory"`` or ``"file.py:factory"``, of the model.
        shape, tokens: of a random example: sizes with commas between, and the size of a vocabulary.
        loader: names a function that returns batches, or the batches.
        optimizer: names a function that makes an optimizer of the model.
        batch_size, world_size, accumulate, per_sample, invariance: as for `normkit.audit`.
        ignore: codes by pattern of module names.
        baseline: a report in JSON; its findings are not reported again.
        format: ``"text"``, ``"json"`` or ``"sarif"``.
        lang: language of titles, reasons and fixes in the format text, ``"en"`` or ``"zh"``.
        fail_on: the mildest severity that makes the exit code 1; ``"never"`` for none.
    """

    target: str = ""
    shape: str | None = None
    tokens: int | None = None
    loader: str | None = None
    optimizer: str | None = None
    batch_size: int | None = None
    world_size: int = 1
    accumulate: int = 1
    per_sample: bool = False
    invariance: bool = False
    ignore: Mapping[str, list[str]] = field(default_factory=dict)
    baseline: str | None = None
    format: str = "text"
    lang: str = "en"
    fail_on: str = "warning"

    def __post_init__(self) -> None:
        for key, words in (("format", FORMATS), ("lang", LANGUAGES), ("fail-on", (*SEVERITIES, "never"))):
            value = getattr(self, key.replace("-", "_"))
            if value not in words:
                raise ArgumentError(
                    f"--{key} must be one of {', '.join(words)}, got {value!r}: {nearest(value, words)}"
                )
        if not self.target:
            raise ArgumentError("normkit audit needs a target, got none: write for instance normkit audit nets.py:make")
        if self.tokens is not None and self.shape is None:
            raise ArgumentError(f"--tokens needs the shape of an example, got {self.tokens} alone: give --shape too")


TYPES: dict[str, type] = {"tokens": int, "batch_size": int, "world_size": int, "accumulate": int}
TYPES |= {"per_sample": bool, "invariance": bool}
"""Of the values that are no text."""


def options(config: Path | None, **given: Any) -> Options:
    """The options in the file, changed by those of the command line.

    Args:
        config: a TOML file with the table; None for the pyproject.toml of the current folder, if it has one.
        given: fields of `Options`; None for options that the command line does not have. Ignored codes add up.

    Raises:
        ArgumentError: the file cannot be read, or has no such table, or a key that does not exist.
        DtypeError: a value of another type.
    """
    asked = _table(config)
    ignore = asked.pop("ignore", {})
    for pattern, codes in _by_pattern(given.pop("ignore")).items():
        ignore[pattern] = [*ignore.get(pattern, []), *codes]
    return Options(**{**asked, **{key: value for key, value in given.items() if value is not None}, "ignore": ignore})


def baseline(path: str) -> dict[tuple[str, str], str]:
    """Severity of each finding of a report in JSON, by code and module.

    Raises:
        ArgumentError: the file is not there, or is no such report.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))["findings"]
        # The gravest of several of one module counts.
        found = sorted(found, key=lambda finding: rank(finding["severity"]))
        return {(finding["code"], finding["module"]): finding["severity"] for finding in found}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArgumentError(
            f"--baseline must be a report of normkit audit --format json, got {path}: {type(error).__name__}: {error}: "
            "write one without --baseline"
        ) from error


def _by_pattern(ignore: list[str]) -> dict[str, list[str]]:
    """Of words such as ``NK101`` and ``layer1.*:NK101``.

    >>> _by_pattern(["NK101", "head:NK202"])
    {'*': ['NK101'], 'head': ['NK202']}
    """
    found: dict[str, list[str]] = {}
    for word in ignore:
        pattern, _, code = word.rpartition(":")
        found.setdefault(pattern or "*", []).append(code)
    return found


def _table(config: Path | None) -> dict[str, Any]:
    path = config or FILE
    if config is None and not path.exists():
        return {}
    try:
        table: Any = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{path} must be a TOML file, got {type(error).__name__}: {error}: correct it") from error
    for key in TABLE:
        if not isinstance(table, dict) or key not in table:
            if config is None:
                return {}
            raise ArgumentError(
                f"{path} must have a table [{'.'.join(TABLE)}], got none: write one, or another --config"
            )
        table = table[key]
    return dict(_checked(path, key, value) for key, value in table.items())


def _checked(path: Path, key: str, value: Any) -> tuple[str, Any]:
    """Name and value of a setting; lists replace the text that the command line takes."""
    names = [each.name for each in fields(Options)]
    name = key.replace("-", "_")
    if name not in names:
        raise ArgumentError(f"{path} must hold settings of normkit audit, got {key!r}: {nearest(name, names)}")
    wanted = TYPES.get(name, str)
    if name == "shape" and isinstance(value, list):
        value = ",".join(map(str, value))
    elif name == "ignore":
        value, wanted = {"*": value} if isinstance(value, list) else value, dict
    lists = [*value.values()] if isinstance(value, dict) else []
    if type(value) is not wanted or not all(isinstance(codes, list) for codes in lists):
        kind = "list or a table of lists" if wanted is dict else wanted.__name__
        raise DtypeError(f"{key} in {path} must be of type {kind}, got {value!r}: see docs/en/tools/audit.md")
    return name, value
