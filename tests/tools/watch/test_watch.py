"""What a watch says is what float64 says, and the model does not notice that it is watched."""

from __future__ import annotations

import copy
import csv
import functools
import json
import pickle
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import normkit
from normkit.errors import ArgumentError, DtypeError, StateError
from normkit.tools.watch import NormRecord, heat_map, watcher
from normkit.tools.watch.record import FIELDS
from zoo import IMAGES, SOUND, TEXT, image_model, language_model

# Moments are kept in float32: one rounding of each number that is summed up, and a few of the sums.
CLOSE = {"rel": 1e-5, "abs": 1e-6}


def small(norm: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 8), norm or nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Linear(8, 2)
    )


class Net(nn.Module):
    """A model whose forward is a user's, which is what ``model.compile()`` compiles."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + 1


def train(model: nn.Module, steps: int = 3, x: Tensor | None = None) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 4) if x is None else x).square().mean().backward()
        optimizer.step()


def per_channel(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel in float64, by their definition."""
    x = x.detach().double()
    mean = x.mean(dims, keepdim=True)
    return mean.flatten(), (x - mean).square().mean(dims).sqrt().flatten()


def assert_moments(record: NormRecord, what: str, x: Tensor, dims: tuple[int, ...]) -> None:
    mean, std = per_channel(x, dims)
    expected = {
        "mean": x.double().mean(),
        "std": x.double().std(correction=0),
        "mean_min": mean.min(),
        "mean_max": mean.max(),
        "std_min": std.min(),
        "std_max": std.max(),
    }
    found = {key: getattr(record, f"{what}_{key}") for key in expected}
    assert found == pytest.approx({key: float(value.detach()) for key, value in expected.items()}, **CLOSE)


NORMS = {
    "batch": (nn.BatchNorm2d(6), (4, 6, 5, 3), (0, 2, 3)),
    "batch of ours, channels_last": (normkit.BatchNorm2d(6), (4, 6, 5, 3), (0, 2, 3)),
    "layer": (nn.LayerNorm(6), (4, 5, 6), (0, 1)),
    "layer over two dimensions": (normkit.LayerNorm((3, 2)), (4, 5, 3, 2), (0, 1)),
    "group": (nn.GroupNorm(2, 6), (4, 6, 5), (0, 2)),
    "rms": (normkit.RMSNorm(6), (7, 6), (0,)),
    "instance": (nn.InstanceNorm1d(6, affine=True, track_running_stats=True), (4, 6, 5), (0, 2)),
    "pixel": (normkit.LayerNorm2d(6), (4, 6, 5, 2), (0, 2, 3)),
    "local response": (nn.LocalResponseNorm(3), (4, 6, 5, 2), (0, 2, 3)),
    "frozen": (normkit.FrozenBatchNorm2d(6), (4, 6, 5, 2), (0, 2, 3)),
}


@pytest.mark.parametrize("case", NORMS)
def test_figures_are_those_of_float64(case: str):
    norm, shape, dims = NORMS[case]
    norm = copy.deepcopy(norm).train()
    for p in norm.parameters():
        nn.init.normal_(p, 1.0)
    x = torch.randn(shape) * 3 + 20
    x = x.to(memory_format=torch.channels_last) if "channels_last" in case else x
    x.requires_grad_()
    model = nn.Sequential(norm)
    running = [copy.deepcopy(getattr(norm, key, None)) for key in ("running_mean", "running_var")]
    with normkit.watch(model, every=1) as watched:
        y = model(x)
        slope = torch.randn_like(y)
        y.backward(slope)
    (record,) = watched.records
    assert (record.step, record.norm, record.kind, record.call) == (0, "0", type(norm).__name__, 0)
    assert_moments(record, "input", x, dims)
    assert_moments(record, "output", y, dims)
    assert record.channels == per_channel(x, dims)[0].numel()
    assert record.grad_output == pytest.approx(slope.double().square().sum().sqrt().item(), **CLOSE)
    assert (record.dead, record.nonfinite_input, record.nonfinite_grad) == (0, 0, 0)
    for key in ("weight", "bias"):
        value = getattr(norm, key, None)
        if isinstance(value, Tensor):
            assert getattr(record, f"{key}_min") == value.min().item()
            assert getattr(record, f"{key}_max") == value.max().item()
        if isinstance(value, nn.Parameter):
            assert getattr(record, f"grad_{key}") == pytest.approx(value.grad.double().norm().item(), **CLOSE)
        else:
            assert getattr(record, f"grad_{key}") is None
    if running[0] is None:
        assert record.running_shift is None
        return
    mean, var = (r.double() for r in running)
    values = x.detach().double().transpose(0, 1)
    if case == "instance":
        fresh = x.detach().double().var(2, correction=1).mean(0)
    else:
        fresh = values.flatten(1).var(1, correction=1)
    shift = ((values.flatten(1).mean(1) - mean).abs() / (var + norm.eps).sqrt()).max().item()
    factor = (fresh + norm.eps) / (var + norm.eps)
    assert record.running_shift == pytest.approx(shift, **CLOSE)
    assert record.running_var_ratio == pytest.approx(torch.maximum(factor, 1 / factor).max().item(), **CLOSE)


