"""Blocks that stay as they are, each with its reason."""

import re

import pytest
import torch
from torch import nn

import normkit
from normkit.errors import StateError


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList([nn.LayerNorm(4), nn.Linear(4, 4)]) for _ in range(2))
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        for norm, layer in self.layers:
            x = x + layer(norm(x))
        return self.norm(x)


class Inside(nn.Module):
    """As in ConvNeXt."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x):
        return x + self.second(self.norm(self.first(x)))


class PreActivation(nn.Module):
    """As in ResNet v2."""

    def __init__(self):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        y = self.first(torch.relu(self.bn1(x)))
        return x + self.second(torch.relu(self.bn2(y)))


class TwoReaders(nn.Module):
    """The norm serves two sums, one after the other, as in GPT-J written in another order."""

    def __init__(self):
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        h = self.norm(x)
        x = x + self.first(h)
        return x + self.second(h)


class Parallel(nn.Module):
    """As in GPT-NeoX."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2, self.first, self.second = (
            nn.LayerNorm(4),
            nn.LayerNorm(4),
            nn.Linear(4, 4),
            nn.Linear(4, 4),
        )

    def forward(self, x):
        return x + self.first(self.norm1(x)) * self.second(self.norm2(x))


class LongSkip(nn.Module):
    """Two blocks, and a sum of both, as in a U-Net."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2, self.first, self.second = (
            nn.LayerNorm(4),
            nn.LayerNorm(4),
            nn.Linear(4, 4),
            nn.Linear(4, 4),
        )

    def forward(self, x):
        y = x + self.first(self.norm1(x))
        z = y + self.second(self.norm2(y))
        return torch.relu(z + y)


class AddedTo(nn.Module):
    """The sum is added to another layer's output."""

    def __init__(self):
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = torch.tanh(x)
        return self.second(x) + (x + self.first(self.norm(x)))


class Unnormed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.first(x)


class InSequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))

    def forward(self, x):
        return x + self.branch(x)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Loop, "one line of code adds up several blocks in a loop, and their norms differ"),
        (Inside, r"its norm \(LayerNorm\) is inside the branch, after another layer"),
        (
            PreActivation,
            r"further norms over channels \(BatchNorm1d\) between its layers, as in a ResNet",
        ),
        (TwoReaders, r"its norm is read outside of the branch too, by linear\(\)"),
        (Parallel, "it has parallel branches, each with a norm of its input"),
        (LongSkip, r"its input is read outside of the branch too, by add\(\)"),
        (AddedTo, "its sum is added to something that is not computed from it alone"),
        (Unnormed, "it has no norm"),
        (InSequence, "Sequential.forward does not call its LayerNorm by name"),
    ],
)
def test_what_cannot_be_changed_stays_with_a_reason(model, reason):
    torch.manual_seed(0)
    model = model().eval()
    x = torch.randn(3, 4)
    y = model(x)
    new, report = normkit.replace_placement(model, "post", example=x)
    assert torch.equal(new(x), y)
    assert not report.blocks
    assert any(re.search(reason, row.reason) for row in report.refusals), report
    with pytest.raises(StateError, match="strict=True allows no refusal"):
        normkit.replace_placement(model, "post", example=x, strict=True)


def test_a_model_without_residual_blocks():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    _, report = normkit.replace_placement(model, "post", example=torch.randn(2, 4))
    assert str(report) == "no residual block was found"


def test_flags_of_torchs_layers_are_put_back_where_a_stack_stays():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(Both(layer), nn.Linear(8, 2)).eval()
    x = torch.randn(2, 5, 8)
    y = model(x)
    new, report = normkit.replace_placement(model, "pre", example=x)
    assert "the last block is called several times" in str(report)
    assert not new[0].layer.norm_first
    assert torch.equal(new(x), y)


class Both(nn.Module):
    """One layer of torch's, called twice."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(self.layer(x))


class SharedEnd(nn.Module):
    """The norm at the end also normalizes the input."""

    def __init__(self):
        super().__init__()
        self.norm, self.last, self.layer = nn.LayerNorm(4), nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x):
        x = torch.tanh(self.last(x))
        x = x + self.layer(self.norm(x))
        return self.last(x)


def test_a_norm_at_the_end_with_other_uses_is_not_removed():
    _, report = normkit.replace_placement(SharedEnd(), "post", example=torch.randn(2, 4))
    assert "the norm at the end is called elsewhere too" in str(report)


def test_inference_mode_and_the_meta_device():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    with torch.inference_mode():
        changed, _ = normkit.replace_placement(model, "peri", example=torch.randn(2, 5, 8))
    changed(torch.randn(2, 5, 8)).sum().backward()
    with pytest.raises(StateError, match=r"'layers\.0\.self_attn\.in_proj_weight' is on the meta device"):
        normkit.replace_placement(model.to("meta"), "pre", example=torch.randn(2, 5, 8))
