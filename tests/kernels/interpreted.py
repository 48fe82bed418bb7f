"""The Triton kernels in place of those for the tests' device: a GPU, or else the CPU through Triton's interpreter."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from normkit.kernels import devices, fastpath, layout

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
triton = pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def by_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every call through the operators is carried out by the Triton kernels."""
    kernels = devices.triton_kernels()
    monkeypatch.setattr(devices, "kernels_on", lambda device: kernels)
    for name in ("normalize", "standardize", "fused", "weight_norm"):
        monkeypatch.setattr(fastpath, name, fastpath._nothing)
    monkeypatch.setattr(fastpath, "learn", lambda *_: False)
    if DEVICE != "cpu":
        torch.set_default_device(DEVICE)
    layout.forget_plans()  # other kernels know plans by other numbers
    yield
    layout.forget_plans()
    torch.set_default_device(None)
