"""Measures the harm for NK109 to NK112, NK310 to NK313 and NK404 to NK409, for `benchmarks.audit_harm`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from benchmarks.harm.experiments import Result, accuracy, against, digits, fit, mean_of, net, variances
from normkit.tools.audit.examples import Branch, HalfNorm


def nk109() -> Result:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    model, message = nn.parallel.DistributedDataParallel(Branch(used=False)), ""
    try:
        for _ in range(2):
            model(torch.randn(4, 8)).sum().backward()
    except RuntimeError as error:
        message = str(error).split(".")[0]
    finally:
        torch.distributed.destroy_process_group()
    free = model.module.norm.weight.grad is None
    return (
        f"After backward its weight has {'no' if free else 'a'} gradient; the second step in "
        f"DistributedDataParallel {f'raises: {message}' if message else 'works'}.",
        {"raises": message, "no_gradient": free},
    )


def nk110() -> Result:
    def gain(spread: float) -> float:
        layer, norm, x = spectral_norm(nn.Linear(64, 64)), nn.BatchNorm1d(64), spread * torch.randn(512, 64)
        for _ in range(100):
            norm(layer(x))
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()  # type: ignore[operator]
        return float(torch.linalg.matrix_norm(scale[:, None] * layer.weight, 2).detach())

    one, tenth = gain(1.0), gain(0.1)
    return (
        f"A linear layer with spectral norm 1 and the batch norm after it stretch inputs by up to {one:.1f}, "
        f"and by {tenth:.0f} after inputs of a tenth of the size.",
        {"gain": one, "gain_small": tenth},
    )


def nk111() -> Result:
    x = torch.randn(512, 5, 16) * torch.logspace(-1, 1, 16)

    def spread(norm: nn.Module, x: Tensor) -> float:
        low, high = norm(x).detach().transpose(1, -1).flatten(2).transpose(0, 1).flatten(1).std(1).aminmax()
        return float(high / low)

    over_time = spread(nn.BatchNorm1d(5), x)
    y = nn.BatchNorm1d(16)(x.transpose(1, 2)).detach().transpose(0, 1).flatten(1).std(1)
    over_features = float(y.max() / y.min())
    return (
        f"Features whose deviations differ by a factor of 100 differ by {over_time:.0f} after a norm over time, by "
        f"{over_features:.2f} after one of the features; and another length than 5 is refused.",
        {"over_time": over_time, "over_features": over_features},
    )


def nk112() -> Result:
    torch.manual_seed(0)
    pairs = [variances(nn.Sequential(nn.Dropout(rate), nn.AvgPool2d(2))) for rate in (0.5, 0.0)]
    (ratio, right), (plain, right_plain) = pairs
    return (
        f"Running variance over true variance, in evaluation: {ratio:.2f} with dropout 0.5 and a pool before, "
        f"{plain:.2f} with the pool alone ({right:.1f}% and {right_plain:.1f}% of the digits right).",
        {"ratio": ratio, "plain": plain, "right": right, "right_plain": right_plain},
    )


def nk310() -> Result:
    def run(**options: float) -> float:
        return mean_of(lambda: accuracy(fit(net(lambda c: nn.BatchNorm2d(c, **options)), steps=20)))

    norm, x = nn.BatchNorm2d(8, 0.8), 0.1 * torch.randn(64, 8, 8, 8)
    out = float(norm(x).detach().std())
    sentence, numbers = against(run(eps=0.8), run(momentum=0.8), "after 20 steps with eps 0.8", "with momentum 0.8")
    return f"Inputs of std 0.1 come out with std {out:.2f}. {sentence}", numbers | {"std": out}


def nk311() -> Result:
    x, _, _, _ = digits()

    def swing(momentum: float) -> list[float]:
        torch.manual_seed(0)
        model, right = fit(net(lambda c: nn.BatchNorm2d(c, momentum=momentum)), steps=150), []
        for _ in range(20):
            with torch.no_grad():
                model.train()(x[torch.randint(len(x), (8,))])
            right.append(accuracy(model))
        return [min(right), max(right)]

    bad, good = swing(1.0), swing(0.1)
    return (
        f"A trained net is shown 20 batches of 8 digits, without a step of the optimizer: from batch to batch "
        f"{bad[0]:.1f}% to {bad[1]:.1f}% of the digits are right with momentum 1, {good[0]:.1f}% to {good[1]:.1f}% "
        "with 0.1.",
        {"one": bad, "tenth": good},
    )


class Residual(nn.Module):
    """A branch that begins at zero."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        nn.init.zeros_(self.norm.weight)
        self.norm.requires_grad_(not frozen)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.norm(self.conv(x))
        return y


