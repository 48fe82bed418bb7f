"""What the example does not show: inputs of other sizes and values, and code that keeps tensors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from folded_models import DOUBLE, Net
from torch import Tensor, nn
from torch.nn import functional as F

import normkit
from normkit.errors import ArgumentError, DtypeError
from tools.subjects import randomised

TOKENS, OTHERS = torch.randn(2, 8, 8).double(), torch.randn(3, 5, 8).double()


def net(way, size: int = 8, **layers: nn.Module) -> Net:
    torch.manual_seed(3)
    model = Net(way, **{"ln": nn.LayerNorm(8), "fc": nn.Linear(size, 4), **layers})
    return randomised(model).double().eval()


def windows(self: Net, x: Tensor) -> Tensor:
    """Padded to whole windows of 4, as Swin pads its maps: by nothing, for the example."""
    y = F.pad(self.ln(x), (0, 0, 0, -x.shape[1] % 4))
    return self.fc(y.unflatten(1, (-1, 4)))


def strongest(x: Tensor) -> Tensor:
    """The channels with the largest values: others for another input."""
    return x.abs().sum((0, 1)).argsort()[:4]


def keeping(self: Net, x: Tensor) -> Tensor:
    y = self.ln(x)
    self.kept = {"last": [y]}
    return self.fc(y)


def hooked(model: Net, name: str, before: bool = False) -> Net:
    module = model.get_submodule(name)
    register = module.register_forward_pre_hook if before else module.register_forward_hook
    register(lambda *_: None)
    return model


def around(first: nn.Module) -> nn.Sequential:
    return nn.Sequential(first)


REFUSED = {
    "zeros for other sizes": (net(windows), "pad() is between it and 'fc': inputs of other sizes get zeros"),
    "channels chosen by values": (
        net(lambda s, x: s.fc(s.ln(x)[..., strongest(x)]), 4),
        "the output of 'ln' also goes to __getitem__(), with indices that are computed",
    ),
    "channels chosen by a mask": (
        net(lambda s, x: s.fc(s.ln(x)[..., torch.zeros(8, dtype=torch.bool).scatter(0, strongest(x), True)]), 4),
        "the output of 'ln' also goes to __getitem__(), with indices that are computed",
    ),
    "channels selected by values": (
        net(lambda s, x: s.fc(s.ln(x).index_select(-1, strongest(x))), 4),
        "the output of 'ln' also goes to index_select(), with indices that are computed",
    ),
    "channels from a computed one": (
        net(lambda s, x: s.fc(s.ln(x)[..., strongest(x)[0] % 4 :][..., :4]), 4),
        "the output of 'ln' also goes to __getitem__()",
    ),
    "an attribute": (net(keeping), "the output of 'ln' also goes to the attribute 'kept'"),
    "an object that is returned": (
        net(lambda s, x: (lambda y: (s.fc(y), SimpleNamespace(y=y)))(s.ln(x))),
        "the output of 'ln' also goes to the caller of the model",
    ),
    "hooks around the norm": (
        hooked(net(lambda s, x: s.fc(s.around(x)), around=around(nn.LayerNorm(8)), ln=nn.Identity()), "around"),
        "the output of 'around.0' also goes to the hooks of 'around', which would see other values",
    ),
    "hooks around the layer": (
        hooked(net(lambda s, x: s.around(s.ln(x)), around=around(nn.Linear(8, 4)), fc=nn.Identity()), "around", True),
        "the output of 'ln' also goes to the hooks of 'around', which would see other values",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_only_other_inputs_or_code_would_show_is_refused(case):
    model, reason = REFUSED[case]
    _, report = normkit.fold(model, TOKENS)
    assert reason in str(report)
    assert not report.folds


TAKEN = {
    "tokens chosen by a mask": net(lambda s, x: s.fc(s.ln(x)[x[..., 0] > 0])),
    "tokens chosen by numbers": net(lambda s, x: s.fc(s.ln(x)[torch.arange(len(x)), x[..., 0].argmax(1)])),
    "channels in an order of the model's": net(
        lambda s, x: s.fc(s.ln(x)[..., s.order.bias]),
        order=nn.Module(),
    ),
    "hooks further on": hooked(net(lambda s, x: s.around(s.fc(s.ln(x))), around=around(nn.ReLU())), "around"),
}
TAKEN["channels in an order of the model's"].order.register_buffer("bias", torch.randperm(8))


@pytest.mark.parametrize("case", TAKEN)
def test_what_holds_for_every_input_is_folded(case):
    model = TAKEN[case]
    folded, _ = normkit.fold(model, TOKENS, strict=True)
    for x in (TOKENS, OTHERS):
        torch.testing.assert_close(folded(x), model(x), **DOUBLE)


def test_a_weight_alone_passes_windows_of_any_size():
    model = net(windows, ln=nn.RMSNorm(8))
    folded, _ = normkit.fold(model, TOKENS, strict=True)
    for x in (TOKENS, OTHERS):
        torch.testing.assert_close(folded(x), model(x), **DOUBLE)


@pytest.mark.parametrize("tool", [normkit.fold, normkit.to_rms_norm])
def test_what_is_made_in_inference_mode_can_be_trained(tool):
    model = nn.Sequential(nn.Embedding(5, 8), nn.LayerNorm(8), nn.Linear(8, 2)).eval()
    with torch.inference_mode():
        changed, _ = tool(model, torch.arange(5), strict=True)
    changed(torch.arange(5)).sum().backward()
    assert changed[2].weight.grad is not None


@pytest.mark.parametrize("tool", [normkit.fold, normkit.to_rms_norm])
def test_wrong_arguments(tool):
    with pytest.raises(DtypeError, match=r"a model must be a torch.nn.Module, got str: pass the module itself"):
        tool("model", TOKENS)
    with pytest.raises(DtypeError, match="tolerance must be a number or None, got str"):
        tool(net(windows), TOKENS, tolerance="1e-4")
    with pytest.raises(ArgumentError, match="tolerance must be at least 0, got -1"):
        tool(net(windows), TOKENS, tolerance=-1)
