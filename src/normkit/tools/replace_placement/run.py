"""Changes where the norms of residual blocks are: before the branch, after the sum, or at both ends of the branch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from normkit.errors import ArgumentError, StateError, nearest
from normkit.parametrize.checks import check_values
from normkit.tools.model.refusal import Refusal, RefusedError, refuse_strictly
from normkit.tools.model.tree import copy_of, module_places
from normkit.tools.model.wrapped import refuse_wrapped
from normkit.tools.replace_placement.calibrate import calibrated, scale, weight_and_bias
from normkit.tools.replace_placement.norm_units import ADDED, norm_units
from normkit.tools.replace_placement.plan import Plan
from normkit.tools.replace_placement.record import Record, record
from normkit.tools.replace_placement.report import PlacementReport
from normkit.tools.replace_placement.residuals import Placement, Residual, Stack, check, stacks
from normkit.tools.replace_placement.roles import ROLES
from normkit.tools.replace_placement.undo import Undo

M = TypeVar("M", bound=nn.Module)

PLACEMENTS: tuple[Placement, ...] = tuple(ROLES)
"""The placements that a model can be changed to."""

TORCH_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""Their flag ``norm_first`` says whether they are pre-norm or post-norm."""


def replace_placement(
    model: M,
    to: Placement,
    *,
    example: Any,
    calibrate: bool = True,
    inplace: bool = False,
    strict: bool = False,
) -> tuple[M, PlacementReport]:
    """Change where the norms of residual blocks are, to train the model afresh.

    With a norm n and a branch f, a block computes

    - ``"pre"``: x + f(n(x)), and a norm follows the last block;
    - ``"post"``: n(x + f(x)), and no norm follows the last block;
    - ``"sandwich"``: x + n2(f(n1(x))), and a norm follows the last block;
    - ``"peri"``: as sandwich, and the input of the first block is normalized too.

    Blocks are found in a run on the example: a sum of x and what layers compute from x. Their norms keep class, eps
    and width; those at a new place get initial parameters, and so do new ones, which are made like the block's own.
    The methods that compute the sums are rewritten: modules keep their names, and norms that are moved keep theirs.
    A stack of blocks is changed as a whole; where that is not possible it stays, and the report has the reason.

    Args:
        model: any module.
        to: the placement.
        example: an input: a tensor, a tuple of positional or a mapping of keyword arguments.
        calibrate: whether to scale each branch (its last norm, or the weight and bias of its last linear layer) so
            that on the example rms(f(x)) / rms(x) is that of the original in every block, and the norm at the end of
            a stack so that the rms of its output is that of the original.
        inplace: whether to change the model itself and not a copy.
        strict: whether to raise where a block would be refused.

    Returns:
        The changed model and the report. Make the optimizer afterwards.

    Raises:
        ArgumentError: an unknown placement.
        StateError: with `strict`, a block that cannot be changed; a model that cannot be copied, is on the meta device,
            or is wrapped for several processes. In every case the model is as it was before.

    Example:
        >>> import torch, normkit
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        >>> model, report = normkit.replace_placement(model, "pre", example=torch.randn(2, 5, 8), calibrate=False)
        >>> print(report)
        layers.0.norm1: post -> pre
        layers.0.norm2: post -> pre
        norm: norm at the end of the stack, added

    Source: Xiong et al. 2020, arXiv:2002.04745 (pre, post); Kim et al. 2025, arXiv:2502.02732 (peri); Ding et al.
    2021, arXiv:2105.13290 (sandwich).
    """
    if to not in PLACEMENTS:
        raise ArgumentError(f"to must be one of {', '.join(PLACEMENTS)}, got {to!r}: {nearest(str(to), PLACEMENTS)}")
    list(module_places(model))  # raises for what is no module, or is scripted
    refuse_wrapped(model, "replace_placement")
    check_values("replace_placement", model.named_modules())
    # New norms made in inference mode could never be trained.
    with torch.inference_mode(False):
        if not inplace:
            model = copy_of(model)
        undo = Undo(model)
        try:
            report = _Change(model, to, example, undo).carry_out(calibrate, strict)
        except BaseException:
            undo.restore()
            raise
    return model, report


