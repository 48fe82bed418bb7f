"""What every row of the catalog must pass: each function takes a case and asserts one promise."""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections.abc import Collection, Iterator

import pytest
import torch
from torch import Tensor, nn

from cases import DTYPES, LAYOUTS, Case, Oracle, layouts, make_input, make_layer, state_of
from normkit.errors import DtypeError, ShapeError
from versions import text

VALUE_UNITS = 4
"""The published bound of y, in units of ``eps * (1 + |mean| / std) * max(1, |y|)``.

Rounding x - mean gives one unit of the condition, mean and std a fraction each, the weight, the bias and the
cast of y one each; weights here are near 1, biases near 0."""

GRADIENT_UNITS = 16
"""The bound of gradients, in the same units and relative to the largest entry.

A gradient subtracts two averages from a product of four numbers, each of which is rounded: some ten roundings of
numbers no larger than the largest entry, and the sums of the tests have a few dozen terms."""


def modes(layer: nn.Module) -> Iterator[nn.Module]:
    """The layer in training, and in evaluation where that differs."""
    yield layer.train()
    if keeps_statistics(layer):
        yield layer.eval()


def keeps_statistics(layer: nn.Module) -> bool:
    return any(name.startswith("running_") for name, _ in layer.named_buffers())


def uses_running(layer: nn.Module) -> bool:
    return not layer.training and keeps_statistics(layer)


