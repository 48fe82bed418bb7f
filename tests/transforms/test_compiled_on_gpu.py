"""What ``torch.compile`` makes of normkit on a GPU: plain operations. Tested on a CPU that is taken for a GPU.

On a machine with a GPU the same tests run there, too: ``pytest -m gpu tests/transforms/test_compiled_on_gpu.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normkit
from cases import CASES, Case, layouts, make_input, make_layer
from normkit import functional as N
from normkit.kernels import formula
from normkit.kernels.formula import ACTIVATIONS, Arguments
from transforms.graphs import CLOSE, Graphs, assert_steps_agree, calls, compiled, of_normkit, taken_for_gpu
from transforms.subjects import LAYERS, sample

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*")  # torch's compiler warns of torch


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device whose graphs get plain operations."""
    with taken_for_gpu(request.param) as device:
        yield device


ALIKE = (
    "batch_norm 1d",
    "batch_norm 3d",
    "layer_norm of two dimensions",
    "rms_norm of two dimensions",
    "instance_norm 1d",
    "group_norm 1d",
    "local_response_norm, even window",
    "global_response_norm, channels last",
    "dynamic_tanh, channels first",
    "dynamic_erf, channels first",
    "spectral_norm, converged",
)
"""Each differs in its shape from another case of the same function, or, converged, in its number of iterations."""


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by Dynamo itself
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case.name in ALIKE else (), id=str(case)) for case in CASES]
)
def test_a_layer_becomes_plain_operations(case: Case, device: str):
    eager = make_layer(case).to(device)
    layer, graphs = copy.deepcopy(eager), []
    run = compiled(layer, graphs)
    assert_steps_agree(layer, eager, run, make_input(case).to(device))
    if any(name.startswith("running") for name, _ in layer.named_buffers()):
        layer.eval()
        assert_steps_agree(layer, eager.eval(), run, make_input(case, seed=1).to(device))
    # Power norm in training asks an operator for the statistics of before the batch.
    assert of_normkit(graphs) <= ({"normkit.power_state.default"} if str(case).startswith("power_norm") else set())


@pytest.mark.parametrize("name", [name for name in LAYERS if "extras" in name or name in ("ghost", "frozen")])
def test_the_other_layers_too(name: str, device: str):
    eager, graphs = LAYERS[name]().to(device), []
    layer = copy.deepcopy(eager)
    assert_steps_agree(layer, eager, compiled(layer, graphs), sample(5).to(device))
    assert of_normkit(graphs) == set()


def test_batch_renorm_keeps_one_operator(device: str):
    # Its r and d come from statistics that the same graph updates; backward must not compute them again from these.
    eager, graphs = normkit.BatchRenorm1d(4).to(device), []
    layer = copy.deepcopy(eager)
    assert_steps_agree(layer, eager, compiled(layer, graphs), sample(5).to(device))
    assert of_normkit(graphs) == {"normkit.renorm_correction.default"}


@pytest.mark.parametrize("case", [case for case in CASES if case.name == "group_norm 2d"], ids=str)
def test_every_layout(case: Case, device: str):
    for layout in layouts(case):
        eager, graphs = make_layer(case).to(device), []
        layer = copy.deepcopy(eager)
        x = make_input(case, layout=layout).to(device)
        assert_steps_agree(layer, eager, compiled(layer, graphs), x)
        nodes = [node for graph in graphs for node in graph.graph.nodes if "clone" in str(node.target)]
        copies = [node for node in nodes if node.meta["val"].numel() == x.numel()]
        assert not copies or layout in ("strided", "expanded"), layout  # which are not dense, and results are


RARE = [("silu", "gelu", "relu"), ("gelu", "relu", "silu"), *[(name,) * 3 for name in ACTIVATIONS]]


