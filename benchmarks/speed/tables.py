"""What the tables of all benchmarks share."""

from __future__ import annotations

from collections.abc import Sequence

from normkit.catalog import Text

TARGET = (Text("target", "目标"), Text("required", "要求"), Text("measured", "实测"), Text("met", "是否达到"))
COUNT = Text("{} of {}", "{} / {}")
ERROR = Text(
    "error of y in eps (1 + abs(mean) / std): worst cell", "y 的误差，单位 eps (1 + abs(mean) / std)：最差的一项"
)


def met(reached: bool, lang: str) -> str:
    """Whether a target is reached, for a table."""
    return (Text("yes", "是") if reached else Text("no", "否")).to(lang)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
