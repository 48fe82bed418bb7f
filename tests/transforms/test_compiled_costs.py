"""On a GPU a compiled graph is no more work with normkit than with torch: kernels, and bytes that they move.

Counted on a CPU that is taken for a GPU, by Inductor's own scheduler.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normkit
from transforms.graphs import Graphs, assert_steps_agree, compiled, cost, of_normkit, taken_for_gpu

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*")  # torch's compiler warns of torch


@pytest.fixture(autouse=True)
def _taken_for_gpu() -> Iterator[None]:
    with taken_for_gpu("cpu"):
        yield


def image(memory: torch.memory_format = torch.contiguous_format) -> Tensor:
    return torch.randn(8, 16, 14, 14).contiguous(memory_format=memory)


def rows() -> Tensor:
    return torch.randn(512, 256)


NORMS: dict[str, tuple[Callable[[object], nn.Module], Callable[[], Tensor]]] = {
    "layer_norm": (lambda of: of.LayerNorm(256), rows),
    "rms_norm": (lambda of: of.RMSNorm(256, eps=1e-6), rows),
    "batch_norm": (lambda of: of.BatchNorm2d(16), image),
    "batch_norm of rows": (lambda of: of.BatchNorm1d(256), rows),
    "batch_norm channels_last": (lambda of: of.BatchNorm2d(16), lambda: image(torch.channels_last)),
    "batch_norm, evaluation": (lambda of: of.BatchNorm2d(16).eval(), image),
    "group_norm": (lambda of: of.GroupNorm(4, 16), image),
    "group_norm channels_last": (lambda of: of.GroupNorm(4, 16), lambda: image(torch.channels_last)),
    "instance_norm": (lambda of: of.InstanceNorm2d(16, affine=True), image),
}
NEIGHBOURS: dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor]]] = {
    "alone": lambda norm: lambda x: norm(x),
    "relu": lambda norm: lambda x: norm(x).relu(),
    "residual, gelu": lambda norm: lambda x: F.gelu(norm(x + x.sin())),
}


class ConvNeXtBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.norm = nn.LayerNorm(16)
        self.inner = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
        self.scale = nn.Parameter(torch.full((16,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.inner(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        return x + (inner * self.scale).permute(0, 3, 1, 2)


class TransformerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(256), nn.LayerNorm(256)])
        self.qkv, self.out = nn.Linear(256, 768), nn.Linear(256, 256)
        self.inner = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).view(8, 64, 3, 4, 64).permute(2, 0, 3, 1, 4)
        attention = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(512, 256)
        x = x + self.out(attention)
        return x + self.inner(self.norms[1](x))


def resnet_stem() -> nn.Module:
    block = [nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*block, *copy.deepcopy(block))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "ConvNeXt": (ConvNeXtBlock, lambda: image(torch.channels_last)),
    "transformer": (TransformerBlock, rows),
    "convolutions": (resnet_stem, image),
}


# The transformer's norms are those of the ConvNeXt, with a residual as below.
@pytest.mark.parametrize("name", ["ConvNeXt", pytest.param("transformer", marks=pytest.mark.slow), "convolutions"])
def test_a_converted_model_is_one_graph_and_no_more_work(name: str):
    make, sample = MODELS[name]
    model, x = make(), sample()
    converted, report = normkit.convert(copy.deepcopy(model))
    assert report.changes
    of_torch, ours = cost(model, x), cost(converted, x)
    assert ours.kernels <= of_torch.kernels
    assert ours.bytes <= 1.01 * of_torch.bytes
    graphs: Graphs = []
    for one in (model, converted):
        one.double().zero_grad()  # in float64, because sums in another order differ in float32
    assert_steps_agree(converted, model, compiled(converted, graphs), x.double())
    assert of_normkit(graphs) == set()


OFTEN = {
    ("layer_norm", "residual, gelu"),
    ("rms_norm", "alone"),
    ("batch_norm", "residual, gelu"),
    ("group_norm channels_last", "alone"),
}
"""A second for each graph: the others are run by hand. Rows and columns, each with neighbours and without."""


@pytest.mark.parametrize(
    ("name", "neighbours"),
    [
        pytest.param(*pair, marks=() if pair in OFTEN else pytest.mark.slow)
        for pair in itertools.product(NORMS, NEIGHBOURS)
    ],
)
def test_no_more_work_than_with_torch(name: str, neighbours: str):
    make, sample = NORMS[name]
    of_torch, ours = (cost(NEIGHBOURS[neighbours](make(of)), sample()) for of in (nn, normkit))
    assert ours.kernels <= of_torch.kernels
    assert ours.bytes <= 1.01 * of_torch.bytes
