"""PyTorch's own samples of the norms: what its test suite calls `torch.nn.functional` and `torch.nn` with.

They run on the CPU, and on a GPU by ``pytest -m gpu tests/functional``.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit
from normkit import functional
from normkit.errors import ArgumentError

OPERATORS = ["batch_norm", "group_norm", "instance_norm", "layer_norm", "local_response_norm", "rms_norm"]
MODULES = [
    *("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"),
    *("LayerNorm", "LocalResponseNorm", "RMSNorm"),
]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
FLOAT64 = pytest.param(torch.float64, marks=pytest.mark.slow)
"""tests/contract.py compares every method with float64."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}
"""Two implementations of values up to about 10, each some ten roundings from the exact one; torch's own half precision
multiplies in half precision."""


GPU = pytest.param("cuda", marks=(pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")))
on_each_device = pytest.mark.parametrize("device", ["cpu", GPU])


# torch's lists take seconds to import, so only the process that runs these tests does it.
@functools.cache
def operators() -> dict[str, Any]:
    from torch.testing._internal.common_methods_invocations import op_db

    functions = {op.name.removeprefix("nn.functional."): op for op in op_db if op.name.startswith("nn.functional.")}
    return {name: op for name, op in functions.items() if name.endswith("_norm") and name in functional.__all__}


@functools.cache
def modules() -> dict[str, Any]:
    from torch.testing._internal.common_modules import module_db

    return {info.module_cls.__name__: info for info in module_db if hasattr(normkit, info.module_cls.__name__)}


def copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def close(ours: object, theirs: object, dtype: torch.dtype) -> None:
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], equal_nan=True)


def samples(name: str, device: str, dtype: torch.dtype) -> Iterator[Any]:
    op = operators()[name]
    for sample in (*op.sample_inputs(device, dtype), *op.reference_inputs(device, dtype)):
        yield sample
        yield sample.noncontiguous()


def test_the_norms_of_torch_are_all_here():
    assert sorted(operators()) == OPERATORS
    assert sorted(modules()) == MODULES


# torch says that its own kernel is slow with parameters of another dtype, or that an operator is new.
@pytest.mark.filterwarnings("ignore")
@on_each_device
@pytest.mark.parametrize("dtype", [FLOAT64, *DTYPES[1:]], ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_functional(name, dtype, device):
    """Values, gradients and updated statistics; a negative eps and empty batches are among them."""
    negative = empty = 0
    for sample in samples(name, device, dtype):
        negative += sample.kwargs.get("eps", 0) < 0
        empty += not sample.input.numel()
        results = []
        for function in (getattr(functional, name), getattr(nn.functional, name)):
            x = sample.input.detach().requires_grad_()
            args, kwargs = [copied(a) for a in sample.args], {key: copied(a) for key, a in sample.kwargs.items()}
            y = function(x, *args, **kwargs)
            dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y)
            (dx,) = torch.autograd.grad(y, x, dy)
            results.append((y, dx, [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]))
        (y, dx, tensors), (z, dz, others) = results
        assert y.dtype == z.dtype
        assert y.shape == z.shape
        close(y, z, dtype)
        close(tensors, others, dtype)
        largest = dz.abs().max().clamp(min=1) if dz.numel() else 1
        close(dx / largest, dz / largest, dtype)
    assert bool(negative) == (name in ("group_norm", "layer_norm", "rms_norm"))
    assert bool(empty) == (name != "instance_norm")


@pytest.mark.parametrize("name", ["GroupNorm", "LayerNorm", "RMSNorm"])
def test_a_layer_refuses_the_negative_eps_that_its_function_takes(name):
    """A layer is made once and called often, so a number that gives NaN on some batches is refused there."""
    sizes = (2, 4) if name == "GroupNorm" else (4,)
    with pytest.raises(ArgumentError, match=f"eps of {name} must not be negative, got -0.5: use"):
        getattr(normkit, name)(*sizes, eps=-0.5)


@pytest.mark.filterwarnings("ignore")
@on_each_device
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dtype", [FLOAT64, *DTYPES[1:3]], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_modules(name, dtype, training, device):
    """Two calls, and all state after them; a batch of no samples is among the inputs."""
    info = modules()[name]
    for sample in info.module_inputs_func(info, device=device, dtype=dtype, requires_grad=True, training=training):
        made, given = sample.constructor_input, sample.forward_input
        where = {} if name == "LocalResponseNorm" else {"device": device, "dtype": dtype}
        ours, theirs = (kind(*made.args, **made.kwargs, **where) for kind in (getattr(normkit, name), info.module_cls))
        ours.train(training), theirs.train(training)
        for _ in range(2):
            twin, before = copy.deepcopy(given), copy.deepcopy(theirs.state_dict())
            try:
                z = theirs(*given.args, **given.kwargs)
            except RuntimeError:  # a dtype that torch has no kernel for; a batch norm has counted the batch by then
                theirs.load_state_dict(before)
                continue
            close(ours(*twin.args, **twin.kwargs), z, dtype)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        for mine, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
            close(mine, other, dtype)
