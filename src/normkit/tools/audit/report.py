"""What an audit found, as data: findings, the rules that could not run, and what was suppressed."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict, dataclass
from typing import Any

from normkit.errors import ArgumentError, nearest

SEVERITIES = ("info", "warning", "error")
"""From the mildest up. info: worth knowing, often deliberate; warning: costs accuracy or work; error: it breaks."""


def rank(severity: str) -> int:
    """How grave a severity is.

    >>> rank("error") > rank("info")
    True
    """
    if severity not in SEVERITIES:
        raise ArgumentError(f"a severity is info, warning or error, got {severity!r}: {nearest(severity, SEVERITIES)}")
    return SEVERITIES.index(severity)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with one module.

    Attributes:
        code: of the rule, such as ``"NK101"``; stays the same over versions.
        severity: ``"info"``, ``"warning"`` or ``"error"``.
        module: dotted name of the module; empty for the model itself.
        title: the rule in a few words.
        message: what was found here, with the numbers.
        measured: the same numbers as data.
        why: why it matters.
        source: paper or thread that says so.
        fix: what to do.
    """

    code: str
    severity: str
    module: str
    title: str
    message: str
    measured: dict[str, Any]
    why: str
    source: str
    fix: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class NotRun:
    """A rule that could not run, and why."""

    code: str
    title: str
    reason: str


@dataclass(frozen=True)
class Report:
    """The result of `normkit.audit`.

    Attributes:
        model: class of the model.
        findings: the gravest first.
        suppressed: findings that `ignore` or ``normkit_ignore`` took out.
        not_run: rules that could not run, each with its reason.
        norms: number of norms in the model.
        notes: what else to know, such as norms that are not understood.
    """

    model: str
    findings: tuple[Finding, ...]
    suppressed: tuple[Finding, ...]
    not_run: tuple[NotRun, ...]
    norms: int
    notes: tuple[str, ...] = ()

    @property
    def codes(self) -> set[str]:
        """The codes that were found."""
        return {finding.code for finding in self.findings}

    def at_least(self, severity: str) -> tuple[Finding, ...]:
        """Findings of this severity and graver ones."""
        least = rank(severity)
        return tuple(finding for finding in self.findings if rank(finding.severity) >= least)

    def exit_code(self, fail_on: str = "warning") -> int:
        """1 if there is a finding of this severity or a graver one, else 0; ``"never"`` is always 0."""
        return 0 if fail_on == "never" else int(bool(self.at_least(fail_on)))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """The same as text."""
        return json.dumps(self.to_dict(), indent=2)

    def to_sarif(self) -> dict[str, Any]:
        """SARIF 2.1.0, which code hosts show."""
        from normkit.tools.audit.sarif import sarif

        return sarif(self)

    def __str__(self) -> str:
        counts = [f"{sum(f.severity == s for f in self.findings)} {s}" for s in reversed(SEVERITIES)]
        lines = [f"{self.model}: {self.norms} norms; {', '.join(counts)}"]
        groups: dict[tuple[str, str], list[Finding]] = {}
        for finding in self.findings:
            groups.setdefault((finding.code, finding.severity), []).append(finding)
        for (code, severity), found in groups.items():
            lines += ["", f"{code} {severity}: {found[0].title}"]
            lines += [f"  {finding.module or '(model)'}: {finding.message}" for finding in found]
            lines += _indented(f"why: {found[0].why} ({found[0].source})") + _indented(f"fix: {found[0].fix}")
        if self.suppressed:
            lines += ["", f"suppressed: {len(self.suppressed)}"]
        reasons: dict[str, list[str]] = {}
        for skipped in self.not_run:
            reasons.setdefault(skipped.reason, []).append(skipped.code)
        if reasons:
            lines += ["", *(f"not run, {reason}: {', '.join(codes)}" for reason, codes in reasons.items())]
        if self.notes:
            lines += ["", *(f"note: {note}" for note in self.notes)]
        return "\n".join(lines)


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, 116, initial_indent="  ", subsequent_indent="    ")
