"""`normkit.audit`: finds faults in the normalization of a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from normkit.errors import ArgumentError, DtypeError, whole_number
from normkit.evaluation import preserving
from normkit.tools.audit.ignore import Ignore, suppressor
from normkit.tools.audit.measure import trials
from normkit.tools.audit.measure.facts import Subject, collect
from normkit.tools.audit.measure.invariance import measure_invariance
from normkit.tools.audit.report import Finding, NotRun, Report, rank
from normkit.tools.audit.rules import RULES
from normkit.tools.audit.rules.rule import Rule
from normkit.tools.audit.source import Location, location_in
from normkit.tools.model.tree import module_places


def audit(
    model: nn.Module,
    example: Any = None,
    loader: Any = None,
    optimizer: torch.optim.Optimizer | None = None,
    batch_size: int | None = None,
    world_size: int = 1,
    accumulate: int = 1,
    *,
    per_sample: bool = False,
    invariance: bool = False,
    ignore: Ignore | str = (),
) -> Report:
    """Find faults in the normalization of a model.

    With an example the model is run: the run shows which layer reads the output of which, and names are not used. The
    model is left as it was, also after an error: mode, hooks, buffers, gradients, and the state of random generators.

    Args:
        model: any module. Compiled models and those in DistributedDataParallel are unwrapped.
        example: what the model is called with: a tensor, a tuple of arguments, or a dict of keyword arguments.
            None for the rules that need no run. Mean and variance of an example of random numbers are not judged.
        loader: gives batches of inputs, or pairs (input, target); the first 16 are compared with the running
            statistics. Its first batch serves as the example if there is none.
        optimizer: to see which parameters are under weight decay.
        batch_size: samples of one optimizer step, over all ranks and accumulated micro-batches.
        world_size: number of ranks.
        accumulate: micro-batches of one step.
        per_sample: also name the layers that mix samples, for vmap and per-sample gradients.
        invariance: also measure whether each norm gives one sample the same bits in batches of 2 to 8192, cut along its
            positions, padded, and compiled, which takes seconds for each kind of norm. The result is
            `Report.invariance`.
        ignore: codes to suppress, or a mapping from patterns of module names to codes. A module with an attribute
            ``normkit_ignore = ("NK101",)`` does the same for itself and the modules inside it.

    Returns:
        A `Report`: findings with code, severity, place, measurement, reason and fix; and the rules that could not run.
        On a model whose tensors are on the meta device only those run that need no values.

    Raises:
        DtypeError: `model` is not a module, or `optimizer` is not an optimizer.
        ArgumentError: a count below 1, a code that does not exist, or an example the model does not accept.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> report = audit(model, torch.randn(2, 3, 8, 8))
        >>> [(finding.code, finding.module) for finding in report.findings]
        [('NK101', '0'), ('NK301', '')]

    Source: each rule names its own; see docs/en/audit/index.md.
    """
    given: dict[str, Any] = {"batch_size": batch_size, "world_size": world_size, "accumulate": accumulate}
    return examine(model, example, loader, optimizer, ignore, per_sample=per_sample, invariance=invariance, **given)


def examine(
    model: nn.Module,
    example: Any = None,
    loader: Any = None,
    optimizer: torch.optim.Optimizer | None = None,
    ignore: Ignore | str = (),
    *,
    noise: bool = False,
    invariance: bool = False,
    location: Location | None = None,
    **given: Any,
) -> Report:
    """The same as `audit`, with further arguments of the command line.

    Args:
        model, example, loader, optimizer, ignore: as for `audit`.
        noise: whether the example is known to be random numbers.
        invariance: as for `audit`.
        location: file and line of what made the model, for findings whose own cannot be found.
        given: the other arguments of `audit`.
    """
    if not isinstance(model, nn.Module):
        raise DtypeError(f"a model must be a torch.nn.Module, got {type(model).__name__}: pass the module itself")
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise DtypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}: pass it itself")
    for name in ("batch_size", "world_size", "accumulate"):
        count = given.get(name)
        if count is not None and whole_number(name, count) < 1:
            raise ArgumentError(f"{name} must be at least 1, got {count}: count samples, ranks and micro-batches")
    model = _inner(model)
    next(iter(module_places(model)))  # refuses scripted models, with the remedy
    suppressed = suppressor(model, ignore)
    lazy = _lazy(model)
    if lazy:
        example = loader = None
    with preserving(model):
        subject = collect(model, example, loader, noise, optimizer=optimizer, lazy=lazy, **given)
        trials.run(subject)
    # The model is restored: rules that ask for its mode see the user's.
    findings: list[Finding] = []
    not_run: list[NotRun] = []
    for rule in RULES.values():
        missing = rule.missing(subject)
        if missing:
            not_run.append(NotRun(rule.code, rule.title, missing))
        else:
            findings.extend(_findings(rule, subject, location))
    findings.sort(key=lambda finding: (-rank(finding.severity), finding.code))
    return Report(
        type(model).__name__,
        tuple(f for f in findings if not suppressed(f.code, f.module)),
        tuple(f for f in findings if suppressed(f.code, f.module)),
        tuple(not_run),
        len(subject.norms),
        tuple(_notes(subject)),
        measure_invariance(subject) if invariance else None,
    )


def _lazy(model: nn.Module) -> str:
    """The name of a module that does not know its size yet; empty if there is none."""
    found = (
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params()  # type: ignore[misc]
    )
    return next((name or type(module).__name__ for name, module in found), "")


def _inner(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's and the data-parallel wrappers."""
    while True:
        compiled = dict(model.named_children()).get("_orig_mod")
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif compiled is not None:
            model = compiled
        else:
            return model


def _findings(rule: Rule, subject: Subject, location: Location | None) -> Iterator[Finding]:
    seen = set()
    for hit in rule.check(subject):
        if (hit.module, hit.message) in seen:
            continue
        seen.add((hit.module, hit.message))
        file, line = location_in(subject.model, hit.module) or location or ("", 0)
        yield Finding(
            rule.code,
            hit.severity or rule.severity,
            hit.module,
            rule.title,
            hit.message,
            hit.measured,
            rule.why,
            rule.source,
            rule.fix,
            file,
            line,
        )


def _notes(subject: Subject) -> Iterator[str]:
    if subject.failure:
        yield subject.failure
    for norm in subject.norms:
        if norm.info.kind is None and norm.info.reason:
            yield f"{norm.name} is not understood: {norm.info.reason}"
    never = [norm.name for norm in subject.norms if not norm.shapes]
    if subject.graph is not None and never:
        yield f"not reached by the example: {', '.join(never)}"
