"""`audit(invariance=True)`: what it measures of norms that keep to one sample and of those that do not."""

from __future__ import annotations

import json
import random

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import normkit
from normkit import cli
from normkit.tools.audit.measure import invariance as measure
from normkit.tools.audit.measure.invariance import Invariance, LayerInvariance


@pytest.fixture
def compiling(monkeypatch):
    """Dynamo without a compiler behind it, and so in a second."""
    monkeypatch.setattr(measure, "BACKEND", "eager")


@pytest.fixture(autouse=True)
def _quick(monkeypatch, request):
    """Small batches, and nothing compiled, unless a test asks for it."""
    monkeypatch.setattr(measure, "MEMORY", 1 << 18)
    if "compiling" not in request.fixturenames:
        monkeypatch.setattr(measure, "_compiled", lambda *_: [])


class Depends(nn.LayerNorm):
    """A layer norm, unless what it is given has a property that a test asks for; then something is added."""

    def __init__(self, added):
        super().__init__(8)
        self.added = added

    def forward(self, x):
        return super().forward(x) + self.added(x)


def measured(model: nn.Module, *shape: int) -> Invariance:
    found = normkit.audit(model, torch.randn(shape), invariance=True).invariance
    assert found is not None
    return found


def layer_of(model: nn.Module, *shape: int) -> LayerInvariance:
    (layer,) = measured(model, *shape).layers
    return layer


def test_a_norm_that_looks_at_its_batch_is_named_with_the_first_way_and_the_largest_difference():
    found = layer_of(nn.Sequential(Depends(lambda x: 0.25 * (len(x) > 7))), 3, 5, 8)
    assert (found.module, found.layer, found.shape, found.dtype) == ("0", "Depends", (5, 8), "float32")
    assert found.largest_batch == 1024  # of 160 bytes each, in 256 KiB
    assert found.same is False
    assert found.in_any_batch is False
    assert found.first == "in a batch of 16"
    assert found.difference == pytest.approx(0.25)
    assert [trial.way for trial in found.trials if trial.same][:3] == [f"in a batch of {n}" for n in (2, 3, 7)]
    assert str(found) == "other bits in a batch of 16, in 5 of 12 trials, by at most 0.25"


def test_all_places_in_a_batch_count_and_one_bit_is_enough():
    def last(x):
        place = torch.arange(len(x)).view(-1, *[1] * (x.dim() - 1))
        return torch.where(place == len(x) - 1, 1e-7 * (len(x) > 8), 0.0)

    found = layer_of(nn.Sequential(Depends(last)), 3, 5, 8)
    assert found.first == "in a batch of 16"
    assert 0 < found.difference < 1e-6


@pytest.mark.parametrize(
    ("added", "first"),
    [
        (lambda x: 1.0 * (x.shape[-2] == 1), "in pieces of 1 along dimension 1"),
        (lambda x: 1.0 * (x.dim() == 3 and x.shape[1] == 7), "in pieces of 7 along dimension 1"),
        (lambda x: 1.0 * (x.shape[-2] > 20), "padded by 1 along dimension 1"),
        (lambda x: 1.0 * torch.compiler.is_compiling(), "compiled"),
        (lambda x: torch.compiler.is_compiling() * (len(x) - 1.0), "compiled, in a batch of 8, against compiled alone"),
    ],
)
def test_other_ways_to_compute_the_same(compiling, added, first):
    model = nn.Sequential(Depends(added))
    before = [set(vars(module)) for module in model.modules()]
    found = layer_of(model, 3, 20, 8)
    assert found.first == first
    assert found.difference >= 0.9
    assert (found.same, found.in_any_batch) == (False, True)
    assert str(found).startswith(f"the same bits in batches; other bits {first}, in ")
    assert [set(vars(module)) for module in model.modules()] == before


