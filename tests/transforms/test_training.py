"""Autocast, activation checkpointing, double backward, state: copied, saved, on meta."""

import copy
import io
import pickle

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import normkit
from transforms.subjects import LAYERS, OF_TORCH, sample


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_checkpointing(name, reentrant):
    layer, x = LAYERS[name](), sample().requires_grad_()
    (plain,) = torch.autograd.grad(layer(x).pow(3).sum(), x)
    checkpoint(layer, x, use_reentrant=reentrant).pow(3).sum().backward()
    assert torch.equal(x.grad, plain)


@pytest.mark.parametrize("name", LAYERS)
def test_gradient_penalty(name):
    layer, x = LAYERS[name]().double(), sample(2).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: layer(x).sin(), (x,), fast_mode=True)


@pytest.mark.parametrize("name", LAYERS)
def test_copies_pickles_and_files_give_the_same_output(name):
    layer, x = LAYERS[name](), sample()
    y, file = layer(x), io.BytesIO()
    assert torch.equal(copy.deepcopy(layer)(x), y)
    if not name.startswith("weight_"):  # parametrized modules of torch cannot be pickled
        assert torch.equal(pickle.loads(pickle.dumps(layer))(x), y)
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = LAYERS[name]()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), y)


@pytest.mark.parametrize("name", LAYERS)
def test_meta(name):
    shape = LAYERS[name]()(sample()).shape
    y = LAYERS[name]().to("meta")(sample().to("meta"))
    assert y.is_meta
    assert y.shape == shape


def test_to_empty_after_construction_on_meta():
    with torch.device("meta"):
        layer = normkit.GroupNorm(2, 4)
    layer.to_empty(device="cpu").reset_parameters()
    x = sample()
    assert torch.equal(layer(x), normkit.GroupNorm(2, 4)(x))


# torch says that its own RMSNorm is slow with parameters of another dtype.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("name", OF_TORCH)
def test_autocast_gives_the_dtype_of_torch(name):
    x = sample()
    for given in (x, x.bfloat16()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert LAYERS[name]()(given).dtype is OF_TORCH[name]()(given).dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in LAYERS if not name.startswith("weight_")])
def test_autocast_changes_no_norm(name, dtype):
    layer, x = LAYERS[name](), sample().to(dtype)
    expected = copy.deepcopy(layer)(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype is expected.dtype is dtype
    assert torch.equal(y, expected)


@pytest.mark.parametrize("name", ["layer", "group", "rms"])
def test_a_linear_layer_under_autocast_reads_what_it_reads_after_torchs_norm_on_a_gpu(name):
    """torch's rule there: input and parameters are cast to float32; the linear layer then casts its input."""
    torch.manual_seed(0)
    ours, theirs = LAYERS[name](), OF_TORCH[name]()
    torch.nn.init.uniform_(theirs.weight, 0.5, 1.5)
    ours.load_state_dict(theirs.state_dict())
    x, linear = torch.randn(256, 4, 6).bfloat16(), torch.nn.Linear(6, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, wide = ours(x), theirs(x.float())
        assert (y.dtype, wide.dtype) == (torch.bfloat16, torch.float32)
        assert ours(x.float()).dtype is torch.float32  # who wants float32 asks for it
        # Both round one float32 result, whose last bits depend on the order of sums: a few ties of 6144.
        assert (y != wide.bfloat16()).sum() <= 6
        assert (linear(y) != linear(wide)).sum() <= 30
