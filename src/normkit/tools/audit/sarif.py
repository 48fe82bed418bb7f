"""A report in SARIF 2.1.0, which code hosts and editors show."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from normkit.tools.audit.rules import RULES

ROOT = {"uriBaseId": "%SRCROOT%"}
"""Paths are relative to the folder in which the command is run: that of the repository."""

LEVELS = {"info": "note", "warning": "warning", "error": "error"}
SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def sarif(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report as one run of SARIF; modules are logical locations, the lines that make them physical ones.

    Args:
        report: as `normkit.tools.audit.report.Report.to_dict` gives it.

    Example:
        >>> sarif({"model": "Net", "findings": [], "suppressed": [], "not_run": []})["version"]
        '2.1.0'

    Source: OASIS, Static Analysis Results Interchange Format 2.1.0.
    """
    order = list(RULES)
    rules = [
        {
            "id": rule.code,
            "shortDescription": {"text": rule.title},
            "fullDescription": {"text": f"{rule.why} ({rule.source})"},
            "help": {"text": rule.fix},
            "defaultConfiguration": {"level": LEVELS[rule.severity]},
        }
        for rule in RULES.values()
    ]
    results = [_result(f, report["model"], order) for f in report["findings"]]
    suppressed = {"suppressions": [{"kind": "external"}]}
    results += [_result(f, report["model"], order) | suppressed for f in report["suppressed"]]
    notes = [
        {"level": "note", "message": {"text": f"not run: {row['reason']}"}, "associatedRule": {"id": row["code"]}}
        for row in report["not_run"]
    ]
    run = {
        "tool": {"driver": {"name": "normkit audit", "rules": rules}},
        "results": results,
        "invocations": [{"executionSuccessful": True, "toolConfigurationNotifications": notes}],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _result(finding: Mapping[str, Any], model: str, order: list[str]) -> dict[str, Any]:
    name = f"{model}.{finding['module']}" if finding["module"] else model
    location: dict[str, Any] = {"logicalLocations": [{"fullyQualifiedName": name, "kind": "member"}]}
    if finding["file"]:
        path = Path(finding["file"])
        artifact = {"uri": path.as_uri()} if path.is_absolute() else {"uri": quote(path.as_posix())} | ROOT
        location["physicalLocation"] = {"artifactLocation": artifact, "region": {"startLine": finding["line"]}}
    return {
        "ruleId": finding["code"],
        "ruleIndex": order.index(finding["code"]),
        "level": LEVELS[finding["severity"]],
        "message": {"text": f"{finding['module'] or model}: {finding['message']}. {finding['fix']}"},
        "locations": [location],
        "properties": finding["measured"],
    }
