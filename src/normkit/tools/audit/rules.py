"""All rules, by code."""

from __future__ import annotations

from collections.abc import Mapping

from normkit.tools.audit import size, state, structure, training
from normkit.tools.audit.rule import Rule

RULES: Mapping[str, Rule] = {rule.code: rule for group in (structure, size, state, training) for rule in group.RULES}