def test_padding_and_residual():
    norm = normkit.BatchNorm1d(3)
    x, r = torch.randn(2, 3, 5) + 4, torch.randn(2, 3, 5)
    with normkit.watch(norm, every=1) as watched:
        norm(x, residual=r, lengths=[5, 2], return_residual=True)[0].sum().backward()
    (record,) = watched.records
    real = torch.cat([(x + r)[0], (x + r)[1, :, :2]], 1)
    assert_moments(record, "input", real, (1,))
    assert record.norm == "(the model)"
    # Padded outputs are 0; with them, the deviation would be 15 % smaller.
    assert record.output_std == pytest.approx(1.0, rel=1e-4)


def test_one_instance_without_a_batch_dimension():
    norm = nn.InstanceNorm1d(3, track_running_stats=True)
    x = torch.randn(3, 7, requires_grad=True)
    with normkit.watch(norm, every=1) as watched:
        norm(x).sum().backward()
    assert_moments(watched.records[0], "input", x, (1,))
    assert watched.records[0].channels == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype):
    norm = nn.LayerNorm(6).to(dtype)
    x = (torch.randn(9, 6) + 1).to(dtype)
    with normkit.watch(norm, every=1) as watched:
        norm(x).float().square().sum().backward()
    assert_moments(watched.records[0], "input", x, (0,))
    assert watched.records[0].grad_weight == pytest.approx(norm.weight.grad.double().norm().item(), rel=1e-2)


def test_dead_channels():
    norm = nn.BatchNorm1d(4)
    with torch.no_grad():
        norm.weight[1] = -1e-4
    x = torch.randn(32, 4)
    x[:, 2] = 5.0  # its deviation is lost in eps
    with normkit.watch(norm, every=1) as watched:
        norm(x).sum().backward()
        norm(torch.cat([x, torch.tensor([[0, 0, 0, torch.nan]])])).sum().backward()
    first, second = watched.records
    assert (first.dead, first.dead_weights, first.nonfinite_input) == (2, 1, 0)
    assert (second.nonfinite_input, second.nonfinite_grad) == (1, 0)


def test_a_single_value_per_channel_is_not_dead():
    norm = nn.LayerNorm(4)
    with normkit.watch(norm, every=1) as watched:
        norm(torch.randn(4)).sum().backward()
        norm(torch.randn(0, 4)).sum().backward()
    assert [record.dead for record in watched.records] == [None, None]
    assert watched.records[1].input_mean is None


def test_gradients_that_are_not_finite_are_counted():
    norm = nn.LayerNorm(4)
    with normkit.watch(norm, every=1) as watched:
        y = norm(torch.randn(2, 4))
        y.backward(torch.tensor([[0, torch.inf, 0, 0], [0, torch.nan, 1, 1]]))
    assert watched.records[0].nonfinite_grad == 2


