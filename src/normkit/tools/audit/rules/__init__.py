"""All rules, by code."""

from __future__ import annotations

from collections.abc import Mapping

from normkit.tools.audit.rules import constants, placement, size, state, structure, training, usage
from normkit.tools.audit.rules.rule import Rule

GROUPS = (structure, placement, size, state, constants, training, usage)
RULES: Mapping[str, Rule] = {
    rule.code: rule for rule in sorted((r for group in GROUPS for r in group.RULES), key=lambda rule: rule.code)
}
