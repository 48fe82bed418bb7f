"""Distributed tensors on two processes and more: all results are those of one process with whole tensors."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import parallelize_module

import normkit
from normkit import functional
from normkit.errors import ArgumentError
from transforms.ranks import run_ranks
from transforms.sharded.blocks import LlamaLike, ViTLike, llama_plan, vit_plan
from transforms.sharded.regions import REGIONS, SHAPE, Function


def whole(t: Tensor) -> Tensor:
    return t.full_tensor() if isinstance(t, DTensor) else t


def check_region(name: str, mesh: DeviceMesh, placements: list[Placement], dtype: torch.dtype = torch.float64) -> None:
    ours, theirs, shape, parameters = REGIONS[name]
    torch.manual_seed(1)
    values = [(torch.randn(size, dtype=torch.float64) + 3).to(dtype) for size in (shape, *parameters)]
    g = torch.randn(shape, dtype=torch.float64).to(dtype)
    expected = [t.double().requires_grad_() for t in values]
    y = theirs(*expected)
    y.backward(g.double())
    everywhere = [Replicate()] * mesh.ndim
    x = distribute_tensor(values[0], mesh, placements).requires_grad_()
    rest = [distribute_tensor(t, mesh, everywhere).requires_grad_() for t in values[1:]]
    out = ours(x, *rest)
    out.backward(distribute_tensor(g, mesh, everywhere))
    assert (out.dtype, out.shape, out.stride()) == (x.dtype, x.shape, x.stride())
    # Sums of up to 200 values of order 10; half precision rounds results up to about 10, and gradients up to 100.
    close = {"atol": 1e-11, "rtol": 1e-9} if dtype is torch.float64 else {"atol": 0.25, "rtol": 2e-2}
    note = f"{name} {placements}"
    torch.testing.assert_close(whole(out).double(), y.detach(), **close, msg=lambda m: f"{note}: {m}")
    for mine, other in zip([x, *rest], expected, strict=True):
        torch.testing.assert_close(whole(mine.grad).double(), other.grad, **close, msg=lambda m: f"{note}: {m}")


def check_placements(mesh: DeviceMesh) -> None:
    """Gradients of parameters are sums over the processes, or divided as x; what is divided stays divided."""
    for dim, expected in ((0, Partial()), (1, Partial()), (2, Shard(0))):
        x = distribute_tensor(torch.randn(SHAPE), mesh, [Shard(dim)])
        weight = distribute_tensor(torch.ones(7), mesh, [Replicate()]).requires_grad_()
        y = functional.layer_norm(x, (7,), weight)
        y.sum().backward()
        assert y.placements == (Shard(dim),)
        assert weight.grad.placements == (expected,)


def check_communication(mesh: DeviceMesh) -> None:
    """Nothing is sent where kept dimensions are divided; else the moments, and two sums of the gradient."""
    for dim, gathers, sums in ((0, 0, 0), (1, 0, 0), (2, 1, 1)):
        x = distribute_tensor(torch.randn(SHAPE), mesh, [Shard(dim)]).requires_grad_()
        g = distribute_tensor(torch.randn(SHAPE), mesh, [Shard(dim)])
        with CommDebugMode() as forward:
            y = functional.layer_norm(x, (7,))
        with CommDebugMode() as backward:
            y.backward(g)
        assert forward.get_total_counts() == gathers
        assert backward.get_total_counts() == sums


def check_second_derivatives(mesh: DeviceMesh) -> None:
    torch.manual_seed(2)
    values = torch.randn(SHAPE, dtype=torch.float64), torch.randn(7, dtype=torch.float64)

    def second(function: Function, x: Tensor, w: Tensor) -> list[Tensor]:
        y = function(x.requires_grad_(), (7,), w.requires_grad_()).sin().sum()
        first = torch.autograd.grad(y, (x, w), create_graph=True)
        return [whole(t) for t in torch.autograd.grad(sum(t.square().sum() for t in first), (x, w))]

    expected = second(F.layer_norm, *(t.clone() for t in values))
    for dim in (0, 2):
        x, w = distribute_tensor(values[0], mesh, [Shard(dim)]), distribute_tensor(values[1], mesh, [Replicate()])
        # Sums of 200 values of order 100.
        torch.testing.assert_close(second(functional.layer_norm, x, w), expected, rtol=1e-9, atol=1e-9)


def check_running_statistics(mesh: DeviceMesh) -> None:
    """A divided batch has the moments of the whole one; buffers may be distributed or whole on every process."""
    torch.manual_seed(3)
    x = torch.randn(SHAPE, dtype=torch.float64) + 5
    for dim in range(3):
        for distributed in (False, True):
            for kind in (normkit.BatchNorm1d, normkit.SyncBatchNorm):
                plain, layer = nn.BatchNorm1d(6, dtype=torch.float64), kind(6, dtype=torch.float64)
                if distributed:
                    distribute_module(layer, mesh)
                for name, parameter in list(layer.named_parameters()):
                    if not distributed:
                        replicated = distribute_tensor(parameter, mesh, [Replicate()])
                        layer.register_parameter(name, nn.Parameter(replicated))
                own = distribute_tensor(x, mesh, [Shard(dim)])
                # Sums of 35 values.
                torch.testing.assert_close(whole(layer(own)), plain(x), rtol=1e-12, atol=1e-12)
                for mine, other in zip(layer.buffers(), plain.buffers(), strict=True):
                    assert isinstance(mine, DTensor) == distributed
                    torch.testing.assert_close(whole(mine), other, rtol=1e-12, atol=0)
                torch.testing.assert_close(whole(layer.eval()(own)), plain.eval()(x), rtol=1e-12, atol=1e-12)


def check_other_layers(mesh: DeviceMesh) -> None:
    """Layers that take several steps, or other operators, as on one process."""
    makers: dict[str, Callable[[], nn.Module]] = {
        "ghost": lambda: normkit.GhostBatchNorm1d(6, virtual_batch_size=2),
        "renorm": lambda: normkit.BatchRenorm1d(6),
        "instance": lambda: normkit.InstanceNorm1d(6, affine=True, track_running_stats=True),
        "filter response": lambda: normkit.Norm("b c [...]", 6, center=False),
        "weight norm": lambda: normkit.weight_norm(nn.Linear(7, 5)),
    }
    torch.manual_seed(4)
    x = torch.randn(4, 6, 7)
    for name, maker in makers.items():
        plain = maker()
        for dim in range(3):
            alone, layer = copy.deepcopy(plain), distribute_module(copy.deepcopy(plain), mesh)
            expected, y = alone(x), layer(distribute_tensor(x, mesh, [Shard(dim)]))
            expected.square().mean().backward(), y.square().mean().backward()
            # fp32 sums in another order, over a few hundred values of order 1.
            for mine, other in ((y, expected), *zip(layer.buffers(), alone.buffers(), strict=True)):
                torch.testing.assert_close(whole(mine), other, rtol=1e-5, atol=1e-5, msg=name)
            for mine, other in zip(layer.parameters(), alone.parameters(), strict=True):
                torch.testing.assert_close(whole(mine.grad), other.grad, rtol=1e-5, atol=1e-5, msg=name)
    v, g = torch.randn(5, 7), torch.rand(5, 1)
    for placement in (Shard(0), Shard(1)):
        direction, length = distribute_tensor(v, mesh, [placement]), distribute_tensor(g, mesh, [Replicate()])
        w = normkit.kernels.weight.normalized_weight(direction, length, 0)
        torch.testing.assert_close(whole(w), g * v / v.norm(dim=1, keepdim=True), rtol=1e-6, atol=1e-6)


def check_eight_bits(mesh: DeviceMesh) -> None:
    """Each process has the rows of its part; a divided row is gathered first."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(4))
    whole_rows = functional.quantized_rms_norm(x)
    for dim, expected in ((0, Shard(0)), (1, Shard(1)), (2, Replicate())):
        for mine, other in zip(
            functional.quantized_rms_norm(distribute_tensor(x, mesh, [Shard(dim)])), whole_rows, strict=True
        ):
            assert mine.placements == (expected,)
            part = distribute_tensor(other.float(), mesh, [expected]).to_local()
            # A value between two of eight bits may go to either.
            torch.testing.assert_close(mine.to_local().float(), part, rtol=0.13, atol=0)


