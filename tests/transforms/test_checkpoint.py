"""Activation checkpointing: a forward and its recomputation may take different ways, and must pair what they save.

The first call of a shape goes through Python and teaches the fast path, which takes the calls after it; so the forward
of a checkpoint is the first call, and its recomputation the second. Every test takes shapes that no other has had.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normkit
from normkit.errors import StateError
from normkit.functional.call import recompute

CHANNELS = 6
LAYERS: dict[str, Callable[..., nn.Module]] = {
    "batch": lambda **k: normkit.BatchNorm2d(CHANNELS, **k),
    "batch, evaluation": lambda **k: normkit.BatchNorm2d(CHANNELS, **k).eval(),
    "batch, no affine": lambda **k: normkit.BatchNorm2d(CHANNELS, affine=False, **k),
    "batch, no bias": lambda **k: normkit.BatchNorm2d(CHANNELS, bias=False, **k),
    "frozen": lambda **k: normkit.FrozenBatchNorm2d(CHANNELS, **k),
    "sync": lambda **k: normkit.SyncBatchNorm(CHANNELS, **k),
    "renorm": lambda **k: normkit.BatchRenorm2d(CHANNELS, r_max=1.5, d_max=0.5, **k),
    "ghost": lambda **k: normkit.GhostBatchNorm2d(CHANNELS, 2, **k),
    "instance": lambda **k: normkit.InstanceNorm2d(CHANNELS, affine=True, track_running_stats=True, **k),
    "instance, evaluation": lambda **k: normkit.InstanceNorm2d(CHANNELS, track_running_stats=True, **k).eval(),
    "group": lambda **k: normkit.GroupNorm(2, CHANNELS, **k),
    "pixel": lambda **k: normkit.LayerNorm2d(CHANNELS, **k),
    "pattern": lambda **k: normkit.Norm("b (g [c]) [...]", CHANNELS, num_groups=3, **k),
    "layer": lambda **k: normkit.LayerNorm(CHANNELS, **k),
    "rms": lambda **k: normkit.RMSNorm(CHANNELS, eps=1e-5, **k),
}
LAST = ("layer", "rms")
FUSED = {
    "plain": {},
    "activation": {"activation": "silu"},
    "residual": {"residual": True},
    "residual returned": {"residual": True, "return_residual": True},
    "mask": {"mask": True},
    "lengths": {"lengths": True},
    "all": {"activation": "gelu", "residual": True, "return_residual": True, "mask": True},
}
_widths = itertools.count(211)


class Block(nn.Module):
    """A convolution, which a wrong pairing shows in, the norm, and what needs the norm's output."""

    def __init__(self, norm: nn.Module, fused: dict[str, bool], last: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CHANNELS, 1)
        self.norm = norm
        self.fused = fused
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        h = x.flatten(2).transpose(1, 2) if self.last else x.flatten(2) if "lengths" in self.fused else x
        h = h.contiguous()
        extras = dict(self.fused)
        if "residual" in extras:
            extras["residual"] = 0.5 * h.flip(0)
        if "lengths" in extras:
            extras["lengths"] = torch.arange(h.shape[0]) + 3
        if "mask" in extras:
            places = (h.shape[0], *h.shape[1:-1]) if self.last else (h.shape[0], *h.shape[2:])
            extras["mask"] = torch.arange(
                places.numel() if isinstance(places, torch.Size) else torch.Size(places).numel()
            )
            extras["mask"] = (extras["mask"] % 3 > 0).view(places)
        y = self.norm(h, **extras)
        return y[0].sin() * y[1] if isinstance(y, tuple) else y.sin()


def one_dimension(name: str) -> nn.Module:
    """The layer for (N, C, L) in place of (N, C, H, W)."""
    layer = LAYERS[name]()
    kind = type(layer).__name__
    if kind.endswith("2d") and kind != "LayerNorm2d":
        twin = getattr(normkit, kind[:-2] + "1d")
        options = {"virtual_batch_size": 2} if "Ghost" in kind else {}
        if "Instance" in kind:
            options |= {"affine": layer.affine, "track_running_stats": layer.track_running_stats}
        return twin(CHANNELS, **options).train(layer.training)
    return layer


