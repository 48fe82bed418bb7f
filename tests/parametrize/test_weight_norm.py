"""Weight normalization against its definition in float64, and through the whole life of a module."""

from __future__ import annotations

import copy
import io
import os
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, parametrize

from normkit.errors import ArgumentError, DtypeError, ShapeError, StateError
from normkit.kernels.weight import _reference, length_of, normalized_weight
from normkit.parametrize import WeightNorm, remove_weight_norm, weight_norm

SHAPES = [((4, 3), 0), ((4, 3), 1), ((4, 3), -1), ((4, 3), None), ((5,), 0), ((5,), None), ((2, 3, 2, 2), -3)]


def oracle(g: Tensor, v: Tensor, dim: int | None) -> Tensor:
    """The definition, in float64, for lengths that are not 0."""
    g, v = g.double(), v.double()
    if dim is None or dim == -1:  # torch keeps None as -1
        return g * v / v.flatten().norm()
    axis = dim % v.ndim
    axes = [i for i in range(v.ndim) if i != axis]
    return g * v / ((v * v).sum(axes, keepdim=True) if axes else v * v).sqrt()


def linear(seed: int = 0, **kwargs: object) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(5, 4, **kwargs)


def parts(module: nn.Module, name: str = "weight") -> tuple[Tensor, Tensor]:
    norms = module.parametrizations[name]
    return norms.original0, norms.original1


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
def test_values_and_gradients_equal_the_definition(shape, dim):
    torch.manual_seed(0)
    module = nn.Module()
    module.weight = nn.Parameter(torch.randn(shape))
    before = module.weight.detach().clone()
    weight_norm(module, dim=dim)
    assert torch.equal(module.weight, before)
    g, v = parts(module)
    with torch.no_grad():
        g.mul_(torch.randn_like(g))
        v.mul_(3)
    upstream = torch.randn(shape)
    ours = torch.autograd.grad(module.weight, (g, v), upstream)
    wide = [p.detach().double().requires_grad_() for p in (g, v)]
    expected = oracle(*wide, dim)
    # The norm, the quotient and the product each round once or twice: 4 units in the last place in all.
    torch.testing.assert_close(module.weight.double(), expected, rtol=4 * torch.finfo().eps, atol=0)
    for mine, theirs in zip(ours, torch.autograd.grad(expected, wide, upstream.double()), strict=True):
        # A gradient subtracts the radial part, so its error is relative to the largest entry.
        bound = 16 * torch.finfo().eps * max(1.0, theirs.abs().max().item())
        assert (mine.double() - theirs).abs().max().item() <= bound


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
def test_second_derivatives(shape, dim):
    norm = WeightNorm(None if dim is None else dim % len(shape))
    torch.manual_seed(0)
    v = torch.randn(shape, dtype=torch.float64)
    g = norm.right_inverse(v)[0].requires_grad_()
    v.requires_grad_()
    assert torch.autograd.gradcheck(norm, (g, v))
    assert torch.autograd.gradgradcheck(norm, (g, v))