def check_errors(mesh: DeviceMesh) -> None:
    x = torch.randn(SHAPE)
    own = distribute_tensor(x, mesh, [Shard(1)])
    layer = normkit.RMSNorm(7)
    with pytest.raises(
        ArgumentError, match=r"(?s)weight must be a distributed tensor.*distribute_module.*in RMSNorm\("
    ):
        layer(own)
    with pytest.raises(
        ArgumentError, match=r"residual of rms_norm must be a distributed tensor.*use_local_output=False"
    ):
        functional.rms_norm(own, (7,), residual=own.to_local())
    distribute_module(layer, mesh)
    with pytest.raises(
        ArgumentError, match=r"(?s)input must be a distributed tensor.*got a torch.Tensor.*in RMSNorm\("
    ):
        layer(x)


def check_groups(rank: int) -> None:
    """A mesh of other processes than the group of the layer cannot have its whole batch."""
    alone = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data", "model"))["model"]
    layer = distribute_module(normkit.SyncBatchNorm(6), alone)
    with pytest.raises(ArgumentError, match=r"(?s)needs the processes \[0, 1\] of the group.*in SyncBatchNorm\("):
        layer(distribute_tensor(torch.randn(SHAPE), alone, [Shard(0)]))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    y = whole(model(x))
    y.square().mean().backward()
    optimizer.step()
    return y