def test_the_weight_is_that_which_is_applied():
    norm = normkit.RMSNorm(4, zero_centered=True)
    with normkit.watch(norm, every=1) as watched:
        norm(torch.randn(2, 4)).sum().backward()
    assert (watched.records[0].weight_min, watched.records[0].weight_max, watched.records[0].dead_weights) == (1, 1, 0)


def everything(model: nn.Module) -> dict[str, Any]:
    """State, modes and hooks; the state as copies."""
    names = [key for key in vars(nn.Module()) if "hooks" in key]
    modules = {
        n: (m.training, {k: dict(vars(m)[k] or {}) for k in names}, sorted(vars(m))) for n, m in model.named_modules()
    }
    return {"modules": modules, "state": {k: v.clone() for k, v in model.state_dict().items()}}


def run(model: nn.Module, x: Tensor, steps: int) -> tuple[list[Tensor], Tensor]:
    """Outputs and gradients of a few steps of training, and the state of random numbers behind them."""
    torch.manual_seed(3)
    out = []
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        y = model(x)
        y.square().mean().backward()
        out += [y.detach().clone(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        optimizer.step()
    return out, torch.get_rng_state()


def subjects() -> dict[str, Any]:
    return {
        "small": lambda: (small(), torch.randn(16, 4)),
        "ours": lambda: (small(normkit.BatchNorm1d(8)), torch.randn(16, 4)),
        "resnet10t": lambda: image_model("resnet10t"),
        "vit": lambda: image_model("vit_tiny_patch16_224", depth=2),
        "bert": lambda: language_model("bert"),
        "llama": lambda: language_model("llama"),
    }


@pytest.mark.parametrize("name", subjects())
def test_the_model_does_not_notice(name: str):
    model, x = subjects()[name]()
    model.train()
    twin = copy.deepcopy(model)
    modules = everything(model)["modules"]
    expected, random = run(twin, x, 3)
    # The models are recognised by running unknown norms on random numbers, which must not move those of the user.
    torch.manual_seed(5)
    state = torch.get_rng_state()
    watched = normkit.watch(model, every=2)
    assert torch.equal(torch.get_rng_state(), state)
    found, random_after = run(model, x, 3)
    watched.close()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(random, random_after)
    assert everything(model)["modules"] == modules
    assert all(torch.equal(v, everything(twin)["state"][k]) for k, v in everything(model)["state"].items())
    assert {record.step for record in watched.records} == {0, 2}
    assert {r.norm for r in watched.records} == {place.name for place, _ in normkit.tools.model.tree.norms(model)}
    assert all(r.input_std > 0 and r.grad_weight is not None and r.grad_output is not None for r in watched.records)


def test_between_watched_steps_only_the_counter_is_there():
    model = small()
    before = everything(model)["modules"]
    seen = []
    model[3].register_forward_hook(
        lambda *_: seen.append((len(model[1]._forward_hooks), len(model[1]._forward_pre_hooks)))
    )
    with normkit.watch(model, every=3) as watched:
        train(model, 5)
        assert everything(model)["modules"]["1"] == before["1"]
        assert len(model._forward_pre_hooks) == 1
        assert not model._forward_hooks
    assert seen == [(1, 1), (0, 0), (0, 0), (1, 1), (0, 0)]
    assert [record.step for record in watched.records] == [0, 3]
    assert watched.steps == 5


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


@pytest.mark.slow
def test_a_killed_run_loses_nothing(tmp_path: Path):
    program = """if True:
        import os, sys, torch, normkit
        model = torch.nn.Sequential(torch.nn.LayerNorm(4))
        watched = normkit.watch(model, every=1, to=[sys.argv[1] + "/a.csv", sys.argv[1] + "/a.jsonl"])
        for _ in range(6):
            model(torch.randn(2, 4)).sum().backward()
        os.kill(os.getpid(), 9)
    """
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == -9
    # All but the step that it was killed in.
    assert steps_in(tmp_path / "a.csv") == steps_in(tmp_path / "a.jsonl") == [*range(5)]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*IMAGES, *TEXT, *SOUND])
