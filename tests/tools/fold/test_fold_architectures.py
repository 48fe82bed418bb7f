"""Every norm of models of transformers and timm is folded, or stays with a reason; outputs stay."""

from __future__ import annotations

import copy

import pytest
import torch
from architectures import BASE, CAUSAL, TIMM, Double, architecture

import normkit
from normkit.tools.fold.check import compared, distance
from normkit.tools.model.call import call_on_example
from normkit.tools.model.tree import norms

pytestmark = pytest.mark.filterwarnings("ignore:Casting complex values to real")  # of Llama 4's positions

FOLDED: dict[str, tuple[int, int]] = {}
"""How many norms are folded and how many stay."""

QUICK = ("gpt2", "llama")


def outputs(model, example):
    with torch.no_grad():
        return compared(call_on_example(model, example))


def check(kind: str) -> None:
    model, example = architecture(kind)
    known = {place.name: place.module for place, _ in norms(model)}
    # Ties are undone, so that the last norm of a language model is folded too.
    folded, report = normkit.fold(model, example, untie=True)
    named = {row.name for row in (*report.folds, *report.refusals)}
    assert named == {name for name, norm in known.items() if [*norm.parameters(recurse=False)]}
    for row in report.folds:
        left = folded.get_submodule(row.name)
        assert not [*left.parameters()]
        assert all(layer in dict(model.named_modules()) for layer in row.layers)
    assert (len(report.folds), len(report.refusals)) == FOLDED[kind]
    # Each weight is rounded once more, and the sums are in another order: 1e-7 through a few layers.
    assert max(map(distance, outputs(folded, example), outputs(model, example))) <= 1e-6
    wide = {key: each.double() if each.is_floating_point() else each for key, each in _items(example)}
    wide = wide if isinstance(example, dict) else wide["x"]
    with Double():
        model = copy.deepcopy(model).double()
        folded, again = normkit.fold(model, wide, untie=True)
        assert [row.name for row in again.folds] == [row.name for row in report.folds]
        assert max(map(distance, outputs(folded, wide), outputs(model, wide))) <= 1e-12


def _items(example):
    return example.items() if isinstance(example, dict) else [("x", example)]


@pytest.mark.parametrize("kind", QUICK)
def test_models(kind):
    check(kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted({*CAUSAL, *BASE, *TIMM} - {*QUICK}))
def test_all_models(kind):
    check(kind)
