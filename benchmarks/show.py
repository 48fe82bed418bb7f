"""Tables and pictures from a result file alone: ``python -m benchmarks.show benchmarks/results/cpu.json``."""

from __future__ import annotations

import json
import math
import os
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.gpu import report
from benchmarks.gpu.report import COUNT, TARGET, markdown, met
from normkit.catalog import LANGUAGES, Text

MARKER = "<!-- results -->"
NOISE = 1.05
LARGE = 1 << 14  # elements: from here on the kernel takes longer than its call
Numbers = Sequence[float | None]
app = typer.Typer()

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
    "{cpu}, {isa}, {threads} threads, torch {torch}, {date}; {quiet} of {every} cells were measured while nothing else "
    "ran; only those count.",
    "{cpu}，{isa}，{threads} 个线程，torch {torch}，{date}；"
    "{every} 项中有 {quiet} 项在没有其他程序运行时测得，只计入这些项。",
)
EXPLANATION = Text(
    "The tables show how many times as fast normkit is as torch eager and torch.compile (geometric means), the "
    "number of cells in which it is more than 5 % slower than the fastest other contestant, the lowest speed "
    "relative to that contestant, and the fraction of the limit reached (median, lowest in brackets). The first "
    "table is by size, the second by method for cells with 16K elements or more:",
    "两张表列出 normkit 相对 torch eager 和 torch.compile 的加速比（几何平均），比最快的另一方慢 5 % 以上的项数，"
    "相对这一方的最低速度，以及达到极限的比例（中位数，括号内为最低值）。"
    "第一张按大小，第二张按方法，只含元素不少于 16K 的项：",
)
PICTURES = {
    "bars": Text("the cells by group", "按组汇总的各项"),
    "speedups": Text("speed-up of every cell", "每一项的加速比"),
    "roofline": Text("bytes per second", "每秒字节数"),
}


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


def _targets(rows: Sequence[Row], lang: str) -> str:
    """The targets, and the measured values."""
    weights = [r for r in rows if r.cell["size"] == "weights"]
    large = [r for r in rows if r.large and r not in weights]
    small = [r for r in rows if not r.large and r not in weights]
    limit = [r for r in rows if r.cell["limit"]]
    errors = _known(r.cell["error"]["normkit"] for r in rows)
    asked: list[tuple[Text, float | None, float]] = [
        (
            Text("16K elements and more, over eager: geometric mean", "元素不少于 16K，对 eager：几何平均"),
            _mean([r.over("torch") for r in large]),
            2.5,
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
            1 / NOISE,
        ),
        (
            Text("norms of weights, over eager: worst cell", "权重的归一化，对 eager：最差的一项"),
            _least([r.over("torch") for r in weights]),
            1 / NOISE,
        ),
        # Negative, because the error must stay below its target.
        (report.ERROR, -max(errors) if errors else None, -4.0),
    ]
    table = [
        (
            what.to(lang),
            f"{'≥' if target > 0 else '≤'} {abs(target):.2f}",
            _text(None if v is None else abs(v)),
            "–" if v is None else met(v >= target, lang),
        )
        for what, v, target in asked
    ]
    return markdown([name.to(lang) for name in TARGET], table)


def summary(results: dict[str, Any], lang: str = "en") -> str:
    """The targets, and tables by size and by method, in one language."""
    every = [Row(cell) for cell in results["cells"]]
    rows = [r for r in every if r.cell["quiet"]]
    machine = MACHINE.to(lang).format(**results["machine"], quiet=len(rows), every=len(every))
    tables = _by("size", rows, lang), _by("method", [r for r in rows if r.large], lang)
    return "\n\n".join((machine, _targets(rows, lang), EXPLANATION.to(lang), *tables))


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


def translations(page: Path) -> dict[str, Path]:
    """The same page in each language; one that is not in docs/en or docs/zh is English.

    >>> [str(path) for path in translations(Path("docs/en/engine/gpu.md")).values()]
    ['docs/en/engine/gpu.md', 'docs/zh/engine/gpu.md']
    """
    found = {lang: Path(re.sub("docs/(en|zh)/", f"docs/{lang}/", page.as_posix())) for lang in LANGUAGES}
    return found if len({*found.values()}) > 1 else {"en": page}


@app.command()
def main(
    path: Annotated[Path, typer.Argument(help="result file; tables and pictures are written next to it")],
    docs: Annotated[
        Path | None,
        typer.Option(help="page in which the part between the markers is replaced, in docs/en and in docs/zh alike"),
    ] = None,
) -> None:
    """Print the summary; write the table of all cells and the pictures, and bring a page up to date."""
    from benchmarks.speed.pictures import roofline, speedups

    results = json.loads(path.read_text())
    if "gpu" in results["machine"]:
        tables, pictures = report.summary, (report.bars,)
        given: Any = results
        path.with_suffix(".md").write_text(f"{tables(results)}\n", encoding="utf-8")
    else:
        tables, pictures = summary, (speedups, roofline)
        given = [Row(cell) for cell in results["cells"] if cell["quiet"]]
        path.with_suffix(".md").write_text(f"{tables(results)}\n\n{table(results)}\n", encoding="utf-8")
    drawn = {PICTURES[draw.__name__]: path.with_name(f"{path.stem}-{draw.__name__}.svg") for draw in pictures}
    for draw, target in zip(pictures, drawn.values(), strict=True):
        draw(given, target)
    for lang, page in translations(docs).items() if docs is not None else ():
        before, _, after = page.read_text(encoding="utf-8").split(MARKER)
        folder = page.resolve().parent
        links = [f"![{name.to(lang)}]({os.path.relpath(to.resolve(), folder)})" for name, to in drawn.items()]
        inside = "\n\n".join((tables(results, lang), *links))
        page.write_text(f"{before}{MARKER}\n\n{inside}\n\n{MARKER}{after}", encoding="utf-8")
    typer.echo(tables(results))


if __name__ == "__main__":
    app()
