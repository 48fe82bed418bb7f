"""The report of an audit, as data: findings, suppressed findings, and the rules that could not run."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from normkit.catalog import Text
from normkit.errors import ArgumentError, nearest
from normkit.tools.audit.measure.invariance import Invariance
from normkit.tools.audit.rules import RULES
from normkit.tools.audit.sarif import sarif

SEVERITIES = ("info", "warning", "error")
"""From the mildest up. info: worth knowing, often deliberate; warning: costs accuracy or work; error: it breaks."""

WHY, FIX = Text("why: {why} ({source})", "原因：{why}来源：{source}。"), Text("fix: {fix}", "修正：{fix}")


def rank(severity: str) -> int:
    """How grave a severity is.

    >>> rank("error") > rank("info")
    True
    """
    if severity not in SEVERITIES:
        raise ArgumentError(f"a severity is info, warning or error, got {severity!r}: {nearest(severity, SEVERITIES)}")
    return SEVERITIES.index(severity)


def plain(value: Any) -> Any:
    """The same with text for the numbers that JSON has none for; `float` reads it.

    >>> plain({"largest": float("inf")})
    {'largest': 'Infinity'}
    """
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


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
        source: a paper or thread with the evidence.
        fix: what to do.
        file, line: where the module is made, if that is below the current folder; else empty and 0.
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
    file: str = ""
    line: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        data: dict[str, Any] = plain(asdict(self))
        return data


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
        suppressed: findings that `ignore`, ``normkit_ignore`` or a baseline took out.
        not_run: rules that could not run, each with its reason.
        norms: number of norms in the model.
        notes: what else to know, such as norms that are not understood.
        invariance: which norms give the same bits in any batch; None if that was not asked for.
    """

    model: str
    findings: tuple[Finding, ...]
    suppressed: tuple[Finding, ...]
    not_run: tuple[NotRun, ...]
    norms: int
    notes: tuple[str, ...] = ()
    invariance: Invariance | None = None

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

    def without(self, known: Mapping[tuple[str, str], str]) -> Report:
        """The report in which known findings count as suppressed.

        Args:
            known: severity of each known finding, by code and module. A graver one is not known.
        """

        def is_known(finding: Finding) -> bool:
            severity = known.get((finding.code, finding.module))
            return severity is not None and rank(finding.severity) <= rank(severity)

        new = tuple(finding for finding in self.findings if not is_known(finding))
        old = tuple(finding for finding in self.findings if is_known(finding))
        return replace(self, findings=new, suppressed=self.suppressed + old)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        data: dict[str, Any] = plain(asdict(self))
        data["invariance"] = None if self.invariance is None else plain(self.invariance.to_dict())
        return data

    def to_json(self) -> str:
        """The same as text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def to_sarif(self) -> dict[str, Any]:
        """SARIF 2.1.0, which code hosts show."""
        return sarif(self.to_dict())

    def __str__(self) -> str:
        return self.text()

    def text(self, lang: str = "en") -> str:
        """The report as text; titles, reasons and fixes in one language, ``"en"`` or ``"zh"``, all else in English."""
        counts = [f"{sum(f.severity == s for f in self.findings)} {s}" for s in reversed(SEVERITIES)]
        lines = [f"{self.model}: {self.norms} norms; {', '.join(counts)}"]
        groups: dict[tuple[str, str], list[Finding]] = {}
        for finding in self.findings:
            groups.setdefault((finding.code, finding.severity), []).append(finding)
        for (code, severity), found in groups.items():
            words = RULES[code].words(lang)
            lines += ["", f"{code} {severity}: {words.title}"]
            lines += [f"  {finding.module or '(model)'}{_location(finding)}: {finding.message}" for finding in found]
            for text in (WHY.to(lang).format(**words._asdict()), FIX.to(lang).format(**words._asdict())):
                # Chinese has no spaces to break at, and the terminal breaks it anywhere.
                lines += [f"  {text}"] if lang == "zh" else _indented(text)
        if self.suppressed:
            lines += ["", f"suppressed: {len(self.suppressed)}"]
        reasons: dict[str, list[str]] = {}
        for skipped in self.not_run:
            reasons.setdefault(skipped.reason, []).append(skipped.code)
        if reasons:
            lines += ["", *(f"not run, {reason}: {', '.join(codes)}" for reason, codes in reasons.items())]
        if self.notes:
            lines += ["", *(f"note: {note}" for note in self.notes)]
        if self.invariance is not None:
            lines += ["", str(self.invariance)]
        return "\n".join(lines)


def _location(finding: Finding) -> str:
    return f" ({finding.file}:{finding.line})" if finding.file else ""


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, 116, initial_indent="  ", subsequent_indent="    ")
