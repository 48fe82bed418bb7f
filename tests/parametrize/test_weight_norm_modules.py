"""Weight-normed modules: files and copies, removal, compilation, processes, kernels and hooks."""

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
from weights import linear, parts

from normkit.errors import ArgumentError, DtypeError, ShapeError, StateError
from normkit.kernels.weight import _reference, length_of, normalized_weight
from normkit.parametrize import WeightNorm, remove_weight_norm, weight_norm


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
    with pytest.raises(ArgumentError, match="no parameters itself"):
        weight_norm(nn.Sequential(linear()))
    with pytest.raises(ArgumentError, match="has 2; got 2: use 0"):
        weight_norm(linear(), dim=2)
    with pytest.raises(ArgumentError, match="got -3"):
        weight_norm(linear(), dim=-3)
    with pytest.raises(StateError, match=r"'weight' of Linear already has WeightNorm.*remove_weight_norm"):
        weight_norm(weight_norm(linear()))
    with pytest.raises(StateError, match="already has _Orthogonal"):
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


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # read by torch 2.14's opcheck
@pytest.mark.parametrize(
    ("shape", "dim"),
    [
        ((4, 3, 2), 0),
        *[pytest.param(*case, marks=pytest.mark.slow) for case in (((4, 3, 2), 1), ((4, 40), -1), ((6, 5), None))],
    ],
)
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
