"""Dtypes, modes, errors, checks and undoing of `to_rms_norm`; and what can be done with its result."""

from __future__ import annotations

import copy
import io
import subprocess
import sys

import pytest
import torch
from rms_nets import WIDTH, Net, checked, linear, norm, subject
from rms_zoo import model_of
from torch import Tensor, nn

import normkit
from normkit.errors import ArgumentError, StateError
from normkit.tools.to_rms_norm.change import Change
from normkit.tools.to_rms_norm.channels import Channels


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_centred_in_float64(dtype):
    model = Net(lambda s, x: s.last(s.ln(s.first(x))), first=linear(), ln=norm(), last=linear()).to(dtype)
    x = subject().to(dtype)
    converted, report = normkit.to_rms_norm(model, x, strict=True)
    weight = model.first.weight.detach().double()
    assert torch.equal(converted.first.weight, (weight - weight.mean(0)).to(dtype))
    assert report.exact_error <= 1e-14
    # Weights are rounded once, and so is each of the outputs of three layers: by half a unit of the last place.
    exact = copy.deepcopy(model).double()(x.double())
    assert (converted(x) - exact).abs().max() <= 8 * torch.finfo(dtype).eps * exact.abs().max()
    assert report.tolerance == torch.finfo(dtype).eps ** 0.5
    assert 0 < max(row.rounding for row in report.centred) <= torch.finfo(dtype).eps


def test_modes_hooks_and_requires_grad_stay():
    model = Net(lambda s, x: s.ln(s.drop(s.first(x))), first=linear(), drop=nn.Dropout(), ln=norm()).train()
    model.drop.eval()
    model.first.weight.requires_grad_(False)
    model.ln.requires_grad_(False)
    converted, report = normkit.to_rms_norm(model, subject(), strict=True)
    assert [module.training for module in converted.modules()] == [module.training for module in model.modules()]
    assert converted.ln.training
    assert not converted.first.weight.requires_grad
    assert converted.first.bias.requires_grad
    assert not converted.ln.weight.requires_grad
    assert "RMSNormReport" not in str(report)
    assert report.to_dict()["centred"][0]["name"] in ("first.weight", "first.bias")


@pytest.mark.parametrize("inplace", [False, True])
def test_outputs_that_change_undo_everything(inplace, monkeypatch: pytest.MonkeyPatch):
    model, x = model_of("gpt2")
    before, state = [*model.modules()], {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    attributes = [dict(vars(module)) for module in model.modules()]
    right, centre = Channels.centred, Change.centre

    def wrong(self, name, place):
        # Not all of them, because a norm ignores the scale of its whole input.
        factor = 1.01 if "c_proj" in name else 1.0
        monkeypatch.setattr(Channels, "centred", lambda self, x: right(self, x) * factor)
        row = centre(self, name, place)
        monkeypatch.setattr(Channels, "centred", right)
        return row

    monkeypatch.setattr(Change, "centre", wrong)
    _, report = normkit.to_rms_norm(model, x, inplace=inplace, untie=True)
    assert report.changes == report.centred == report.untied == ()
    assert all("undone: in torch.float64 outputs changed by" in row.reason for row in report.refusals)
    monkeypatch.setattr("normkit.tools.to_rms_norm.conversion.EXACT", {torch.float64: 1.0})
    _, report = normkit.to_rms_norm(model, x, inplace=inplace, untie=True, tolerance=1e-4)
    assert report.changes == ()
    assert all("undone: outputs changed by" in row.reason for row in report.refusals)
    assert report.error > report.tolerance == 1e-4
    assert [*model.modules()] == before
    assert {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)} == state
    assert [dict(vars(module)) for module in model.modules()] == attributes
    assert model.config.tie_word_embeddings


def hidden(function, x: Tensor) -> Tensor:
    """A call that no recorder of torch's functions sees."""
    with torch._C.DisableTorchFunction():
        return function(x)


def test_readers_and_writers_that_are_not_seen():
    model = Net(lambda s, x: (lambda h: s.ln(h) + hidden(torch.relu, h))(s.first(x)), first=linear(), ln=norm())
    weight = model.first.weight
    _, report = normkit.to_rms_norm(model, subject(), inplace=True)
    assert "the conversion was undone: in torch.float64 outputs changed by" in report.refusals[0].reason
    assert model.first.weight is weight
    model.way = lambda s, x: s.ln(hidden(torch.relu, s.first(x)))
    _, report = normkit.to_rms_norm(model, subject())
    assert "contains a tensor that code made which calls no function of torch" in report.refusals[0].reason


