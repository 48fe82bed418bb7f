"""What `normkit audit` does between its arguments and its output."""

from __future__ import annotations

import json
from collections.abc import Sequence

from normkit.errors import ArgumentError, nearest
from normkit.tools.audit.report import SEVERITIES
from normkit.tools.audit.run import audit
from normkit.tools.load import example_of, load

FORMATS = ("text", "json", "sarif")


def run(
    target: str,
    shape: str | None,
    batch_size: int | None,
    world_size: int,
    accumulate: int,
    per_sample: bool,
    ignore: Sequence[str],
    form: str,
    fail_on: str,
) -> tuple[str, int]:
    """The text to print and the exit code.

    Raises:
        ArgumentError: a format or severity that does not exist, and everything `load` and `audit` raise.
    """
    if form not in FORMATS:
        raise ArgumentError(f"--format must be text, json or sarif, got {form!r}: {nearest(form, FORMATS)}")
    if fail_on not in (*SEVERITIES, "never"):
        known = (*SEVERITIES, "never")
        raise ArgumentError(
            f"--fail-on must be info, warning, error or never, got {fail_on!r}: {nearest(fail_on, known)}"
        )
    model, example = load(target)
    if shape is not None:
        example = example_of(shape)
    report = audit(
        model,
        example,
        batch_size=batch_size,
        world_size=world_size,
        accumulate=accumulate,
        per_sample=per_sample,
        ignore=ignore,
    )
    code = report.exit_code(fail_on)
    if form == "sarif":
        return json.dumps(report.to_sarif(), indent=2), code
    return report.to_json() if form == "json" else str(report), code
