"""Writes docs/en/audit and docs/zh/audit from the rules, their examples and the measured harm.

``python -m benchmarks.audit_pages``
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import normkit
from benchmarks.harm.chinese import SENTENCES
from benchmarks.speed.measure import RESULTS
from normkit.catalog import LANGUAGES, Text
from normkit.tools.audit import examples, examples_training, remedies
from normkit.tools.audit.rules import RULES

EXAMPLES = vars(examples) | vars(examples_training)
HELPERS = (examples.images, examples.settled, examples.TwoDomains, examples.Branch, examples.HalfNorm)
HELPERS += (examples_training.domains,)
NEEDS = {
    "batch_size": Text("`batch_size`", "`batch_size`"),
    "example": Text("an example", "示例输入"),
    "optimizer": Text("the optimizer", "优化器"),
    "loader": Text("the loader", "loader"),
    "world_size": Text("`world_size` above 1", "`world_size` 大于 1"),
    "per_sample": Text("`per_sample=True`", "`per_sample=True`"),
}
MODEL = Text("the model", "模型")
RULES_PAGE = Text("The rules of normkit audit", "normkit audit 的规则")
COLUMNS = (Text("code", "代码"), Text("severity", "严重程度"), Text("finds", "发现的问题"), Text("needs", "需要"))
HEADING = Text("# {code}: {title}", "# {code}：{title}")
REASON = Text("Severity: {severity}. {why}", "严重程度：{severity}。{why}")
FIX = Text("**Fix.** {fix}", "**修正方法**：{fix}")
TRIPS = Text("## A model with the fault", "## 有此问题的模型")
REMEDY = Text("## The fix, as code", "## 修正的代码")
CONTINUED = Text("With the model above:", "接上面的模型：")
CLEAN = Text("## A model without the fault", "## 没有此问题的模型")
HARM = Text("## The harm, measured", "## 实测的危害")
ORIGIN = Text(
    "By `benchmarks/audit_harm.py`; numbers in `benchmarks/results/audit_harm.json`.",
    "由 `benchmarks/audit_harm.py` 测得，数据在 `benchmarks/results/audit_harm.json` 中。",
)
SOURCE = Text("Source: {source}.", "来源：{source}。")


def pages(lang: str = "en") -> dict[str, str]:
    """Every page in one language, by the name of its file."""
    measured = json.loads((RESULTS / "audit_harm.json").read_text(encoding="utf-8"))["rules"]
    made = {f"{code}.md": page(code, lang, harm(code, lang, measured[code])) for code in RULES}
    return made | {"index.md": index(lang)}


def harm(code: str, lang: str, measured: Mapping[str, Any]) -> str:
    """The sentence on what was measured; the English one was made by the measurement."""
    return str(measured["said"]) if lang == "en" else SENTENCES[code].format(**measured["numbers"])


def index(lang: str = "en") -> str:
    """The table of all rules."""
    comma = Text(", ", "、").to(lang)
    lines = [
        f"# {RULES_PAGE.to(lang)}",
        "",
        f"| {' | '.join(name.to(lang) for name in COLUMNS)} |",
        "|---|---|---|---|",
    ]
    for rule in RULES.values():
        needs = comma.join(NEEDS[need].to(lang) for need in rule.needs if need in NEEDS) or MODEL.to(lang)
        lines.append(f"| [{rule.code}]({rule.code}.md) | {rule.severity} | {rule.words(lang).title} | {needs} |")
    return "\n".join(lines) + "\n"


def page(code: str, lang: str, harm: str) -> str:
    """The page of one rule."""
    rule = RULES[code]
    words = rule.words(lang)
    parts = [
        HEADING.to(lang).format(code=code, title=words.title),
        REASON.to(lang).format(severity=rule.severity, why=words.why),
        FIX.to(lang).format(fix=words.fix),
        TRIPS.to(lang),
        block(EXAMPLES[f"{code}_trips"]),
        REMEDY.to(lang),
        CONTINUED.to(lang),
        block(getattr(remedies, code), alone=False),
        CLEAN.to(lang),
        block(EXAMPLES[f"{code}_clean"]),
        HARM.to(lang),
        harm,
        ORIGIN.to(lang),
        SOURCE.to(lang).format(source=words.source),
    ]
    if lang == "en":
        parts = [textwrap.fill(part, 120) if "\n" not in part else part for part in parts]
    return "\n\n".join(parts) + "\n"


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
    for lang in LANGUAGES:
        folder = Path(__file__).parent.parent / "docs" / lang / "audit"
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in pages(lang).items():
            (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
