"""What convert refuses, the activations and layouts that norms bring along, calibration, and the way back."""

import copy
import json
import pickle

import pytest
import torch
from converted_models import net, state, unchanged
from torch import nn
from torch.nn import functional as F

import normkit
import zoo
from normkit.errors import ArgumentError, StateError
from normkit.tools.model.activated import BatchNorm2dAct
from normkit.tools.model.tree import norms
from tools.subjects import model_of, randomised


def test_a_failing_conversion_leaves_the_model():
    model, x = net()
    model.norm.train()
    types, before = [type(m) for m in model.modules()], state(model)

    def breaks(name, module):
        if name == "token":
            raise KeyError(name)
        return "GN"

    def batches():
        yield x
        raise OSError("disk")

    for wrong, error in [
        ({"to": breaks}, KeyError),
        ({"to": "GN", "calibrate": batches()}, OSError),
        ({"to": "GN", "calibrate": []}, ArgumentError),
        ({"to": "GN", "calibrate": [torch.full_like(x, torch.nan)]}, ArgumentError),
        ({"to": "IN", "strict": True}, StateError),
        ({"calibrate": [x]}, ArgumentError),
    ]:
        with pytest.raises(error):
            normkit.convert(model, inplace=True, **wrong)
        assert unchanged(model, types, before)
        assert model.norm.training
        assert not model.training
        assert not any(module._forward_hooks for module in model.modules())


REFUSALS = [
    (nn.BatchNorm1d(4), {"to": "GN", "num_groups": 4}, "one single element, so that it would erase its input"),
    (nn.BatchNorm1d(4), {"to": "IN"}, "if its inputs have positions, show one with example="),
    (nn.BatchNorm2d(4), {"to": "IN", "example": torch.randn(2, 4, 1, 1)}, r"on an input of shape \(2, 4, 1, 1\)"),
    (nn.GroupNorm(2, 4), {"to": "BN"}, "not known how many dimensions its input has: pass example="),
    (nn.BatchNorm2d(4, track_running_stats=False), {"to": "affine"}, "no running statistics"),
    (nn.LazyBatchNorm2d(), {"inplace": True}, "it is lazy and does not know its channels yet: run one batch"),
    (nn.SyncBatchNorm(4), {}, "shares statistics between processes"),
    (nn.LocalResponseNorm(2), {"to": "GN"}, "no weight and does not know its channels"),
]


@pytest.mark.parametrize(("norm", "options", "reason"), REFUSALS, ids=range(len(REFUSALS)))
def test_refusals_say_why(norm, options, reason):
    model = nn.Sequential(norm)
    converted, report = normkit.convert(model, **options)
    assert type(converted[0]) is type(norm)
    (refusal,) = report.refusals
    with pytest.raises(StateError, match=reason):
        normkit.convert(model, strict=True, **options)
    assert refusal.name == "0"


def test_an_example_shows_what_is_possible():
    x = torch.randn(2, 4, 9)
    converted, report = normkit.convert(nn.Sequential(nn.BatchNorm1d(4)), to="IN", example=x)
    assert type(converted[0]) is normkit.InstanceNorm1d
    converted, report = normkit.convert(nn.Sequential(nn.GroupNorm(2, 4)), to="BN", example=x)
    assert type(converted[0]) is normkit.BatchNorm1d
    assert "running statistics start at 0 and 1" in report.changes[0].note


def test_a_forward_of_its_own_is_refused():
    class Odd(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) * 1.5

    _, report = normkit.convert(nn.Sequential(Odd(4)))
    assert "Odd computes something that no method of normkit agrees with" in report.refusals[0].reason
    exchanged = nn.Sequential(nn.BatchNorm2d(4))
    exchanged[0].forward = lambda x: x
    _, report = normkit.convert(exchanged)
    assert "its forward was exchanged" in report.refusals[0].reason