@pytest.mark.parametrize(
    "activations", [("relu", "silu", "gelu"), *[pytest.param(names, marks=pytest.mark.slow) for names in RARE]], ids=str
)
def test_mask_residual_and_activation(activations: tuple[str, str, str], device: str):
    x, residual = sample(3).to(device), sample(3).to(device)
    valid = torch.rand(3, 6, device=device) < 0.7
    weight, bias = torch.rand(4, device=device), torch.randn(4, device=device)
    dy, dsum = sample(3).to(device), sample(3).to(device)

    def run(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
        fused = [{"mask": valid, "return_residual": True, "activation": name} for name in activations]
        y, total = N.instance_norm(x, None, None, weight, bias, residual=residual, **fused[0])
        z, _ = N.rms_norm(x.mT, (4,), weight, residual=residual.mT, **fused[1])
        u, _ = N.layer_norm(x.mT, (4,), weight, bias, residual=residual.mT, **fused[2])
        return [y * dy + total * dsum, z.mT * dy, u.mT * dy]

    graphs: Graphs = []
    sides = []
    for function in (compiled(run, graphs), run):
        leaves = [t.clone().requires_grad_() for t in (x, residual, weight, bias)]
        outputs = function(*leaves)
        sides.append((*outputs, *torch.autograd.grad(sum(t.sum() for t in outputs), leaves)))
    torch.testing.assert_close(*sides, **CLOSE)
    assert of_normkit(graphs) == set()


def test_spectral_norm(device: str):
    torch.manual_seed(0)
    eager, graphs = normkit.spectral_norm(nn.Linear(6, 5), n_power_iterations=2).to(device), []
    layer = copy.deepcopy(eager)
    assert_steps_agree(layer, eager, compiled(layer, graphs), sample().to(device))
    assert of_normkit(graphs) == set()


@pytest.mark.parametrize("dim", [None, 1])
def test_weight_norm_over_other_dimensions(dim: int | None, device: str):
    torch.manual_seed(0)
    eager, graphs = normkit.weight_norm(nn.Linear(6, 5), dim=dim).to(device), []
    layer = copy.deepcopy(eager)
    assert_steps_agree(layer, eager, compiled(layer, graphs), sample().to(device))
    assert of_normkit(graphs) == set()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_a_gradient(mode: Callable[[], object], device: str):
    layer, x, graphs = normkit.GroupNorm(2, 4).to(device), sample().to(device), []
    with mode():
        torch.testing.assert_close(compiled(layer, graphs)(x), layer(x), **CLOSE)
    assert of_normkit(graphs) == set()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype: torch.dtype, device: str):
    layer, x, graphs = normkit.LayerNorm(6).to(device), sample().to(device), []
    run = compiled(layer, graphs)
    one_rounding = {"atol": 0, "rtol": torch.finfo(dtype).eps}  # both round results of fp32 that are nearly equal
    torch.testing.assert_close(run(x.to(dtype)), layer(x.to(dtype)), **one_rounding)
    with torch.autocast(device, dtype):
        torch.testing.assert_close(run(x), layer(x), **CLOSE)  # a norm computes in the dtype of its input
    assert of_normkit(graphs) == set()


@pytest.mark.gpu
def test_autocast_on_a_gpu_casts_torchs_norms_and_not_these():
    x = torch.randn(8, 4, 6, device="cuda", dtype=torch.bfloat16)
    pairs = [(normkit.LayerNorm(6), nn.LayerNorm(6)), (normkit.GroupNorm(2, 4), nn.GroupNorm(2, 4))]
    pairs += [(normkit.RMSNorm(6), nn.RMSNorm(6))]
    with torch.autocast("cuda", torch.bfloat16):
        for ours, theirs in pairs:
            assert ours.cuda()(x).dtype is torch.bfloat16
            assert theirs.cuda()(x).dtype is torch.float32


BESIDES = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("batch", "group", "layer", "instance", "weight_norm")
]


