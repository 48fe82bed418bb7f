"""Writes docs/audit from the rules, their examples and the measured harm: ``python -m benchmarks.audit_pages``."""

from __future__ import annotations

import inspect
import json
import textwrap
from pathlib import Path

from benchmarks.measure import RESULTS
from normkit.tools.audit import examples
from normkit.tools.audit.rules import RULES

HELPERS = (examples.images, examples.settled, examples.TwoDomains, examples.HalfNorm)
IMPORTS = """import warnings

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from normkit import audit"""
NEEDS = {"batch_size": "`batch_size`", "example": "an example", "optimizer": "the optimizer"}
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
        needs = ", ".join(NEEDS[need] for need in rule.needs) or "the model"
        lines.append(f"| [{rule.code}]({rule.code}.md) | {rule.severity} | {rule.title} | {needs} |")
    return "\n".join(lines) + "\n"


def page(code: str, said: str) -> str:
    """The page of one rule."""
    rule = RULES[code]
    parts = [f"# {code}: {rule.title}", f"Severity: {rule.severity}. {rule.why}", f"**Fix.** {rule.fix}"]
    parts += ["## Trips it", block(code, "trips"), "## Does not", block(code, "clean")]
    parts += [
        "## The harm, measured",
        said,
        "By `benchmarks/audit_harm.py`; numbers in `benchmarks/results/audit_harm.json`.",
    ]
    parts += [f"Source: {rule.source}."]
    return "\n\n".join(textwrap.fill(part, 120) if "\n" not in part else part for part in parts) + "\n"


def block(code: str, which: str) -> str:
    """A script that ends with the report."""
    body = inspect.getsource(getattr(examples, f"{code}_{which}")).split("\n", 1)[1]
    body = textwrap.dedent(body).replace("return audit(", "report = audit(")
    helpers = [inspect.getsource(helper) for helper in HELPERS if f"{helper.__name__}(" in body]
    code_text = "\n\n".join(helper.rstrip() + "\n" for helper in helpers) + ("\n\n" if helpers else "") + body
    imports = IMPORTS
    for name, line in (("warnings", "import warnings\n\n"), ("weight_norm(", f"{IMPORTS.splitlines()[4]}\n")):
        if name not in code_text.replace("utils.weight_norm(", ""):
            imports = imports.replace(line, "")
    if "Tensor" in code_text:
        imports = imports.replace("from torch import nn", "from torch import Tensor, nn")
    if "param_groups(" in code_text:
        imports += ", param_groups"
    if "torch." not in code_text.replace("nn.", ""):
        imports = imports.replace("import torch\n", "")
    return f"```python\n{imports}\n\n\n{code_text.rstrip()}\n```"


def main() -> None:
    folder = Path(__file__).parent.parent / "docs" / "audit"
    folder.mkdir(exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
