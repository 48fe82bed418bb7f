"""Which stored runs stay valid: those whose data, design and executed code are the same, whatever else changes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normkit
from normkit import catalog
from normkit.catalog import Mark, Statement, Text
from normkit.study.execution.fingerprint import EXECUTED, digest_of, executed, fingerprint
from normkit.study.execution.store import Store
from normkit.study.task import Task, embedded
from normkit.study.training import design
from normkit.study.training.trainer import Trainer
from normkit.study.training.trial import Run, Trial

DIGITS = embedded.digits()
PLAN = replace(design.design(("BN",), (4,), 2, 3, 40, 0), gap_images=32, time_rounds=3)
PACKAGE = Path(normkit.__file__).parent
# Executed, but only to find a name or to check an argument: no number depends on it.
HARMLESS = {"__init__.py", "errors.py", "catalog/__init__.py", "catalog/row.py"}


def test_a_changed_training_shares_nothing(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite3") as store:
        store.add(DIGITS, PLAN, Trainer().train(DIGITS, PLAN, [Trial("tune", "none", 4, 0.01, 0)], stacked=False)[0])
        assert len(store.runs(DIGITS, PLAN)) == 1
        assert store.runs(DIGITS, replace(PLAN, steps=41)) == {}
        assert store.runs(replace(DIGITS, optimizer=torch.optim.SGD), PLAN) == {}
    assert fingerprint(embedded.digits(1), PLAN) != fingerprint(DIGITS, PLAN)


# The code, in both directions


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of normkit that may be edited."""
    return shutil.copytree(PACKAGE, tmp_path / "normkit", ignore=shutil.ignore_patterns("__pycache__"))


def edited(path: Path) -> None:
    path.write_text(path.read_text("utf-8") + "\n# another line\n", encoding="utf-8")


def test_any_other_code_discards_nothing(package: Path) -> None:
    before = digest_of(package)
    others = set(package.rglob("*.py")) - set(executed(package))
    for path in others:
        edited(path)
    names = {path.relative_to(package).as_posix() for path in others}
    assert names >= {
        "errors.py",
        "cli.py",
        "catalog/claims.py",
        "catalog/methods.py",
        "catalog/rows/standard.py",
        "tools/audit/rules/__init__.py",
        "tools/watch/watcher.py",
        "study/execution/scheduler.py",
        "study/analysis/verdict.py",
        "study/claims/workloads.py",
        "study/claims/batch_norm/bn_1.py",
        "study/report/writing/rules.py",
        "study/task/metric.py",
    }
    assert digest_of(package) == before


def test_executed_code_discards_every_run(package: Path) -> None:
    before = digest_of(package)
    for place in (*EXECUTED, "tools/convert/run.py", "tools/insert/run.py", "tools/model/tree.py"):
        files = list(package.glob(f"{place}**/*.py" if place.endswith("/") else place))
        # Without a compiler there are no extensions.
        assert files or place == "*.so"
        for path in files[-1:]:
            code = path.read_bytes()
            path.write_bytes(code + b"\n# another line\n")
            assert digest_of(package) != before, place
            path.write_bytes(code)
    assert digest_of(package) == before


SCRIPT = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_fingerprint as t
assert t.PACKAGE == Path(sys.argv[1])
with t.Store(Path(sys.argv[2])) as store:
    print(len(store.runs(t.DIGITS, t.PLAN)))