def check_training(alone: nn.Module, model: nn.Module, x: Tensor, own: Tensor, compiled: bool) -> None:
    """Two steps; outputs, gradients and parameters as in one process."""
    run = torch.compile(model, backend="aot_eager") if compiled else model
    # SGD, for Adam divides gradients of 0 by their own size.
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in (alone, model)]
    for _ in range(2):
        expected, y = step(alone, optimizers[0], x), step(run, optimizers[1], own)
        # fp32 sums in another order, over 32 values of order 1, through two layers.
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        for (name, mine), other in zip(model.named_parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(whole(mine.grad), other.grad, rtol=1e-4, atol=1e-5, msg=name)
            torch.testing.assert_close(whole(mine), other, rtol=1e-4, atol=1e-5, msg=name)
        alone.zero_grad(), model.zero_grad()


def check_tensor_parallel(mesh: DeviceMesh, compiled: bool = False) -> None:
    torch.manual_seed(5)
    alone, ids = LlamaLike(), torch.arange(16).remainder(11).view(2, 8)
    check_training(alone, parallelize_module(copy.deepcopy(alone), mesh, llama_plan()), ids, ids, compiled)
    alone, x = ViTLike(), torch.randn(2, 8, 16)
    own = distribute_tensor(x, mesh, [Shard(1)])
    check_training(alone, parallelize_module(copy.deepcopy(alone), mesh, vit_plan()), x, own, compiled)


def check_fully_sharded(mesh: DeviceMesh, rank: int) -> None:
    """FSDP2: each process has a part of the parameters, and half of the batch."""
    torch.manual_seed(6)
    norms = (normkit.GroupNorm(2, 6), normkit.LayerNorm2d(6), normkit.InstanceNorm2d(6, affine=True))
    alone = nn.Sequential(nn.Conv2d(3, 6, 1), *norms, nn.Conv2d(6, 5, 1), normkit.Norm("b [c] ...", 5))
    model = fully_shard(copy.deepcopy(alone), mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    x = torch.randn(4, 3, 4, 4)
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in (alone, model)]
    for _ in range(2):
        expected = step(alone, optimizers[0], x)
        y = step(model, optimizers[1], x[2 * rank : 2 * rank + 2])
        # fp32 sums in another order, over some hundred values of order 1.
        torch.testing.assert_close(y, expected[2 * rank : 2 * rank + 2], rtol=1e-4, atol=1e-5)
        for (name, mine), other in zip(model.named_parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(whole(mine.grad), other.grad, rtol=1e-4, atol=1e-5, msg=name)
        alone.zero_grad(), model.zero_grad()
    states = [{name: whole(t) for name, t in m.state_dict().items()} for m in (model, alone)]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-5)


def work(rank: int, world: int, file: str, check: Callable[[DeviceMesh, int], None]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch's own, of the backend
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    try:
        check(init_device_mesh("cpu", (world,)), rank)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def check_quickly(mesh: DeviceMesh, rank: int) -> None:
    for name, dim in itertools.product(REGIONS, range(3)):
        check_region(name, mesh, [Shard(dim)])
    check_placements(mesh)
    check_communication(mesh)
    check_second_derivatives(mesh)
    check_running_statistics(mesh)
    check_other_layers(mesh)
    check_eight_bits(mesh)
    check_errors(mesh)
    check_groups(rank)
    check_tensor_parallel(mesh)
    check_fully_sharded(mesh, rank)


def check_thoroughly(mesh: DeviceMesh, rank: int) -> None:
    """Four processes, of which some have nothing, in one and in two dimensions."""
    places: list[Placement] = [Shard(0), Shard(1), Shard(2), Replicate()]
    for name, place in itertools.product(REGIONS, places):
        check_region(name, mesh, [place])
        if name != "everything":  # its sum with the residual is rounded, and the activation is steep
            check_region(name, mesh, [place], torch.bfloat16)
    square = init_device_mesh("cpu", (2, 2))
    for name, pair in itertools.product(REGIONS, itertools.product(places, repeat=2)):
        check_region(name, square, list(pair))


def check_compiled(mesh: DeviceMesh, rank: int) -> None:
    check_tensor_parallel(mesh, compiled=True)


def spawn(world: int, tmp_path: Path, check: Callable[[DeviceMesh, int], None]) -> None:
    run_ranks(work, world, str(tmp_path / "store"), check)


def test_two_processes_are_one(tmp_path: Path):
    spawn(2, tmp_path, check_quickly)


@pytest.mark.slow
def test_four_processes_are_one(tmp_path: Path):
    spawn(4, tmp_path, check_thoroughly)


@pytest.mark.slow
def test_compiled_plans(tmp_path: Path):
    spawn(2, tmp_path, check_compiled)


def test_layers_do_not_load_distributed_tensors():
    call = "import sys, torch, normkit; normkit.LayerNorm(4)(torch.ones(2, 4))"
    code = f"{call}; print('torch.distributed.tensor' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