def expected(case: Case, layer: nn.Module, x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """The oracle's answer for the layer in its present mode."""
    return case.given(x, state) if uses_running(layer) else case.oracle(x, state)


def condition(case: Case, layer: nn.Module, x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """``1 + |mean| / std``, or 1 where no mean is subtracted, of the input or of the parameters."""
    if not isinstance(case.oracle, Oracle):
        return case.condition(state)
    if not uses_running(layer) or "running_mean" not in state:
        return case.oracle.condition(x.detach())
    mean = case.oracle.spread(state["running_mean"], x)
    return 1 + mean.abs() / (case.oracle.spread(state["running_var"], x) + case.oracle.eps).sqrt()


def assert_near(actual: Tensor, reference: Tensor, units: float, dtype: torch.dtype, scale: Tensor) -> None:
    """|actual - reference| is at most so many units in the last place of max(1, |reference|), times scale."""
    bound = units * torch.finfo(dtype).eps * scale * reference.abs().clamp(min=1)
    if dtype == torch.float64:
        bound = 2 * bound  # the oracle rounds as coarsely as the subject
    excess = ((actual.detach().double() - reference.detach()).abs() / bound).max().item()
    assert excess <= 1, f"{excess:.2f} times the bound"


def values(case: Case, dtypes: str, layout: str) -> None:
    dtype, parameter_dtype = DTYPES[dtypes]
    for layer in modes(make_layer(case, parameter_dtype)):
        x, state = make_input(case, dtype, layout), state_of(layer)
        version = x._version
        y = layer(x)
        assert y.dtype == dtype
        assert x._version == version, "the input was written to"
        if case.elementwise:
            assert y.stride() == torch.empty_like(x).stride()
        assert_near(y, expected(case, layer, x, state), VALUE_UNITS, dtype, condition(case, layer, x, state))


def _upstreams(y: Tensor) -> dict[str, Tensor]:
    """Gradients of every layout a backward pass may bring."""
    torch.manual_seed(1)
    dy = torch.randn(y.shape, dtype=torch.float64).to(y.dtype)
    names = ("contiguous", "permuted", "strided", "offset", "inside", "expanded")
    ones = torch.ones((), dtype=y.dtype).expand(y.shape)
    return {name: LAYOUTS[name](dy) for name in names} | {"of a sum": ones}


def gradients(case: Case, dtypes: str, layout: str, upstreams: Collection[str] | None = None) -> None:
    """With gradients of every layout from above, or of those named."""
    dtype, parameter_dtype = DTYPES[dtypes]
    for layer in modes(make_layer(case, parameter_dtype)):
        state = {name: t.requires_grad_(t.is_floating_point()) for name, t in state_of(layer).items()}
        x = make_input(case, dtype, layout).requires_grad_()
        wide = x.detach().double().requires_grad_()
        names = [name for name, _ in layer.named_parameters()]
        reference = expected(case, layer, wide, state)
        scale = condition(case, layer, x, state).max().detach()
        given = _upstreams(reference.detach().to(dtype))
        for upstream in given.values() if upstreams is None else map(given.__getitem__, upstreams):
            y = layer(x)
            ours = torch.autograd.grad(y, [x, *layer.parameters()], upstream)
            theirs = torch.autograd.grad(
                reference, [wide, *(state[name] for name in names)], upstream.double(), retain_graph=True
            )
            if isinstance(case.oracle, Oracle):
                # Local response norm is made of torch's operators, whose gradients follow the upstream one.
                assert ours[0].stride() == torch.empty_like(x).stride()
            for mine, exact, leaf in zip(ours, theirs, [x, *layer.parameters()], strict=True):
                assert mine.dtype == leaf.dtype
                assert mine.shape == leaf.shape
                largest = exact.abs().max().clamp(min=1)
                # A parameter's gradient in float32 beside a half-precision input is a sum of products of
                # numbers that are exact in float32, so it is held to the leaf's own dtype.
                assert_near(mine / largest, exact / largest, GRADIENT_UNITS, leaf.dtype, scale)


def second_derivatives(case: Case, fast: bool) -> None:
    """Numerical differentiation in float64: of the output, and of its gradients, which are most of the work; `fast`
    compares their derivatives along one random direction, and not along each."""
    for layer in modes(make_layer(case, torch.float64)):
        layer.train(layer.training and case.smooth_in_training)
        x = make_input(case, torch.float64).requires_grad_()
        names = [name for name, _ in layer.named_parameters()]
        leaves = [p.detach().clone().requires_grad_() for p in layer.parameters()]

        def call(x: Tensor, *leaves: Tensor, layer: nn.Module = layer, names: list[str] = names) -> Tensor:
            return torch.func.functional_call(layer, dict(zip(names, leaves, strict=True)), (x,))

        assert torch.autograd.gradcheck(call, (x, *leaves))
        assert torch.autograd.gradgradcheck(call, (x, *leaves), fast_mode=fast)


def one_leaf_at_a_time(case: Case) -> None:
    """Frozen inputs or parameters neither get gradients nor disturb those of the others."""
    for layer in modes(make_layer(case)):
        x = make_input(case)
        leaves = [x, *layer.parameters()]
        for leaf in leaves:
            leaf.requires_grad_()
        torch.manual_seed(1)
        dy = torch.randn(layer(x).shape)
        full = torch.autograd.grad(layer(x), leaves, dy)
        for index, leaf in enumerate(leaves):
            for other in leaves:
                other.requires_grad_(other is leaf)
            (alone,) = torch.autograd.grad(layer(x), [leaf], dy)
            assert torch.equal(alone, full[index])
        for leaf in leaves:
            leaf.requires_grad_(False)
        assert not layer(x).requires_grad


def initial_state(case: Case) -> None:
    """Equal to torch's under the same seed, in both directions, with the same keys, versions and text."""
    assert case.torch is not None
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(5)
        ours = case.ours(dtype=dtype)
        torch.manual_seed(5)
        theirs = case.torch(dtype=dtype)
        mine, other = ours.state_dict(), theirs.state_dict()
        assert list(mine) == list(other)
        assert mine._metadata == other._metadata
        for key in mine:
            assert mine[key].dtype == other[key].dtype
            # Equal, but for the last place of weight norm's lengths, which are sums in another order.
            torch.testing.assert_close(mine[key], other[key], rtol=torch.finfo(dtype).eps, atol=0)
        if case.elementwise:
            assert repr(ours) == text(theirs)
            assert isinstance(ours, type(theirs))
    trained = make_layer(case)
    theirs = case.torch()
    theirs.load_state_dict(trained.state_dict(), strict=True)
    back = case.ours()
    back.load_state_dict(theirs.state_dict(), strict=True)
    x = make_input(case)
    assert torch.equal(back.eval()(x), trained.eval()(x))
    # Two implementations, each within its bound.
    torch.testing.assert_close(theirs.eval()(x), trained(x), rtol=1e-5, atol=1e-5)


def running_statistics(case: Case) -> None:
    """Three steps of training leave what torch leaves."""
    assert case.torch is not None
    ours, theirs = make_layer(case), case.torch()
    theirs.load_state_dict(ours.state_dict())
    for seed in range(3):
        x = make_input(case, seed=seed)
        ours(x)
        theirs(x)
    for (name, mine), other in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6, msg=name)


def copies(case: Case) -> None:
    layer = make_layer(case)
    x = make_input(case)
    layer(x)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = case.ours()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert repr(twin) == repr(layer)
        for (name, mine), other in zip(twin.state_dict().items(), layer.state_dict().values(), strict=True):
            assert torch.equal(mine, other), name
            assert mine.data_ptr() != other.data_ptr()
        assert torch.equal(twin.eval()(x), layer.eval()(x))
        layer.train()


def empty(case: Case) -> None:
    """No sample: an empty output, zero gradients, statistics as before; in training it is counted, as torch does."""
    for layer in modes(make_layer(case)):
        before = copy.deepcopy(layer.state_dict())
        x = torch.randn((0, *case.shape[1:]), requires_grad=True)
        y = layer(x)
        assert y.numel() == 0
        if case.elementwise:
            assert y.shape == x.shape
        y.sum().backward()
        assert x.grad is not None
        assert x.grad.shape == x.shape
        for p in layer.parameters():
            assert p.grad is not None
            assert torch.equal(p.grad, torch.zeros_like(p))
        if layer.training and isinstance(layer, nn.modules.batchnorm._BatchNorm) and "num_batches_tracked" in before:
            before["num_batches_tracked"] += 1
        for name, t in layer.state_dict().items():
            # A norm of weights follows its weight, whatever the input is.
            assert torch.equal(t, before[name]) or not case.smooth_in_training, name


def refusals(case: Case) -> None:
    """A wrong input is refused with rule, value and remedy, by name, and changes nothing."""
    layer = make_layer(case)
    before = copy.deepcopy(layer.state_dict())
    name = re.escape(f"in {layer._get_name()}({layer.extra_repr()})")
    for bad in case.bad:
        with pytest.raises(ShapeError, match=rf"(?s){bad.says}.*{name}"):
            layer(torch.ones(bad.shape))
    if case.elementwise:
        with pytest.raises(DtypeError, match=rf"(?s)int64: convert the input first.*{name}"):
            layer(torch.ones(case.shape, dtype=torch.int64))
    for key, t in layer.state_dict().items():
        assert torch.equal(t, before[key]), key


def alone_as_in_a_batch(case: Case) -> None:
    """Bit for bit, where the batch is outermost in memory: elsewhere a sample alone lies differently."""
    layer = make_layer(case).eval()
    for layout in set(layouts(case)) - {"permuted"}:
        x = make_input(case, layout=layout)
        y = layer(x)
        for i in range(len(x)):
            assert torch.equal(layer(x[i : i + 1]), y[i : i + 1])


def compiles(case: Case) -> None:
    """One graph, and the same numbers."""
    for layer in modes(make_layer(case)):
        twin = copy.deepcopy(layer)
        compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
        x = make_input(case).requires_grad_()
        y, z = layer(x), compiled(x)
        torch.testing.assert_close(z, y, rtol=0, atol=0)
        for mine, other in zip(
            torch.autograd.grad(z.square().sum(), x), torch.autograd.grad(y.square().sum(), x), strict=True
        ):
            torch.testing.assert_close(mine, other, rtol=0, atol=0)
        for mine, other in zip(twin.state_dict().values(), layer.state_dict().values(), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=0)