def test_every_norm_of_other_peoples_models(name: str):
    model, x = image_model(name) if name in IMAGES else language_model(name)
    model.train()
    called: set[str] = set()
    found = [(place.name, place.module, facts) for place, facts in normkit.tools.model.tree.norms(model)]
    for norm_name, module, _ in found:
        module.register_forward_hook(lambda *_, norm_name=norm_name: called.add(norm_name))
    if not found:
        with pytest.raises(StateError, match="has none"):
            normkit.watch(model)
        return
    with normkit.watch(model, every=1) as watched:
        model(x).square().mean().backward()
    assert called
    assert {r.norm for r in watched.records} == called
    for record in watched.records:
        assert record.channels == next(module for n, module, _ in found if n == record.norm).weight.numel()
        assert record.input_std > 0
        assert record.output_std is not None
        assert record.nonfinite_input == 0


def test_under_distributed_data_parallel(tmp_path: Path):
    model = small()
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        with normkit.watch(wrapped, every=1) as watched:
            train(wrapped, 2)
        with normkit.watch(model, every=1) as inner:
            train(wrapped, 2)
    finally:
        distributed.destroy_process_group()
    assert [(r.step, r.norm) for r in watched.records] == [(0, "1"), (1, "1")]
    assert [(r.step, r.norm) for r in inner.records] == [(0, "1"), (1, "1")]
    assert all(r.grad_weight > 0 for r in watched.records)


# Sinks ----------------------------------------------------------------------------------------------------


def test_files_are_whole_after_every_step_and_go_on(tmp_path: Path):
    model = small()
    table, lines = tmp_path / "a.csv", str(tmp_path / "a.jsonl")
    with normkit.watch(model, every=2, to=(table, lines)) as watched:
        train(model, 4)
        # Step 2 has its gradients, but no forward came behind it yet.
        model.eval()(torch.randn(2, 4))
        assert len(table.read_text().splitlines()) == 3
        model.train()
    with normkit.watch(model, every=2, to=[table, lines], start=4) as second:
        train(model, 1)
    records = [*watched.records, *second.records]
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert steps_in(table) == steps_in(Path(lines)) == [0, 2, 4]
    assert [float(row["input_std"]) for row in rows] == [r.input_std for r in records]
    read = [json.loads(line) for line in Path(lines).read_text().splitlines()]
    assert [NormRecord(**row) for row in read] == records
    assert read[0] == records[0].to_dict()


def steps_in(path: Path) -> list[int]:
    with path.open() as file:
        rows = csv.DictReader(file) if path.suffix == ".csv" else map(json.loads, file)
        return [int(row["step"]) for row in rows]


def test_a_torn_line_of_a_killed_run_is_dropped(tmp_path: Path):
    for name in ("a.csv", "a.jsonl"):
        path = tmp_path / name
        with normkit.watch(model := small(), every=1, to=path):
            train(model, 2)
        whole = path.read_bytes()
        path.write_bytes(whole[:-20])
        with normkit.watch(model, every=1, to=path, start=1):
            train(model, 1)
        assert steps_in(path) == [0, 1]


def test_jsonl_holds_no_nan(tmp_path: Path):
    norm = nn.LayerNorm(2)
    with normkit.watch(norm, every=1, to=tmp_path / "a.jsonl"):
        norm(torch.full((2, 2), torch.nan)).sum().backward()
    row = json.loads((tmp_path / "a.jsonl").read_text(), parse_constant=pytest.fail)
    assert row["input_mean"] is None
    assert row["nonfinite_input"] == 4


