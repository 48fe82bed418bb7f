"""Converts the layer norms of a model as planned, compares its outputs with those before, and can undo everything."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from normkit.evaluation import keeping_modes
from normkit.tools.convert.report import as_text
from normkit.tools.fold.check import coarsest, compared, distance, outputs_before, same_draws
from normkit.tools.fold.ties import MAPPING, SWITCH
from normkit.tools.model.call import call_on_example
from normkit.tools.model.graph.values import record_values
from normkit.tools.model.refusal import Refusal, RefusedError
from normkit.tools.model.tree import copy_of
from normkit.tools.to_rms_norm.change import Change
from normkit.tools.to_rms_norm.plan import Plan, planned
from normkit.tools.to_rms_norm.report import Centred, Converted, RMSNormReport, Untied
from normkit.tools.to_rms_norm.streams import TiedError

EXACT = {torch.float64: 1e-12, torch.float32: 1e-5}
"""How far the outputs of a copy in this dtype may be from those before, of their size: rounding through many layers."""


class Conversion:
    """A model that is being converted, with all that is needed to undo it.

    Args:
        model: changed in place.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.change = Change(model)
        self.splits: list[tuple[Untied, Change]] = []

    def convert(self, example: Any, tolerance: float | None, untie: bool) -> RMSNormReport:
        """Convert all layer norms that can be converted, and undo it if the outputs of the model change."""
        with self.evaluating():
            plan = self.plan(example)
            before = outputs_before("to_rms_norm", self.model, plan.output)
            if untie:
                plan = self.untied(plan, example)
        allowed = coarsest(self.model, before) ** 0.5 if tolerance is None else tolerance
        reasons = {plan.found[norm][0].name: reason for norm, reason in plan.reasons.items()}
        centred, changes, error, exact, dtype = [], [], 0.0, 0.0, torch.float64
        if plan.norms:
            try:
                with self.evaluating():
                    exact, dtype = exact_change(self.model, plan, example)
                centred = carry_out(self.change, plan)
                with self.evaluating():
                    error = largest_change(self.model, example, before)
                if not error <= allowed:
                    raise RefusedError(f"outputs changed by {error:.2g} of their size, and {allowed:.2g} is allowed")
                changes = [self.converted(plan, norm) for norm in plan.streams]
            except RefusedError as refusal:
                reasons |= dict.fromkeys(plan.norms, f"the conversion was undone: {refusal}")
                centred = []
                self.undo()
        refusals = tuple(
            Refusal(place.name, type(norm).__name__, reasons[place.name])
            for norm, (place, _) in plan.found.items()
            if place.name in reasons
        )
        untied = tuple(row for row, _ in self.splits)
        name = str(dtype).removeprefix("torch.")
        return RMSNormReport(
            tuple(changes), refusals, tuple(plan.kept), tuple(centred), untied, plan.graph, error, allowed, exact, name
        )

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode for all modules, and no gradients."""
        with keeping_modes(self.model) as modes, torch.no_grad():
            for module in modes:
                module.training = False
            yield

    def plan(self, example: Any) -> Plan:
        with same_draws(self.model):
            return planned(self.model, example)

    def untied(self, plan: Plan, example: Any) -> Plan:
        """The plan after every parameter that both is written into a stream and read otherwise has been copied."""
        while any(self.split(tie) for tie in plan.ties):
            plan = self.plan(example)
        useful = [(row, change) for row, change in self.splits if row.name in plan.centred]
        for row, change in reversed(self.splits):
            if row.name not in plan.centred:
                change.undo()
        self.splits = useful
        for row, change in useful:
            _note_in_config(change, row)
        return plan

    def split(self, tie: TiedError) -> bool:
        """Give all holders but the one that reads it otherwise a copy of a parameter."""
        old = tie.parameter
        if not tie.others or self.model.get_parameter(tie.others[0]) is not old:
            return False
        change = Change(self.model)
        change.exchange(old, nn.Parameter(old.detach().clone(), old.requires_grad), but=tie.reader)
        self.splits.append((Untied(tie.others[0], tie.kept[0], tie.size), change))
        return True

    def converted(self, plan: Plan, norm: nn.Module) -> Converted:
        place, info = plan.found[norm]
        return Converted(place.name, place.names, as_text(norm, info), as_text(self.change.successors[norm]))

    def undo(self) -> None:
        """Everything as it was."""
        self.change.undo()
        for _, change in reversed(self.splits):
            change.undo()
        self.splits = []


def carry_out(change: Change, plan: Plan) -> list[Centred]:
    """Change a model, or a copy of it, as planned."""
    centred = [change.centre(name, channels) for name, channels in plan.centred.items()]
    change.convert(plan.norms)
    return centred


def exact_change(model: nn.Module, plan: Plan, example: Any) -> tuple[float, torch.dtype]:
    """Convert copies in float64, where rounding is tiny; on the example and on random inputs of the same shape.

    Returns:
        Largest change of an output, of its largest value, and the dtype: float32 if the model runs in no other.

    Raises:
        RefusedError: it is larger than rounding, or a copy cannot be run.
    """
    failure = ""
    for dtype in EXACT:
        try:
            twin = copy_of(model).to(dtype)
            inputs = [altered(example, dtype, draw) for draw in (False, True)]
            with same_draws(twin):
                graph = record_values(twin, (), inputs[0])
        except Exception as error:  # a forward with tensors of a dtype of its own
            failure = f"{type(error).__name__}: {error}"
            continue
        before = [compared(graph.output)]
        with contextlib.suppress(Exception), same_draws(twin):  # random numbers may not be valid inputs
            before.append(compared(call_on_example(twin, inputs[1])))
        carry_out(Change(twin), plan)
        found = max(largest_change(twin, given, old) for given, old in zip(inputs, before, strict=False))
        # Half of the digits, where the model itself casts to a lower dtype.
        if not found <= max(EXACT[dtype], graph.rounded**0.5):
            raise RefusedError(f"in {dtype} outputs changed by {found:.2g} of their size, more than by rounding")
        return found, dtype
    raise RefusedError(f"a copy in float64 or float32 cannot be run, to compare outputs: {failure}")


def altered(example: Any, dtype: torch.dtype, draw: bool) -> Any:
    """An example in another dtype; with `draw`, random numbers, and its integers in random order."""

    def change(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return torch.randn(tensor.shape, device=tensor.device, dtype=dtype) if draw else tensor.to(dtype)
        order = torch.randperm(tensor.numel(), device=tensor.device)
        return tensor.flatten()[order].reshape(tensor.shape) if draw else tensor

    return tree_map_only(Tensor, change, example)


def largest_change(model: nn.Module, example: Any, before: list[Tensor]) -> float:
    """Largest change of an output, of that output's largest value; infinite if nan or inf differ."""
    try:
        with same_draws(model):
            after = compared(call_on_example(model, example))
    except Exception as error:
        raise RefusedError(f"the converted model raises {type(error).__name__}: {error}") from error
    return max(distance(new, old) for new, old in zip(after, before, strict=True))


def _note_in_config(change: Change, row: Untied) -> None:
    """Tell transformers, which would tie the two again in `tie_weights` and when the model is loaded."""
    for name, module in change.model.named_modules():
        inside = f"{name}." if name else ""
        listed = vars(module).get(MAPPING)
        if isinstance(listed, dict):
            pairs = {
                key: value
                for key, value in listed.items()
                if not {inside + key, inside + value} & {row.name, row.other}
            }
            change.set(vars(module), MAPPING, pairs)
        config: Any = getattr(module, "config", None)
        if config is None or not (row.name.startswith(inside) and row.other.startswith(inside)):
            continue
        text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
        for each in (config, text):
            if vars(each).get(SWITCH):
                change.set(vars(each), SWITCH, False)