"""


def test_a_new_claim_a_message_and_an_audit_rule_keep_stored_runs(package: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.sqlite3"
    with Store(store) as opened:
        opened.add(DIGITS, PLAN, Run(Trial("tune", "none", 4, 0.1, 7), "trained", losses=(2.0,), validation_error=0.2))

    def change(name: str, old: str, new: str) -> None:
        text = (package / name).read_text("utf-8")
        assert old in text, (name, old)
        (package / name).write_text(text.replace(old, new, 1), encoding="utf-8")

    # A claim of the catalog with an experiment on it, and a method that it is about.
    change("catalog/claims.py", "ALL = (", 'ALL = (Claim("BN-9", Text("new", "新"), Text("how", "如何")),')
    change("catalog/rows/standard.py", '"BN-6"', '"BN-6", "BN-9"')
    (package / "study/claims/batch_norm/bn_9.py").write_text("EXPERIMENTS = ()\n", encoding="utf-8")
    change("study/claims/batch_norm/__init__.py", "bn_6\n", "bn_6, bn_9\n")
    change("study/report/writing/texts.py", "Which normalization?", "Which one?")
    change("study/report/writing/rules.py", "Pairing", "Pairs")
    change("errors.py", '"""', '"""Another text. ')
    (package / "tools/audit/another.py").write_text("RULES = ()\n", encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(package.parent)}
    command = [sys.executable, "-c", SCRIPT, str(package), str(store)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1\n"


def test_facts_of_the_catalog_count_and_claims_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    first, *others = catalog.METHODS

    def digest(**changes: Any) -> str:
        monkeypatch.setattr(catalog, "METHODS", (replace(first, **changes), *others))
        return digest_of(PACKAGE)

    before = digest()
    text = Text("new", "新")
    assert (
        digest(
            strengths=(Statement("new", "新", "BN-9"),),
            mark=Mark("up", "#000000", "#ffffff"),
            where=text,
            title=text,
            formula="y = x",
        )
        == before
    )
    for facts in ({"patterns": ("b [c]",)}, {"center": False}, {"target": None}, {"keeps_statistics": False}):
        assert digest(**facts) != before


class Normed(nn.Module):
    """A model whose norms are exchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.bn(self.conv(x))).mean((2, 3)))


def plain() -> nn.Module:
    """A model into which norms are inserted."""
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 3))


def test_all_that_a_run_executes_is_covered() -> None:
    x, y = torch.randn(40, 1, 6, 6), torch.randint(0, 3, (40,))
    tasks = (Task(Normed, (x, y), (x, y)), Task(plain, (x, y), (x, y)), DIGITS)
    methods = ("none", "batch_norm", "layer_norm", "group_norm", "weight_norm")
    called: set[str] = set()

    def note(frame: Any, event: str, _: object) -> None:
        # The body of a module is only its definitions.
        if event == "call" and frame.f_code.co_name != "<module>":
            called.add(frame.f_code.co_filename)

    few = design.Design(methods, (4,), 2, 3, 3, window=2, gap_images=8)
    normkit.show_backends()  # loads the kernels, which reads the settings, once per process
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        for task in tasks:
            for method in methods:
                trials = [Trial("measure", method, 4, 0.01, seed) for seed in (1, 2)]
                assert "failed" not in [run.state for run in Trainer().execute(task, few, trials)]
    finally:
        sys.setprofile(before)
    names = {Path(name).relative_to(PACKAGE).as_posix() for name in called if Path(name).is_relative_to(PACKAGE)}
    covered = {path.relative_to(PACKAGE).as_posix() for path in executed(PACKAGE)}
    assert names - covered <= HARMLESS
    assert names & covered >= {
        "study/training/copies/stacked.py",
        "tools/convert/run.py",
        "tools/insert/run.py",
        "layers/group.py",
    }


# The task


class Loss:
    """A loss with a weight and a state that no result depends on."""

    def __init__(self, weight: torch.Tensor, factor: float = 1.0) -> None:
        self.weight, self.factor, self.cache = weight, factor, object()

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.factor * F.cross_entropy(outputs, targets, self.weight)


def scaled(outputs: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs, targets, weight)


@pytest.mark.parametrize("make", [Loss, lambda weight: partial(scaled, weight=weight)], ids=["object", "partial"])
def test_the_values_that_a_loss_is_bound_to_count(make: Callable[[torch.Tensor], Any]) -> None:
    # More numbers than torch prints.
    weight = torch.ones(2000)
    same, other = weight.clone(), weight.clone()
    other[1000] = 2.0

    def of(loss: Any) -> str:
        return replace(DIGITS, loss=loss).fingerprint()

    assert of(make(weight)) == of(make(same)) != of(make(other))