def test_functions_and_tensorboard(tmp_path: Path):
    from torch.utils.tensorboard import SummaryWriter

    class Scalars:
        def __init__(self) -> None:
            self.seen: dict[tuple[str, int], float] = {}

        def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
            self.seen[tag, global_step] = scalar_value

    got: list[NormRecord] = []
    model, scalars = small(), Scalars()
    with (
        SummaryWriter(str(tmp_path)) as writer,
        normkit.watch(model, every=1, to=[got.append, scalars, writer]) as watched,
    ):
        train(model, 2)
    assert tuple(got) == watched.records
    assert scalars.seen["output_std/1", 1] == got[1].output_std
    assert len(list(tmp_path.glob("events*"))) == 1


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"every": 0}, ArgumentError, "every must be at least 1, got 0"),
        ({"every": 2.5}, ArgumentError, "every must be a whole number"),
        ({"keep": 0}, ArgumentError, "keep must be at least 1, got 0"),
        ({"start": -1}, ArgumentError, "start must be at least 0, got -1"),
        ({"to": 3}, DtypeError, "got int: give 'norms.csv'"),
        ({"to": ["a.jsonl", 3]}, DtypeError, "or several of these, got int"),
        ({"to": "norms.txt"}, ArgumentError, "writes .csv or .jsonl, got 'norms.txt'"),
        ({"to": "nowhere/norms.csv"}, ArgumentError, "make nowhere first"),
    ],
)
def test_misuse_changes_nothing(options, error, text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    model = small()
    before = everything(model)["modules"]
    with pytest.raises(error, match=text):
        normkit.watch(model, **options)
    assert everything(model)["modules"] == before
    assert not list(tmp_path.iterdir())


def test_files_of_others_are_left_alone(tmp_path: Path):
    for name in ("a.csv", "a.jsonl"):
        (tmp_path / name).write_text("epoch,loss\n1,2\n")
        with pytest.raises(StateError, match=r"adds to a file of its own, got .*'epoch,loss"):
            normkit.watch(small(), to=tmp_path / name)
        assert (tmp_path / name).read_text() == "epoch,loss\n1,2\n"


def test_models_without_norms_are_refused():
    with pytest.raises(StateError, match=r"Sequential has none: insert some.*weight_norm"):
        normkit.watch(nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2))))
    with pytest.raises(DtypeError, match=r"must be a torch\.nn\.Module, got int"):
        normkit.watch(3)


# Ends -----------------------------------------------------------------------------------------------------


def test_an_exception_in_the_training_loop(tmp_path: Path):
    model = small()
    before = everything(model)["modules"]
    watched = normkit.watch(model, every=1, to=tmp_path / "a.csv")

    def loop() -> None:
        with watched:
            train(model, 2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    assert everything(model)["modules"] == before
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 3
    assert watched._sinks[0].__closure__ is not None
    files = [cell.cell_contents for cell in watched._sinks[0].__closure__ if hasattr(cell.cell_contents, "closed")]
    assert [file.closed for file in files] == [True]
    watched.close()


class Breaks(nn.Module):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        if self.error is not None:
            raise self.error
        return x


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_exception_inside_the_model(error: type[BaseException]):
    model = nn.Sequential(nn.LayerNorm(4), Breaks(error), nn.LayerNorm(4))
    before = everything(model)["modules"]
    with normkit.watch(model, every=1) as watched:
        with pytest.raises(error):
            model(torch.randn(2, 4))
        if error is ZeroDivisionError:  # torch runs no hook after an interrupt; then the next forward takes them off
            assert everything(model)["modules"]["0"] == before["0"]
        model[1].error = None
        train(model, 1)
        assert everything(model)["modules"]["0"] == before["0"]
    assert everything(model)["modules"] == before
    # What came before the failure is told.
    assert [(r.step, r.norm) for r in watched.records] == [(0, "0"), (1, "0"), (1, "2")]


def test_a_sink_that_raises_is_heard_and_all_hooks_go():
    def full(record: NormRecord) -> None:
        raise OSError("disk full")

    model = small()
    before = everything(model)["modules"]
    with pytest.raises(OSError, match="disk full"), normkit.watch(model, every=1, to=full):
        train(model, 3)
    assert everything(model)["modules"] == before


def test_copies_and_files_of_a_watched_model_are_not_watched(tmp_path: Path):
    model = small()
    with normkit.watch(model, every=1, to=tmp_path / "a.csv") as watched:
        train(model, 1)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            train(twin, 2)
        torch.save(model, tmp_path / "model.pt")
    assert watched.steps == 1


def test_a_with_block_without_a_step_warns():
    model = small()
    with pytest.warns(UserWarning, match="saw no training step"), normkit.watch(model):
        model.eval()(torch.randn(2, 4))


def test_memory_is_bounded_and_spans_the_whole_run():
    model = nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4))
    got: list[NormRecord] = []
    with normkit.watch(model, every=2, keep=20, to=got.append) as watched:
        train(model, 100)
    steps = sorted({r.step for r in watched.records})
    assert len(got) == 100
    assert len(watched.records) <= 20
    assert steps == [*range(0, 100, 16)]
    assert [r.norm for r in watched.records if r.step == 16] == ["0", "1"]