def test_an_encoder_layer_of_torch_calls_its_new_norms():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True).eval()
    randomised(encoder)
    x, padding = torch.randn(3, 5, 8), torch.tensor([[False] * 5, [False] * 4 + [True], [False, False] + [True] * 3])
    same, _ = normkit.convert(encoder)
    assert type(same.layers[0].norm1) is normkit.LayerNorm
    example = {"src": x, "src_key_padding_mask": padding}
    new, report = normkit.convert(encoder, to={"layers.1.*": "RMS"}, example=example)
    assert not report.refusals
    assert isinstance(new.layers[1].norm2, normkit.Norm)
    assert type(new.layers[0].norm2) is nn.LayerNorm
    with torch.no_grad():
        before = encoder(x, src_key_padding_mask=padding)
        torch.testing.assert_close(same(x, src_key_padding_mask=padding), before)
        # Training mode has no fast path; without dropout it computes the same.
        fast, slow = new(x, src_key_padding_mask=padding), new.train()(x, src_key_padding_mask=padding)
        torch.testing.assert_close(fast[~padding], slow[~padding])
        assert not torch.allclose(fast[~padding], before[~padding], atol=0.01)
        back = report.revert(new.eval())
        torch.testing.assert_close(back(x, src_key_padding_mask=padding), before)
    assert all(vars(module).get("fast_path_before") is None for module in back.modules())
    assert back.use_nested_tensor == encoder.use_nested_tensor is True
    assert [layer.activation_relu_or_gelu for layer in back.layers] == [1, 1]


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_a_language_model_in_half_precision_keeps_its_order_of_casts(kind):
    model, x = zoo.language_model(kind)
    randomised(model)
    half = model.bfloat16()
    new, report = normkit.convert(half)
    assert len(report.changes) == 5
    expected = {"llama": {"cast": "before", "zero_centered": False}, "gemma": {"cast": "after", "zero_centered": True}}
    norm = next(module for module in new.modules() if isinstance(module, normkit.RMSNorm))
    assert {name: getattr(norm, name) for name in expected[kind]} == expected[kind]
    old = next(place.module for place, facts in norms(half) if facts.kind == "rms_norm")
    z = torch.randn(64, 32, dtype=torch.bfloat16)
    # The same roundings in the same order; the mean square's own may turn a tie in one element of many.
    assert (norm(z) != old(z)).float().mean() < 0.01
    torch.testing.assert_close(new(x), half(x), rtol=0.05, atol=0.05)


def test_activation_and_dropout_are_kept():
    model, _ = zoo.image_model("resnetv2_50")
    found = [place.module for place, facts in norms(model) if facts.extras]
    old = next(module for module in found if not isinstance(module.act, nn.Identity))
    randomised(old)
    x = torch.randn(2, old.num_features, 4, 4)
    same = normkit.convert(old)[0]
    # of timm's class too, by which its tools know that there is an activation
    assert isinstance(same, normkit.BatchNorm2d)
    assert isinstance(same, type(old))
    assert isinstance(same.act, nn.ReLU)
    torch.testing.assert_close(same(x), old(x))
    assert (same(x) >= 0).all()
    other = normkit.convert(old, to="GN")[0]
    assert type(other) is normkit.GroupNorm
    expected = old.act(old.drop(F.group_norm(x, other.num_groups, old.weight, old.bias, old.eps)))
    torch.testing.assert_close(other(x), expected)
    folded = normkit.convert(old, to="affine")[0]
    torch.testing.assert_close(folded(x), old(x), rtol=1e-5, atol=1e-5)
    again = pickle.loads(pickle.dumps(copy.deepcopy(other)))
    torch.testing.assert_close(again(x), expected)
    old.act = nn.Hardswish()  # which no kernel applies
    apart = normkit.convert(old)[0]
    assert isinstance(apart, BatchNorm2dAct)
    assert apart.act is not old.act  # of the copy
    torch.testing.assert_close(apart(x), old(x))


def test_a_norm_between_permutes_keeps_the_layout_it_gives():
    model, _ = zoo.image_model("convnext_atto")
    old = next(place.module for place, facts in norms(model) if facts.kind == "layer_norm2d")
    new = normkit.convert(old)[0]
    x = torch.randn(2, old.weight.numel(), 5, 3)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        assert new(given).stride() == old(given).stride()
        torch.testing.assert_close(new(given), old(given))
    group = next(place.module for place, _ in norms(zoo.image_model("poolformer_s12")[0]))
    x = torch.randn(2, group.num_channels, 5, 3)
    assert normkit.convert(group)[0](x).stride() == group(x).stride()


def test_instance_norm_never_becomes_synchronized():
    converted, _ = normkit.convert(nn.Sequential(nn.InstanceNorm2d(4, affine=True)))
    assert type(nn.SyncBatchNorm.convert_sync_batchnorm(converted)[0]) is normkit.InstanceNorm2d
    to_batch, _ = normkit.convert(converted, to="BN")
    assert type(to_batch[0]) is normkit.BatchNorm2d
    with pytest.raises(ArgumentError, match="no normalization is called 'sync_batch_norm'"):
        normkit.convert(converted, to="sync_batch_norm")


