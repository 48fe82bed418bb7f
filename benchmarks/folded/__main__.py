"""Times a block of GPT-2 and a model of four before and after `normkit.fold` and `normkit.to_rms_norm`, on a CPU.

``PYTHONPATH=tests python -m benchmarks.folded [seconds]``: the sizes are those of the smallest GPT-2, weights are
random; forward in float32 without gradients. transformers must be installed. Numbers go to
benchmarks/results/folded.json and into docs/en/tools/fold.md and docs/zh/tools/fold.md. The folded norms are
normkit's, so the model of `normkit.convert`, whose norms are too, is timed as well: the difference between the two is
that of folding.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import normkit
import zoo
from benchmarks.speed import pages
from benchmarks.speed.measure import RESULTS, Call, keep_memory, machine, quiet

TOKENS = ((1, 1), (1, 32), (1, 128), (8, 128))
"""Sequences and tokens in each."""

CONTESTANTS: dict[str, Callable[[nn.Module, Any], nn.Module]] = {
    "original": lambda model, example: model,
    "converted": lambda model, example: normkit.convert(model)[0],
    "folded": lambda model, example: normkit.fold(model, example)[0],
    "RMS norms, folded": lambda model, example: normkit.fold(normkit.convert(model, to="rms_norm")[0], example)[0],
}
"""What is timed, made of the model; the first is what the others are compared with. The last has the norms that
`normkit.to_rms_norm` makes of a whole model: the input of a block alone is not known to be centred."""

FACTS = {
    "en": "One run of {date} on {cpu}, {threads} threads, torch {torch}:",
    "zh": "{date} 的一次测量，处理器 {cpu}，{threads} 个线程，torch {torch}：",
}
"""The sentence before the table, in the languages of the pages."""

CHINESE = {
    "RMS norms, folded": "RMS 归一化且折叠",
    "folded": "折叠后",
    "converted": "转换后",
    "original": "原模型",
    ", ms": "，ms",
    "ratio": "比值",
    "block, ": "单个块，",
    " layers, ": " 层，",
    " tokens": " 个词元",
    " (not quiet)": "（受到干扰）",
}
"""All words of the table; replaced in this order."""

MARKS = "<!-- folded -->\n", "<!-- /folded -->\n"
"""The lines of a page before and after the table."""

filled = partial(pages.filled, marks=MARKS)


def main() -> None:
    """Time all subjects and print their times over that of the original."""
    keep_memory()
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 8.0
    rows = []
    for name, model, example in subjects():
        made = {key: make(model, example) for key, make in CONTESTANTS.items()}
        times, calm = quiet({key: call_of(each, example) for key, each in made.items()}, seconds)
        rows.append({"name": name, "milliseconds": times, "quiet": calm})
        print(rows[-1], flush=True)
    content = {"machine": machine(), "cells": rows}
    (RESULTS / "folded.json").write_text(json.dumps(content, indent=1) + "\n")
    for lang in FACTS:
        page = page_of(lang)
        page.write_text(filled(page.read_text(encoding="utf-8"), section(content, lang)), encoding="utf-8")


def subjects() -> Iterator[tuple[str, nn.Module, Any]]:
    """Names, models and examples."""
    zoo._torchvision()  # transformers imports it
    transformers = importlib.import_module("transformers")
    torch.manual_seed(0)
    model = transformers.GPT2Model(transformers.GPT2Config(n_layer=4, use_cache=False)).eval()
    for batch, length in TOKENS:
        size = f"{batch} x {length} tokens"
        yield f"block, {size}", model.h[0], (torch.randn(batch, length, model.config.n_embd),)
        yield f"4 layers, {size}", model, {"input_ids": torch.randint(50257, (batch, length))}


def call_of(model: nn.Module, example: Any) -> Call:
    def run() -> object:
        with torch.no_grad():
            return model(**example) if isinstance(example, dict) else model(*example)

    return run


def page_of(lang: str) -> Path:
    """The page that shows the table."""
    return RESULTS.parents[1] / "docs" / lang / "tools" / "fold.md"


def section(content: Mapping[str, Any], lang: str) -> str:
    """What is between the marks: when and where it was measured, and the table."""
    text = table(content["cells"])
    for english, chinese in CHINESE.items() if lang == "zh" else ():
        text = text.replace(english, chinese)
    return f"{FACTS[lang].format_map(content['machine'])}\n\n{text}\n"


def table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds, and those of the original over them, as a Markdown table."""
    first, *others = CONTESTANTS
    lines = [f"| GPT-2 | {first}, ms | {' | '.join(f'{name}, ms | ratio' for name in others)} |"]
    lines.append("|---|" + "--:|" * (1 + 2 * len(others)))
    for row in rows:
        times = row["milliseconds"]
        cells = [f"{times[first]:.3f}", *(f"{times[name]:.3f} | {times[first] / times[name]:.2f}" for name in others)]
        lines.append(f"| {row['name']}{'' if row['quiet'] else ' (not quiet)'} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