def test_batch_norm_depends_on_its_batch_by_definition_in_training_and_without_statistics():
    def make():
        return nn.Sequential(
            nn.BatchNorm2d(4),
            nn.BatchNorm2d(4, track_running_stats=False),
            normkit.BatchNorm2d(4),
            normkit.FrozenBatchNorm2d(4),
            normkit.GhostBatchNorm2d(4, virtual_batch_size=2),
        )

    found = measured(make(), 4, 4, 5, 6).layers
    training = "depends on the batch by definition: in training it uses the statistics of the batch"
    assert [str(found[i]) for i in (0, 1, 2, 4)] == [training] * 4
    assert found[3].same
    assert not found[0].trials
    assert found[0].in_any_batch is False
    found = measured(make().eval(), 4, 4, 5, 6).layers
    assert str(found[1]).endswith("by definition: it keeps no running statistics, so it uses those of the batch")
    assert [found[i].same for i in (0, 2, 3, 4)] == [True] * 4
    frozen = make()
    normkit.freeze(frozen)
    assert measured(frozen, 4, 4, 5, 6).layers[0].same


def test_our_layers_keep_to_one_sample():
    """In batches, and norms of single positions also where these are cut and padded."""
    model = nn.Sequential(
        normkit.GroupNorm(2, 6),
        normkit.InstanceNorm2d(6),
        normkit.LayerNorm2d(6),
        normkit.FilterResponseNorm2d(6),
        normkit.LayerNorm(5),
        normkit.RMSNorm(5),
    )
    found = measured(model, 3, 6, 4, 5)
    for layer in found.layers:
        for trial in layer.trials:
            assert trial.same or "mask" in trial.way, (layer.module, trial)
    ways = {layer.layer: [trial.way for trial in layer.trials] for layer in found.layers}
    assert "padded by 13 along dimension 3, with a mask" in ways["GroupNorm"]
    assert "in pieces of 1 along dimension 1" in ways["RMSNorm"]


class Model(nn.Module):
    """A residual, a mask, lengths, and a vector; a norm of its own mode; one that is not reached."""

    def __init__(self, contiguous: bool = True) -> None:
        super().__init__()
        self.contiguous = contiguous
        self.conv, self.batch = nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6).eval()
        self.masked, self.sums, self.vector = normkit.GroupNorm(2, 6), normkit.LayerNorm(6), normkit.LayerNorm(6)
        self.unused, self.drop = nn.LayerNorm(6), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.batch(self.conv(x)))
        x = self.masked(x, lengths=[4] + [x.shape[2]] * (len(x) - 1)).transpose(1, 2)
        x = x.contiguous() if self.contiguous else x
        y, total = self.sums(x, residual=2 * x, return_residual=True)
        return self.vector((y + total)[0, 0])


def test_calls_are_repeated_with_all_their_arguments():
    found = measured(Model(), 3, 3, 8)
    masked, sums, vector = found.layers[1:4]
    assert all(layer.same for layer in (masked, sums, vector))
    assert (masked.shape, sums.shape, vector.shape) == ((6, 6), (6, 6), (6,))
    assert not any("mask" in trial.way for trial in masked.trials)  # it has one
    assert str(found.layers[4]) == "not run: the example does not reach it"


def test_a_transposed_input_keeps_its_bits_in_batches():
    """In pieces along positions it may have others: these have strides of their own."""
    sums = measured(Model(contiguous=False), 3, 3, 8).layers[2]
    assert (sums.module, sums.in_any_batch) == ("sums", True)