def gradients(block: nn.Module, x: Tensor, reentrant: bool | None) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = block(x) if reentrant is None else checkpoint(block, x, use_reentrant=reentrant)
    return (
        list(torch.autograd.grad(y.sum() + y.square().sum(), [x, *block.parameters()]))
        if not reentrant
        else ((y.sum() + y.square().sum()).backward() or [x.grad, *(p.grad for p in block.parameters())])
    )


@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
@pytest.mark.parametrize("fused", FUSED)
@pytest.mark.parametrize("name", LAYERS)
def test_the_first_call_of_a_shape_in_a_checkpoint(name, fused, reentrant):
    """And of a second shape later; gradients, output and statistics are those without a checkpoint."""
    extras = dict(FUSED[fused])
    options = {"activation": extras.pop("activation")} if "activation" in extras else {}
    norm = one_dimension(name) if fused == "lengths" else LAYERS[name](**options)
    block = Block(norm, extras, name in LAST)
    for p in block.parameters():
        nn.init.normal_(p)
    twin = copy.deepcopy(block)
    for _ in range(2):
        x = torch.randn(4, 3, 2, next(_widths))
        block.zero_grad(), twin.zero_grad()
        got = gradients(block, x, reentrant)
        want = gradients(twin, x, None)
        for mine, other in zip(got, want, strict=True):
            assert torch.equal(mine, other)
        for mine, other in zip(block.buffers(), twin.buffers(), strict=True):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("make", [normkit.weight_norm, normkit.weight_standardization], ids=["length", "standardized"])
@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
def test_norms_of_weights_in_a_checkpoint(make, reentrant):
    for width in (next(_widths), next(_widths)):
        block = nn.Sequential(make(nn.Linear(width, 7)), nn.Tanh(), make(nn.Linear(7, width)))
        x = torch.randn(5, width)
        for mine, other in zip(gradients(block, x, reentrant), gradients(copy.deepcopy(block), x, None), strict=True):
            assert torch.equal(mine, other)


def test_renormalization_of_many_batches_before_their_backward():
    """Each batch is computed again with the statistics that it had, whatever came between."""
    layer = normkit.BatchRenorm1d(4, r_max=2.0, d_max=1.0, momentum=0.5)
    twin = copy.deepcopy(layer)
    batches = [torch.randn(8, 4) * (i + 1) + i for i in range(5)]
    got, want = ([x.clone().requires_grad_() for x in batches] for _ in range(2))
    ys = [checkpoint(lambda x: layer(x).sin(), x, use_reentrant=False) for x in got]
    zs = [twin(x).sin() for x in want]
    for y in reversed(ys):
        y.sum().backward()
    for z in zs:
        z.sum().backward()
    for mine, other in zip(got, want, strict=True):
        assert torch.equal(mine.grad, other.grad)


def test_renormalization_after_a_batch_that_was_not_finite():
    """A bad batch that is remembered hides no good one."""
    layer = normkit.BatchRenorm1d(5, r_max=2.0, d_max=1.0, momentum=0.5)
    twin = copy.deepcopy(layer)
    bad = torch.randn(8, 5)
    bad[0, 0] = torch.nan
    x, other = (torch.randn(8, 5, generator=torch.Generator().manual_seed(1)) * 3 + 2 for _ in range(2))
    x.requires_grad_(), other.requires_grad_()
    checkpoint(lambda x: layer(x).sin(), bad.requires_grad_(), use_reentrant=False)
    twin(bad)
    checkpoint(lambda x: layer(x).sin(), x, use_reentrant=False).sum().backward()
    twin(other).sin().sum().backward()
    assert torch.equal(x.grad, other.grad)


def test_a_forgotten_batch_of_renormalization_is_refused(monkeypatch):
    monkeypatch.setattr(recompute, "CALLS", 2)
    monkeypatch.setattr(recompute, "_calls", recompute.defaultdict(lambda: recompute.deque(maxlen=2)))
    layer = normkit.BatchRenorm1d(4)
    ys = [checkpoint(lambda x: layer(x).sin(), torch.randn(8, 4).requires_grad_(), use_reentrant=False) for _ in "abc"]
    with pytest.raises(StateError, match=r"remembers the last 2 batches of 4 channels.*run backward earlier"):
        ys[0].sum().backward()