def test_a_model_that_fails_without_its_norm_is_put_back():
    def way(s, x):
        assert isinstance(s.ln, nn.LayerNorm), "no layer norm"
        return s.ln(s.first(x))

    model = Net(way, first=linear(), ln=norm())
    before = [*model.modules()]
    _, report = normkit.to_rms_norm(model, subject(), inplace=True)
    assert "undone: the converted model raises AssertionError: no layer norm" in report.refusals[0].reason
    assert [*model.modules()] == before


def test_a_model_that_raises_is_as_it_was(monkeypatch: pytest.MonkeyPatch):
    model = Net(lambda s, x: s.ln(s.first(x)), first=linear(), ln=norm())
    before, weight = [*model.modules()], model.first.weight
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        normkit.to_rms_norm(model, torch.randn(2, 3), inplace=True)
    monkeypatch.setattr("normkit.tools.to_rms_norm.conversion.distance", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        normkit.to_rms_norm(model, subject(), inplace=True)
    monkeypatch.undo()
    model.ln2 = norm()
    with pytest.raises(StateError, match="ln2: LayerNorm stays, the example does not reach it"):
        normkit.to_rms_norm(model, subject(), inplace=True, strict=True)
    assert [*model.modules()][:3] == before
    assert model.first.weight is weight
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("model", "example", "error", "text"),
    [
        (nn.Sequential(linear(), norm()), "image", ArgumentError, "got str: give one batch"),
        (nn.Sequential(nn.LazyLinear(4), norm(4)), subject(), StateError, "'0' does not: call the model once"),
        (Net(lambda s, x: 3, ln=norm()), subject(), ArgumentError, "got none of floating point from Net"),
        (Net(lambda s, x: x * torch.nan, ln=norm()), subject(), ArgumentError, "only nan, inf or empty ones from Net"),
        (nn.Sequential(linear(device="meta"), norm()), subject(), StateError, "'0.weight' is on the meta device"),
    ],
)
def test_wrong_arguments(model, example, error, text):
    with pytest.raises(error, match=text):
        normkit.to_rms_norm(model, example)


def test_compiled_models_are_refused():
    model = nn.Sequential(linear(), norm())
    model[0].compile(backend="eager")
    with pytest.raises(StateError, match="'0' is compiled: call to_rms_norm first and compile the result"):
        normkit.to_rms_norm(model, subject())


def test_a_model_with_a_dtype_of_its_own_is_compared_in_that():
    model = Net(lambda s, x: s.ln(s.first(x.float())), first=linear(), ln=norm())
    _, report = normkit.to_rms_norm(model, subject(), strict=True)
    assert report.exact_dtype == "float32"
    assert 0 < report.exact_error <= 1e-6


def test_a_norm_that_returns_its_input_passes_it_on():
    def way(s, x):
        y, h = s.ln(s.first(x), residual=s.second(x), return_residual=True)
        return y + s.first(h)

    model = Net(way, first=linear(), second=linear(), ln=normkit.LayerNorm(WIDTH))
    _, report = normkit.to_rms_norm(model, subject())
    assert report.refusals[0].reason == "it is called with more than its input"
    model.way = lambda s, x: (lambda h: s.last(s.ln(h)) + sum(s.other(h, return_residual=True)))(s.first(x))
    model.last, model.other = linear(), normkit.LayerNorm(WIDTH)
    _, report = normkit.to_rms_norm(model, subject())
    assert report.changes == ()
    assert "also goes to" in report.refusals[0].reason


def test_a_buffer_of_the_state_is_centred():
    model = Net(lambda s, x: s.ln(s.first(x) + s.table), first=linear(), ln=norm())
    model.register_buffer("table", torch.randn(5, WIDTH))
    converted, report = checked(model, subject(), strict=True)
    assert {row.name for row in report.centred} == {"first.weight", "first.bias", "table"}
    assert isinstance(converted.get_buffer("table"), Tensor)


def test_converted_models_compile_export_and_load(tmp_path):
    model = nn.Sequential(linear(), norm(), linear())
    converted, _ = normkit.to_rms_norm(model, subject(), strict=True)
    x = subject()
    expected = converted(x)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(converted, backend="eager")(x), expected)
    torch.testing.assert_close(torch.export.export(converted, (x,)).module()(x), expected)
    torch.testing.assert_close(copy.deepcopy(converted)(x), expected)
    torch.save((converted, x, expected), tmp_path / "model.pt")
    code = "import torch; m, x, y = torch.load(r'%s', weights_only=False); torch.testing.assert_close(m(x), y)" % (
        tmp_path / "model.pt"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    buffer = io.BytesIO()
    torch.save(converted.state_dict(), buffer)
    buffer.seek(0)
    model.load_state_dict(torch.load(buffer))
    # The original architecture with the new weights: other roundings of the same function.
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
