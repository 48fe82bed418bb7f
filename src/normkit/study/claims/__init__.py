"""The experiments on the claims of the catalog, one file for each claim.

A file states claim, design, measure and rule; `benches` holds what is trained for them, `measures` the effects that
several share, `experiment` what carries the rule out.
"""

from __future__ import annotations

from collections.abc import Sequence

from normkit import catalog
from normkit.errors import ArgumentError, nearest
from normkit.study.claims import (
    bn_1,
    bn_2,
    bn_3,
    bn_4,
    bn_5,
    bn_6,
    gn_1,
    gn_2,
    in_1,
    in_2,
    ln_1,
    ln_2,
    p_1,
    wn_1,
    wn_2,
)
from normkit.study.claims.experiment import Experiment

SUITE: tuple[Experiment, ...] = tuple(
    experiment
    for file in (bn_1, bn_2, bn_3, bn_4, bn_5, bn_6, ln_1, ln_2, in_1, in_2, gn_1, gn_2, wn_1, wn_2, p_1)
    for experiment in file.EXPERIMENTS
)


def chosen(ids: Sequence[str] | None = None, *, full: bool = False) -> tuple[Experiment, ...]:
    """The experiments on some claims, or on all.

    Raises:
        ArgumentError: a claim that the catalog does not have.

    >>> [experiment.name for experiment in chosen(["gn-1"])]
    ['no worse than at a large batch', 'beside batch norm']
    """
    wanted = None if ids is None else {_known(claim) for claim in ids}
    return tuple(e for e in SUITE if (full or not e.extended) and (wanted is None or e.claim in wanted))


def _known(claim: str) -> str:
    name = claim.strip().upper()
    if name not in catalog.CLAIMS:
        raise ArgumentError(f"no claim is called {claim!r}: {nearest(name, list(catalog.CLAIMS))}")
    return name