def test_a_vector_with_a_single_element_has_its_sum_of_squares_on_the_clamp():
    v = torch.tensor([[2.0, 0.0], [0.0, -3.0]], dtype=torch.float64, requires_grad=True)
    g = torch.tensor([[1.5], [2.5]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(WeightNorm(0), (g, v))


def test_a_zero_vector_gives_zero_and_finite_gradients_where_torch_gives_nan():
    module = linear(bias=False)
    with torch.no_grad():
        module.weight[1] = 0
    theirs = parametrizations.weight_norm(copy.deepcopy(module))
    assert theirs.weight.isnan().any(), "torch has mended this: say so in the docs"
    weight_norm(module)
    g, v = parts(module)
    assert torch.equal(module.weight[1], torch.zeros(5))
    with torch.no_grad():
        g[1] = 2.0
    first = torch.autograd.grad(module.weight.square().sum() + module.weight.sum(), (g, v), create_graph=True)
    second = torch.autograd.grad(sum(grad.square().sum() for grad in first), (g, v))
    assert all(grad.isfinite().all() for grad in (*first, *second))
    assert torch.equal(first[1][1], torch.full((5,), 2.0)), "with a length, the row must be able to leave 0"


@pytest.mark.parametrize("magnitude", [1e-30, 1e18, 1e30])
def test_squares_neither_overflow_nor_vanish(magnitude):
    module = linear(bias=False)
    with torch.no_grad():
        module.weight.mul_(magnitude)
    weight_norm(module)
    g, v = parts(module)
    torch.testing.assert_close(g.double(), v.double().norm(dim=1, keepdim=True), rtol=1e-6, atol=0)
    with torch.no_grad():
        g.fill_(1.0)
    torch.testing.assert_close(module.weight.double(), oracle(g, v, 0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_lengths_are_computed_in_single(dtype):
    torch.manual_seed(0)
    module = nn.Linear(4096, 3, bias=False, dtype=dtype)
    with torch.no_grad():
        module.weight.copy_(torch.randn(3, 4096) * 8)
    weight_norm(module)
    g, v = parts(module)
    # 4096 squares near 64 sum to 262144: beyond fp16, and bf16 would stop counting at 256 of them. The
    # only rounding left is that of the result.
    torch.testing.assert_close(g.double(), v.double().norm(dim=1, keepdim=True), rtol=torch.finfo(dtype).eps, atol=0)
    assert module.weight.dtype == dtype
    torch.testing.assert_close(
        module.weight.double(), oracle(g, v, 0), rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).tiny
    )


@pytest.mark.parametrize("dim", [0, 1, None])
def test_state_is_that_of_torch_and_loads_both_ways(dim):
    ours, theirs = weight_norm(linear(), dim=dim), parametrizations.weight_norm(linear(), dim=dim)
    mine, other = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(other)
    for key in mine:
        assert mine[key].shape == other[key].shape
        torch.testing.assert_close(mine[key], other[key], rtol=2 * torch.finfo().eps, atol=0)
    x = torch.randn(3, 5)
    trained = parametrizations.weight_norm(linear(1), dim=dim)
    ours.load_state_dict(trained.state_dict())
    torch.testing.assert_close(ours(x), trained(x))
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(theirs(x), trained(x))


def both_of_torch() -> dict[str, object]:
    def old(module: nn.Module, name: str, dim: int | None) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls it deprecated
            return torch.nn.utils.weight_norm(module, name, dim)

    return {"parametrization": parametrizations.weight_norm, "hook": old}


@pytest.mark.parametrize("theirs", both_of_torch())
@pytest.mark.parametrize(
    ("shape", "dim"),
    [((7,), None), ((7,), 0), ((7,), -1)]
    + [((4, 3), dim) for dim in (None, *range(-2, 2))]
    + [((4, 3, 2, 5), dim) for dim in (None, *range(-4, 4))],
)
def test_every_dim_means_what_it_means_to_torch(shape, dim, theirs):
    torch.manual_seed(0)

    def module() -> nn.Module:
        made = nn.Module()
        made.weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        return made

    def ready(made: nn.Module) -> nn.Module:
        for hook in made._forward_pre_hooks.values():
            hook(made, ())  # the old function computes the weight before forward
        return made

    ours, other = weight_norm(module(), dim=dim), both_of_torch()[theirs](module(), "weight", dim)
    g, v = parts(ours)
    with torch.no_grad():
        g.mul_(torch.randn_like(g))
        v.add_(torch.randn_like(v))
    state = ours.state_dict()
    if theirs == "hook":
        state = {f"weight_{name}": value for name, value in zip("gv", state.values(), strict=True)}
    other.load_state_dict(state)
    # Both round the norm, the quotient and the product.
    torch.testing.assert_close(ours.weight, ready(other).weight, rtol=1e-6, atol=1e-7)
    upstream = torch.randn(shape)
    mine = torch.autograd.grad(ours.weight, (g, v), upstream)
    same = [p for _, p in sorted(other.named_parameters())]
    for one, two in zip(mine, torch.autograd.grad(other.weight, same, upstream), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    fresh = weight_norm(module(), dim=dim)
    fresh.load_state_dict(other.state_dict())
    assert torch.equal(fresh.weight, ours.weight)
    used = ours.weight.detach().clone()
    assert torch.equal(remove_weight_norm(copy.deepcopy(ours)).weight, used)


@pytest.mark.parametrize("dim", [None, -1])
def test_the_class_itself_takes_the_same_dims(dim):
    module = linear()
    before = module.weight.detach().clone()
    parametrize.register_parametrization(module, "weight", WeightNorm(dim))
    assert torch.equal(module.weight, before)
    assert parts(module)[0].shape == ()
    with pytest.raises(ArgumentError, match="dim of WeightNorm must be at least 0, -1 or None, got -2: call weight_n"):
        WeightNorm(-2)


def test_a_length_that_its_dtype_cannot_hold_is_refused():
    """Where torch's own gives nan."""
    module = nn.Linear(4096, 2, bias=False, dtype=torch.float16)
    with torch.no_grad():
        module.weight.fill_(2000.0)  # the root of 4096 times as much: 128000
    for dim in (0, None):
        with pytest.raises(StateError, match=r"must be finite as torch\.float16, whose largest number is 6\.55e\+04"):
            weight_norm(module, dim=dim)
        assert type(module) is nn.Linear
        assert torch.equal(module.weight, torch.full_like(module.weight, 2000.0))
    weight_norm(module, dim=1)
    with pytest.raises(StateError, match="must be finite as"):
        module.weight = torch.full_like(module.weight, 60000.0)
    assert torch.equal(module.weight, torch.full_like(module.weight, 2000.0))
    wide = weight_norm(nn.Linear(4096, 2, bias=False, dtype=torch.bfloat16))
    wide.weight = torch.full((2, 4096), 2000.0, dtype=torch.bfloat16)
    assert wide.weight.isfinite().all()


def test_on_meta_there_is_nothing_to_check():
    module = weight_norm(linear().to("meta"), dim=-1)
    module.load_state_dict(weight_norm(linear(1), dim=-1).state_dict(), assign=True)
    torch.testing.assert_close(module.weight, linear(1).weight)


@pytest.mark.parametrize("nested", [False, True])
def test_old_keys_load(nested):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its old function deprecated; its files live on
        old = torch.nn.utils.weight_norm(linear(1))
    assert {"weight_g", "weight_v"} <= set(old.state_dict())
    ours = weight_norm(linear())
    if nested:
        nn.Sequential(ours).load_state_dict(nn.Sequential(old).state_dict())
    else:
        ours.load_state_dict(old.state_dict())
    x = torch.randn(3, 5)
    torch.testing.assert_close(ours(x), old(x))


def test_a_missing_key_is_still_reported():
    state = weight_norm(linear()).state_dict()
    state["weight_g"] = state.pop("parametrizations.weight.original0")
    with pytest.raises(RuntimeError, match=r"original0.*\n.*weight_g"):
        weight_norm(linear()).load_state_dict(state)


def roundtrips() -> dict[str, object]:
    def save(module: nn.Module) -> nn.Module:
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    return {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": save}


@pytest.mark.parametrize("way", list(roundtrips()))
def test_copies_live_their_own_lives(way):
    model = nn.Sequential(weight_norm(linear()), nn.ReLU(), weight_norm(nn.LSTM(4, 3), "weight_hh_l0"))
    x = torch.randn(2, 7, 5)
    expected = model(x)[0]
    model[0].train(False)
    twin = roundtrips()[way](model)
    assert torch.equal(twin(x)[0], expected)
    assert not twin[0].training
    assert repr(twin) == repr(model)
    assert list(twin.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        parts(twin[0])[0].mul_(2)
        parts(twin[2], "weight_hh_l0")[0].mul_(2)
    assert torch.equal(model(x)[0], expected)
    assert not torch.equal(twin(x)[0], expected)
    remove_weight_norm(twin[0])
    assert torch.equal(model(x)[0], expected), "a copy shares its original's class"
    assert torch.equal(roundtrips()[way](model)(x)[0], expected)
    twin[0].load_state_dict(linear().state_dict())


def test_cached_weights_of_copies_are_kept_apart():
    model = weight_norm(linear())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        parts(twin)[0].mul_(2)
    with parametrize.cached():
        assert model.weight is model.weight
        assert not torch.equal(model.weight, twin.weight)


def test_several_parametrizations_on_one_module():
    module = nn.Bilinear(3, 4, 5)
    weight_norm(module, dim=None)
    parametrize.register_parametrization(module, "bias", nn.Softplus())
    twin = pickle.loads(pickle.dumps(module))
    assert torch.equal(twin.bias, module.bias)
    assert torch.equal(twin.weight, module.weight)
    remove_weight_norm(twin)
    assert parametrize.is_parametrized(twin, "bias")
    assert torch.equal(twin.bias, module.bias)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dim", [0, 1, None])
def test_removal_is_exact(frozen, dim):
    plain = linear()
    module = weight_norm(linear(), dim=dim)
    with torch.no_grad():
        parts(module)[0].mul_(1.7)
    for part in parts(module):
        part.requires_grad_(not frozen)
    x = torch.randn(3, 5)
    used, y = module.weight.detach().clone(), module(x)
    with torch.no_grad():
        assert remove_weight_norm(module) is module
    assert type(module) is nn.Linear
    assert vars(module).keys() == vars(plain).keys()
    assert isinstance(module.weight, nn.Parameter)
    assert module.weight.is_leaf
    assert module.weight.requires_grad is not frozen
    assert torch.equal(module.weight, used)
    assert torch.equal(module(x), y)
    assert [name for name, _ in module.named_parameters()] == ["weight", "bias"]
    assert not dict(module.named_buffers())
    for hooks in (module._load_state_dict_pre_hooks, module._forward_pre_hooks, module._forward_hooks):
        assert not hooks
    weight_norm(module, dim=dim)
    assert torch.equal(module.weight, used)


def test_the_direction_does_not_share_memory_with_a_tied_parameter():
    embedding, head = nn.Embedding(4, 5), linear(bias=False)
    head.weight = embedding.weight
    weight_norm(head)
    before = embedding.weight.detach().clone()
    with torch.no_grad():
        parts(head)[1].add_(1)
    assert torch.equal(embedding.weight, before)


def test_assigning_a_weight_sets_length_and_direction():
    module = weight_norm(linear())
    module.weight = linear(1).weight.detach()
    assert torch.equal(module.weight, linear(1).weight)
    torch.testing.assert_close(parts(module)[0], linear(1).weight.norm(dim=1, keepdim=True))


def test_compile_without_a_graph_break():
    module = weight_norm(linear())
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 5)
    compiled(x).square().sum().backward()
    ours = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    module(x).square().sum().backward()
    for mine, eager in zip(ours, module.parameters(), strict=True):
        torch.testing.assert_close(mine, eager.grad)


def test_errors_give_rule_value_and_remedy():
    with pytest.raises(ArgumentError, match=r"'wieght' is none: did you mean 'weight'\?"):
        weight_norm(linear(), "wieght")
    with pytest.raises(ArgumentError, match="no parameters of its own"):
        weight_norm(nn.Sequential(linear()))
    with pytest.raises(ArgumentError, match="has 2; got 2: use 0"):
        weight_norm(linear(), dim=2)
    with pytest.raises(ArgumentError, match="got -3"):
        weight_norm(linear(), dim=-3)
    with pytest.raises(StateError, match=r"'weight' of Linear already carries WeightNorm.*remove_weight_norm"):
        weight_norm(weight_norm(linear()))
    with pytest.raises(StateError, match="already carries _Orthogonal"):
        weight_norm(parametrizations.orthogonal(linear()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = torch.nn.utils.weight_norm(linear())
    with pytest.raises(StateError, match=r"old hook .*call torch.nn.utils.remove_weight_norm"):
        weight_norm(old)
    with pytest.raises(StateError, match="'weight' of Linear is not one: there is nothing to remove"):
        remove_weight_norm(linear())
    with pytest.raises(StateError, match=r"did you mean 'weight'\?"):
        remove_weight_norm(weight_norm(linear()), "weihgt")
    with pytest.raises(StateError, match="not initialised: run one batch"):
        weight_norm(nn.LazyLinear(3))
    empty, whole = nn.Module(), nn.Module()
    empty.weight = nn.Parameter(torch.empty(0, 3))
    whole.weight = nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ShapeError, match=r"shape \(0, 3\)"):
        weight_norm(empty)
    with pytest.raises(DtypeError, match=r"int8.*module.float"):
        weight_norm(whole)


def test_a_refused_module_is_unchanged():
    module = linear()
    with pytest.raises(ArgumentError):
        weight_norm(module, dim=7)
    assert type(module) is nn.Linear
    assert list(module.state_dict()) == ["weight", "bias"]


def step_distributed(rank: int, world: int, file: str) -> list[Tensor]:
    """One step under DistributedDataParallel; every rank has its share of 4 samples."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    try:
        model = nn.parallel.DistributedDataParallel(weight_norm(linear(rank)))
        torch.manual_seed(7)
        x = torch.randn(4, 5).chunk(world)[rank]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(x).square().mean().backward()
        optimizer.step()
        return [p.detach().clone() for p in model.parameters()]
    finally:
        torch.distributed.destroy_process_group()


def step_alone() -> list[Tensor]:
    model = weight_norm(linear(0))
    torch.manual_seed(7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(4, 5)).square().mean().backward()
    optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def worker(rank: int, world: int, file: str, out: str) -> None:
    torch.save(step_distributed(rank, world, file), f"{out}.{rank}")


def test_distributed_step_in_a_world_of_one(tmp_path):
    for mine, expected in zip(step_distributed(0, 1, str(tmp_path / "store")), step_alone(), strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.slow
def test_distributed_step_of_two_processes_equals_one(tmp_path):
    out = os.fspath(tmp_path / "out")
    torch.multiprocessing.spawn(worker, args=(2, os.fspath(tmp_path / "store"), out), nprocs=2)
    for rank in range(2):
        for mine, expected in zip(torch.load(f"{out}.{rank}"), step_alone(), strict=True):
            torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize(("shape", "dim"), [((4, 3, 2), 0), ((4, 3, 2), 1), ((4, 40), -1), ((6, 5), None)])
def test_the_operators_hold_what_torch_asks_of_operators(shape, dim):
    dim = dim if dim is None else dim % len(shape)
    v = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    g = length_of(v, dim).add(0.5).requires_grad_()
    ops = torch.ops.normkit
    torch.library.opcheck(ops.weight_norm.default, (v, g, dim))
    _, length = ops.weight_norm.default(v, g, dim)
    torch.library.opcheck(ops.weight_norm_backward.default, (torch.randn_like(v), v, g, length.detach(), dim))
    assert torch.autograd.gradcheck(lambda v, g: normalized_weight(v, g, dim), (v, g))
    assert torch.autograd.gradgradcheck(lambda v, g: normalized_weight(v, g, dim), (v, g))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(9, 5, 3, 3), (40, 3000), (3, 70000), (130, 33)])
@pytest.mark.parametrize("dim", [0, 1])
def test_the_kernel_is_the_formula_in_every_walk(shape, dim, dtype):
    v = torch.randn(shape).to(dtype)
    v.select(dim, 1).zero_()
    v.select(dim, 2).mul_(1e-3)
    g = torch.rand([size if axis == dim else 1 for axis, size in enumerate(shape)]).to(dtype)
    dw = torch.randn(shape).to(dtype)
    leaves = [t.clone().requires_grad_() for t in (v, g)]
    exact = [t.double().requires_grad_() for t in (v, g)]
    got = torch.autograd.grad(normalized_weight(*leaves, dim), leaves, dw)
    want = torch.autograd.grad(_reference(*exact, dim), exact, dw.double())
    # Below the normal numbers a rounding is half a step of the subnormals.
    least, eps = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps, torch.finfo(dtype).eps
    w = normalized_weight(v, g, dim).double()
    torch.testing.assert_close(w, _reference(*exact, dim), rtol=4 * eps, atol=least)
    # A gradient is what is left of dw once its part along v is taken off, and may be far smaller than either: its error
    # is in units of dw as it arrives.
    axes = [axis for axis in range(v.ndim) if axis != dim]
    arrived = torch.linalg.vector_norm(dw.double(), dim=axes, keepdim=True)
    steep = exact[1].detach() / torch.linalg.vector_norm(exact[0].detach(), dim=axes, keepdim=True)
    units = (steep * arrived).nan_to_num(posinf=0.0).amax(), arrived.amax()
    for ours, theirs, unit in zip(got, want, units, strict=True):
        assert (ours.double() - theirs).abs().max() < 4 * eps * unit


def test_hooks_caches_and_further_parametrizations_see_the_weight_being_read():
    module, plain = weight_norm(linear()), linear().weight
    norms, calls = module.parametrizations.weight, []
    for watched in (norms, norms[0]):
        hook = watched.register_forward_hook(lambda *_: calls.append("own"))
        assert torch.equal(module.weight, plain)
        hook.remove()
    with nn.modules.module.register_module_forward_hook(lambda *_: calls.append("global")):
        assert torch.equal(module.weight, plain)
    assert calls == ["own", "own", "global", "global"]
    with parametrize.cached():
        assert module.weight is module.weight
    parametrize.register_parametrization(module, "weight", nn.Softplus())
    assert torch.equal(module.weight, nn.functional.softplus(plain))


def test_frozen_and_replaced_parts_are_read():
    module = weight_norm(linear())
    before = module.weight.detach().clone()
    module.parametrizations.weight.original0.requires_grad_(False)
    assert torch.equal(module.weight, before)
    doubled = {"parametrizations.weight.original0": parts(module)[0] * 2}
    x = torch.randn(3, 5)
    torch.testing.assert_close(torch.func.functional_call(module, doubled, (x,)), x @ (2 * before).T + module.bias)
    g = module.parametrizations.weight._parameters.pop("original0")
    module.parametrizations.weight.register_buffer("original0", g.detach())
    assert torch.equal(module.weight, before)


@pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated")  # forward mode uses it, too
def test_forward_mode_tracing_export_and_fake_tensors_work_as_on_any_formula():
    module, x = weight_norm(linear()), torch.randn(3, 5)
    g, v = (p.detach() for p in parts(module))
    with forward_ad.dual_level():
        w = WeightNorm(0)(forward_ad.make_dual(g, g), forward_ad.make_dual(v, v))
        # Scaling v changes nothing, scaling g all.
        torch.testing.assert_close(forward_ad.unpack_dual(w).tangent, v)
    assert torch.equal(torch.jit.trace(module, x)(x), module(x))
    exported = torch.export.export(module, (x,))
    assert not any("normkit" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), module(x))
    with FakeTensorMode():
        assert weight_norm(linear())(torch.randn(3, 5)).shape == (3, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (64, 8192), (4, 8193)])
@pytest.mark.parametrize("magnitude", [1.0, 1e-16, 1e20])
def test_whichever_kernel_is_taken_the_weight_stays_and_is_right(shape, dtype, magnitude):
    torch.manual_seed(0)
    v = (torch.randn(shape) * magnitude).to(dtype)
    g = length_of(v, 0)
    if dtype == torch.float32:
        assert torch.equal(normalized_weight(v, g, 0), v)
    w = normalized_weight(v, torch.ones_like(g).to(dtype), 0)
    want = _reference(v.double(), torch.ones_like(g).double(), 0)
    # The bound of every normalization here, in units of the largest value.
    assert (w.double() - want).abs().max() <= 4 * torch.finfo(dtype).eps * want.abs().max()
