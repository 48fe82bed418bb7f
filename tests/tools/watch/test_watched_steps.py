"""Which steps are watched: under checkpointing, compilation, transforms, sharing and freezing."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from watched import run, small, train

import normkit
from normkit.tools.watch import watcher


class Net(nn.Module):
    """A model whose forward is a user's, which is what ``model.compile()`` compiles."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + 1


def test_evaluation_and_no_grad_are_no_steps():
    model = small()
    with normkit.watch(model, every=1) as watched:
        train(model, 1)
        model.eval()(torch.randn(3, 4))
        # The record is there once the next forward begins, also one of evaluation.
        assert [record.step for record in watched.records] == [0]
        with torch.no_grad():
            model.train()(torch.randn(3, 4))
    assert watched.steps == 1


def test_what_checkpointing_computes_again_is_not_counted():
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = small(), nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4))

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.second, checkpoint(self.first, x, use_reentrant=False), use_reentrant=False)

    model = Blocks()
    twin = copy.deepcopy(model)
    x = torch.randn(16, 4)
    expected, random = run(twin, x, 2)
    with normkit.watch(model, every=1) as watched:
        found, random_after = run(model, x, 2)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(random, random_after)
    assert [(r.step, r.norm, r.call) for r in watched.records] == [
        (0, "first.1", 0), (0, "second.1", 0), (1, "first.1", 0), (1, "second.1", 0)
    ]  # fmt: skip
    assert all(r.grad_output > 0 for r in watched.records)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_model_that_is_checkpointed_as_a_whole(reentrant: bool):
    model = small()
    x = torch.randn(16, 4, requires_grad=True)
    watched = normkit.watch(model, every=1)
    for _ in range(2):
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    watched.close()
    # Reentrant checkpointing runs the forward without gradients, which is no step.
    assert [r.step for r in watched.records] == ([] if reentrant else [0, 1])


def test_blocks_under_reentrant_checkpointing_have_no_gradient_by_the_output():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner = nn.Linear(4, 4), small()

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, self.stem(x), use_reentrant=True)

    model = Block()
    with normkit.watch(model, every=1) as watched:
        train(model, 2)
    assert [r.step for r in watched.records] == [0, 1]
    assert all(r.grad_output is None and r.grad_weight > 0 for r in watched.records)


def test_a_shared_norm_has_a_record_for_each_call():
    norm = nn.LayerNorm(4)
    model = nn.Sequential(norm, nn.Linear(4, 4), norm, norm)
    with normkit.watch(model, every=1) as watched:
        train(model, 1)
    assert [(r.norm, r.call) for r in watched.records] == [("0", 0), ("0", 1), ("0", 2)]
    assert len({r.grad_weight for r in watched.records}) == 1
    assert len({r.grad_output for r in watched.records}) == 3
    assert "0 (call 3)" in watched.heat_map()


def test_thousands_of_calls_are_not_all_recorded():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(50):
                x = self.norm(x)
            return x

    model = Recurrent()
    with normkit.watch(model, every=1) as watched:
        train(model, 1)
    assert len(watched.records) == watcher.CALLS


def test_two_forwards_before_a_backward():
    model = small()
    with normkit.watch(model, every=1) as watched:
        for _ in range(3):
            (model(torch.randn(8, 4)) + model(torch.randn(8, 4))).sum().backward()
    assert [r.step for r in watched.records] == [*range(6)]
    assert all(r.grad_output > 0 for r in watched.records)


def test_forwards_that_no_backward_follows_do_not_pile_up():
    model = small()
    with normkit.watch(model, every=1) as watched:
        for _ in range(10):
            model(torch.randn(8, 4))
        assert len(watched._open) == watcher.WAITING + 1
    assert len(watched.records) == 10
    assert watched.records[0].grad_output is None


def test_frozen_parameters_and_norms_without_any():
    model = nn.Sequential(
        nn.Linear(4, 4), nn.LayerNorm(4).requires_grad_(False), nn.LayerNorm(4, elementwise_affine=False)
    )
    with normkit.watch(model, every=1) as watched:
        train(model, 1)
    assert [(r.grad_weight, r.weight_max) for r in watched.records] == [(None, 1.0), (None, None)]
    assert all(r.grad_output is not None for r in watched.records)


def test_lazy_norms_are_watched_from_their_first_batch():
    model = nn.Sequential(nn.LazyBatchNorm1d())
    with normkit.watch(model, every=1) as watched:
        model(torch.randn(8, 4)).sum().backward()
    assert watched.records[0].channels == 4