def test_the_table_of_the_last_step():
    model = small()
    with normkit.watch(model, every=1) as watched:
        assert "no record yet after 0 steps" in str(watched)
        train(model, 2)
    lines = str(watched).splitlines()
    assert lines[0].split()[:3] == ["norm", "input", "mean"]
    assert lines[1].startswith("1 ")
    assert lines[-1] == "1 norms, step 1 of 2"


# The picture ----------------------------------------------------------------------------------------------


def record(step: int, name: str, value: float | None) -> NormRecord:
    return NormRecord(step, name, "LayerNorm", output_std=value)


def rects(picture: str) -> list[ET.Element]:
    return [
        r for g in ET.fromstring(picture).iter("{http://www.w3.org/2000/svg}g") for r in g if r.tag.endswith("rect")
    ]


def test_the_heat_map(tmp_path: Path):
    records = [record(0, "a<b", 1.0), record(0, "c", 2.0), record(50, "a<b", 3.0), record(50, "c", None)]
    picture = heat_map.draw([*records, record(100, "c", float("nan"))], "output_std")
    cells = rects(picture)
    # No number, no cell; the ends of the scale at the ends of the colours; what is not finite in red.
    assert [cell.get("fill") for cell in cells] == ["#440154", "#fde725", "#21918c", "#d62728"]
    assert [cell[0].text for cell in cells] == ["0: 1", "50: 3", "0: 2", "100: nan"]
    text = "".join(ET.fromstring(picture).itertext())
    assert "output_std of 2 norms, steps 0 to 100; colours from 1 to 3" in text
    assert 'role="img" aria-label="output_std' in picture
    assert "<a<b" not in picture


def test_the_scale_of_the_heat_map():
    wide = [record(0, "a", 1e-3), record(1, "a", 1.0), record(2, "a", 1e3)]
    assert rects(heat_map.draw(wide, "output_std"))[1].get("fill") == "#21918c"
    assert "logarithmic" in heat_map.draw(wide, "output_std")
    assert rects(heat_map.draw(wide, "output_std", log=False))[1].get("fill") != "#21918c"
    assert rects(heat_map.draw(wide[:1], "output_std"))[0].get("fill") == "#21918c"


def test_a_large_heat_map_stays_small():
    records = [record(step, f"layer{i}", float(step % 7)) for step in range(500) for i in range(60)]
    picture = heat_map.draw(records, "output_std")
    assert len(rects(picture)) == 60 * heat_map.COLUMNS
    assert len(picture) < 500_000


@pytest.mark.parametrize(
    ("records", "options", "error", "text"),
    [
        ([], {"value": "output_sdt"}, ArgumentError, "did you mean 'output_std'"),
        ([], {"value": "output_std"}, StateError, "there is no record yet"),
        ([record(0, "a", None)], {"value": "output_std"}, StateError, "no record has a finite output_std"),
        ([record(0, "a", 0.0)], {"value": "output_std", "log": True}, ArgumentError, "needs positive numbers, got 0"),
    ],
)
def test_what_cannot_be_drawn(records, options, error, text):
    with pytest.raises(error, match=text):
        heat_map.draw(records, **options)


def test_the_picture_of_a_run_is_written(tmp_path: Path):
    model = small()
    with normkit.watch(model, every=1) as watched:
        train(model, 3)
    picture = watched.heat_map(tmp_path / "a.svg", value="grad_output")
    assert (tmp_path / "a.svg").read_text() == picture
    assert len(rects(picture)) == 3


def test_fields_are_told_once():
    assert len(set(FIELDS)) == len(FIELDS)
    assert all(name in NormRecord.__doc__ for name in FIELDS)
