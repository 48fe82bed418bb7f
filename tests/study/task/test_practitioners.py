"""The tasks of docs/en/compare/tasks.md: each is compared as it stands there, with few steps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import normkit
import zoo
from normkit.study.task import Task

PAGE = (Path(__file__).parents[3] / "docs" / "en" / "compare" / "tasks.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"\n## ([^\n]+)\n(?:(?!\n## ).)*?```python\n(.*?)```", PAGE, re.DOTALL))
LARGE = (
    "A Transformer on padded sequences",
    "BERT from transformers",
    "A model of timm, with loaders and augmentation",
)
"""Those that take several seconds."""


def task_of(title: str) -> Task:
    zoo._torchvision()  # timm and transformers import it
    names: dict[str, object] = {"__name__": "example"}
    exec(compile(EXAMPLES[title], title, "exec"), names)
    task = names["task"]
    assert isinstance(task, Task)
    return task


def test_there_are_twelve_tasks_or_more_each_under_forty_lines() -> None:
    assert len(EXAMPLES) >= 12
    for title, code in EXAMPLES.items():
        assert len([line for line in code.splitlines() if line.strip()]) < 40, title


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    "title", [pytest.param(t, marks=pytest.mark.slow if t.startswith(LARGE) else ()) for t in EXAMPLES]
)
def test_a_task_of_the_page_is_compared(title: str, tmp_path: Path) -> None:
    found = normkit.compare(
        task_of(title),
        methods=["unchanged" if "GAN" in title else "LN"],
        batch_sizes=[8],
        seeds=2,
        trials=3,
        steps=40,
        workers=1,
        out=tmp_path,
        progress=False,
    )
    assert not found.failures, found.failures[0]
    assert found.complete
    assert all(run.test_error is not None for cell in found.cells for run in cell.runs)