@pytest.mark.parametrize("to", ["GN", "IN", "LN2d", "RMS", "layer norm"])
def test_calibration_is_the_least_squares_solution(to):
    torch.manual_seed(0)
    model = randomised(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())).eval()
    batches = [torch.randn(n, 3, 6, 6) * 2 + 1 for n in (4, 7, 1)]
    converted, report = normkit.convert(model, to=to, calibrate=batches, num_groups=4)
    carried, _ = normkit.convert(model, to=to, num_groups=4)
    x = torch.cat([model[0](batch) for batch in batches]).double()
    y = model[1].double()(x)
    bare = copy.deepcopy(carried[1]).double()
    nn.init.ones_(bare.weight)
    nn.init.zeros_(bare.bias)
    z = bare(x)
    for channel in range(8):
        columns = torch.stack([z[:, channel].flatten(), torch.ones(z[:, channel].numel(), dtype=torch.float64)], 1)
        solution = torch.linalg.lstsq(columns, y[:, channel].flatten()[:, None]).solution.flatten()
        fitted = torch.stack([converted[1].weight[channel], converted[1].bias[channel]]).double()
        # z comes from float32 arithmetic on both sides, so six digits agree
        torch.testing.assert_close(fitted, solution, rtol=1e-4, atol=1e-5)
    error = (converted[1].double()(x) - y).square().sum()
    assert error < (carried[1].double()(x) - y).square().sum()
    spread = (y - y.mean((0, 2, 3), keepdim=True)).square().sum()
    assert report.changes[0].residual == pytest.approx((error / spread).sqrt().item(), rel=1e-3)
    assert "residual 0." in str(report)


def test_calibration_fits_what_stands_before_a_norms_own_activation():
    torch.manual_seed(0)
    apart = randomised(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())).eval()
    inside = nn.Sequential(nn.Conv2d(3, 8, 3), normkit.BatchNorm2d(8, activation="relu")).eval()
    inside.load_state_dict(apart.state_dict())
    x = torch.randn(8, 3, 6, 6)
    fits = [normkit.convert(model, to="LN2d", calibrate=[x]) for model in (apart, inside)]
    # The same sums of the same numbers, whoever applies the activation.
    torch.testing.assert_close(fits[1][0][1].weight, fits[0][0][1].weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fits[1][0](x), fits[0][0](x), rtol=1e-4, atol=1e-5)


