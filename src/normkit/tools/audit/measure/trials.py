"""Further runs of the example: unused norms, variance that dropout adds, and overflow in float16."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from normkit.errors import ArgumentError
from normkit.evaluation import call, preserving, same
from normkit.tools.audit.measure.facts import SEPARATE, Seen, Subject, look_at_inputs, measure
from normkit.tools.audit.measure.moments import InputMoments
from normkit.tools.model.graph.call_graph import Node, is_dropout

SEARCH = 16
"""The largest number of runs that search for unused norms; three runs find one."""

DRAWS = 16
"""The number of samples that are run with dropout on: stochastic depth draws once for each."""

HALF = torch.finfo(torch.float16).max
ROOT = math.sqrt(HALF)
"""The square of a larger value is infinite in float16."""

PLAIN = (bool, int, float, complex, str, bytes, type, type(None), torch.dtype, torch.device, nn.Module)
"""Types of return values that hold no tensors."""


def run(subject: Subject) -> None:
    """Fill in `Subject.unused`, `Seen.raised` and `Seen.half_error`; the model is left in evaluation mode."""
    if subject.graph is None or subject.failure or subject.on_meta:
        return
    for trial in (_find_unused, _compare_variances, _try_half):
        with preserving(subject.model.eval()):
            trial(subject)


def _find_unused(subject: Subject) -> None:
    assert subject.graph is not None
    outputs = [index for index, after in subject.graph.consumers.items() if index >= 0 and -1 in after]
    reached = subject.graph.sources(outputs)
    called = {norm.name for norm, node in subject.called() if node.index in reached}
    # The graph does not see everything that reads a value, so that it only names candidates.
    norms = [n for n in subject.norms if n.shapes and n.name not in called and not _is_hooked(subject, n)]
    if norms:
        norms = _without_effect(subject, norms)
        subject.model.train()
        subject.unused = frozenset(norm.name for norm in _without_effect(subject, norms, norms))


def _is_hooked(subject: Subject, norm: Seen) -> bool:
    """Whether a hook may read its output or a value made from that: on a module that reads it, or on one around."""
    assert subject.graph is not None
    calls = [node.index for node in subject.graph.calls(norm.module)]
    nodes = [subject.graph.nodes[index] for index in subject.graph.users(calls)]
    names = [f"{node.name}." for node in nodes if node.module is not None]
    hooked = [name for module, name in subject.names.items() if module._forward_hooks]
    return any(name == "" or inner.startswith(f"{name}.") for name in hooked for inner in names)


def _without_effect(subject: Subject, norms: list[Seen], otherwise: list[Seen] | None = None) -> list[Seen]:
    """Those whose output may be NaN without a change of what the model returns; `otherwise` if it cannot run."""
    plain = _returned(subject, [])
    if not plain:
        return otherwise or []
    found, waiting = [], [norms] if norms else []
    for _ in range(SEARCH):
        if not waiting:
            break
        part = waiting.pop()
        spoiled = _returned(subject, part)
        if spoiled is not None and len(spoiled) == len(plain) and all(map(_equal, plain, spoiled)):
            found += part
        elif len(part) > 1:
            waiting += [part[: len(part) // 2], part[len(part) // 2 :]]
    return found


def _returned(subject: Subject, spoiled: list[Seen]) -> list[Tensor] | None:
    """The tensors that the model returns if these norms return NaN; None if it raises or returns something unknown."""

    def spoil(module: nn.Module, args: Any, out: Any) -> Any:
        return tree_map_only(Tensor, lambda y: torch.full_like(y, torch.nan) if y.is_floating_point() else y, out)

    handles = [norm.module.register_forward_hook(spoil) for norm in spoiled]
    try:
        with preserving(subject.model), torch.no_grad():
            torch.manual_seed(0)
            return _tensors(call(subject.model, subject.example, SEPARATE), set())
    except Exception:  # whatever a foreign forward makes of NaN, or of training on an example
        return None
    finally:
        for handle in handles:
            handle.remove()


def _tensors(out: Any, known: set[int]) -> list[Tensor] | None:
    """Those in containers and in objects with attributes; None if an object has no readable attributes."""
    found: list[Tensor] = []
    for leaf in tree_leaves(out):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif not isinstance(leaf, PLAIN) and id(leaf) not in known:
            known.add(id(leaf))
            inside = _tensors(dict(vars(leaf)), known) if hasattr(leaf, "__dict__") else None
            if inside is None:
                return None
            found += inside
    return found


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and same(a, b)


def drops(node: Node) -> float:
    """The probability with which a call drops values or whole branches in training; 0 if it does not."""
    if is_dropout(node) or node.module is None:
        return float(getattr(node.module, "p", node.dropout))
    rates = [getattr(node.module, name, 0.0) for name in ("drop_prob", "drop_rate", "p")] if node.noisy else []
    return max((float(rate) for rate in rates if isinstance(rate, int | float)), default=0.0)


def _compare_variances(subject: Subject) -> None:
    assert subject.graph is not None
    dropping = {node.index for node in subject.graph.nodes if drops(node) > 0}
    calls = [node.index for norm, node in subject.called() if norm.keeps]
    if not dropping & subject.graph.sources(calls):
        return
    torch.manual_seed(0)
    known = {norm.module for norm in subject.norms}
    plain = _pooled(subject, 1)
    for module in subject.model.modules():
        if module not in known:
            module.training = True
    dropped = _pooled(subject, -(-DRAWS // subject.samples))
    for norm in subject.norms:
        a, b = plain.get(norm.name), dropped.get(norm.name)
        if a is not None and b is not None and a.count >= 8 and bool((a.var > 1e-12).any()):
            norm.raised = float((b.var / a.var)[a.var > 1e-12].median())


def _pooled(subject: Subject, runs: int) -> Mapping[str, InputMoments]:
    found: dict[str, InputMoments] = {}

    def note(norm: Seen, x: Tensor, measured: InputMoments) -> None:
        found[norm.name] = found[norm.name].with_(measured) if norm.name in found else measured

    try:
        for _ in range(runs):
            measure(subject, subject.example, note)
    except ArgumentError:
        # A model may want targets in training.
        return {}
    return found


def _try_half(subject: Subject) -> None:
    norms = {norm.module: norm for norm in subject.norms if norm.shapes and not norm.is_batch}

    def look(module: nn.Module, x: Tensor) -> None:
        if (
            x.is_floating_point()
            and x.dim()
            and x.numel()
            and ROOT < float(x.abs().max()) < torch.finfo(x.half().dtype).max
        ):
            norms[module].half_error = max(norms[module].half_error, _error_in_half(module, x))

    # A model that raises in a further run is not what this rule looks for.
    with contextlib.suppress(Exception):
        if norms:
            look_at_inputs(subject.model, subject.example, norms, look)


def _error_in_half(module: nn.Module, x: Tensor) -> float:
    """The largest error on the sample with the largest value, as a share of the largest output; 0 if it cannot run."""
    worst = int(x.abs().flatten(1).amax(1).argmax()) if x.dim() > 1 else 0
    x = x[worst : worst + 1].half() if x.dim() > 1 else x.half()
    try:
        half, exact = (copy.deepcopy(module).to(x.dtype).forward(x) for x in (x, x.double()))
        largest = float(exact.abs().max())
        error = float((half.double() - exact).abs().nan_to_num(torch.inf).max())
    except Exception:  # whatever a foreign forward makes of another dtype
        return 0.0
    # An output too large for float16 is due to the weight.
    return error / largest if 0 < largest < HALF else 0.0
