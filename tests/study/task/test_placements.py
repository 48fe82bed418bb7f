"""Variants of a user's model with a placement."""

import pytest
import torch
from torch import nn

import normkit
from normkit.errors import ArgumentError
from normkit.study.task.variants import applied, method_name


class Encoder(nn.Module):
    """Two layers of torch's Transformer and a head, on (N, 5, 4)."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.embed = nn.Linear(4, 8)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layers(self.embed(x)).mean(1))


class Block(nn.Module):
    """A perceptron over features, pre-norm."""

    def __init__(self):
        super().__init__()
        self.norm, self.wide, self.narrow = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.narrow(torch.relu(self.wide(self.norm(x))))


class Perceptrons(nn.Module):
    """Two blocks, a norm and a head, on (N, 5, 4)."""

    def __init__(self):
        super().__init__()
        self.embed, self.first, self.second = nn.Linear(4, 8), Block(), Block()
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.norm(self.second(self.first(self.embed(x)))).mean(1))


def data(count, seed):
    x = torch.randn(count, 5, 4, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :, 0].mean(1).gt(0).long() + x[:, :, 1].mean(1).gt(0).long()


def test_names_of_variants():
    assert method_name("LN:post") == "layer_norm:post"
    assert method_name("unchanged:pre") == "unchanged:pre"
    for name in ("layer_norm:posts", "none:post", "weight_norm:pre", "layer_norm:"):
        with pytest.raises(ArgumentError, match=r"after a colon compare accepts a placement .*, got"):
            method_name(name)


def test_a_users_model_is_built_under_each_placement_from_equal_weights():
    task = normkit.Task(Encoder, data(40, 0), data(20, 1))
    models = {name: task.build(f"unchanged{name}", 3) for name in ("", ":post", ":pre", ":peri")}
    flags = {name: model.layers.layers[0].norm_first for name, model in models.items()}
    assert flags == {"": False, ":post": False, ":pre": True, ":peri": True}
    assert hasattr(models[":peri"].layers.layers[0], "norm1_output")
    first = models[""].state_dict()
    for model in models.values():
        state = model.state_dict()
        assert all(torch.equal(state[key], value) for key, value in first.items())


def test_norms_of_queries_and_keys_are_refused_for_a_users_model():
    assert method_name("RMS:qk") == "rms_norm:qk"
    task = normkit.Task(Encoder, data(40, 0), data(20, 1))
    with pytest.raises(
        ArgumentError, match=r"built-in Transformers, got 'layer_norm:qk' .*compare sequences --methods"
    ):
        task.build("layer_norm:qk", 0)


def test_a_placement_that_does_not_fit_is_an_error_with_the_reason():
    with pytest.raises(
        ArgumentError, match=r"post must be possible for all residual blocks .*no residual block was found"
    ):
        applied(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8)), "unchanged:post", torch.zeros(2, 4))


@pytest.mark.slow
def test_placements_are_compared_from_end_to_end(tmp_path):
    task = normkit.Task(Perceptrons, data(120, 0), data(60, 1), max_steps=40)
    found = normkit.compare(
        task,
        methods=["unchanged", "unchanged:post", "rms_norm:peri"],
        batch_sizes=[8],
        seeds=2,
        trials=3,
        workers=1,
        out=tmp_path,
        progress=False,
    )
    assert [cell.method for cell in found.cells] == ["none", "unchanged", "unchanged:post", "rms_norm:peri"]
    assert all(len(cell.runs) == 2 for cell in found.cells)
    page = next(tmp_path.rglob("*.html")).read_text(encoding="utf-8")
    assert "As it is (post-norm)" in page
    assert "RMS norm (peri-norm)" in page
