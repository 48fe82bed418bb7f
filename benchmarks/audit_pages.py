"""Writes docs/en/audit from the rules, their examples and the measured harm: ``python -m benchmarks.audit_pages``."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import normkit
from benchmarks.speed.measure import RESULTS
from normkit.tools.audit import examples, examples_training, remedies
from normkit.tools.audit.rules import RULES

EXAMPLES = vars(examples) | vars(examples_training)
HELPERS = (examples.images, examples.settled, examples.TwoDomains, examples.Branch, examples.HalfNorm)
HELPERS += (examples_training.domains,)
NEEDS = {"batch_size": "`batch_size`", "example": "an example", "optimizer": "the optimizer", "loader": "the loader"}
NEEDS |= {"world_size": "`world_size` above 1", "per_sample": "`per_sample=True`"}


def pages() -> dict[str, str]:
    """Every page, by the name of its file."""
    harm = json.loads((RESULTS / "audit_harm.json").read_text(encoding="utf-8"))["rules"]
    made = {f"{code}.md": page(code, harm[code]["said"]) for code in RULES}
    return made | {"index.md": index()}


def index() -> str:
    """The table of all rules."""
    lines = ["# The rules of normkit audit", "", "| code | severity | finds | needs |", "|---|---|---|---|"]
    for rule in RULES.values():
        needs = ", ".join(NEEDS[need] for need in rule.needs if need in NEEDS) or "the model"
        lines.append(f"| [{rule.code}]({rule.code}.md) | {rule.severity} | {rule.title} | {needs} |")
    return "\n".join(lines) + "\n"


def page(code: str, harm: str) -> str:
    """The page of one rule."""
    rule = RULES[code]
    parts = [f"# {code}: {rule.title}", f"Severity: {rule.severity}. {rule.why}", f"**Fix.** {rule.fix}"]
    parts += ["## Trips it", block(EXAMPLES[f"{code}_trips"])]
    parts += ["## The fix, as code", "With the model above:", block(getattr(remedies, code), alone=False)]
    parts += ["## Does not", block(EXAMPLES[f"{code}_clean"])]
    parts += [
        "## The harm, measured",
        harm,
        "By `benchmarks/audit_harm.py`; numbers in `benchmarks/results/audit_harm.json`.",
    ]
    parts += [f"Source: {rule.source}."]
    return "\n\n".join(textwrap.fill(part, 120) if "\n" not in part else part for part in parts) + "\n"


def block(function: Callable[..., Any], alone: bool = True) -> str:
    """A script that ends with the report; if not `alone`, it continues that of the model."""
    body = inspect.getsource(function).split("\n", 1)[1]
    body = textwrap.dedent(body).replace("return audit(", "report = audit(")
    helpers = [inspect.getsource(helper) for helper in HELPERS if alone and f"{helper.__name__}(" in body]
    code = "\n\n".join(helper.rstrip() + "\n" for helper in helpers) + ("\n\n" if helpers else "") + body
    return f"```python\n{imports(code, function.__globals__)}\n\n\n{code.rstrip()}\n```"


def imports(code: str, names: Mapping[str, Any]) -> str:
    """The imports of a script, found from the meaning of its names where it was written."""
    used = {word for word in re.findall(r"(?<![.\w])[A-Za-z_]\w*", code) if word in names}
    of_torch = [word for word in ("Tensor", "nn") if word in used]
    ours = sorted(word for word in used if getattr(names[word], "__module__", "").startswith("normkit."))
    groups = [
        [f"import {word}" for word in ("copy", "warnings") if word in used],
        ["import torch"] * ("torch" in used) + [f"from torch import {', '.join(of_torch)}"] * bool(of_torch),
        [f"from normkit import {', '.join(word for word in ours if word in normkit.__all__)}"],
    ]
    of_weights = [word for word in ("spectral_norm", "weight_norm") if word in used and word not in ours]
    groups[1] += [f"from torch.nn.utils.parametrizations import {', '.join(of_weights)}"] * bool(of_weights)
    return "\n\n".join("\n".join(lines) for lines in groups if lines)


def main() -> None:
    folder = Path(__file__).parent.parent / "docs" / "en" / "audit"
    folder.mkdir(exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
