"""Batch norms folded into the layers before them, for training with quantized weights."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from torch import fx, nn

from normkit.errors import ArgumentError, DtypeError, nearest
from normkit.parametrize.checks import check_values
from normkit.tools.fold_training.exported import GraphPair, is_exported, pairs_in
from normkit.tools.fold_training.layer import FoldedNorm, Quantizer, TrainableFold, make_fold
from normkit.tools.fold_training.pairs import Pairs, children_of
from normkit.tools.fold_training.report import FoldTrainingReport, Pair
from normkit.tools.model.frozen import is_frozen
from normkit.tools.model.names import Where, chosen
from normkit.tools.model.refusal import Refusal, RefusedError, refuse_strictly
from normkit.tools.model.tree import copy_of, norms, replace
from normkit.tools.model.wrapped import refuse_wrapped

M = TypeVar("M", bound=nn.Module)

STATISTICS = ("live", "frozen")


def fold_for_training(
    model: M,
    example: Any,
    *,
    weight_fake_quant: Quantizer | None = None,
    statistics: Literal["live", "frozen"] = "live",
    where: Where = None,
    inplace: bool = False,
    strict: bool = False,
) -> tuple[M, FoldTrainingReport]:
    """Fold batch norms into the layers before them, and keep both trainable, for quantization-aware training.

    Each layer ``W x + b`` with a batch norm after it becomes one module, a `TrainableFold`: it computes with the weight
    ``W * gamma / sqrt(var + eps)``, as an integer kernel will, and passes this weight through a fake quantizer. The
    norm's place is taken by a `FoldedNorm`. Both keep the parameters and statistics, under the same keys of the state
    dict. `normkit.finish` makes plain layers of the result.

    Args:
        model: a module, or the `torch.fx.GraphModule` that ``torch.export.export(...).module()`` returns. In a graph
            the layers become modules again, and the pairs are found in it, not by the example.
        example: a tensor, a tuple of positional or a mapping of keyword arguments; None is enough for a graph.
        weight_fake_quant: rounds the folded weight and returns it in its own shape and dtype, with a gradient. Of a
            module, such as `torch.ao.quantization.FakeQuantize`, each layer gets a copy; a function is used by all.
            None for no rounding.
        statistics: ``"live"``: in training each batch is normalized by its own mean and variance, which update the
            running ones. ``"frozen"``: the running statistics are used, and stay; `TrainableFold.freeze_statistics`
            does that later.
        where: names or patterns of names of norms, or a function of name and module; None for all.
        inplace: whether to change the model itself and not a copy.
        strict: whether to raise where a norm stays.

    Returns:
        The changed model and the report. Parameters stay the same objects, so with `inplace` an optimizer stays valid.

    Raises:
        ArgumentError: another `statistics`, a pattern of `where` that fits no norm.
        DtypeError, ShapeError: the quantizer is not callable, or returns something else than such a weight.
        StateError: with `strict`, a norm that stays; a model on the meta device, in a wrapper for several processes,
            or one that cannot be copied. In every case the model is as it was.

    Example:
        >>> import torch, normkit
        >>> def in_eighths(weight):
        ...     return weight + ((weight * 8).round() / 8 - weight).detach()
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
        >>> x = torch.randn(2, 3, 5, 5)
        >>> trained, report = normkit.fold_for_training(model, x, weight_fake_quant=in_eighths)
        >>> print(report)
        1: folded into 0 while training
        >>> trained(x).sum().backward()
        >>> finished = normkit.finish(trained.eval())
        >>> torch.equal(finished[0].weight * 8, (finished[0].weight * 8).round())
        True

    Source: Krishnamoorthi 2018, arXiv:1806.08342, section 3.2.2; Jacob et al. 2018, arXiv:1712.05877, section 3.2.
    """
    if statistics not in STATISTICS:
        raise ArgumentError(
            f"statistics must be 'live' or 'frozen', got {statistics!r}: {nearest(str(statistics), STATISTICS)}"
        )
    if weight_fake_quant is not None and not callable(weight_fake_quant):
        raise DtypeError(
            f"weight_fake_quant must be callable with a weight, got {type(weight_fake_quant).__name__}: "
            "give a function or a module"
        )
    refuse_wrapped(model, "fold_for_training")
    check_values("fold_for_training", model.named_modules())
    if not inplace:
        model = copy_of(model)
    options = (weight_fake_quant, statistics == "frozen", where, strict)
    if isinstance(model, fx.GraphModule) and is_exported(model):
        return model, _in_graph(model, *options)
    return model, _in_modules(model, example, *options)


def _in_modules(
    model: nn.Module, example: Any, quantizer: Quantizer | None, frozen: bool, where: Where, strict: bool
) -> FoldTrainingReport:
    found = {place.module: (place, info) for place, info in norms(model) if info.over_samples or info.running}
    wanted = set(chosen(model, {place.name: norm for norm, (place, _) in found.items()}, where).values())
    pairs = Pairs(model, found, example)
    new: dict[nn.Module, nn.Module] = {}
    rows: list[Pair] = []
    refusals: list[Refusal] = []
    for norm, (place, _) in found.items():
        if norm not in wanted:
            continue
        try:
            layer = pairs.layer_of(norm)
        except RefusedError as reason:
            refusals.append(Refusal(place.name, type(norm).__name__, str(reason)))
            continue
        kept = FoldedNorm(norm, children_of(norm), frozen or is_frozen(norm))
        new |= {norm: kept, layer: make_fold(layer, kept, quantizer)}
        rows.append(Pair(pairs.names[layer], place.name))
    refuse_strictly(strict, refusals)
    replace(model, new)
    return FoldTrainingReport(tuple(rows), tuple(refusals), pairs.graph)


def _in_graph(
    model: fx.GraphModule, quantizer: Quantizer | None, frozen: bool, where: Where, strict: bool
) -> FoldTrainingReport:
    found = pairs_in(model)
    modules = dict(model.named_modules())
    wanted = chosen(model, {name: modules.get(name, model) for name in found}, where)
    made: dict[GraphPair, TrainableFold] = {}
    refusals: list[Refusal] = []
    for name, pair in found.items():
        if name not in wanted:
            continue
        try:
            if isinstance(pair, RefusedError):
                raise pair
            made[pair] = make_fold(pair.made_layer(), pair.made_norm(frozen), quantizer)
        except RefusedError as reason:
            refusals.append(Refusal(name, "batch_norm", str(reason)))
    refuse_strictly(strict, refusals)
    for pair, fold in made.items():
        pair.rewrite(fold)
    # The graph of an exported program refuses to change its mode, in which its norms were fixed.
    for method in ("train", "eval") if made else ():
        vars(model).pop(method, None)
    model.recompile()
    rows = tuple(Pair(pair.layer_name, pair.norm_name) for pair in made)
    return FoldTrainingReport(rows, tuple(refusals), graph=True)
