"""Running statistics computed again from data, exactly, with the weights as they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parameter import UninitializedBuffer

from normkit.errors import ArgumentError, StateError, whole_number
from normkit.evaluation import keeping_modes
from normkit.layers import IterNorm, PowerNorm
from normkit.parametrize.checks import check_batches, check_values
from normkit.tools.model.call import call_on_first
from normkit.tools.model.frozen import is_frozen
from normkit.tools.model.statistics import norms_of_statistics, statistics_of
from normkit.tools.model.wrapped import unwrapped
from normkit.tools.recalibrate.moments import RunningMoments
from normkit.tools.recalibrate.passes import Forward, collect, with_progress, write


@dataclass(frozen=True)
class RecalibratedNorm:
    """The result for one norm.

    Attributes:
        name, kind: where it is, and its class.
        outcome: ``new``; or why the statistics are the old ones: ``not reached``, ``frozen``.
        elements: values seen per channel, over all ranks.
        mean_shift: largest distance over the channels from the old mean to the new, in new standard deviations; 0 for
            a norm that keeps no mean.
        var_ratio: largest factor over the channels between old variance and new, eps included; at least 1. Of power
            norm that between the quadratic means, of iterative norm the largest over all directions of a group.
        exact: whether every norm called before it already used its new statistics when these were collected, so that
            they are those of its inputs in evaluation. False for a norm called several times per batch, since its
            inputs may depend on itself.
    """

    name: str
    kind: str
    outcome: str
    elements: int = 0
    mean_shift: float = 0.0
    var_ratio: float = 1.0
    exact: bool = False


@dataclass(frozen=True)
class Recalibration:
    """The report of `recalibrate`: one row per norm, in the order of the model."""

    norms: tuple[RecalibratedNorm, ...]
    batches: int
    phases: int

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        head = f"{'norm':<32} {'outcome':<12} {'elements':>10} {'mean shift':>10} {'var ratio':>9} {'exact':>6}"
        rows = [
            f"{n.name or '(the model)':<32} {n.outcome:<12} {n.elements:>10} {n.mean_shift:>10.3g} {n.var_ratio:>9.3g} "
            + f"{'yes' if n.exact else 'no':>6}" * (n.outcome == "new")
            for n in self.norms
        ]
        new = sum(n.outcome == "new" for n in self.norms)
        tail = f"{new} of {len(self.norms)} norms from {self.batches} batches, read {self.phases} times"
        return "\n".join(line.rstrip() for line in (head, *rows, tail))


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
    phases: int = 1,
    device: torch.device | str | None = None,
    group: dist.ProcessGroup | None = None,
    progress: bool = False,
) -> Recalibration:
    """Replace running statistics by the mean and variance of the data, pooled over all batches exactly.

    ``mean = sum(x) / n`` and ``var = sum((x - mean)^2) / (n - 1)`` over the n values of a channel in all batches:
    batches of any sizes, also of one sample, give what their concatenation gives. An average of the batches'
    variances, as running statistics are, leaves out how the batches' means differ. Counts and moments are merged in
    float64 by Chan's formula. Instance norms get the average over all instances of their means and unbiased variances.

    Other norms get what their formula uses: `SwitchableNorm` the mean and variance of batch norm, `EvoNorm2dB0` that
    variance, `PowerNorm` ``phi = sum(x^2) / n``, and `IterNorm` the mean and the whitening matrix that its iterations
    make of the covariance ``sum((x - mean) (x - mean)^T) / n`` of each group, as for one batch of all data. The
    ``running_gradient`` of power norm needs a loss and no evaluation uses it: it stays, but becomes 0 where it is not
    finite.

    Padding given to a norm by ``mask=`` or ``lengths=`` does not count; a ``residual=`` is added first.

    Only the norms are in training mode meanwhile: dropout is off. With one phase each norm normalizes by the batch, as
    in training, so a deep norm's statistics are those of inputs that evaluation does not give it. Evaluation needs
    a fixed point: statistics which, when every norm uses them, are the statistics of the inputs. The input of
    a norm depends only on the norms called before it, so the fixed point is reached in their order: collect the first,
    let it use its new statistics, collect the second, and so on. With k phases the norms are cut into k groups in the
    order in which they are called; each phase makes one group final, and the later ones still normalize by the batch.
    As many phases as norms are exact (more mean the same); fewer leave the first norm of each group exact. Collecting
    all norms again and again, each using its statistics of the phase before, has the same fixed point, but errors grow
    from norm to norm until it is reached.

    With torch.distributed initialised the moments of all ranks are pooled, whatever number of batches each has; during
    a phase ranks do not wait for each other, and a SyncBatchNorm normalizes by its own rank's batch.

    Args:
        model: changed in place; only statistics change. The model under DistributedDataParallel or torch.compile is
            used, uncompiled.
        batches: a tensor each, a tuple or list whose first item is the input, or a mapping of keyword arguments.
        forward: called as ``forward(model, batch)`` instead, for batches of another structure.
        phases: how often the batches are read at most; more than one needs an iterable that can be.
        device: where tensors of a batch are moved to; None to leave them.
        group: the ranks to pool over; None for all.
        progress: whether to show a bar, where rich is installed.

    Returns:
        A `Recalibration`: per norm the elements seen and the change of its statistics. ``num_batches_tracked`` becomes
        the number of batches; that of power norm stays, because it counts the warm-up. A norm that no batch reached,
        and one frozen by `freeze`, keeps its statistics.

    Raises:
        ArgumentError: phases below 1, or more than 1 with an iterator that can be read only once; a tensor or a mapping
            in place of a list of them.
        StateError: no batches; a single value per channel in all; statistics that are not finite, or not in the dtype
            of the norm's buffers (a variance above 65504 in float16); norms that do not know their size yet; a model
            on the meta device; an error on another rank. After any error, also one of the model or the loader, the
            model is as it was.

    Example:
        >>> import torch, normkit
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(1), torch.nn.Dropout())
        >>> report = normkit.recalibrate(model, [torch.tensor([[1.0], [2.0]]), torch.tensor([[6.0]])])
        >>> model[0].running_mean, model[0].running_var  # of 1, 2 and 6
        (tensor([3.]), tensor([7.]))

    Source: Wu & Johnson 2021, Rethinking "Batch" in BatchNorm, arXiv:2105.07576, section 3; Chan, Golub & LeVeque 1983,
    Algorithms for Computing the Sample Variance.
    """
    if whole_number("phases", phases) < 1:
        raise ArgumentError(f"phases must be at least 1, got {phases}: use 1 for the statistics of training's inputs")
    check_batches("the data of recalibrate", batches)
    if phases > 1 and iter(batches) is batches:
        raise ArgumentError(
            f"phases={phases} reads the batches {phases} times, got a {type(batches).__name__}, which can be read "
            "once: give a list or a DataLoader"
        )
    model = unwrapped(model)
    every = {name: norm for name, norm in norms_of_statistics(model).items() if statistics_of(norm)}
    norms = {name: norm for name, norm in every.items() if not is_frozen(norm)}
    for name, norm in norms.items():
        if any(isinstance(statistic, UninitializedBuffer) for statistic in statistics_of(norm).values()):
            raise StateError(f"recalibrate needs norms that know their size, {name!r} does not: call the model once")
    check_values("recalibrate", norms.items())
    if not norms:
        return Recalibration(tuple(_row(name, norm, "frozen") for name, norm in every.items()), 0, 0)

    step = forward or call_on_first
    old = {norm: _state(norm) for norm in norms.values()}
    moments: dict[nn.Module, RunningMoments] = {}
    groups: list[list[nn.Module]] = [list(norms.values())]
    # A compiled graph may not know hooks that came later.
    with keeping_modes(model) as modes, torch.no_grad(), torch.compiler.set_stance("force_eager"):
        try:
            for phase in range(phases):
                if phase >= len(groups):
                    break
                still_open = {norm for group_ in groups[phase:] for norm in group_}
                for module in modes:
                    module.training = module in still_open
                named = {name: norm for name, norm in norms.items() if norm in still_open}
                read, new = collect(model, named, with_progress(batches, progress), step, device, group)
                moments |= new
                _put_back({norm: old[norm] for norm in still_open})
                _install(named, moments, read)
                if phase == 0:
                    groups = _groups(moments, phases)
        except BaseException:
            _put_back(old)
            raise

    exact = {members[0] for members in groups}
    rows = []
    for name, norm in every.items():
        if norm not in old:
            rows.append(_row(name, norm, "frozen"))
        elif not (seen := moments[norm]).calls:
            rows.append(_row(name, norm, "not reached"))
        else:
            rows.append(
                _row(
                    name, norm, "new", seen.elements, *_distance(norm, old[norm]), norm in exact and seen.calls <= read
                )
            )
    return Recalibration(tuple(rows), read, max(len(groups), 1))


def _groups(moments: Mapping[nn.Module, RunningMoments], phases: int) -> list[list[nn.Module]]:
    """The norms that were reached, in the order of their first call, in as many groups as phases."""
    order = sorted((norm for norm in moments if moments[norm].calls), key=lambda norm: moments[norm].first)
    count = min(phases, len(order))
    return [order[len(order) * i // count : len(order) * (i + 1) // count] for i in range(count)]


def _row(name: str, norm: nn.Module, outcome: str, *figures: Any) -> RecalibratedNorm:
    return RecalibratedNorm(name, type(norm).__name__, outcome, *figures)


def _state(norm: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)}


def _put_back(states: Mapping[nn.Module, Mapping[str, Tensor]]) -> None:
    """In place, because others may hold the same tensors."""
    with torch.no_grad():
        for norm, state in states.items():
            for name, buffer in norm.named_buffers(recurse=False):
                buffer.copy_(state[name])


def _install(norms: Mapping[str, nn.Module], moments: Mapping[nn.Module, RunningMoments], read: int) -> None:
    for name, norm in norms.items():
        seen = moments[norm]
        if not seen.calls:
            continue
        if seen.pooled and seen.elements < 2:
            raise StateError(
                f"a statistic needs two values per channel, {name!r} got one from {read} batches: give more"
            )
        found = seen.result()
        if not all(bool(statistic.isfinite().all()) for statistic in found.values()):
            raise StateError(
                f"statistics must be finite, those of {name!r} are not after {read} batches: look for nan or inf in "
                "its inputs, or single positions in an instance norm; the model is as it was"
            )
        write(name, norm, found)
        if isinstance(norm, PowerNorm):
            # No input says what it is; one that is not finite would stay so in training.
            nu = norm.running_gradient
            nu.copy_(torch.where(nu.isfinite(), nu, 0))
        elif isinstance(counter := getattr(norm, "num_batches_tracked", None), Tensor):
            counter.fill_(seen.calls)


def _distance(norm: Any, old: Mapping[str, Tensor]) -> tuple[float, float]:
    """Largest shift of a mean in standard deviations, and largest factor between variances."""
    new = {name: statistic.double() for name, statistic in statistics_of(norm).items()}
    before = {name: old[name].double() for name in new}
    shift = new["running_mean"] - before["running_mean"] if "running_mean" in new else torch.zeros(1)
    if isinstance(norm, IterNorm):
        whitening, other = new["running_whitening"], before["running_whitening"]
        shift = whitening @ shift.view(len(whitening), -1, 1)
        # Of data with the new covariance the old matrix makes a covariance with these eigenvalues.
        finite = bool(other.isfinite().all())
        ratio = torch.linalg.svdvals(torch.linalg.solve(whitening, other)).square() if finite else other
    else:
        # The last statistic is the variance, or the quadratic mean of power norm.
        var, var_before = ([*each.values()][-1] + norm.eps for each in (new, before))
        shift, ratio = shift.to(var) / var.sqrt(), var_before / var
    return float(shift.abs().max()), float(torch.maximum(ratio, 1 / ratio).max())
