"""Inputs and arguments of unusual kinds: nested tensors, arrays as shapes, weights of another dtype, layers on meta."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import normkit
from normkit.errors import ArgumentError, DtypeError, ShapeError

ROWS = [torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(n)) for n in range(2)]
ROWS[1] = ROWS[1].repeat(2, 1, 1)
TOKENS = {"layer": lambda **k: normkit.LayerNorm(4, **k), "rms": lambda **k: normkit.RMSNorm(4, **k)}


def shaken(layer: nn.Module) -> nn.Module:
    for p in layer.parameters():
        nn.init.normal_(p)
    return layer


# torch's nested tensors are a prototype and say so.
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("options", [{}, {"activation": "silu"}, {"zero_centered": True}, {"cast": "before"}], ids=str)
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided], ids=str)
@pytest.mark.parametrize("name", TOKENS)
def test_nested_tensors(name, layout, options):
    """Each sample as by itself; the gradient arrives at each."""
    layer = shaken(TOKENS[name](**options))
    mine, other = ([row.clone().requires_grad_() for row in ROWS] for _ in range(2))
    y = layer(torch.nested.as_nested_tensor(mine, layout=layout))
    assert y.is_nested
    assert y.layout is layout
    for ours, theirs in zip(y.unbind(), other, strict=True):
        assert torch.equal(ours, layer(theirs))
    sum(t.square().sum() for t in y.unbind()).backward()
    sum(layer(t).square().sum() for t in other).backward()
    for ours, theirs in zip(mine, other, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_nested_tensors_in_half_precision_cast_first(half):
    layer = shaken(normkit.RMSNorm(4, cast="before"))
    y = layer(torch.nested.nested_tensor(ROWS, layout=torch.jagged, dtype=half))
    assert torch.equal(y.unbind()[1], layer(ROWS[1].to(half)))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided], ids=str)
def test_nested_tensors_where_they_make_no_sense(layout):
    nested = torch.nested.nested_tensor([row[:, 0] for row in ROWS], layout=layout)
    for layer in (normkit.BatchNorm1d(4), normkit.GroupNorm(2, 4), normkit.InstanceNorm1d(4), normkit.LayerNorm2d(4)):
        with pytest.raises(
            DtypeError, match=r"got a nested one: fill it up with torch.nested.to_padded_tensor\(x, 0.0\)"
        ):
            layer(nested)
    with pytest.raises(ArgumentError, match="rms_norm of a nested tensor takes no residual"):
        normkit.RMSNorm(4)(nested, residual=nested)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_ragged_dimension_cannot_be_normalized():
    nested = torch.nested.nested_tensor([row[:, 0] for row in ROWS], layout=torch.jagged)
    with pytest.raises(ShapeError, match="whose dimension 1 of 3 has another length in each sample"):
        normkit.functional.layer_norm(nested, (2, 4))


@pytest.mark.parametrize("kind", [normkit.LayerNorm, normkit.RMSNorm])
def test_shapes_given_as_arrays(kind):
    numpy = pytest.importorskip("numpy")
    for shape in (numpy.array([3, 4]), torch.tensor([3, 4]), torch.Size([3, 4]), [numpy.int64(3), 4]):
        layer = kind(shape)
        assert layer.normalized_shape == (3, 4)
        assert repr(layer) == repr(kind((3, 4)))
        assert layer(ROWS[0]).shape == (2, 3, 4)
    assert kind(numpy.int32(4)).normalized_shape == kind(torch.tensor(4)).normalized_shape == (4,)
    with pytest.raises(ArgumentError, match=r"must be at least 1, got \[3 0\]"):
        kind(numpy.array([3, 0]))


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("weight", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_rms_norm_takes_weights_of_any_dtype_as_torch_does(weight, dtype):
    torch.manual_seed(0)
    ours, theirs = shaken(normkit.RMSNorm(4, eps=1e-5, dtype=weight)), nn.RMSNorm(4, eps=1e-5, dtype=weight)
    theirs.load_state_dict(ours.state_dict())
    x = ROWS[0].to(dtype)
    y, z = ours(x), theirs(x)
    assert y.dtype == z.dtype
    close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}  # two casts, a few roundings
    torch.testing.assert_close(y, z, **close)
    for layer, out in ((ours, y), (theirs, z)):
        out.double().square().sum().backward()
        assert layer.weight.grad.dtype is weight
    bound = 16 * max(torch.finfo(dtype).eps, torch.finfo(weight).eps)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=bound, atol=bound)


@pytest.mark.parametrize("counter", [True, False], ids=["with a counter", "without"])
@pytest.mark.parametrize("kind", ["FrozenBatchNorm1d", "FrozenBatchNorm2d", "FrozenBatchNorm3d"])
def test_a_frozen_layer_on_meta_takes_over_a_state_dict(kind, counter):
    """Nothing of it stays on meta, not even what other libraries' frozen layers have no entry for."""
    norm = shaken(nn.BatchNorm1d(4))
    state = norm.state_dict()
    if not counter:
        del state["num_batches_tracked"]
    with torch.device("meta"):
        layer = getattr(normkit, kind)(4)
    layer.load_state_dict(state, assign=True)
    assert not any(t.is_meta for t in layer.state_dict().values())
    shape = {"1d": (3, 4, 5), "2d": (3, 4, 5, 2), "3d": (3, 4, 5, 2, 1)}[kind[-2:]]
    x = torch.randn(3, 4, 10)[..., : torch.Size(shape[2:]).numel()]
    torch.testing.assert_close(layer(x.view(shape)).flatten(2), norm.eval()(x))
    assert list(layer.to("cpu").state_dict()) == list(norm.state_dict())
