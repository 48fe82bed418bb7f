"""Batch norm over processes: real ones, with gloo, against one process that has the whole batch."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normkit
from normkit.errors import ArgumentError, ShapeError, StateError
from normkit.functional.batch import sync
from transforms.ranks import run_ranks

CHANNELS = 5
# The shape of each process's batch. Different sizes, empty ones, one value on one process, channels_last as well.
CASES: dict[str, list[tuple[int, ...]]] = {
    "even": [(4, CHANNELS, 3, 4), (4, CHANNELS, 3, 4)],
    "uneven": [(1, CHANNELS), (6, CHANNELS)],
    "an empty process": [(0, CHANNELS, 3), (2, CHANNELS, 3)],
    "other sizes": [(2, CHANNELS, 7, 3), (3, CHANNELS, 2, 2)],
    "one value each": [(1, CHANNELS), (1, CHANNELS)],
}


def layer_for(dtype: torch.dtype, **options: Any) -> normkit.SyncBatchNorm:
    layer = normkit.SyncBatchNorm(CHANNELS, dtype=torch.float64 if dtype == torch.float64 else None, **options)
    torch.manual_seed(1)
    if layer.weight is not None:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return layer


def batch(shape: tuple[int, ...], rank: int, dtype: torch.dtype, channels_last: bool) -> tuple[Tensor, Tensor]:
    """An input, of which the mean is far from 0 and differs between processes, and an upstream gradient."""
    torch.manual_seed(7 + rank)
    x = (torch.randn(shape, dtype=torch.float64) * (rank + 1) + 10 * rank + 30).to(dtype)
    g = torch.randn(shape, dtype=torch.float64).to(dtype)
    if channels_last and len(shape) == 4:
        x, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
    return x.requires_grad_(), g


def oracle(xs: list[Tensor], gs: list[Tensor], layer: nn.Module) -> dict[str, Any]:
    """One process, plain torch, float64: all values of a channel in one row."""
    whole = torch.cat([x.detach().double().transpose(0, 1).flatten(1) for x in xs], 1).T.requires_grad_()
    upstream = torch.cat([g.double().transpose(0, 1).flatten(1) for g in gs], 1).T
    plain = nn.BatchNorm1d(CHANNELS, affine=layer.affine, momentum=layer.momentum, eps=layer.eps, dtype=torch.float64)
    with torch.no_grad():
        for mine, other in zip(plain.parameters(), layer.parameters(), strict=True):
            mine.copy_(other)
    y = plain(whole)
    y.backward(upstream)
    return {"y": y.detach(), "dx": whole.grad, "module": plain}


def rows(t: Tensor) -> Tensor:
    return t.detach().double().transpose(0, 1).flatten(1).T


def check_case(name: str, rank: int, dtype: torch.dtype, channels_last: bool, **options: Any) -> None:
    shapes = CASES[name]
    everyone = [batch(shape, r, dtype, channels_last) for r, shape in enumerate(shapes)]
    layer = layer_for(dtype, **options)
    expected = oracle([x for x, _ in everyone], [g for _, g in everyone], layer)
    x, g = everyone[rank]
    y = layer(x)
    y.backward(g)
    assert (y.dtype, y.shape, y.stride()) == (x.dtype, x.shape, x.stride())
    sizes = [shape[0] * torch.Size(shape[2:]).numel() for shape in shapes]
    mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    # A few roundings of values near 1 from numbers near 40; "one value each" divides by the deviation of two values,
    # which are 10 apart. Half precision rounds the results alone.
    digits = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2}[dtype]
    close = {"rtol": digits, "atol": digits}
    torch.testing.assert_close(rows(y), expected["y"][mine], **close)
    torch.testing.assert_close(rows(x.grad), expected["dx"][mine], **close)
    plain = expected["module"]
    for parameter, other in zip(layer.parameters(), plain.parameters(), strict=True):
        total = parameter.grad.double()
        dist.all_reduce(total)
        # Sums of up to 54 such values.
        torch.testing.assert_close(total, other.grad, rtol=digits, atol=20 * digits)
    for key in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(layer, key).double(), getattr(plain, key), rtol=1e-5, atol=0)
    assert layer.num_batches_tracked == 1
    alike(layer)


def check_mask(rank: int) -> None:
    """Padding counts on no process, and one of them may have nothing else: as the real rows of all in one batch."""
    shape = (3, CHANNELS, 4)
    everyone = [batch(shape, r, torch.float64, False) for r in range(dist.get_world_size())]
    layer = layer_for(torch.float64)
    for kept in ([[4, 1, 0], [2, 4, 3], [1, 1, 4]], [[0, 0, 0], [4, 2, 1], [3, 3, 3]]):
        lengths = [kept[r % 3] for r in range(len(everyone))]
        masks = [torch.arange(4) < torch.tensor(own)[:, None] for own in lengths]
        real = [m.flatten() for m in masks]
        picked = [x.detach().transpose(1, 2)[m].T[None] for (x, _), m in zip(everyone, masks, strict=True)]
        upstream = [g.transpose(1, 2)[m].T[None] for (_, g), m in zip(everyone, masks, strict=True)]
        expected = oracle(picked, upstream, layer)
        x, g = everyone[rank]
        with torch.no_grad():
            x.masked_fill_(~masks[rank][:, None], torch.nan)
        twin = copy.deepcopy(layer)
        y = twin(x, lengths=lengths[rank])
        (dx,) = torch.autograd.grad(y, x, g)
        assert not y.transpose(1, 2)[~masks[rank]].any()
        assert not dx.transpose(1, 2)[~masks[rank]].any()
        first = sum(int(m.sum()) for m in real[:rank])
        mine = slice(first, first + int(real[rank].sum()))
        # A few roundings of values near 1 from numbers near 40, as above.
        torch.testing.assert_close(y.detach().transpose(1, 2)[masks[rank]], expected["y"][mine], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(dx.transpose(1, 2)[masks[rank]], expected["dx"][mine], rtol=1e-12, atol=1e-12)
        for key in ("running_mean", "running_var"):
            torch.testing.assert_close(getattr(twin, key), getattr(expected["module"], key), rtol=1e-12, atol=0)
        alike(twin)
        with torch.no_grad():
            x.copy_(batch(shape, rank, torch.float64, False)[0])


def alike(layer: nn.Module) -> None:
    """All processes hold the same statistics, to the last bit."""
    for tensor in layer.state_dict().values():
        copies = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(copies, tensor)
        assert all(torch.equal(one, copies[0]) for one in copies)


def check_collectives(rank: int) -> None:
    counted: dict[str, int] = {"all_gather": 0, "all_reduce": 0}
    real = {name: getattr(dist, name) for name in counted}

    def counting(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            counted[name] += 1
            return real[name](*args, **kwargs)

        return call

    (x, g), layer = batch((3, CHANNELS), rank, torch.float32, False), layer_for(torch.float32)
    try:
        for name in counted:
            setattr(dist, name, counting(name))
        layer(x).backward(g)
    finally:
        for name, function in real.items():
            setattr(dist, name, function)
    assert counted == {"all_gather": 1, "all_reduce": 1}


def check_errors(rank: int) -> None:
    layer = layer_for(torch.float32)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ShapeError, match=r"(?s)got one in the whole group, here shape \(\d, 5\).*in SyncBatchNorm\("):
        layer(torch.ones(rank, CHANNELS))
    assert all(torch.equal(t, before[key]) for key, t in layer.state_dict().items())
    assert layer(torch.ones(0, CHANNELS, 3)).shape == (0, CHANNELS, 3)
    before["num_batches_tracked"] += 1  # as torch counts
    assert all(torch.equal(t, before[key]) for key, t in layer.state_dict().items())
    x, _ = batch((3, CHANNELS), rank, torch.float32, False)
    (dx,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(StateError, match=r"first derivatives only.*take batch_norm where"):
        dx.sum().backward()


def check_groups_and_modes(rank: int) -> None:
    alone = [dist.new_group([r]) for r in range(dist.get_world_size())][rank]
    x, _ = batch((3, CHANNELS), rank, torch.float32, False)
    layer = layer_for(torch.float32, process_group=alone)
    plain = normkit.BatchNorm1d(CHANNELS)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), plain(x))
    # Evaluation asks nobody: only one process calls, and does not wait for the others.
    everywhere = layer_for(torch.float32).eval()
    if rank == 0:
        plain.load_state_dict(everywhere.state_dict())
        assert torch.equal(everywhere(x), plain.eval()(x))
    # A bad value on one process keeps its channel where it was, on all.
    bad = layer_for(torch.float32)
    with torch.no_grad():
        x[0, 2] = float("inf") if rank == 0 else 1.0
    bad(x)
    assert bad.running_mean[2] == 0
    assert bad.running_var[2] == 1
    assert bool((bad.running_mean[:2] > 1).all())
    alike(bad)


def check_data_parallel(rank: int) -> None:
    """As users have it: a converted model in DistributedDataParallel, momentum None, an activation."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(2, CHANNELS, 1), normkit.BatchNorm2d(CHANNELS, momentum=None, activation="relu"))
    alone = copy.deepcopy(model)
    parallel = nn.parallel.DistributedDataParallel(normkit.SyncBatchNorm.convert(model), broadcast_buffers=False)
    torch.manual_seed(4)
    x = torch.randn(2 * dist.get_world_size(), 2, 3, 3)
    mine = x[2 * rank : 2 * rank + 2]
    for _ in range(2):
        parallel(mine).square().mean().backward()
        alone(x).square().mean().backward()
    for (name, parameter), other in zip(model.named_parameters(), alone.parameters(), strict=True):
        # Sums of some hundred float32 products; the convolution's bias has the gradient 0, up to their rounding.
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)
    torch.testing.assert_close(model.state_dict(), alone.state_dict(), rtol=1e-6, atol=1e-6)
    alike(model)


