"""The lowest version that is declared of each requirement works; torch's are for benchmarks/check_torch.sh."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
USED = ("cli", "compare", "postgres", "ray", "export")


def lowest() -> list[str]:
    """The requirements that users install in addition to torch, each at its lower bound."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = [requirement for extra in USED for requirement in extras[extra] if not requirement.startswith("normkit[")]
    return [requirement.replace(">=", "==") for requirement in asked]


def test_every_requirement_has_a_lowest_version():
    assert all("==" in requirement for requirement in lowest()), lowest()


@pytest.mark.slow
def test_the_lowest_versions_work(tmp_path: Path):
    def run(*words: str | Path) -> str:
        env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200"}
        done = subprocess.run(words, capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", *lowest())
    # torch and what it needs come last, from the environment of this test.
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (packages / "zz_torch.pth").write_text(str(Path(torch.__file__).parent.parent))

    assert "runs are left" in run(python, "-m", "normkit", "compare", "--dry-run")
    small = ("--methods", "BN", "--batch-sizes", "8", "--seeds", "2", "--trials", "3", "--steps", "40", "--no-claims")
    run(python, "-m", "normkit", "compare", *small, "--no-progress", "--out", "found")
    run(python, "-m", "normkit", "report", "found", "--parquet")
    assert {path.name for path in (tmp_path / "found").iterdir()} >= {"index.html", "runs.parquet", "cells.parquet"}
    run(python, "-c", "import psycopg, ray")