class TwoInputs(nn.Module):
    """A second input that is not needed."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))

    def forward(self, x, scale=1.0):
        return self.body(x * scale)


def test_a_loader_of_inputs_and_labels_calibrates():
    torch.manual_seed(0)
    model, x = randomised(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))).eval(), torch.randn(12, 3, 6, 6)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.arange(12)), 4)
    expected = normkit.convert(model, to="GN", calibrate=[x[:4], x[4:8], x[8:]])[0]
    two = TwoInputs().eval()
    two.body.load_state_dict(model.state_dict())
    for batches in (loader, [(part, None) for part in x.split(4)], [{"input": part} for part in x.split(4)]):
        found = normkit.convert(model, to="GN", calibrate=batches)[0]
        assert torch.equal(found[1].weight, expected[1].weight)
    # What a loader gives is a list; a tuple is positional arguments, where the model takes as many.
    found = normkit.convert(two, to="GN", calibrate=loader)[0]
    assert torch.equal(found.body[1].weight, expected[1].weight)
    doubled = normkit.convert(two, to="GN", calibrate=[(part / 2, 2.0) for part in x.split(4)])[0]
    assert torch.equal(doubled.body[1].weight, expected[1].weight)
    with pytest.raises(ArgumentError, match=r"calibrate must be batches, got one tensor of shape \(12, 3, 6, 6\)"):
        normkit.convert(model, to="GN", calibrate=x)


def test_copies_keep_the_mode_of_every_module():
    zoo._timm()
    from torchvision.models import resnet18
    from torchvision.models.feature_extraction import create_feature_extractor

    extractor = create_feature_extractor(resnet18(), ["layer1"]).eval()
    extractor.layer1.train()
    modes = {name: module.training for name, module in extractor.named_modules()}
    for tool in (normkit.convert, lambda model: normkit.insert(model, "weight_norm")):
        changed = tool(extractor)[0]
        now = {name: module.training for name, module in changed.named_modules()}
        assert {name: now[name] for name in modes} == modes
        assert {name: module.training for name, module in extractor.named_modules()} == modes
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(normkit.convert(extractor.eval())[0](x)["layer1"], extractor(x)["layer1"])


@torch.no_grad()
def test_calibration_gives_batch_norm_its_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8)).eval()
    batches = [torch.randn(n, 3, 6, 6) for n in (4, 7)]
    converted, report = normkit.convert(model, to="BN", calibrate=batches)
    x = torch.cat([model[0](batch) for batch in batches])
    # the sums are in float64, so the statistics are right to the rounding of the convolution
    torch.testing.assert_close(converted[1].running_mean, x.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(converted[1].running_var, x.var((0, 2, 3)), rtol=1e-5, atol=1e-6)
    y, wanted = converted[1](x), model[1](x)
    normed = F.batch_norm(x, x.mean((0, 2, 3)), x.var((0, 2, 3)))
    best = (normed * wanted).mean((0, 2, 3)) / normed.square().mean((0, 2, 3))
    torch.testing.assert_close(converted[1].weight, best, rtol=1e-4, atol=1e-5)
    assert report.changes[0].residual == pytest.approx(((y - wanted).norm() / wanted.norm()).item(), rel=1e-3)


def test_calibration_looks_through_an_activation_and_reaches_every_use():
    model, x = net()
    resnet, images = model_of("mobilenetv3_small_050")
    converted, report = normkit.convert(resnet, to="GN", calibrate=[images])
    assert all(change.residual is not None and change.residual < 2 for change in report.changes)
    assert torch.isfinite(converted(images)).all()
    unused = nn.ModuleDict({"net": model, "spare": nn.BatchNorm2d(4)})
    unused.forward = lambda x: model(x)
    _, report = normkit.convert(unused, to={nn.BatchNorm2d: "GN"}, calibrate=[x], inplace=True)
    assert [bool(change.residual) for change in report.changes] == [True, False]
    assert "no batch reached it" in report.changes[1].note


def test_the_way_back():
    model, x = net()
    y = model(x)
    for options in ({}, {"to": "GN"}, {"to": "GN", "calibrate": [x]}, {"to": {nn.BatchNorm2d: "affine"}}):
        converted, report = normkit.convert(model, **options)
        reverted = report.revert(converted)
        assert reverted is converted
        assert reverted.norm is reverted.alias
        assert [type(m) for m in reverted.modules()] == [type(m) for m in model.modules()]
        torch.testing.assert_close(reverted(x), y)


@pytest.mark.parametrize("options", [{}, {"to": {nn.BatchNorm2d: "GN"}}, {"to": {nn.BatchNorm2d: "affine"}}])
def test_the_way_back_keeps_what_was_trained(options):
    model, x = net()
    converted, report = normkit.convert(model, **options)
    with torch.no_grad():
        for p in converted.norm.parameters():
            p.add_(0.25)
    trained = converted(x).detach()
    weight = converted.norm.weight.detach().clone()
    reverted = report.revert(copy.deepcopy(converted))
    if options and options["to"][nn.BatchNorm2d] == "GN":
        torch.testing.assert_close(reverted.norm.weight, weight)
    else:
        torch.testing.assert_close(reverted(x), trained, rtol=1e-5, atol=1e-5)
    # the statistics of a copy are its own
    reverted.train()(x)
    assert not torch.equal(reverted.norm.running_mean, model.norm.running_mean)


def test_the_way_back_needs_the_converted_model():
    model, _ = net()
    _, report = normkit.convert(model)
    model.norm = nn.Linear(2, 2)
    with pytest.raises(StateError, match=r"it made 'norm' a BatchNorm2d, and there is Linear: undo later changes"):
        report.revert(model)


def test_the_report_is_data():
    _, report = normkit.convert(net()[0], to="BN")
    data = json.loads(json.dumps(report.to_dict()))
    assert data["changes"][0]["method"] == "batch_norm"
    assert data["refusals"][0]["name"] == "token"
    assert set(data) == {"changes", "refusals", "kept"}
    assert str(report).splitlines()[1].startswith("token: torch LayerNorm stays, it normalizes the last dimensions")


def test_a_model_that_cannot_be_copied():
    model = nn.Sequential(nn.BatchNorm1d(2))
    model.note = torch.ones(2, requires_grad=True) * 2
    with pytest.raises(StateError, match=r"the model cannot be copied .* use inplace=True"):
        normkit.convert(model)
    normkit.convert(model, inplace=True)


def test_a_training_step_after_conversion_is_that_of_the_original():
    model, x = net()
    converted, _ = normkit.convert(model)
    for each in (model.train(), converted.train()):
        optimizer = torch.optim.SGD(each.parameters(), 0.1)
        each(x).square().mean().backward()
        optimizer.step()
    # one step of float32 arithmetic on values about 1
    for (key, a), b in zip(model.state_dict().items(), converted.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=key)
