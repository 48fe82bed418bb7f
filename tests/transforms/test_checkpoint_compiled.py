"""A checkpoint round a compiled module runs its graph again in backward, where no batch may count again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normkit

KINDS = {
    "batch_norm": lambda: normkit.BatchNorm2d(4),
    "average": lambda: normkit.BatchNorm2d(4, momentum=None),
    "activation": lambda: normkit.BatchNorm2d(4, activation="relu"),
    "instance_norm": lambda: normkit.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "ghost_batch_norm": lambda: normkit.GhostBatchNorm2d(4, virtual_batch_size=2),
    "batch_renorm": lambda: normkit.BatchRenorm2d(4),
    "sync_batch_norm": lambda: normkit.SyncBatchNorm(4),
}


def block(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), KINDS[kind](), nn.Hardtanh())


def image() -> Tensor:
    return (torch.randn(4, 3, 5, 5) * 2 + 1).requires_grad_()


def assert_steps_equal(model: nn.Module, norm: nn.Module, plain: nn.Module, run) -> None:
    """Two steps, because the first may compile while backward runs."""
    for _ in range(2):
        x = image()
        plain.zero_grad()
        model.zero_grad()
        plain(x).square().sum().backward()
        run(x).square().sum().backward()
        for name, buffer in plain[1].named_buffers():
            # The same operators, compiled: one or two roundings of numbers near 1.
            torch.testing.assert_close(getattr(norm, name), buffer, rtol=1e-6, atol=1e-6)
        for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch's own
@pytest.mark.parametrize(
    ("kind", "reentrant"),
    # The norm does not see which kind of checkpoint it is in: each layer in one of them.
    [
        pytest.param(kind, reentrant, marks=pytest.mark.slow if (i + reentrant) % 2 else ())
        for i, kind in enumerate(KINDS)
        for reentrant in (False, True)
    ],
)
def test_a_compiled_block_counts_a_batch_once(kind, reentrant):
    torch._dynamo.reset()
    model = block(kind)
    plain = copy.deepcopy(model)
    # The partitioner of inductor, which chooses what backward computes again, without its code.
    compiled = torch.compile(model, backend="aot_eager_decomp_partition", fullgraph=True)
    assert_steps_equal(model, model[1], plain, lambda x: checkpoint(compiled, x, use_reentrant=reentrant))


@pytest.mark.parametrize("kind", ["batch_norm", "batch_renorm"])
def test_a_checkpoint_inside_of_a_graph_counts_a_batch_once(kind):
    torch._dynamo.reset()
    model = block(kind)
    plain = copy.deepcopy(model)
    compiled = torch.compile(lambda x: checkpoint(model, x, use_reentrant=False), backend="aot_eager", fullgraph=True)
    assert_steps_equal(model, model[1], plain, compiled)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*")  # torch's compiler warns of torch
def test_with_the_compiler_that_makes_code():
    torch._dynamo.reset()
    model = block("batch_norm")
    plain = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True)
    assert_steps_equal(model, model[1], plain, lambda x: checkpoint(compiled, x, use_reentrant=False))


def test_the_operator_answers_for_the_moment():
    ask = torch.ops.normkit.is_first_pass.default
    assert bool(ask(torch.device("cpu")))
    seen: list[bool] = []
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    y.register_hook(lambda gradient: seen.append(bool(ask(torch.device("cpu")))))
    y.sum().backward()
    assert seen == [False]
    torch.library.opcheck(ask, (torch.device("cpu"),))


def test_an_exported_graph_still_trains():
    model = block("batch_norm")
    plain = copy.deepcopy(model)
    exported = torch.export.export(model, (image(),)).module()
    x = image()
    exported(x)
    plain(x)
    torch.testing.assert_close(exported.get_buffer("1.running_mean"), plain[1].running_mean)
    assert exported.get_buffer("1.num_batches_tracked") == 1
