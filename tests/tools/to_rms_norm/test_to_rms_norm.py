"""Converted networks give the same outputs; refused is whatever would change them."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from rms_nets import DOUBLE, WIDTH, Net, call, checked, linear, norm, parameter, subject
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import normkit
from normkit.errors import StateError


def embedded(way, **layers) -> Net:
    """A network whose stream starts with a linear layer and ends in a norm and a head."""
    return Net(way, first=linear(), ln=norm(), last=linear(outside=3), **layers)


CONVERTED = {
    "a linear layer": (embedded(lambda s, x: s.last(s.ln(s.first(x)))), {"first.weight", "first.bias"}),
    "a linear layer without bias": (
        Net(lambda s, x: s.ln(s.first(x)), first=linear(bias=False), ln=norm()),
        {"first.weight"},
    ),
    "a residual": (
        embedded(lambda s, x: (lambda h: s.last(s.ln2(h + s.fc(s.ln(h)))))(s.first(x)), fc=linear(), ln2=norm()),
        {"first.weight", "first.bias", "fc.weight", "fc.bias"},
    ),
    "a sum in place": (
        embedded(lambda s, x: (lambda h: s.last(s.ln2(h.add_(s.fc(s.ln(h))))))(s.first(x)), fc=linear(), ln2=norm()),
        {"first.weight", "first.bias", "fc.weight", "fc.bias"},
    ),
    "positions and a class token": (
        embedded(
            lambda s, x: s.last(s.ln(torch.cat([s.token.expand(x.shape[0], -1, -1), s.first(x)], 1) + s.position)),
            token=parameter(1, 1, WIDTH),
            position=parameter(6, WIDTH),
        ),
        {"first.weight", "first.bias", "token", "position"},
    ),
    "an image in patches": (
        Net(
            lambda s, x: s.ln(s.conv(x.unflatten(2, (4, 2))).flatten(2).transpose(1, 2)),
            conv=nn.Conv2d(5, WIDTH, 2, 2),
            ln=norm(),
        ),
        {"conv.weight", "conv.bias"},
    ),
    "channels in dimension 1": (
        Net(lambda s, x: s.ln(s.conv(x)), conv=nn.ConvTranspose1d(5, WIDTH, 3), ln=normkit.LayerNorm2d(WIDTH)),
        {"conv.weight", "conv.bias"},
    ),
    "heads": (
        Net(lambda s, x: s.ln(s.fc(x).unflatten(2, (2, 4)).transpose(1, 2)), fc=linear(), ln=norm(4)),
        {"fc.weight", "fc.bias"},
    ),
    "scales of a layer": (
        embedded(lambda s, x: s.last(s.ln(s.scale * s.first(x))), scale=parameter(WIDTH)),
        {"first.weight", "first.bias"},
    ),
    "scales that divide": (
        embedded(lambda s, x: s.last(s.ln(s.first(x) / s.scale)), scale=parameter(WIDTH)),
        {"first.weight", "first.bias"},
    ),
    "positions that are resized": (
        embedded(
            lambda s, x: s.last(s.ln(s.first(x) + F.interpolate(s.position, 5, mode="linear").transpose(1, 2))),
            position=parameter(1, WIDTH, 3),
        ),
        {"first.weight", "first.bias", "position"},
    ),
    "weights of low rank beside": (
        embedded(lambda s, x: s.last(s.ln(s.first(x) + s.up(s.down(x)))), down=linear(outside=2), up=linear(2)),
        {"first.weight", "first.bias", "up.weight", "up.bias"},
    ),
    "scales of channels in dimension 1": (
        Net(
            lambda s, x: s.ln((s.conv(x) * s.scale[:, None]).transpose(1, 2)),
            conv=nn.Conv1d(5, WIDTH, 3),
            scale=parameter(WIDTH),
            ln=norm(),
        ),
        {"conv.weight", "conv.bias"},
    ),
    "dropout, views, casts and numbers": (
        embedded(
            lambda s, x: s.last(s.ln(F.pad(s.drop(s.first(x) * 3).double().float()[:, 1:], (0, 0, 1, 2)) / -2)),
            drop=nn.Dropout(0.5),
        ),
        {"first.weight", "first.bias"},
    ),
    "positions that are left out": (
        embedded(lambda s, x: s.last(s.ln(s.first(x).masked_fill(x[..., :1] > 0, 0.0) * (x[..., 1:2] > 0)))),
        {"first.weight", "first.bias"},
    ),
    "positions that are mixed": (
        embedded(lambda s, x: s.last(s.ln(x.mean(-1).softmax(1)[:, None] @ s.first(x)))),
        {"first.weight", "first.bias"},
    ),
    "a mean that is subtracted anyway": (
        embedded(lambda s, x: (lambda h: s.ln(h) + F.layer_norm(h, (WIDTH,), s.last.weight[0]))(s.first(x))),
        {"first.weight", "first.bias"},
    ),
    "a norm without weight": (
        Net(lambda s, x: s.ln(s.first(s.ln(s.first(x)))), first=linear(), ln=nn.LayerNorm(WIDTH, bias=False)),
        {"first.weight", "first.bias"},
    ),
    "a layer that is used twice": (
        embedded(lambda s, x: s.last(s.ln(s.first(x) + s.first(s.ln(s.first(x)))))),
        {"first.weight", "first.bias"},
    ),
    "attention": (
        embedded(
            lambda s, x: (lambda h, y: s.last(s.ln2(h + s.attention(y, y, y)[0])))(s.first(x), s.ln(s.first(x))),
            attention=nn.MultiheadAttention(WIDTH, 2, batch_first=True),
            ln2=norm(),
        ),
        {"first.weight", "first.bias", "attention.out_proj.weight", "attention.out_proj.bias"},
    ),
}


@pytest.mark.parametrize("case", CONVERTED)
def test_a_stream_is_centred(case):
    model, centred = CONVERTED[case]
    x = subject().to(torch.float64)
    if "casts" in case:
        converted, report = checked(model.float(), x.float())
    else:
        converted, report = checked(model.double(), x)
        for new, old in zip(call(converted, x), call(model, x), strict=True):
            torch.testing.assert_close(new, old, **DOUBLE)
    assert report.refusals == ()
    assert {row.name for row in report.centred} == centred
    assert report.graph


def own_forward(layer: nn.Module) -> nn.Module:
    layer.forward = lambda x: x.detach()
    return layer


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda *_: None)
    return layer


def buffered(net: Net, persistent: bool) -> Net:
    net.register_buffer("table", torch.randn(5, WIDTH), persistent=persistent)
    return net


def tied(net: Net) -> Net:
    net.last.weight = net.first.weight
    return net


def keeping(s: Net, x: Tensor) -> Tensor:
    s.kept = s.first(x).detach()
    return s.ln(s.kept)


def written(s: Net, x: Tensor) -> Tensor:
    h = s.first(x)
    h[:, 0].relu_()
    return s.ln(h)


REFUSED = {
    "a head without a norm": (
        embedded(lambda s, x: (lambda h: s.ln(h) + s.fc(h))(s.first(x)), fc=linear()),
        "the output of linear() in 'first' also goes to linear() in 'fc'",
    ),
    "an output of the model": (
        embedded(lambda s, x: (lambda h: (s.ln(h), h))(s.first(x))),
        "the output of linear() in 'first' also goes to the caller of the model",
    ),
    "an activation": (
        embedded(lambda s, x: s.ln(s.first(x).relu())),
        "its stream contains the output of relu(), and no weight there can be centred",
    ),
    "an activation that reads the stream": (
        embedded(lambda s, x: (lambda h: s.ln(h) + torch.tanh(h))(s.first(x))),
        "the output of linear() in 'first' also goes to tanh()",
    ),
    "an RMS norm": (
        embedded(lambda s, x: (lambda h: s.ln(h) + s.rms(h))(s.first(x)), rms=nn.RMSNorm(WIDTH)),
        "the output of linear() in 'first' also goes to 'rms' (RMSNorm)",
    ),
    "the input of the model": (Net(lambda s, x: s.ln(x), ln=norm()), "its stream contains the input of the model"),
    "a number for all channels": (
        embedded(lambda s, x: s.ln(s.first(x) + x[..., :1])),
        "its stream contains the output of add(), and no weight there can be centred",
    ),
    "a constant": (embedded(lambda s, x: s.ln(s.first(x) + 1)), "its stream contains the output of add()"),
    "a value for positions that are left out": (
        embedded(lambda s, x: s.ln(s.first(x).masked_fill(x[..., :1] > 0, 1.0))),
        "its stream contains the output of masked_fill()",
    ),
    "a gate": (embedded(lambda s, x: s.ln(s.first(x) * x.sigmoid())), "its stream contains the output of mul()"),
    "a bound": (embedded(lambda s, x: s.ln(s.first(x).clamp(-6e4, 6e4))), "its stream contains the output of clamp()"),
    "a norm with a weight": (
        embedded(lambda s, x: s.ln(s.ln2(s.first(x).relu())), ln2=norm()),
        "ln: LayerNorm stays, its stream contains the output of 'ln2' (LayerNorm), and no weight there can be centred",
    ),
    "scales with a zero": (
        embedded(lambda s, x: s.ln(s.scale * s.first(x)), scale=nn.Parameter(torch.arange(float(WIDTH)))),
        "its stream contains the output of mul()",
    ),
    "a convolution of each channel": (
        Net(
            lambda s, x: s.ln(s.conv(x.transpose(1, 2)).transpose(1, 2)),
            conv=nn.Conv1d(WIDTH, WIDTH, 3, groups=WIDTH),
            ln=norm(),
        ),
        "its stream contains the output of conv1d() in 'conv'",
    ),
    "a weight that is read elsewhere": (
        embedded(lambda s, x: s.ln(s.first(x)) * s.first.weight.sum()),
        "'first.weight' also goes to sum()",
    ),
    "a weight that is the head's too": (
        tied(Net(lambda s, x: s.last(s.ln(s.first(x))), first=linear(), ln=norm(), last=linear())),
        "the output of linear() in 'last' also goes to the caller of the model",
    ),
    "a number read from the stream": (
        embedded(lambda s, x: (lambda h: s.ln(h) * h.sum().item())(s.first(x))),
        "the output of linear() in 'first' also goes to sum()",
    ),
    "a weight that is computed": (
        Net(lambda s, x: s.ln(s.first(x)), first=parametrizations.weight_norm(linear()), ln=norm()),
        "and no weight there can be centred",
    ),
    "a weight that is orthogonal": (
        Net(lambda s, x: s.ln(s.first(x)), first=parametrizations.orthogonal(linear()), ln=norm()),
        "is one of those that a weight is computed from: remove its parametrization",
    ),
    "a buffer that is not saved": (
        buffered(embedded(lambda s, x: s.ln(s.first(x) + s.table)), persistent=False),
        "'table' is a buffer that is not in the state dict",
    ),
    "hooks": (
        Net(lambda s, x: s.ln(s.first(x)), first=hooked(linear()), ln=norm()),
        "hooks of 'first', which would see",
    ),
    "hooks around a layer": (
        embedded(lambda s, x: s.ln(s.around(x)), around=hooked(nn.Sequential(linear()))),
        "the output of linear() in 'around.0' also goes to the hooks of 'around', which would see other values",
    ),
    "an attribute": (embedded(keeping), "the output of detach() also goes to the attribute 'kept'"),
    "an object that is returned": (
        embedded(lambda s, x: (lambda h: (s.ln(h), SimpleNamespace(hidden=h)))(s.first(x))),
        "the output of linear() in 'first' also goes to the caller of the model",
    ),
    "hooks on the norm": (Net(lambda s, x: s.ln(s.first(x)), first=linear(), ln=hooked(norm())), "it has hooks"),
    "a forward of the norm's own": (
        Net(lambda s, x: s.ln(s.first(x)), first=linear(), ln=own_forward(norm())),
        "its forward was exchanged",
    ),
    "a write through a view": (
        embedded(written),
        "its stream contains a tensor that was written to through another one, such as a view",
    ),
    "not reached": (Net(lambda s, x: s.first(x), first=linear(), ln=norm()), "the example does not reach it"),
    "several dimensions": (
        Net(lambda s, x: s.ln(s.first(x)), first=linear(), ln=nn.LayerNorm((5, WIDTH))),
        "it normalizes several dimensions",
    ),
    "another dimension": (
        Net(lambda s, x: s.ln(s.first(x).transpose(1, 2)), first=linear(), ln=norm(5)),
        "its stream contains the output of linear() in 'first'",
    ),
    "one channel": (
        Net(lambda s, x: s.ln(s.first(x)), first=linear(outside=1), ln=nn.LayerNorm(1)),
        "it has a single channel",
    ),
    "the encoder layer of torch": (
        Net(
            lambda s, x: s.layer(s.first(x)),
            first=linear(),
            layer=nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True, norm_first=True),
        ),
        "TransformerEncoderLayer reads weight and eps of its norms",
    ),
    "the graph knows another reader": (
        embedded(
            lambda s, x: s.ln(s.first(x)) if type(x) is Tensor else s.ln(s.first(x)) + s.first(x).relu(),
        ),
        "in the model's graph the output of linear() in 'first' also goes to relu()",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("inplace", [False, True])
def test_what_would_be_wrong_is_refused_with_the_reason(case, inplace):
    model, reason = REFUSED[case]
    model = copy.deepcopy(model).eval()
    before, x = [*model.modules()], subject()
    parameters = [*model.parameters()]
    expected = call(model, x)
    converted, report = normkit.to_rms_norm(model, x, inplace=inplace)
    assert reason in str(report)
    assert report.changes == report.centred == ()
    assert (converted is model) == inplace
    assert [*model.modules()] == before
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(new, old) for new, old in zip(call(converted, x), expected, strict=True))
    with pytest.raises(StateError, match="strict=True allows no layer norm to stay"):
        normkit.to_rms_norm(model, x, strict=True)
