"""Measures the harm that each rule of ``normkit audit`` warns of: ``python -m benchmarks.audit_harm [NK301 ...]``.

Small networks, synthetic data or scikit-learn's digits, fixed seeds; it takes seconds. The pages in docs/en/audit and
docs/zh/audit quote benchmarks/results/audit_harm.json.
"""

from __future__ import annotations

import copy
import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from benchmarks.harm.experiments import SEEDS, Result, accuracy, against, digits, fit, mean_of, net, variances
from benchmarks.harm.later_rules import MEASURES
from benchmarks.speed.measure import RESULTS
from normkit.tools.audit.examples import HalfNorm


def nk101() -> Result:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)).double()
    model(torch.randn(8, 3, 8, 8).double()).square().sum().backward()
    bias, weight = (float(p.grad.abs().max()) for p in (model[0].bias, model[0].weight))  # type: ignore[union-attr]
    return f"Largest gradient of the bias {bias:.1g}, of the weight {weight:.1g} (float64): only rounding error.", {
        "bias": bias,
        "weight": weight,
    }


def nk102() -> Result:
    x = torch.randn(64, 256)
    one, two = nn.LayerNorm(256), nn.Sequential(nn.LayerNorm(256), nn.LayerNorm(256))
    apart = float((one(x) - two(x)).detach().abs().max())
    norm = float(one(x).detach().abs().max())
    sentence = (
        f"New, two layer norms give what one gives within {apart:.1g} of values up to {norm:.1f}: "
        f"the second is only extra work."
    )
    return sentence, {"difference": apart, "largest": norm}


def nk103() -> Result:
    def make(before: bool) -> nn.Module:
        pairs = [[nn.BatchNorm2d(16), nn.ReLU()] for _ in range(2)]
        first, second = pairs if before else [pair[::-1] for pair in pairs]
        convs = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        return nn.Sequential(
            convs[0], *first, convs[1], *second, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)
        )

    scores = [mean_of(lambda b=b: accuracy(fit(make(b)))) for b in (False, True)]
    return against(
        *scores, "with the norm after the activation", "before it; no harm is claimed here, the rule is info"
    )


def nk104() -> Result:
    torch.manual_seed(0)
    (ratio, right), (plain, right_plain) = variances(nn.Dropout(0.5)), variances(nn.Dropout(0.0))
    return (
        f"Running variance over true variance, in evaluation: {ratio:.2f} with dropout 0.5 before, "
        f"{plain:.2f} without ({right:.1f}% and {right_plain:.1f}% of the digits right).",
        {"ratio": ratio, "plain": plain, "right": right, "right_plain": right_plain},
    )


def nk105() -> Result:
    conv, norm = weight_norm(nn.Conv2d(3, 8, 3).double()), nn.BatchNorm2d(8, eps=1e-12).double()
    (norm(conv(torch.randn(8, 3, 8, 8).double())) * torch.randn(8, 8, 6, 6).double()).sum().backward()
    g, v = (float(p.grad.abs().max()) for p in conv.parametrizations.weight.parameters())
    return f"Largest gradient of g {g:.1g}, of v {v:.1g} (float64, eps 1e-12): g cannot learn.", {"g": g, "v": v}


def nk106() -> Result:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = nn.utils.weight_norm(nn.Linear(8, 8))
    layer(torch.randn(2, 8))
    try:
        copy.deepcopy(layer)
        message = ""
    except RuntimeError as error:
        message = str(error).split(".")[0]
    text = f"copy.deepcopy after a forward raises: {message}." if message else "copy.deepcopy works here."
    return text, {"raises": message}


def nk107() -> Result:
    norm = nn.BatchNorm1d(8)
    first, second = torch.randn(4000, 8), 3 * torch.randn(4000, 8) + 5
    for _ in range(100):
        norm(first), norm(second)
    norm.eval()
    means = [float(norm(x).mean().detach()) for x in (first, second)]
    return (
        f"Two domains with means 0 and 5 share one: in evaluation their outputs have means "
        f"{means[0]:.2f} and {means[1]:.2f}, "
        "in training both 0.",
        {"first": means[0], "second": means[1]},
    )


