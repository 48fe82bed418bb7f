"""The Triton kernels in place of those for the tests' device: a GPU, or else the CPU through Triton's interpreter."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from normkit.kernels import backend, door, fit

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
triton = pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def by_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every call through the operators is carried out by the Triton kernels."""
    kernels = backend.triton_kernels()
    monkeypatch.setattr(backend, "kernels_on", lambda device: kernels)
    for name in ("normalize", "standardize", "fused", "weight_norm"):
        monkeypatch.setattr(door, name, door._nothing)
    monkeypatch.setattr(door, "learn", lambda *_: False)
    if DEVICE != "cpu":
        torch.set_default_device(DEVICE)
    _forget()
    yield
    _forget()
    torch.set_default_device(None)


def _forget() -> None:
    """Plans are known by other numbers to other kernels."""
    fit._registered.cache_clear()
    fit.direct_plan.cache_clear()