def test_a_norm_with_a_parametrized_weight_is_watched_but_for_that_weight():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.LayerNorm(4))
    nn.utils.parametrize.register_parametrization(model[1], "weight", nn.Tanh())
    with normkit.watch(model, every=1) as watched:
        train(model, 1)
    (record,) = watched.records
    assert (record.norm, record.weight_max, record.grad_weight) == ("1", None, None)
    assert record.bias_max is not None
    assert record.grad_output > 0


# Compiled models ------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # read by the compiler where the input has a history
@pytest.mark.parametrize("way", ["outside", "in place", "before", "inside", "only blocks"])
def test_compiled_models(way: str):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Net().train()
    model.body[2].p = 0.0
    x = torch.randn(16, 4)
    expected, _ = run(copy.deepcopy(model), x, 5)
    graphs = []

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Any:
        def counted(*args: Tensor) -> Any:
            graphs.append(1)
            return graph(*args)

        return counted

    root: Any = model
    if way in ("outside", "inside"):
        root = torch.compile(model, backend=backend)
    elif way == "before":
        root = torch.compile(model, backend=backend)
        root(x)
        graphs.clear()
        model.body[1].reset_running_stats()
    elif way == "in place":
        model.compile(backend=backend)
    else:
        model.body = torch.compile(model.body, backend=backend)
    impl = model._compiled_call_impl
    if way == "inside":
        # The graph is made with our hook in it, which does nothing there.
        watched = normkit.watch(model, every=2)
        run(root, x, 5)
        with pytest.warns(UserWarning, match=r"saw no training step.*watch\(compiled\)"):
            watched.__exit__(None, None, None)
        assert len(graphs) == 5
        return
    with normkit.watch(root, every=2) as watched:
        found, _ = run(root, x, 5)
    assert len(graphs) == 2  # the two steps that are not watched
    assert [r.step for r in watched.records] == [0, 2, 4]
    assert {r.norm for r in watched.records} == {"body._orig_mod.1" if way == "only blocks" else "body.1"}
    assert all(r.grad_output > 0 for r in watched.records)
    # The backend runs the same operations, so that even the bits are the same.
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert model._compiled_call_impl is impl
    graphs.clear()
    root(x)
    assert len(graphs) == 1


def test_a_whole_graph_may_hold_the_hook():
    torch._dynamo.reset()
    model = small()
    watched = normkit.watch(model, every=1)
    torch.compile(model, backend="eager", fullgraph=True)(torch.randn(3, 4))
    watched.close()
    assert watched.steps == 0


def test_under_vmap_and_grad_nothing_is_recorded():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (x,)).square().sum()

    watched = normkit.watch(model, every=1)
    torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, torch.randn(3, 4))
    watched.close()
    assert not watched.records


def test_what_listens_to_operators_does_not_hear_the_watch():
    class Log(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    model, x = small(), torch.randn(16, 4)
    with Log() as alone:
        model(x).sum().backward()
    with normkit.watch(model, every=1) as watched, Log() as beside:
        model(x).sum().backward()
    # The second backward adds to the gradients there are; apart from that the operators are the same.
    forward = alone.seen.index("aten.sum.default")
    assert beside.seen[:forward] == alone.seen[:forward]
    assert not {"aten.aminmax.default", "aten.linalg_vector_norm.default"} & {*beside.seen}
    assert watched.records[0].grad_output > 0


def test_under_selective_checkpointing():
    def save_all(*args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Tanh(), nn.LayerNorm(4))

        def forward(self, x: Tensor) -> Tensor:
            contexts = functools.partial(create_selective_checkpoint_contexts, save_all)
            return checkpoint(self.inner, x, use_reentrant=False, context_fn=contexts)

    model, x = Block(), torch.randn(8, 4)
    expected, _ = run(copy.deepcopy(model), x, 2)
    with normkit.watch(model, every=1) as watched:
        found, _ = run(model, x, 2)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert len(watched.records) == 4


def test_under_autocast():
    model, x = small(nn.LayerNorm(8)), torch.randn(16, 4)
    model[2].p = 0.0
    twin = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        expected, _ = run(twin, x, 2)
        with normkit.watch(model, every=1) as watched:
            found, _ = run(model, x, 2)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        seen = model[0](x)
    assert watched.records[0].input_std == pytest.approx(seen.double().std(correction=0).item(), rel=0.1)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_trace_does_not_hold_the_watch():
    model = small(nn.LayerNorm(8))
    model[2].p = 0.0
    with normkit.watch(model, every=1, start=0) as watched:
        traced = torch.jit.trace(model, torch.randn(2, 4), check_trace=False)
    assert not watched.records
    assert "aminmax" not in str(traced.inlined_graph)