def nk108() -> Result:
    norm, x = nn.LayerNorm(16), torch.randn(4, 16, 16, 16) * torch.logspace(-1, 1, 16)[None, :, None, None]
    spread = [float(v) for v in (norm(x).detach().transpose(0, 1).flatten(1).std(1).aminmax())]
    row = x.clone()
    row[:, :, 0] += 5
    change = float((norm(row) - norm(x)).detach().abs().max())
    return (
        f"A row made brighter by 5 everywhere changes the output by {change:.1g}: the brightness of rows is lost.",
        {"changed": change, "std": spread},
    )


def nk201() -> Result:
    def wander(count: int) -> float:
        x = torch.randn(4000, count, 8)
        x[:, 0] = 1.0
        normed = F.batch_norm(x.transpose(0, 1).reshape(count, -1), None, None, training=True)[0]
        return float(normed.std())

    few, many = wander(4), wander(64)
    return (
        f"The output for one and the same sample varies by {few:.2f} std with 3 other elements in its batch, "
        f"by {many:.2f} with 63.",
        {"of_4": few, "of_64": many},
    )


def nk202() -> Result:
    x = torch.randn(64, 4, requires_grad=True)
    z = nn.GroupNorm(4, 4)(x)
    z.sum().backward()
    largest, grad = float(z.detach().abs().max()), float(x.grad.abs().max())  # type: ignore[union-attr]
    return f"GroupNorm(4, 4) on 64 random rows: largest output {largest:g}, largest gradient {grad:g}.", {
        "output": largest,
        "gradient": grad,
    }


def nk203() -> Result:
    x = torch.randn(4096, 8)
    y = nn.GroupNorm(4, 8)(x).detach().abs()
    share = 100 * float(((y - 1).abs() < 0.01).float().mean())
    return f"GroupNorm(4, 8) on 4096 random rows: {share:.1f}% of the outputs are within 0.01 of -1 or 1.", {
        "share": share
    }


def _broken(change: Callable[[nn.Module], None]) -> tuple[float, float]:
    good, bad = [], []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        model = fit(net(nn.BatchNorm2d))
        good.append(accuracy(model))
        change(model)
        bad.append(accuracy(model))
    return round(sum(bad) / SEEDS, 1), round(sum(good) / SEEDS, 1)


def nk301() -> Result:
    bad, good = _broken(lambda model: model[5].reset_running_stats())  # type: ignore[index]
    every, _ = _broken(lambda model: [model[index].reset_running_stats() for index in (1, 5)])  # type: ignore[index]
    sentence, numbers = against(bad, good, "with the second norm's statistics at 0 and 1", "with its own")
    return f"{sentence} With those of both norms: {every:.1f}%.", numbers | {"every": every}


def nk302() -> Result:
    _, _, test, _ = digits()
    model = fit(net(nn.BatchNorm2d))
    good, bad = accuracy(model), accuracy(model, test * 6 + 4.9)
    again = accuracy(model, test * 6 + 4.9, training=True)
    return (
        f"Digits evaluated without the scaling of training: {bad:.1f}% right, {good:.1f}% with it; "
        f"{again:.1f}% without it "
        "when the norms use the batch.",
        {"bad": bad, "good": good, "batch": again},
    )


def nk303() -> Result:
    def run(momentum: float) -> float:
        return mean_of(lambda: accuracy(fit(net(lambda c: nn.BatchNorm2d(c, momentum=momentum)), steps=20)))

    return against(run(0.001), run(0.1), "after 20 steps with momentum 0.001", "with 0.1")


def nk304() -> Result:
    norm = nn.BatchNorm1d(1)
    for _ in range(200):
        norm(torch.zeros(64, 1))
    y = float(norm.eval()(torch.tensor([[0.1]])).detach())
    return f"A channel that was always 0 and then is 0.1 becomes {y:.1f}.", {"output": y}


def nk305() -> Result:
    x = torch.tensor([70000.0])
    lost = abs(float(x - x.bfloat16().float()))
    numbers = {"half": str(float(x.half())), "lost": lost}
    return f"70000 in float16 is {numbers['half']}; in bfloat16 it is off by {lost:g}.", numbers


def nk306() -> Result:
    norm = nn.BatchNorm1d(4)
    norm(torch.full((8, 4), float("inf")))
    for _ in range(1000):
        norm(torch.randn(8, 4))
    bad = int((~norm.eval()(torch.randn(8, 4)).isfinite()).sum())
    return f"One infinite batch and 1000 good ones later, {bad} of 32 outputs are not finite.", {"bad": bad}