@pytest.mark.parametrize("raises", [False, True])
def test_the_model_is_left_as_it_was(raises, monkeypatch):
    model = Model()
    model.masked.register_forward_hook(lambda *_: None)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), random.getstate()
    if raises:
        monkeypatch.setattr(measure, "identity", lambda module: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            normkit.audit(model, torch.ones(3, 3, 8), invariance=True)
    else:
        normkit.audit(model, torch.ones(3, 3, 8), invariance=True)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert [len(module._forward_pre_hooks) for module in model.modules()] == [0] * len(modes)
    assert len(model.masked._forward_hooks) == 1


def test_what_cannot_run_says_why():
    def refuses(x):
        if len(x) != 2 or x.dim() != 3:
            raise ValueError("only pairs\nof anything")
        return 0.0

    model = nn.Sequential(Depends(lambda x: 0.0), Depends(lambda x: refuses(x) if x.shape[-1] == 8 else 0.0))
    assert str(measured(model, 2, 5, 8).layers[1]) == "not run: one sample alone: ValueError: only pairs"
    model[1].added = lambda x: 1 / (3 - len(x)) * 0.0
    found = measured(model, 2, 5, 8).layers[1]
    assert found.same
    assert [(t.way, t.reason) for t in found.trials if t.same is None] == [
        ("in a batch of 3", "ZeroDivisionError: division by zero")
    ]
    assert str(found).endswith("; not run in a batch of 3: ZeroDivisionError: division by zero")
    for reason, given in (
        ("no example is given", (nn.LayerNorm(8),)),
        ("is lazy", (nn.LazyBatchNorm1d(), torch.ones(2, 3))),
    ):
        found = normkit.audit(*given, invariance=True).invariance
        assert reason in found.reason
        assert str(found).startswith("batch invariance: not run, ")
        assert not found.same
    found = normkit.audit(nn.LayerNorm(8, device="meta"), torch.ones(2, 8), invariance=True).invariance
    assert found.reason == "weight is on the meta device and has no values"


def test_the_report_is_data_and_a_table():
    model = nn.Sequential(nn.BatchNorm1d(8), Depends(lambda x: 0.5 * (len(x) == 3)))
    report = normkit.audit(model, torch.randn(4, 8), invariance=True)
    data = json.loads(report.to_json())["invariance"]
    assert data["device"] == "cpu"
    assert data["threads"] == torch.get_num_threads()
    assert data["memory"] == 1 << 18
    assert (data["same"], data["in_any_batch"]) == (False, False)
    first, second = data["layers"]
    assert first["by_definition"] == "in training it uses the statistics of the batch"
    assert (second["same"], second["first"], second["difference"]) == (False, "in a batch of 3", pytest.approx(0.5))
    assert second["trials"][1] == {
        "way": "in a batch of 3",
        "same": False,
        "difference": second["difference"],
        "reason": "",
    }
    lines = str(report).splitlines()
    threads = torch.get_num_threads()
    at = lines.index(f"batch invariance on cpu, {threads} threads of the CPU, inputs of at most 0.25 MiB")
    assert lines[at + 1].split() == ["module", "layer", "sample", "batches", "to", "result"]
    assert lines[at + 3].split()[:5] == ["1", "Depends", "8", "float32", "8192"]
    assert json.loads(normkit.audit(model, torch.randn(4, 8)).to_json())["invariance"] is None


def test_the_command_line_measures_it_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text("from torch import nn\n\n\ndef make():\n    return nn.LayerNorm(8)\n", "utf-8")
    args = ["audit", "nets.py:make", "--shape", "2,8", "--format", "json"]
    (layer,) = json.loads(CliRunner().invoke(cli.app, [*args, "--invariance"]).output)["invariance"]["layers"]
    assert layer["same"] is True
    (tmp_path / "pyproject.toml").write_text("[tool.normkit.audit]\ninvariance = true\n", "utf-8")
    assert json.loads(CliRunner().invoke(cli.app, args).output)["invariance"]["same"] is True


@pytest.mark.slow
def test_compiled_by_inductor(compiling, monkeypatch):
    """Ours have the bits of eager mode; what Inductor makes of torch's need not."""
    monkeypatch.setattr(measure, "BACKEND", "inductor")
    model = nn.Sequential(normkit.RMSNorm(768), normkit.LayerNorm(768), nn.LayerNorm(768))
    found = measured(model, 2, 9, 768).layers
    assert found[0].same
    assert found[1].same
    assert "compiled" in [trial.way for trial in found[2].trials]
