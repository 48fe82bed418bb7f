"""Tables of a CPU's results: the targets for each instruction set, and tables by size, by method and of every cell."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.speed.tables import COUNT, ERROR, TARGET, markdown, met
from normkit.catalog import Text

NOISE = 1.05
LARGE = 1 << 14  # elements: from here on the kernel takes longer than its call
Numbers = Sequence[float | None]

SIZES = {"overhead": Text("overhead", "调用开销"), "memory": Text("memory", "内存"), "weights": Text("weights", "权重")}
"""Names of sizes; those of caches are the same in both languages."""

COLUMNS = (
    Text("", ""),
    Text("cells", "项数"),
    Text("over eager", "对 eager"),
    Text("over compile", "对 compile"),
    Text("slower", "更慢"),
    Text("worst", "最差"),
    Text("limit, forward", "极限，前向"),
    Text("limit, both", "极限，前向加反向"),
)
MACHINE = Text(
    "{cpu}, {isa}{lowered}, {threads} threads, torch {torch}, {date}; {quiet} of {every} cells were measured while "
    "nothing else ran; only those count.",
    "{cpu}，{isa}{lowered}，{threads} 个线程，torch {torch}，{date}；"
    "{every} 项中有 {quiet} 项在没有其他程序运行时测得，只计入这些项。",
)
LOWERED = Text(
    " on a processor that has more, by NORMKIT_ISA for normkit and ATEN_CPU_CAPABILITY for torch",
    "（处理器支持更高的指令集；normkit 由 NORMKIT_ISA、torch 由 ATEN_CPU_CAPABILITY 限定）",
)
EXPLANATION = Text(
    "The tables show how many times as fast normkit is as torch eager and torch.compile (geometric means), the "
    "number of cells in which it is more than 5 % slower than the fastest other contestant, the lowest speed "
    "relative to that contestant, and the fraction of the limit reached (median, lowest in brackets): first by size, "
    "then by method for cells with 16K elements or more.",
    "每个指令集的两张表列出 normkit 相对 torch eager 和 torch.compile 的加速比（几何平均），"
    "比最快的另一方慢 5 % 以上的项数，相对这一方的最低速度，以及达到极限的比例（中位数，括号内为最低值）。"
    "第一张按大小，第二张按方法，只含元素不少于 16K 的项。",
)


def fraction_of_limit(milliseconds: float, copy_milliseconds: float, units: int) -> float:
    """The speed of reading and writing `units` tensors, relative to a plain copy, which reads one and writes one.

    >>> fraction_of_limit(5.0, 1.6, 5)
    0.8
    """
    return copy_milliseconds * units / 2 / milliseconds


@dataclass(frozen=True)
class Row:
    """A cell with the numbers computed from its times."""

    cell: dict[str, Any]

    def ms(self, name: str) -> float | None:
        """Time of a contestant; for torch, of the faster of its two ways of standardizing a weight."""
        times = self.cell["milliseconds"].items()
        return min((t for key, t in times if key.split(",")[0] == name and t is not None), default=None)

    def over(self, *names: str) -> float | None:
        """How many times as fast normkit is as the best of these."""
        mine, theirs = self.ms("normkit"), [t for t in map(self.ms, names) if t is not None]
        return min(theirs) / mine if mine and theirs else None

    @property
    def others(self) -> list[str]:
        """All contestants except normkit, the copy, and oneDNN, which torch may use itself."""
        return [name for name in self.cell["milliseconds"] if name not in ("normkit", "copy", "onednn")]

    def of_limit(self) -> float | None:
        mine, copy = self.ms("normkit"), self.ms("copy")
        return fraction_of_limit(mine, copy, self.cell["units"]) if mine and copy else None

    def gigabytes(self, name: str) -> float | None:
        """Gigabytes per second, counting the bytes that must move."""
        time = self.ms(name)
        return self.cell["bytes"] * self.cell["units"] / time / 1e6 if time else None

    @property
    def large(self) -> bool:
        return bool(math.prod(self.cell["shape"]) >= LARGE)


def _known(values: Iterable[float | None]) -> list[float]:
    return [v for v in values if v is not None]


def _mean(values: Numbers) -> float | None:
    return statistics.geometric_mean(_known(values)) if _known(values) else None


def _median(values: Numbers) -> float | None:
    return statistics.median(_known(values)) if _known(values) else None


def _least(values: Numbers) -> float | None:
    return min(_known(values), default=None)


def _text(value: float | None, form: str = ".2f") -> str:
    return "–" if value is None else format(value, form)


def _group(name: str, rows: Sequence[Row], lang: str) -> list[str]:
    both = _known(r.over(*r.others) for r in rows)
    limits = [[r.of_limit() for r in rows if r.cell["backward"] == backward] for backward in (False, True)]
    means = [_text(_mean([r.over(who) for r in rows])) for who in ("torch", "compile")]
    slower = COUNT.to(lang).format(sum(v < 1 / NOISE for v in both), len(both))
    ends = [f"{_text(_median(f))} ({_text(_least(f))})" for f in limits]
    label = SIZES[name].to(lang) if name in SIZES else name
    return [label, str(len(rows)), *means, slower, _text(_least(both)), *ends]


def _by(key: str, rows: Sequence[Row], lang: str) -> str:
    names = dict.fromkeys(r.cell[key] for r in rows)
    found = [_group(name, [r for r in rows if r.cell[key] == name], lang) for name in names]
    return markdown([name.to(lang) for name in COLUMNS], found)


def _targets(rows: Sequence[Row]) -> list[tuple[Text, float | None, float]]:
    """The targets: what is measured, the value, and the least that it should be."""
    weights = [r for r in rows if r.cell["size"] == "weights"]
    large = [r for r in rows if r.large and r not in weights]
    small = [r for r in rows if not r.large and r not in weights]
    limit = [r for r in rows if r.cell["limit"]]
    errors = _known(r.cell["error"]["normkit"] for r in rows)
    return [
        (
            Text("16K elements and more, over eager: geometric mean", "元素不少于 16K，对 eager：几何平均"),
            _mean([r.over("torch") for r in large]),
            2.4,
        ),
        (
            Text("over torch.compile: geometric mean", "对 torch.compile：几何平均"),
            _mean([r.over("compile") for r in large]),
            2.2,
        ),
        (
            Text("over the best of all: worst cell", "对最快的一方：最差的一项"),
            _least([r.over(*r.others) for r in large]),
            1 / NOISE,
        ),
        (
            Text("limit, forward: median", "极限，前向：中位数"),
            _median([r.of_limit() for r in limit if not r.cell["backward"]]),
            0.85,
        ),
        (
            Text("limit, forward and backward: median", "极限，前向加反向：中位数"),
            _median([r.of_limit() for r in limit if r.cell["backward"]]),
            0.8,
        ),
        (Text("limit: worst cell", "极限：最差的一项"), _least([r.of_limit() for r in limit]), 0.6),
        (
            Text("below 16K elements, over eager: worst cell", "元素少于 16K，对 eager：最差的一项"),
            _least([r.over("torch") for r in small]),
            1.0,
        ),
        (
            Text("norms of weights, over eager: worst cell", "权重的归一化，对 eager：最差的一项"),
            _least([r.over("torch") for r in weights]),
            1 / NOISE,
        ),
        # Negative, because the error must stay below its target.
        (ERROR, -max(errors) if errors else None, -4.0),
    ]


def _met(value: float | None, target: float, lang: str) -> str:
    return "–" if value is None else f"{_text(abs(value))} {met(value >= target, lang)}"


def quiet_rows(results: dict[str, Any]) -> list[Row]:
    """The cells that count: those measured while nothing else ran."""
    return [row for row in map(Row, results["cells"]) if row.cell["quiet"]]


def summary(files: Sequence[dict[str, Any]], lang: str = "en") -> str:
    """The targets for each result file, one instruction set each; then its tables by size and by method."""
    by_file = [_targets(quiet_rows(results)) for results in files]
    targets = [
        [
            what.to(lang),
            f"{'≥' if target > 0 else '≤'} {abs(target):.2f}",
            *(_met(found[line][1], target, lang) for found in by_file),
        ]
        for line, (what, _, target) in enumerate(by_file[0])
    ]
    isas = [results["machine"]["isa"] for results in files]
    parts = [markdown([*(name.to(lang) for name in TARGET[:2]), *isas], targets), EXPLANATION.to(lang)]
    for results in files:
        rows = quiet_rows(results)
        parts += [f"### {results['machine']['isa']}", machine(results, lang)]
        parts += [_by("size", rows, lang), _by("method", [r for r in rows if r.large], lang)]
    return "\n\n".join(parts)


def machine(results: dict[str, Any], lang: str = "en") -> str:
    """The machine of a result file, and how many of its cells count."""
    facts = results["machine"]
    lowered = LOWERED.to(lang) if facts.get("lowered") else ""
    return MACHINE.to(lang).format(
        **{**facts, "lowered": lowered}, quiet=len(quiet_rows(results)), every=len(results["cells"])
    )


def table(results: dict[str, Any]) -> str:
    """Every cell: milliseconds, ratios, fraction of the limit, errors of y; and the contestants that failed."""
    who = ("torch", "compile", "onednn", "normkit", "copy")
    head = (
        "cell",
        *(f"{name} ms" for name in who),
        "over torch",
        "over compile",
        "of the limit",
        "error torch",
        "error",
    )
    lines = []
    for row in map(Row, results["cells"]):
        times = [_text(row.ms(name), ".4g") for name in who]
        ratios = [_text(v) for v in (row.over("torch"), row.over("compile"), row.of_limit())]
        errors = [_text(row.cell["error"][name], ".2g") for name in ("torch", "normkit")]
        lines.append([row.cell["name"] + ("" if row.cell["quiet"] else " (not quiet)"), *times, *ratios, *errors])
    failed = [f"- {c['name']}: {who}: {why}" for c in results["cells"] for who, why in c["failed"].items()]
    return "\n".join([markdown(head, lines), *(["", "Failed:", "", *failed] if failed else [])])
