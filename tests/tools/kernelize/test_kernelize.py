"""`normkit.kernelize`: the forward of norms of other libraries exchanged by the hook of the ``kernels`` package.

The package has many dependencies, so most environments do not have it. Then these tests use `Hook`, which does what its
documentation says; those with a model of transformers need the package itself.
"""

from __future__ import annotations

import contextlib
import copy
import enum
import inspect
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import distributions
from types import MethodType, ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit
from normkit.errors import ArgumentError, StateError
from normkit.tools.kernelize.layers import PureLayer
from normkit.tools.model.info import Gate

INSTALLED = any(each.name == "kernels" for each in distributions())


class Hook(ModuleType):
    """The part of the ``kernels`` package that `kernelize` calls."""

    class Mode(enum.Flag):
        FALLBACK = 0
        INFERENCE = enum.auto()
        TRAINING = enum.auto()
        TORCH_COMPILE = enum.auto()

    mapping: Any = None

    @contextlib.contextmanager
    def use_kernel_mapping(self, mapping: dict[str, dict[str, Any]], *, inherit_mapping: bool = True) -> Iterator[None]:
        assert not inherit_mapping
        self.mapping = mapping
        yield
        self.mapping = None

    def kernelize(self, model: nn.Module, *, mode: Mode, device: str, use_fallback: bool) -> nn.Module:
        assert not use_fallback
        for module in model.modules():
            if hasattr(type(module), "kernel_layer_name"):
                layer = self.mapping[type(module).kernel_layer_name][device].load()
                ours, theirs = (inspect.signature(cls.forward).parameters.values() for cls in (layer, type(module)))
                assert [p.kind for p in ours] == [p.kind for p in theirs]
                members, of_any = ({name for name, _ in inspect.getmembers(cls)} for cls in (layer, nn.Module))
                assert layer.__init__ is nn.Module.__init__
                assert members - of_any <= {"has_backward", "can_torch_compile"}
                module.forward = MethodType(layer.forward, module)
        return model