def check_checkpoints(rank: int) -> None:
    """What is saved is read once, as checkpoints hand it out; a checkpoint counts a batch once."""
    for reentrant in (False, True):
        layer = layer_for(torch.float64)
        plain = copy.deepcopy(layer)
        x, g = batch((3, CHANNELS, 4), rank, torch.float64, False)
        other = x.detach().clone().requires_grad_()
        checkpoint(lambda x, layer=layer: layer(x).sin(), x, use_reentrant=reentrant).backward(g)
        plain(other).sin().backward(g)
        assert torch.equal(x.grad, other.grad)
        for mine, theirs in zip(layer.parameters(), plain.parameters(), strict=True):
            assert torch.equal(mine.grad, theirs.grad)
        assert all(torch.equal(*pair) for pair in zip(layer.buffers(), plain.buffers(), strict=True))


def check_a_bad_batch_on_one_process(rank: int) -> None:
    """Data-parallel training with its defaults, which pair parameters and buffers by their order, goes on after it."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(2, CHANNELS, 1), normkit.BatchNorm2d(CHANNELS), normkit.BatchNorm2d(CHANNELS))
    parallel = nn.parallel.DistributedDataParallel(model)
    for step in range(4):
        x = torch.randn(2, 2, 3, 3)
        if step == 1 and rank == 0:
            x[0, 0, 0, 0] = torch.inf
        y = parallel(x)
        (y.square().mean() if y.isfinite().all() else 0 * y.nan_to_num().sum()).backward()
        model.zero_grad()
    assert bool((model[1].num_batches_skipped == 1).all() if rank == 0 else model[1].num_batches_skipped is None)
    assert all(t.isfinite().all() for t in model.buffers())
    parallel.eval()(torch.ones(1, 2, 3, 3))
    with torch.no_grad():
        parallel.train()(torch.ones(1, 2, 3, 3))  # hands the buffers of the first process to all
    dist.barrier()


def work(rank: int, world: int, file: str, thorough: bool) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch's own, of the backend
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    try:
        if not thorough:
            for name in CASES:
                check_case(name, rank, torch.float32, channels_last=name == "other sizes")
            check_case("uneven", rank, torch.float64, channels_last=False, affine=False)
            check_mask(rank)
            check_collectives(rank)
            check_errors(rank)
            check_groups_and_modes(rank)
            check_data_parallel(rank)
            check_checkpoints(rank)
            check_a_bad_batch_on_one_process(rank)
            return
        for shapes in CASES.values():
            shapes.append((3, *shapes[1][1:]))
        for name in CASES:
            for dtype in (torch.float64, torch.float32, torch.bfloat16):
                for channels_last in (False, True):
                    for options in ({}, {"affine": False}, {"momentum": None}, {"eps": 1e-2}):
                        check_case(name, rank, dtype, channels_last, **options)
        check_data_parallel(rank)
    finally:
        dist.destroy_process_group()


def test_two_processes_are_one(tmp_path):
    run_ranks(work, 2, str(tmp_path / "store"), False)


@pytest.mark.slow
def test_three_processes_are_one_in_every_precision(tmp_path):
    run_ranks(work, 3, str(tmp_path / "store"), True)


# Without processes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}])
def test_alone_it_is_batch_norm(options):
    layer, plain = normkit.SyncBatchNorm(3, **options), normkit.BatchNorm2d(3, **options)
    assert list(layer.state_dict()) == list(plain.state_dict())
    x = torch.randn(4, 3, 2, 5)
    for _ in range(2):
        assert torch.equal(layer(x), plain(x))
    layer(x[:0]), plain(x[:0])
    assert torch.equal(layer.eval()(x), plain.eval()(x))
    assert all(torch.equal(t, plain.state_dict()[key]) for key, t in layer.state_dict().items())


def test_what_is_wrong_is_said():
    with pytest.raises(ArgumentError, match="num_features of SyncBatchNorm must be at least 1, got 0"):
        normkit.SyncBatchNorm(0)
    with pytest.raises(ArgumentError, match=r"activation of SyncBatchNorm must be a known one.*did you mean 'relu'"):
        normkit.SyncBatchNorm(3, activation="rleu")
    with pytest.raises(ShapeError, match=r"(?s)must be \(N, C\) or \(N, C, ...\), got shape \(3,\).*in SyncBatchNorm"):
        normkit.SyncBatchNorm(3)(torch.ones(3))
    with pytest.raises(ShapeError, match="must be the layer's 3 channels"):
        normkit.SyncBatchNorm(3)(torch.ones(4, 2))
    with pytest.raises(ShapeError, match=r"must be \(N, C, H, W\), got shape \(4, 3\)"):
        normkit.SyncBatchNorm.convert(normkit.BatchNorm2d(3))(torch.ones(4, 3))


@pytest.mark.parametrize("home", [nn, normkit])
def test_a_model_there_and_back(home):
    shared = home.BatchNorm1d(4, momentum=None)
    model = nn.ModuleDict(
        {
            "a": home.BatchNorm2d(3, eps=1e-3),
            "b": nn.Sequential(shared, nn.Linear(4, 4), shared),
            "c": home.BatchNorm3d(2, affine=False).eval(),
            "d": home.InstanceNorm2d(3, affine=True, track_running_stats=True),
        }
    )
    kinds = [type(module) for module in model.modules()]
    objects = [*model.modules(), *model.parameters(), *model.buffers()]
    described, before = repr(model), [dict(vars(module)) for module in model.modules()]
    calls: list[str] = []
    handle = shared.register_forward_hook(lambda *_: calls.append("hook"))

    assert normkit.SyncBatchNorm.convert(model) is model
    assert [type(model[key]).__name__ for key in "acd"] == ["SyncBatchNorm", "SyncBatchNorm", "InstanceNorm2d"]
    assert model["b"][0] is model["b"][2] is shared
    assert isinstance(shared, normkit.SyncBatchNorm)
    assert all(a is b for a, b in zip(objects, [*model.modules(), *model.parameters(), *model.buffers()], strict=True))
    assert not model["c"].training
    x = torch.randn(6, 4)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(copy.deepcopy(nn.ModuleDict({"a": model["a"]}))))):
        assert type(normkit.SyncBatchNorm.revert(twin)["a"]) is home.BatchNorm2d
    model["b"](x)
    assert calls == ["hook", "hook"]
    normkit.SyncBatchNorm.convert(model)  # a second time changes nothing
    handle.remove()

    normkit.SyncBatchNorm.revert(model)
    assert [type(module) for module in model.modules()] == kinds
    assert repr(model) == described
    assert [vars(module).keys() for module in model.modules()] == [state.keys() for state in before]
    model["b"](x)
    assert calls == ["hook", "hook"]
    assert isinstance(normkit.SyncBatchNorm.convert(nn.BatchNorm1d(3)), normkit.SyncBatchNorm)


def test_an_activation_stays():
    layer = normkit.BatchNorm1d(3, activation="relu")
    described = repr(layer)
    assert repr(normkit.SyncBatchNorm.convert(layer)) == f"Sync{described.replace('1d', '')}"
    assert layer(torch.randn(4, 3)).min() == 0
    assert repr(normkit.SyncBatchNorm.revert(layer)) == described
    assert normkit.SyncBatchNorm(3, activation="relu")(torch.randn(4, 3)).min() == 0


def test_subclasses_that_do_more_are_left_alone_and_named():
    class BatchNormAct2d(nn.BatchNorm2d):
        """As timm has it: batch norm that goes on with an activation."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    extra = BatchNormAct2d(3)
    model = nn.Sequential(extra, nn.BatchNorm2d(3), nn.Sequential(nn.LazyBatchNorm1d()))
    says = r"left alone.*: 0 \(BatchNormAct2d\), 2\.0 \(LazyBatchNorm1d\)\. These use each process's own batch"
    with pytest.warns(UserWarning, match=says):
        normkit.SyncBatchNorm.convert(model)
    assert type(model[0]) is BatchNormAct2d
    assert type(model[1]) is normkit.SyncBatchNorm


def test_a_count_that_stays_on_its_device_moves_the_same():
    """On a GPU nothing waits for the number of values; here both ways run on the CPU."""
    for values in (0, 6):
        statistics = [(torch.zeros(3), torch.ones(3)) for _ in range(2)]
        pooled = sync._Pooled(torch.tensor(float(values), dtype=torch.float64), torch.rand(3), torch.rand(3))
        sync._update(*statistics[0], pooled.values, 0.1, pooled)
        if values:
            sync._update(*statistics[1], values, 0.1, pooled)
        # The kernel computes in float64, plain torch in float32.
        torch.testing.assert_close(statistics[0], statistics[1], rtol=1e-6, atol=1e-7)


def test_a_layer_made_so_is_not_reverted():
    with pytest.warns(UserWarning, match=r"left alone what was made as SyncBatchNorm: 0\."):
        normkit.SyncBatchNorm.revert(nn.Sequential(normkit.SyncBatchNorm(3)))