def nk312() -> Result:
    def change(frozen: bool) -> float:
        torch.manual_seed(0)
        block = Residual(frozen)
        before = block.conv.weight.detach().clone()
        fit(net(nn.BatchNorm2d, between=block))
        return float((block.conv.weight.detach() - before).norm() / before.norm())

    frozen, trained = change(True), change(False)
    return (
        f"60 steps change the convolution of a residual branch by {100 * frozen:g}% if the zero after it is frozen, "
        f"by {100 * trained:.0f}% if it is trained.",
        {"frozen": frozen, "trained": trained},
    )


def nk313() -> Result:
    norm = HalfNorm(8, 1e-5)
    right = float(norm(torch.full((1, 8), 300.0)).detach().max())
    half = float(norm.half()(torch.full((1, 8), 300.0).half()).detach().max())
    return f"A row of values of 300 comes out as {right:.2f} in float32, and as {half:g} in float16.", {
        "float32": right,
        "float16": half,
    }


def nk404() -> Result:
    norm, x = nn.BatchNorm1d(4), torch.randn(8, 4)
    other = x.clone()
    other[1:] = torch.randn(7, 4)
    change = float((norm(x)[0] - norm(other)[0]).detach().abs().max())
    group = nn.GroupNorm(1, 4)
    same = float((group(x)[0] - group(other)[0]).detach().abs().max())
    return (
        f"Other samples in the batch change the output of one by {change:.2f} with batch norm, "
        f"{same:g} with group norm.",
        {
            "batch": change,
            "group": same,
        },
    )


def nk405() -> Result:
    norm, x = nn.GroupNorm(2, 8), torch.randn(1, 8, 10)
    alone, padded = norm(x).detach(), norm(F.pad(x, (0, 30))).detach()[..., :10]
    change = float((alone - padded).norm() / alone.norm())
    return f"The same 10 positions, padded to 40: group norm's output changes by {100 * change:.0f}%.", {
        "change": change
    }


def _without(of_norms: bool, steps: int) -> float:
    model = net(nn.BatchNorm2d)
    for module in model:
        if of_norms and isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    return accuracy(fit(model, steps=steps))


def nk406() -> Result:
    bad, good = (mean_of(lambda left=left: _without(left, 20)) for left in (True, False))
    return against(bad, good, "after 20 steps with the norms left out", "with all parameters")


def nk407() -> Result:
    def scale(decay: float) -> tuple[float, float]:
        torch.manual_seed(0)
        model = net(lambda c: nn.Identity(), bias=True)
        layers = [weight_norm(layer) for layer in model if isinstance(layer, nn.Conv2d)]
        lengths = [layer.parametrizations.weight.original0 for layer in layers]  # type: ignore[union-attr]
        rest = [p for p in model.parameters() if all(p is not g for g in lengths)]
        groups: list[dict[str, Any]] = [{"params": lengths, "weight_decay": decay}, {"params": rest}]
        optimizer = torch.optim.SGD(groups, 0.05, momentum=0.9, weight_decay=0.05)
        x, y, _, _ = digits()
        for _ in range(200):
            pick = torch.randint(len(x), (64,))
            optimizer.zero_grad()
            F.cross_entropy(model(x[pick]), y[pick]).backward()
            optimizer.step()
        return float(torch.cat([g.detach().flatten() for g in lengths]).mean()), accuracy(model)

    (decayed, bad), (free, good) = scale(0.05), scale(0.0)
    return (
        f"Mean length after 200 steps with weight decay 0.05: {decayed:.2f} if it is decayed, {free:.2f} if not "
        f"({bad:.1f}% and {good:.1f}% of the digits right).",
        {"decayed": decayed, "free": free, "bad": bad, "good": good},
    )


def nk408() -> Result:
    torch.manual_seed(0)
    model = fit(net(lambda c: nn.BatchNorm2d(c, track_running_stats=False)))
    _, _, test, y = digits()
    with torch.no_grad():
        model.eval()
        right = [model(a).argmax(1) == b for a, b in zip(test.split(2), y.split(2), strict=True)]
    few, all_of_them = 100 * float(torch.cat(right).float().mean()), accuracy(model)
    return f"Digits: {few:.1f}% right when two are evaluated at a time, {all_of_them:.1f}% all at once.", {
        "two": few,
        "all": all_of_them,
    }


def nk409() -> Result:
    x, y, test, _ = digits()

    def right(mixed: bool) -> float:
        torch.manual_seed(0)
        model = net(nn.BatchNorm2d)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        model.train()
        for step in range(60):
            pick, bright = torch.randint(len(x), (64,)), torch.rand(64) < 0.5 if mixed else torch.tensor(step % 2 == 1)
            optimizer.zero_grad()
            F.cross_entropy(model(x[pick] + 5 * bright.view(-1, 1, 1, 1)), y[pick]).backward()
            optimizer.step()
        return (accuracy(model, test) + accuracy(model, test + 5)) / 2

    bad, good = mean_of(lambda: right(False)), mean_of(lambda: right(True))
    return against(bad, good, "with dark and bright batches in turn", "with both in each batch")


MEASURES: dict[str, Callable[[], Result]] = {name: f for name, f in globals().items() if name.startswith("nk")}
