"""`torch.export`, and `torch.compile` without graph breaks or a recompile for another batch."""

import pytest
import torch
from torch import nn

import normkit
from normkit import pattern
from normkit.kernels import regions
from transforms.subjects import LAYERS, sample


@pytest.mark.parametrize("strict", [pytest.param(True, marks=pytest.mark.slow), False], ids=["strict", "not strict"])
@pytest.mark.parametrize("name", LAYERS)
def test_export(name, strict):
    layer, x, other = LAYERS[name]().eval(), sample(), sample(7)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=strict)
    # The same operators, or the formula of weight norm in fp32: a few roundings.
    torch.testing.assert_close(program.module()(other), layer(other), atol=1e-5, rtol=1e-5)


ALIKE = ("batch", "batch, eval", "batch, no running statistics", "instance", "rms", "weight_norm")
"""Each calls an operator that another one calls with more arguments, or no operator that sees the batch."""


# The chunks of ghost batch norm are of one size, so another batch has another number of them.
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in ALIKE else ()) for name in LAYERS if name != "ghost"],
)
def test_one_graph_for_every_batch_size(name):
    torch._dynamo.reset()
    layer = LAYERS[name]()
    layer(sample())  # no pattern can be read while a graph is traced
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    compiled(sample())
    with torch._dynamo.config.patch(error_on_recompile=True):
        x = sample(7)
        torch.testing.assert_close(compiled(x), layer(x), atol=1e-5, rtol=1e-5)  # fp32, a few roundings


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*")  # torch's compiler warns of torch
@pytest.mark.parametrize("name", ["layer", "group", "batch, eval"])
def test_inductor(name):
    torch._dynamo.reset()
    layer, x = LAYERS[name](), sample()
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x), atol=1e-5, rtol=1e-5)  # as above


def test_patterns_that_nobody_has_read_are_read_while_a_graph_is_made(monkeypatch):
    """Two of them in a graph: the second is read after the graph has looked at those that are known."""
    monkeypatch.setattr(pattern, "_PARSED", {})
    monkeypatch.setattr(regions, "_Regions", type("_Regions", (), {}))
    torch._dynamo.reset()
    norms = nn.ModuleList([normkit.InstanceNorm1d(4, activation="relu"), normkit.GroupNorm(2, 4)])

    def both(x, mask):
        for norm in norms:
            x = norm(x, mask=mask)
        return x

    x, mask = torch.randn(3, 4, 7), torch.rand(3, 7) < 0.7
    graph = torch.compile(both, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(graph(x, mask), both(x, mask))
    longer = torch.randn(3, 4, 9), torch.rand(3, 9) < 0.7
    torch.testing.assert_close(graph(*longer), both(*longer))
