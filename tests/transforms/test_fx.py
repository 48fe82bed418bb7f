"""`torch.fx.symbolic_trace`: a layer is one node, as torch's own are."""

import copy
import pickle

import pytest
import torch
from torch import nn

import normkit
from transforms.subjects import LAYERS, sample

OURS = [name for name, make in LAYERS.items() if type(make()).__module__.startswith("normkit")]


@pytest.mark.parametrize("name", OURS)
def test_a_layer_is_one_node(name):
    model = nn.Sequential(nn.Identity(), LAYERS[name]())
    traced = torch.fx.symbolic_trace(model)
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "call_module", "output"]
    x = sample()
    assert torch.equal(traced(x), copy.deepcopy(model)(x))


def test_the_class_itself_is_where_it_was():
    layer = normkit.LayerNorm(6)
    assert type(layer).__module__ == "normkit.layers.layer"
    assert pickle.loads(pickle.dumps(layer)).normalized_shape == (6,)


@pytest.mark.filterwarnings("ignore")  # of what the module imports
def test_torchs_own_fusion_leaves_what_it_does_not_know():
    from torch.fx.experimental import optimization

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), normkit.BatchNorm2d(4), nn.ReLU(), normkit.LayerNorm2d(4)).eval()
    x = torch.randn(2, 3, 5, 5)
    fused = optimization.fuse(model)
    assert torch.equal(fused(x), model(x))
