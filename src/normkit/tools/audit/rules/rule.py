"""A rule: a check, and why it matters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from normkit.tools.audit.measure.facts import Subject
from normkit.tools.audit.rules.chinese import CHINESE, Words


@dataclass(frozen=True)
class Hit:
    """One place where a rule found what it looks for.

    Attributes:
        module: dotted name.
        message: what was found, with the numbers.
        measured: the same numbers as data.
        severity: where it differs from the rule's.
    """

    module: str
    message: str
    measured: dict[str, Any] = field(default_factory=dict)
    severity: str = ""


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        code, severity, title: see `normkit.tools.audit.report.Finding`.
        needs: what must be given for it to run: ``"example"``, ``"loader"``, ``"optimizer"``,
            ``"batch_size"``, ``"world_size"``, ``"per_sample"``, ``"values"`` of parameters, buffers and inputs.
        why, source, fix: see `Finding`. A fix that changes the outputs of the model in evaluation says that.
        check: from the facts to the places.
        of_failure: whether it also runs after a norm has refused its input and ended the run.
    """

    code: str
    severity: str
    title: str
    why: str
    source: str
    fix: str
    check: Callable[[Subject], Iterator[Hit]]
    needs: tuple[str, ...] = ()
    of_failure: bool = False

    def words(self, lang: str) -> Words:
        """Its texts in one language, ``"en"`` or ``"zh"``; those of a finding are the same."""
        if lang == "zh":
            words = CHINESE[self.code]
            return words if words.source else words._replace(source=self.source.replace("; ", "；"))
        return Words(self.title, self.why, self.fix, self.source)

    def missing(self, subject: Subject) -> str:
        """Why it cannot run on these facts; empty if it can."""
        lacking = {
            "example": subject.graph is None and not subject.failure,
            "loader": subject.batches == 0,
            "optimizer": subject.optimizer is None,
            "batch_size": subject.batch_size is None,
            "world_size": subject.world_size == 1,
            "per_sample": not subject.per_sample,
            "values": bool(subject.on_meta),
        }
        reasons = {"world_size": "world_size is 1", "per_sample": "per_sample=True is not given"}
        reasons["values"] = f"{subject.on_meta} is on the meta device and has no values"
        if subject.lazy:
            reasons |= dict.fromkeys(("example", "loader"), f"{subject.lazy} is lazy: run one batch first")
        for need in self.needs:
            if lacking[need]:
                return reasons.get(need, f"no {need} is given")
        if "example" in self.needs and subject.failure and not self.of_failure:
            return "the run of the example did not end"
        return ""
