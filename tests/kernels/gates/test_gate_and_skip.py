"""Gate and skip in the CPU kernels, in every walk and dtype: against a norm composed of torch functions in float64."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from normkit.kernels import operator
from normkit.kernels.formula import Arguments
from normkit.kernels.native import native

FUNCTIONS = {
    "none": lambda g: g, "relu": F.relu, "leaky_relu": F.leaky_relu, "silu": F.silu, "gelu": F.gelu,
    "gelu_tanh": lambda g: F.gelu(g, approximate="tanh"), "sigmoid": torch.sigmoid, "tanh": torch.tanh,
    "plus_one": lambda g: 1 + g,
}  # fmt: skip
KINKED = ("relu", "leaky_relu")
# Rows that are transposed, side by side, in stages, by spans and split; columns of few and many rows, joined, by rows.
CASES = [
    ("... [c]", (5, 12)), ("... [c]", (37, 96)), ("... [c]", (6, 768)), ("... [c]", (3, 5000)), ("... [c]", (1, 70000)),
    ("[b] c [...]", (3, 8, 5, 7)), ("[b] c [...]", (4, 64, 9, 3)), ("[b] c [...]", (2, 6, 40, 33)),
    ("b c [...]", (3, 8, 5, 7)), ("b c [...]", (1, 4, 200, 200)), ("b (g=2 [c]) [...]", (2, 130, 8, 20)),
    ("b [c] [...]", (3, 8, 5, 7)), ("b [c] ...", (2, 130, 8, 20)), ("b [c] ...", (4, 64, 9, 3)),
]  # fmt: skip
LAYOUTS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

pytestmark = pytest.mark.skipif(native().kernels is None, reason="no compiled kernels")


class Case(NamedTuple):
    what: tuple[str, tuple[int, ...]]
    layout: torch.memory_format
    dtype: torch.dtype
    form: str
    gate: str
    activation: str
    extra: str
    affine: bool
    center: bool


CHOICES = (
    CASES, LAYOUTS, DTYPES, ["gate", "gate_first", "skip", "gate and skip", "gate_first and skip"], [*FUNCTIONS],
    [*FUNCTIONS][:-1], ["", "mask", "residual", "mask and residual", "given"], [True, False], [True, False],
)  # fmt: skip


def standardized(
    s: Tensor, pattern: str, valid: Tensor, given: tuple[Tensor, Tensor] | None, center: bool
) -> tuple[Tensor, float]:
    """x_hat over the valid elements, and the least deviation; the dimensions of each pattern written out."""
    shape = s.shape
    if "g=2" in pattern:
        s, valid = (t.reshape(shape[0], 2, shape[1] // 2, *shape[2:]) for t in (s, valid))
    dims = {
        "... [c]": [-1], "[b] c [...]": [0, 2, 3], "b c [...]": [2, 3], "b (g=2 [c]) [...]": [2, 3, 4],
        "b [c] [...]": [1, 2, 3], "b [c] ...": [1],
    }[pattern]  # fmt: skip
    if given is not None:
        mean, var = (t.double().reshape([1, -1, 1, 1] if pattern == "[b] c [...]" else [-1, 1]) for t in given)
    else:
        count = valid.sum(dims, keepdim=True)
        mean = (s * valid).sum(dims, keepdim=True) / count.clamp(min=1) if center else torch.zeros(())
        var = ((s - mean) * valid).square().sum(dims, keepdim=True) / count.clamp(min=1)
        var = torch.where(count > 0, var, 1)
    std = (var + 1e-5).sqrt()
    return ((s - mean) / std).reshape(shape), std.min().item()


def check(case: Case) -> None:
    (pattern, shape), layout, dtype, form, function, activation, extra, affine, center = case
    rows, first, gated = pattern == "... [c]", "first" in form, "gate" in form
    given_cells = shape[1] if pattern == "[b] c [...]" else shape[0] if rows else 0
    channels = len(shape) - 1 if rows else 1
    per_channel = [size if dim == channels else 1 for dim, size in enumerate(shape)]
    mask = None
    valid = torch.ones(shape, dtype=torch.bool)
    if "mask" in extra:
        mask = torch.rand([1 if dim == channels else size for dim, size in enumerate(shape)]) > 0.4
        valid = mask.expand(shape)

    def draw(times: float = 1, shift: Tensor | float = 0) -> Tensor:
        t = torch.where(valid, times * torch.randn(shape) + shift, torch.nan).to(dtype)
        return t if rows else t.contiguous(memory_format=layout)

    leaves = {"x": draw(2, torch.randn(per_channel))}
    leaves |= {name: draw() for name in ("gate", "skip") if name in form}
    if "residual" in extra and not first:
        leaves["residual"] = draw()
    if affine:
        leaves |= {name: torch.randn(shape[channels]).to(dtype) for name in ("weight", "bias")}
    stat = torch.float64 if dtype is torch.float64 else torch.float32
    given = None
    if extra == "given" and given_cells:
        given = (torch.randn(given_cells, dtype=stat), torch.rand(given_cells, dtype=stat) + 0.5)
    dy = draw()

    ours = {name: t.clone().requires_grad_() for name, t in leaves.items()}
    get = ours.get
    out = operator.run(
        Arguments(
            ours["x"], get("weight"), get("bias"), pattern, 1e-5, center or given is not None, *(given or (None, None)),
            get("residual"), mask, activation, get("gate"), get("skip"), function if gated else "none", first,
        )
    )  # fmt: skip
    grads = torch.autograd.grad(out.y, [*ours.values()], dy)

    exact = {name: t.nan_to_num().double().requires_grad_() for name, t in leaves.items()}
    s = exact["x"] * FUNCTIONS[function](exact["gate"]) if first else exact["x"]
    if "residual" in exact:  # the sum is rounded when it is stored
        s = s + exact["residual"]
        s = s + (out.sum.detach().nan_to_num().double() - s).detach()
    z, std = standardized(s, pattern, valid, given, center)
    if affine:
        z = z * exact["weight"].reshape(per_channel) + exact["bias"].reshape(per_channel)
    q = z * FUNCTIONS[function](exact["gate"]) if gated and not first else z
    q = q + exact["skip"] if "skip" in form else q
    y = torch.where(valid, FUNCTIONS[activation](q), 0)
    wanted = torch.autograd.grad(y, [*exact.values()], dy.nan_to_num().double())

    # All steps are exact to a few roundings of 1 + |mean| / std, which is at most 4 or so, and y is rounded once.
    eps = torch.finfo(dtype).eps
    largest = max(1.0, *(torch.where(valid, t.detach().abs(), 0).max().item() for t in (z, q, y)))
    assert out.y.stride() == dy.stride()
    assert (out.y.double() - y).abs().max() <= 16 * eps * largest, case
    assert not out.y.masked_select(~valid).any()
    for name, got, want in zip(ours, grads, wanted, strict=True):
        if got.shape == valid.shape:
            assert not got.masked_select(~valid).any(), (name, case)
        # Gradients are divided by the deviation, which is small where a cell has few elements.
        far = (got.double() - want).abs() > 64 * eps * max(1.0, 1 / std) * max(1.0, want.abs().max().item())
        if activation in KINKED or function in KINKED:  # a rounded q may fall on the other side of the kink: few do
            assert got.dim() == 1 or far.double().mean() < 2e-3, (name, case)
        else:
            assert not far.any(), (name, case)


@pytest.mark.parametrize("part", range(4))
def test_kernels_give_what_the_composition_gives(part: int):
    """A sample of all combinations, the same in every run."""
    for index in range(25 * part, 25 * part + 25):
        draw = random.Random(index)
        torch.manual_seed(index)
        check(Case(*(draw.choice(options) for options in CHOICES)))


@pytest.mark.slow
def test_kernels_give_what_the_composition_gives_in_more_combinations():
    for index in range(100, 2000):
        draw = random.Random(index)
        torch.manual_seed(index)
        check(Case(*(draw.choice(options) for options in CHOICES)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["gate", "gate_first", "skip"])
def test_half_precision_is_rounded_once(dtype: torch.dtype, form: str):
    """y is the exact result rounded, but where that lies next to the middle of two numbers; torch rounds every step."""
    x, gate, skip = (torch.randn(64, 512).to(dtype) for _ in range(3))
    first = form == "gate_first"
    extra = (None, skip, "none") if form == "skip" else (gate, None, "silu")
    y = operator.run(Arguments(x, None, None, "... [c]", 1e-5, True, activation="none", gate=extra[0], skip=extra[1],
                               gate_activation=extra[2], gate_first=first)).y  # fmt: skip
    factor = F.silu(gate.double())
    z = F.layer_norm(x.double() * (factor if first else 1), (512,))
    exact = z if first else z + skip.double() if form == "skip" else z * factor
    assert (y != exact.to(dtype)).double().mean() < 5e-3
