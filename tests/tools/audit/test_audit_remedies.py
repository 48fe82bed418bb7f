"""A remedy is a test: applied to what trips its rule, the finding is gone, and outputs are as the text says."""

import copy
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import normkit
import zoo
from normkit.tools.audit.rules import RULES

DOCS = Path(__file__).parents[3] / "docs" / "en" / "audit"
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)

KEEPS = {"NK101", "NK104", "NK105", "NK106", "NK107", "NK201", "NK307", "NK308", "NK309"}
KEEPS |= {"NK401", "NK402", "NK403", "NK404"}
KEEPS |= {"NK109", "NK110", "NK311", "NK312", "NK406", "NK407", "NK409"}
"""Rules whose remedy leaves what the model gives in evaluation; the text of all others says that it changes."""

INPUTS = {"NK303": (16, 3), "NK306": (4, 3), "NK308": (2, 8, 4, 4), "NK309": (2, 8, 4, 4), "NK403": (2, 3, 8, 8)}
INPUTS |= {"NK310": (2, 8, 4, 4), "NK311": (2, 8, 4, 4), "NK409": (2, 3, 8, 8)}
"""Shapes for models that are audited without an example; else (4, 8)."""

OF_STATE = [f"NK3{number:02}" for number in range(1, 14)]
"""Rules on parameters and statistics, whose examples must keep their own."""


def trained(model):
    """Parameters and statistics of every norm as training might leave them."""
    draw = torch.Generator().manual_seed(1)
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if "Norm" in type(module).__name__ and tensor.is_floating_point():
                low, high = (0.5, 1.5) if name in ("weight", "running_var") else (-1.0, 1.0)
                tensor.data.uniform_(low, high, generator=draw)


@torch.no_grad()
def outputs(model, example):
    modes = [(module, module.training) for module in model.modules()]
    result = model.eval()(example)
    for module, mode in modes:
        module.training = mode
    return result


@pytest.mark.parametrize("code", RULES)
def test_a_remedy_removes_its_finding_and_changes_what_it_says(code, monkeypatch):
    trips, remedy, _ = CODE.findall((DOCS / f"{code}.md").read_text(encoding="utf-8"))
    audit, examples = normkit.audit, []

    def seen(model, example=None, *args, **given):
        examples.append(example)
        return audit(model, example, *args, **given)

    monkeypatch.setattr(normkit, "audit", seen)
    names = {"__name__": "example"}
    exec(compile(trips, code, "exec"), names)
    assert code in names["report"].codes
    if examples[0] is None:
        examples[0] = torch.randn(INPUTS.get(code, (4, 8)), generator=torch.Generator().manual_seed(2))
        examples[0] = examples[0].half() if code == "NK307" else examples[0]
    if code not in OF_STATE:
        trained(names["model"])
    before = outputs(names["model"], examples[0])

    exec(compile(remedy, code, "exec"), names)
    assert code not in names["report"].codes
    after = outputs(names["model"], examples[0] if examples[1] is None else examples[1])
    # The same arithmetic but for a bias or a factor that goes to another place: some units of rounding.
    bound = 4 * torch.finfo(before.dtype).eps * float(before.nan_to_num(0).abs().max().clamp(min=1))
    same = before.shape == after.shape and bool(((before - after).abs() <= bound).all())
    assert same == (code in KEEPS)
    assert same or re.search(r"outputs\s+change", RULES[code].fix, re.IGNORECASE)


def test_a_bias_folded_into_the_running_mean_gives_the_same_outputs():
    """The remedy of NK101 in a model whose norms have seen data; without the fold outputs would differ."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.InstanceNorm2d(8))
    model[0].bias.data += 5
    x = torch.randn(16, 3, 10, 10)
    for _ in range(50):
        model.train()(x)
    found = {f.module: f.measured["norm"] for f in normkit.audit(model, x).findings if f.code == "NK101"}
    assert found == {"0": "1", "3": "4"}
    before = outputs(model, x)
    twin = copy.deepcopy(model)
    twin[0].bias = None
    assert (outputs(twin, x) - before).abs().max() > 1
    with torch.no_grad():
        for name, norm in found.items():
            layer, norm = model.get_submodule(name), model.get_submodule(norm)
            if norm.running_mean is not None:
                norm.running_mean -= layer.bias
            layer.bias = None
    # Sums of values of about 5 in another order, divided by standard deviations of about 0.5.
    torch.testing.assert_close(outputs(model, x), before, rtol=0, atol=1e-5)
    assert "NK101" not in normkit.audit(model, x).codes


def test_models_of_timm_with_an_activation_in_the_norm_become_synchronized():
    """The remedy of NK403, where torch's own conversion would drop the activations."""
    model, x = zoo.image_model("ghostnet_050")
    trained(model)
    before = outputs(model, x)
    found = [f for f in normkit.audit(model, x, world_size=8).findings if f.code == "NK403"]
    assert "BatchNormAct2d" in {type(model.get_submodule(f.module)).__name__ for f in found}
    assert "normkit.SyncBatchNorm.convert(model)" in found[0].fix
    with warnings.catch_warnings():
        # By itself it leaves them alone, and says so.
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=r"left alone.*BatchNormAct2d"):
            normkit.SyncBatchNorm.convert(copy.deepcopy(model))
        model, _ = normkit.convert(model)
        normkit.SyncBatchNorm.convert(model)
    report = normkit.audit(model, x, world_size=8, batch_size=64)
    assert not report.codes & {"NK403", "NK201"}
    # Some 60 layers of float32, each with its sums in another order.
    torch.testing.assert_close(outputs(model, x), before, rtol=1e-3, atol=1e-3)


def test_what_a_remedy_names_exists():
    names = {name for rule in RULES.values() for name in re.findall(r"\bnormkit\.(\w+)", rule.fix)}
    assert {"SyncBatchNorm", "freeze", "recalibrate", "convert"} <= names <= set(normkit.__all__)
