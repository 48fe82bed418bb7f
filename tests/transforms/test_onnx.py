"""`torch.onnx.export`: standard operators, and outputs equal in onnxruntime."""

import onnxruntime
import pytest
import torch

import normkit
from transforms.subjects import LAYERS, sample

OPERATORS = {
    "batch, eval": "BatchNormalization",
    "layer": "LayerNormalization",
    "instance": "InstanceNormalization",
    "group": "GroupNormalization",
    "rms": "RMSNormalization",
}


def exported(name: str, opset: int) -> tuple[torch.nn.Module, torch.Tensor, torch.onnx.ONNXProgram]:
    layer, x = LAYERS[name]().eval(), sample()
    return layer, x, torch.onnx.export(layer, (x,), dynamo=True, verbose=False, opset_version=opset)


ALIKE = ("batch, eval", "renorm, eval", "ghost", "frozen")
"""In evaluation they make the call that "batch" makes."""


# Of onnxscript and the exporter, not of normkit.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in ALIKE else ()) for name in LAYERS]
)
def test_outputs_in_onnxruntime(name):
    layer, x, program = exported(name, 18)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    # Two fp32 implementations: some ten roundings of values up to about 4.
    torch.testing.assert_close(torch.from_numpy(y), layer(x).detach(), atol=2e-5, rtol=1e-5)
    assert not any("normkit" in node.op_type for node in program.model_proto.graph.node)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OPERATORS)
def test_standard_operators(name):
    program = exported(name, 23)[2]
    assert OPERATORS[name] in [node.op_type for node in program.model_proto.graph.node]


@pytest.mark.filterwarnings("ignore")
def test_the_order_of_casts_changes_nothing_in_float32():
    layer = normkit.RMSNorm(6, cast="before").eval()
    program = torch.onnx.export(layer, (sample(),), dynamo=True, verbose=False, opset_version=23)
    assert [node.op_type for node in program.model_proto.graph.node] == ["RMSNormalization"]


@pytest.mark.filterwarnings("ignore")
def test_an_activation_and_a_residual_stand_beside_the_standard_operator():
    layer = normkit.InstanceNorm1d(4, affine=True, activation="relu").eval()
    residual = {"residual": sample()}
    program = torch.onnx.export(layer, (sample(),), kwargs=residual, dynamo=True, verbose=False, opset_version=23)
    operators = [node.op_type for node in program.model_proto.graph.node]
    assert operators == ["Add", "InstanceNormalization", "Relu"]