@pytest.fixture(params=["as documented", "installed"])
def hook(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "as documented":
        monkeypatch.setitem(sys.modules, "kernels", Hook("kernels"))
    elif not INSTALLED:
        pytest.skip("the kernels package is not installed")
    return str(request.param)


class LlamaNorm(nn.Module):
    kernel_layer_name = "RMSNorm"

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)
        self.variance_epsilon = eps

    def hat(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.weight * self.hat(hidden_states).to(hidden_states.dtype)


class CastLastNorm(LlamaNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return (self.weight * self.hat(hidden_states)).to(hidden_states.dtype)


class CenteredWeightNorm(LlamaNorm):
    kernel_layer_name = "RMSNormZeroCentered"

    def forward(self, x: Tensor) -> Tensor:
        hat = self.hat(x)
        return ((1 + self.weight.to(hat.dtype)) * hat).to(x.dtype)


class GatedNorm(LlamaNorm):
    kernel_layer_name = "RMSNormGated"

    def forward(self, hidden_states: Tensor, gate: Tensor) -> Tensor:
        wide = torch.promote_types(gate.dtype, torch.float32)
        y = self.weight * self.hat(hidden_states).to(hidden_states.dtype)
        return (y * nn.functional.silu(gate.to(wide))).to(hidden_states.dtype)


def outputs(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Outputs and gradients of weight and inputs."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    y = model(*leaves)
    (y.float() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    grads = [*model.parameters(), *leaves]
    found = [y.detach(), *[t.grad.clone() for t in grads]]
    model.zero_grad()
    return found


EXPECTED = {
    LlamaNorm: PureLayer("rms_norm", "variance_epsilon", "before"),
    CastLastNorm: PureLayer("rms_norm", "variance_epsilon"),
    CenteredWeightNorm: PureLayer("rms_norm", "variance_epsilon", zero_centered=True),
    GatedNorm: PureLayer("rms_norm", "variance_epsilon", "before", gate=Gate("silu")),
}


@pytest.mark.parametrize("cls", EXPECTED)
def test_each_norm_gets_a_forward_that_computes_the_same(hook, cls):
    torch.manual_seed(0)
    norm = cls(24)
    inputs = [torch.randn(3, 5, 24) for _ in range(1 + (cls is GatedNorm))]
    before = copy.deepcopy(norm)
    model, report = normkit.kernelize(nn.Sequential(norm))
    assert model[0] is norm
    assert type(norm) is cls
    assert "forward" in vars(norm)
    assert report.changes[0].computes == str(EXPECTED[cls])
    assert not report.refusals
    # Sums of 24 numbers in another order; gradients of the weight are sums of 15 more.
    torch.testing.assert_close(outputs(norm, *inputs), outputs(before, *inputs), rtol=1e-5, atol=1e-5)
    for each in (norm, before):
        each.to(torch.bfloat16)
    halves = [x.to(torch.bfloat16) for x in inputs]
    ours, theirs = outputs(norm, *halves), outputs(before, *halves)
    # The same roundings in the same places. A float32 sum in another order rounds some few values to the neighbour.
    assert (ours[0] == theirs[0]).float().mean() > 0.97
    # Both gradients are rounded several times on their way, each time by 2^-9 of the value.
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2**-6, atol=2**-6 * float(b.abs().max()))


def test_the_forward_reads_the_state_of_its_norm(hook):
    model, _ = normkit.kernelize(nn.Sequential(LlamaNorm(8)))
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied[0].weight.fill_(3.0)
    copied[0].variance_epsilon = 9.0
    x = torch.ones(2, 8)
    torch.testing.assert_close(copied(x), torch.full((2, 8), 3 / 10**0.5))
    assert not torch.equal(model(x), copied(x))


def test_twice_and_back(hook):
    model = nn.Sequential(LlamaNorm(8), nn.Linear(8, 8), nn.LayerNorm(8))
    before = {name: id(module) for name, module in model.named_modules()}
    model, report = normkit.kernelize(model)
    assert str(report) == (
        "0: LlamaNorm (RMSNorm) -> normkit.functional.rms_norm(cast='before')\n"
        "2: LayerNorm stays, its class has no name for the hook: normkit.convert replaces it"
    )
    again = normkit.kernelize(model)[1]
    assert again.kept == ("0",)
    assert not again.changes
    assert again.to_dict()["kept"] == ("0",)
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert "forward" not in vars(report.revert(model)[0])
    with pytest.raises(StateError, match="'0' has another forward or is not there: undo later changes first"):
        report.revert(model)


def test_strict_changes_nothing(hook):
    model = nn.Sequential(LlamaNorm(8), nn.LayerNorm(8))
    with pytest.raises(StateError, match="strict=True allows no refusal, and there are 1"):
        normkit.kernelize(model, strict=True)
    assert "forward" not in vars(model[0])


def test_a_forward_of_someone_else_stays(hook):
    norm = LlamaNorm(8)
    norm.forward = lambda x: x
    report = normkit.kernelize(nn.Sequential(norm))[1]
    assert report.refusals[0].reason == "its forward was exchanged on this very module"


def test_a_device_without_kernels_is_refused(hook):
    with pytest.raises(ArgumentError, match="kernelize needs a device for which normkit has kernels, got 'mps': one"):
        normkit.kernelize(nn.Sequential(LlamaNorm(8)), device="mps")


def test_a_compiled_graph_has_no_break(hook):
    model, _ = normkit.kernelize(nn.Sequential(LlamaNorm(8)))
    x = torch.randn(4, 8)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("found", [None, ModuleType("kernels")])
def test_without_the_package(monkeypatch, found):
    monkeypatch.setitem(sys.modules, "kernels", found)
    with pytest.raises(StateError, match="kernels package, which is not installed: pip install it in the version"):
        normkit.kernelize(nn.Sequential(LlamaNorm(8)))


@pytest.mark.skipif(not INSTALLED, reason="the kernels package is not installed")
def test_a_model_of_transformers():
    transformers = pytest.importorskip("transformers")
    from transformers.utils.import_utils import is_kernels_available

    if not is_kernels_available():
        pytest.skip("this version of transformers asks for another version of the kernels package")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=64, **sizes, **heads))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    before, ids = copy.deepcopy(model), torch.randint(64, (2, 10))
    model, report = normkit.kernelize(model)
    assert len(report.changes) == 5
    assert not report.refusals
    results = []
    for each in (model, before):
        out = each(ids, labels=ids)
        out.loss.backward()
        results.append([out.logits, *[p.grad for p in each.parameters()]])
    # Two layers of float32 with sums in another order, each 1e-7 of its terms.
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)
    # The package's own function, without a mapping, gives the forward of the class back; some versions warn.
    import kernels

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kernels.kernelize(model, mode=kernels.Mode.INFERENCE, device="cpu")
    assert torch.equal(model(ids).logits, before(ids).logits)