def nk307() -> Result:
    bad = [int((~HalfNorm(8, eps).half()(torch.zeros(2, 8).half()).isfinite()).sum()) for eps in (1e-8, 1e-5)]
    return f"A row of zeros in float16: {bad[0]} of 16 outputs are NaN with eps=1e-8, {bad[1]} with 1e-5.", {"nan": bad}


def nk308() -> Result:
    def run(momentum: float) -> float:
        return mean_of(lambda: accuracy(fit(net(lambda c: nn.BatchNorm2d(c, momentum=momentum)), batch=8, steps=150)))

    def error(momentum: float) -> float:
        norm = nn.BatchNorm1d(64, momentum=momentum)
        for _ in range(200):
            norm(torch.randn(8, 64))
        return 100 * float((norm.running_var - 1).std())  # type: ignore[operator]

    bad, good, off, near = run(0.99), run(0.1), error(0.99), error(0.1)
    return (
        f"With batches of 8 values the running variance errs by {off:.0f}% with momentum 0.99, by "
        f"{near:.0f}% with 0.1. "
        f"Digits, {SEEDS} seeds, batches of 8 images: {bad:.1f}% right with 0.99, {good:.1f}% with 0.1.",
        {"error": off, "error_good": near, "bad": bad, "good": good},
    )


def nk309() -> Result:
    def run(momentum: float) -> float:
        return mean_of(lambda: accuracy(fit(net(lambda c: nn.BatchNorm2d(c, momentum=momentum)))))

    return against(run(0.0), run(0.1), "with momentum 0", "with 0.1")


def nk401() -> Result:
    def scale(all_of_it: bool) -> float:
        torch.manual_seed(0)
        model, norms = net(nn.BatchNorm2d), []
        norms = [p for m in model if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
        rest = [p for p in model.parameters() if all(p is not n for n in norms)]
        groups = [{"params": norms, "weight_decay": 0.05 if all_of_it else 0.0}, {"params": rest}]
        optimizer = torch.optim.SGD(groups, 0.05, momentum=0.9, weight_decay=0.05)
        x, y, _, _ = digits()
        for _ in range(200):
            pick = torch.randint(len(x), (64,))
            optimizer.zero_grad()
            F.cross_entropy(model(x[pick]), y[pick]).backward()
            optimizer.step()
        return float(model[1].weight.detach().abs().mean())  # type: ignore[union-attr]

    with_decay, without = scale(True), scale(False)
    return (
        f"Mean scale of the first norm after 200 steps with weight decay 0.05: {with_decay:.2f} if it is decayed, "
        f"{without:.2f} if not.",
        {"decayed": with_decay, "free": without},
    )


def nk402() -> Result:
    torch.manual_seed(0)
    model = fit(net(nn.BatchNorm2d))
    _, _, test, _ = digits()
    before = model.eval()[:7](test).detach()
    model.requires_grad_(False).train()
    for _ in range(50):
        model(3 * test[:64] + 1)
    after = model.eval()[:7](test).detach()
    change = float((after - before).norm() / before.norm())
    return (
        f"With all parameters frozen, 50 forwards on other data in train mode change the features by "
        f"{100 * change:.0f}%.",
        {"change": change},
    )


def nk403() -> Result:
    x = torch.randn(4000, 32, 8)
    ranks = x.view(4000, 8, 4, 8).mean(2).std(1).mean()
    return (
        f"32 samples on 8 ranks: the means that the ranks subtract differ by {float(ranks):.2f} std, "
        "and by 0 if synchronized.",
        {"std": float(ranks)},
    )


def main() -> None:
    torch.set_num_threads(1)
    path = RESULTS / "audit_harm.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["rules"] if len(sys.argv) > 1 else {}
    for name, measure in [*[(n, f) for n, f in globals().items() if n.startswith("nk")], *MEASURES.items()]:
        if len(sys.argv) > 1 and name.upper() not in sys.argv:
            continue
        torch.manual_seed(0)
        start = time.perf_counter()
        sentence, numbers = measure()
        results[name.upper()] = {"said": sentence, "numbers": numbers}
        print(f"{name.upper()} ({time.perf_counter() - start:.1f} s) {sentence}")
    text = json.dumps({"torch": torch.__version__, "rules": dict(sorted(results.items()))}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
