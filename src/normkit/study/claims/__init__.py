"""The experiments on the claims of the catalog: a folder for each method or family of methods, a file for each claim.

A file states claim, design, measure and rule. `workloads` has the workloads of the experiments, `measures` the effects
that several of them share, `small_batches` and `transformers` whole experiments that several methods share,
`experiment` the rule, and `judging` applies it to all experiments as one family.
"""

from __future__ import annotations

from collections.abc import Sequence

from normkit import catalog
from normkit.errors import ArgumentError, nearest
from normkit.study.claims import (
    batch_norm,
    evolved,
    group_norm,
    instance_norm,
    layer_norm,
    placement,
    pointwise,
    response,
    running,
    spectral_norm,
    weight_norm,
)
from normkit.study.claims.experiment import Experiment

SUITE: tuple[Experiment, ...] = (
    *batch_norm.EXPERIMENTS,
    *layer_norm.EXPERIMENTS,
    *instance_norm.EXPERIMENTS,
    *group_norm.EXPERIMENTS,
    *weight_norm.EXPERIMENTS,
    *response.EXPERIMENTS,
    *evolved.EXPERIMENTS,
    *pointwise.EXPERIMENTS,
    *running.EXPERIMENTS,
    *spectral_norm.EXPERIMENTS,
    *placement.EXPERIMENTS,
)


def chosen(ids: Sequence[str] | None = None, *, full: bool = False) -> tuple[Experiment, ...]:
    """The experiments on some claims, or on all.

    Raises:
        ArgumentError: the catalog does not have the claim.

    >>> [experiment.name for experiment in chosen(["gn-1"])]
    ['no worse than at a large batch', 'against batch norm']
    """
    wanted = None if ids is None else {_known(claim) for claim in ids}
    return tuple(e for e in SUITE if (full or not e.extended) and (wanted is None or e.claim in wanted))


def _known(claim: str) -> str:
    known = {name.casefold(): name for name in catalog.CLAIMS}
    name = claim.strip().casefold()
    if name not in known:
        raise ArgumentError(f"no claim is called {claim!r}: {nearest(name.upper(), list(catalog.CLAIMS))}")
    return known[name]
