"""`torch.jit.trace`, and what is built on it: TensorBoard's graphs, the older ONNX exporter, counters of operations."""

from __future__ import annotations

import copy
import io

import onnxruntime
import pytest
import torch
from torch.utils.tensorboard._pytorch_graph import graph

import normkit
from transforms.subjects import LAYERS, sample

# That a trace holds for inputs like the one it was made with is what torch warns of; so it does for its own group norm.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", LAYERS)
def test_trace(name, training):
    """The same output without normkit's operators; other numbers, and for most another batch."""
    layer, x = LAYERS[name](), sample()
    layer.train(training and layer.training)
    before = copy.deepcopy(layer.state_dict())
    traced = torch.jit.trace(layer, x, check_trace=False)
    layer.load_state_dict(before)
    for other in (x, sample(5) if name not in ("ghost", "batch with extras", "instance with extras") else sample()):
        twin = copy.deepcopy(layer)
        # Two fp32 implementations, a few roundings each.
        torch.testing.assert_close(traced(other), twin(other), rtol=1e-5, atol=1e-5)
    assert "normkit::" not in str(traced.inlined_graph)
    for mine, was in zip(traced.state_dict().values(), before.values(), strict=True):
        assert mine.shape == was.shape


def test_a_trace_of_training_updates_statistics_once():
    layer, x = normkit.BatchNorm1d(4), sample()
    twin = copy.deepcopy(layer)
    traced = torch.jit.trace(layer, x, check_trace=False)
    twin(x)
    traced(x)
    twin(x)
    for (name, mine), other in zip(layer.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", ["batch, eval", "layer", "group", "weight_norm"])
def test_tensorboard(name):
    model = torch.nn.Sequential(LAYERS[name](), torch.nn.Tanh()).eval()
    assert len(graph(model, sample())[0].node) > 2


@pytest.mark.parametrize("name", [name for name in LAYERS if "extras" not in name])
def test_the_older_onnx_exporter(name):
    layer, x, file = LAYERS[name]().eval(), sample(), io.BytesIO()
    torch.onnx.export(layer, (x,), file, dynamo=False, opset_version=17)
    session = onnxruntime.InferenceSession(file.getvalue())
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    # As in test_onnx.py.
    torch.testing.assert_close(torch.from_numpy(y), layer(x).detach(), atol=2e-5, rtol=1e-5)