class _Change:
    """One change of a model; after an exception the caller restores the model."""

    def __init__(self, model: nn.Module, to: Placement, example: Any, undo: Undo) -> None:
        self.model, self.to, self.example, self.undo = model, to, example, undo
        self.known = dict(norm_units(model))
        self.refusals: list[Refusal] = []

    def record(self) -> tuple[Record, list[Stack]]:
        """A record of the model as it is, and its stacks."""
        seen = record(self.model, self.known, self.example)
        return seen, stacks(seen)

    def carry_out(self, calibrate: bool, strict: bool) -> PlacementReport:
        """Change the model, and check that the change is what was asked for."""
        seen, original = self.record()
        flipped = self._flip()
        if flipped:
            seen, found = self.record()
        else:
            found = original
        plan, chosen = self._planned(seen, original, found, flipped)
        remedy = "give each block what it lacks, or leave out strict"
        refuse_strictly(strict, self.refusals, "no refusal, and there are {}", remedy)
        if not chosen:
            return PlacementReport(self.to, refusals=tuple(self.refusals))
        plan.carry_out(self.undo)
        self.known = dict(norm_units(self.model))
        seen, changed = self.record()
        self._check(found, changed, chosen)
        self._check_training(seen)
        self._drop_uncalled(seen)
        gains, ends = self._calibrated(plan, seen, original, changed, chosen) if calibrate else ({}, {})
        blocks = [replace(row, gain=gains.get(place)) for place, row in plan.blocks.items()]
        ends_now = [replace(row, gain=ends.get(index) if row.place == "final" else None) for index, row in plan.stacks]
        return PlacementReport(self.to, tuple(blocks), tuple(ends_now), tuple(self.refusals))

    def _flip(self) -> list[Any]:
        """Set the flag of torch's own layers; returns those that had the other one."""
        layers = [m for m in self.model.modules() if isinstance(m, TORCH_LAYERS)]
        flipped = [layer for layer in layers if layer.norm_first == (self.to == "post")]
        for layer in flipped:
            layer.norm_first = not layer.norm_first
        return flipped

    def _planned(
        self, seen: Record, original: list[Stack], found: list[Stack], flipped: list[Any]
    ) -> tuple[Plan, list[int]]:
        """The plan for the stacks that can be changed, and which these are."""
        if [len(stack.residuals) for stack in original] != [len(stack.residuals) for stack in found]:
            raise StateError(
                f"a block of {type(self.model).__name__} has another structure with norm_first exchanged: change the "
                "flag norm_first by hand"
            )
        chosen = []
        for index, (stack, old) in enumerate(zip(found, original, strict=True)):
            reasons = self._reasons(seen, found, index, old)
            if not reasons:
                chosen.append(index)
                continue
            for residual in stack.residuals:
                name, kind = self._named(residual)
                self.refusals.append(Refusal(name, kind, reasons.get(residual, "another block of its stack stays")))
        plan = Plan(self.model, self.known, seen, self.to)
        for index in chosen:
            plan.decide(index, found, original[index])
        for layer in flipped:
            sums = [r for i in chosen for r in found[i].residuals if any(s.module is layer for s in r.sum.sites)]
            plan.placed += [norm.norm for residual in sums for norm in residual.norms]
            if not sums:
                layer.norm_first = not layer.norm_first
        return plan, chosen

    def _reasons(self, seen: Record, found: list[Stack], index: int, old: Stack) -> dict[Residual, str]:
        """Why blocks of a stack cannot be changed; tried on a plan that is then given up."""
        reasons: dict[Residual, str] = {}
        for residual, other in zip(found[index].residuals, old.residuals, strict=True):
            try:
                check(seen, residual, self.known)
                old.placement(other)
            except RefusedError as reason:
                reasons[residual] = str(reason)
        if reasons:
            return reasons
        plan = Plan(self.model, self.known, seen, self.to)
        try:
            plan.decide(index, found, old)
        except RefusedError as reason:
            reasons[plan.at or found[index].last] = str(reason)
        return reasons

    def _named(self, residual: Residual) -> tuple[str, str]:
        """The name of a block, which is that of its norm if it has one, and the class of the module of its sum."""
        names = {module: name for name, module in self.model.named_modules()}
        holder = residual.sum.sites[-1].module if residual.sum.sites else self.model
        norm = residual.norms[0].module if residual.norms else None
        return names[norm or holder] or "the model", type(holder).__name__

    def _check(self, found: list[Stack], changed: list[Stack], chosen: list[int]) -> None:
        """Raise if the changed model is not what was planned."""
        counts = [[len(stack.residuals) for stack in each] for each in (found, changed)]
        # A norm of the embeddings, as BERT has one, makes a sandwich the same as peri-LN.
        allowed = {self.to, "peri"} if self.to == "sandwich" else {self.to}
        if counts[0] == counts[1]:
            stacks_now = [changed[index] for index in chosen]
            placed = all(stack.placement(r) in allowed for stack in stacks_now for r in stack.residuals)
            if placed and (self.to == "post" or all(stack.final is not None for stack in stacks_now)):
                return
        raise StateError(
            f"the changed {type(self.model).__name__} must be {self.to}, but a second run shows another structure: "
            "its forward takes another way than in the first run"
        )

    def _check_training(self, seen: Record) -> None:
        """Raise if a norm is never called in training mode; several runs, because some models leave out layers."""
        missing = {event.module for event in seen.events if event.module is not None}
        for seed in range(4):
            try:
                trained = record(self.model, self.known, self.example, training_seed=seed)
            except Exception:  # as batch norm raises for a single sample: then there is nothing to compare
                return
            missing -= {event.module for event in trained.events}
            if not missing:
                return
        names = [name for name, module in self.model.named_modules() if module in missing]
        raise StateError(
            f"blocks must have the same norms in training as in evaluation, and {', '.join(names[:3])} is called in "
            "evaluation only: move the norms by hand"
        )

    def _calibrated(
        self, plan: Plan, seen: Record, original: list[Stack], changed: list[Stack], chosen: list[int]
    ) -> tuple[dict[tuple[int, int], float], dict[int, float]]:
        """The factors of the branches, and those of the norms at the end of the stacks."""
        blocks = {
            (i, j): residual for i in chosen if plan.changes(i) for j, residual in enumerate(changed[i].residuals)
        }
        shares = {residual: original[i].residuals[j].share for (i, j), residual in blocks.items()}
        factors, after = calibrated(self.model, self.known, self.example, seen, shares, self.undo)
        ends = {}
        for i, stack in enumerate(stacks(after)):
            norm = stack.final or stack.last.after_sum
            if i in chosen and norm is not None and norm.module in plan.placed and stack.size:
                ends[i] = original[i].size / stack.size
                scale(weight_and_bias(norm.module), ends[i], self.known[norm.module], self.undo)
        return {place: factors[residual] for place, residual in blocks.items() if residual in factors}, ends

    def _drop_uncalled(self, seen: Record) -> None:
        """Remove norms of an earlier change that nothing calls any more."""
        called = {event.module for event in seen.events}
        for module in self.model.modules():
            names = [name for name in vars(module).get(ADDED, ()) if name in module._modules]
            for name in [name for name in names if module._modules[name] not in called]:
                del module._modules[name]
                names.remove(name)
            if ADDED in vars(module):
                vars(module)[ADDED] = tuple(names)