@pytest.mark.parametrize("name", ["batch with extras", *BESIDES])
def test_one_graph_for_every_batch_size(name: str, device: str):
    eager, graphs = LAYERS[name]().to(device), []
    layer = copy.deepcopy(eager)
    run = compiled(layer, graphs, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (3, 7):
            assert_steps_agree(layer, eager, run, sample(batch).to(device))
            layer.zero_grad()
            eager.zero_grad()
    assert of_normkit(graphs) == set()


@pytest.mark.parametrize("name", ["batch", "group", pytest.param("instance", marks=pytest.mark.slow), "layer", "rms"])
def test_forward_saves_its_input_and_moments(name: str, device: str):
    layer, x, graphs = LAYERS[name]().to(device), sample(5).to(device).requires_grad_(), []
    compiled(layer, graphs)(x)
    outputs = [node.meta["val"] for node in graphs[0].graph.output_node().args[0] if isinstance(node, torch.fx.Node)]
    assert sum(t.numel() == x.numel() for t in outputs) == 2  # the result, and x for backward


def test_an_average_of_statistics_does_not_wait(device: str):
    eager, graphs = normkit.BatchNorm1d(4, momentum=None).to(device), []
    layer = copy.deepcopy(eager)
    run = compiled(layer, graphs)
    for seed in (0, 1):
        torch.manual_seed(seed)
        assert_steps_agree(layer, eager, run, sample(5).to(device))
        layer.zero_grad()
        eager.zero_grad()
    assert not any("_local_scalar" in name for name in calls(graphs))


@pytest.mark.parametrize(
    "how", [*(pytest.param(how, marks=pytest.mark.slow) for how in ("reentrant", "inside")), "not reentrant"]
)
def test_a_checkpoint_counts_a_batch_once(how: str, device: str):
    torch.manual_seed(0)
    eager = nn.Sequential(nn.Conv1d(4, 4, 1), normkit.BatchNorm1d(4)).to(device)
    layer, graphs = copy.deepcopy(eager), []
    if how == "inside":
        run = compiled(lambda x: checkpoint(layer, x, use_reentrant=False), graphs)
    else:
        graph = compiled(layer, graphs)
        run = lambda x: checkpoint(graph, x, use_reentrant=how == "reentrant")  # noqa: E731
    for _ in range(2):
        assert_steps_agree(layer, eager, run, sample(5).to(device))
        layer.zero_grad()
        eager.zero_grad()


def test_an_exported_program_keeps_the_operators(device: str):
    program = torch.export.export(normkit.GroupNorm(2, 4).to(device), (sample().to(device),))
    assert "normkit.norm.default" in calls([program.graph_module])


# The published bound, on the code that Inductor writes -----------------------------------------------------------

PATTERNS = ("[b] c [...]", "b (g=4 [c]) [...]", "b c [...]", "b [c] ...", "... [c]")
VALUES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "near 1": lambda x, _: x * 2 + 1,
    "mean 1e4": lambda x, std: x * std + 1e4,
    "1e18": lambda x, _: x * 1e18,
    "outliers": lambda x, _: x.flatten().index_fill(0, torch.arange(0, x.numel(), 97), 1e6).view(x.shape),
}
HALF = [pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.bfloat16, torch.float16)]


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_inductor_keeps_the_bound(dtype: torch.dtype, device: str):
    x = torch.randn(4, 8, 12, 8, dtype=torch.float64)
    weight, bias, dy = torch.randn(8), torch.randn(8), torch.randn(x.shape)
    for pattern in PATTERNS:
        N.normalize(x, pattern)  # a pattern is parsed before it is compiled
    run = torch.compile(lambda x, w, b: [N.normalize(x, pattern, w, b) for pattern in PATTERNS], fullgraph=True)
    for what, make in VALUES.items():
        if what in ("outliers", "1e18") and dtype is torch.float16:
            continue  # beyond its range
        value = make(x, 1e-2 if dtype is torch.float32 else 1e2).to(dtype)  # a spread that the dtype can tell
        leaves = [t.to(device, copy=True).requires_grad_() for t in (value, weight, bias)]
        for pattern, y in zip(PATTERNS, run(*leaves), strict=True):
            grads = torch.autograd.grad(y, leaves, dy.to(device, dtype), retain_graph=True)
            a = Arguments(value.double(), weight.double(), bias.double(), pattern, 1e-5, True)
            exact, _, mean, std = formula.norm(a)
            assert mean is not None
            assert std is not None
            condition = (mean.abs() / (std.square() + a.eps).sqrt()).max()
            # In half precision one rounding of the result, or of a gradient, comes on top.
            rounding = 0.0 if dtype is torch.float32 else torch.finfo(dtype).eps / 2
            bound = 4 * torch.finfo(torch.float32).eps * (1 + condition) + rounding
            wanted = (exact, *formula.norm_backward(dy.to(dtype).double(), a, False)[:3])
            for got, want in zip((y, *grads), wanted, strict=True):
                error = (got.detach().double().cpu() - want).abs().max() / want.abs().max()
                assert error <= bound, (what, pattern, got.shape, float(error / bound))
