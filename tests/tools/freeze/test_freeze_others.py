"""A frozen norm stays frozen through what torch, timm and an optimizer do to a model, and can be let go after it."""

from __future__ import annotations

import abc
import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import normkit
from normkit.errors import StateError
from normkit.tools.freeze import is_frozen
from zoo import image_model

LAZY = [nn.LazyBatchNorm1d, nn.LazyInstanceNorm1d, normkit.LazyBatchNorm1d, normkit.LazyInstanceNorm1d]


def trained(channels: int = 4, home=nn) -> nn.Sequential:
    """A convolution and a norm whose statistics differ from those of any batch."""
    model = nn.Sequential(nn.Conv2d(3, channels, 1), home.BatchNorm2d(channels))
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    return model


def image() -> Tensor:
    return torch.randn(4, 3, 5, 5) * 3 + 1


@pytest.mark.parametrize("kind", LAZY)
@pytest.mark.parametrize("parts", [{}, {"affine": False}, {"statistics": False}])
def test_a_lazy_norm_is_frozen_after_its_first_batch_too(kind, parts):
    model = nn.Sequential(kind(affine=True, track_running_stats=True))
    normkit.freeze(model, **parts)
    statistics, affine = parts.get("statistics", True), parts.get("affine", True)
    x = torch.randn(6, 3, 5) + 2
    for _ in range(2):
        model.train()(x)
        assert is_frozen(model[0]) == statistics
        assert model[0].training != statistics
        assert torch.equal(model[0].running_mean, torch.zeros(3)) == statistics
        assert torch.equal(model[0].weight, torch.ones(3))
        assert model[0].weight.requires_grad != affine
    assert type(model[0]).__name__ == kind.cls_to_become.__name__
    normkit.unfreeze(model)
    assert type(model[0]) is kind.cls_to_become
    assert all(p.requires_grad for p in model.parameters())
    assert model[0].training


def test_a_lazy_norm_is_pickled_frozen_and_loads_its_statistics():
    full = nn.BatchNorm1d(3)
    full(torch.randn(8, 3) + 1)
    model = nn.LazyBatchNorm1d()
    normkit.freeze(model)
    model = pickle.loads(pickle.dumps(model))  # torch cannot copy one
    model.load_state_dict(full.state_dict())
    model.num_features = 3
    model.train()(torch.randn(8, 3))
    assert is_frozen(model)
    assert torch.equal(model.running_mean, full.running_mean)


def test_update_bn_leaves_frozen_statistics_and_computes_the_others():
    model = nn.Sequential(nn.BatchNorm1d(3), normkit.BatchNorm1d(3), nn.BatchNorm1d(3))
    for norm in model:
        norm.running_mean.fill_(7.0)
    normkit.freeze(model, where=["0", "1"])
    batches = [torch.randn(8, 3), torch.randn(8, 3)]
    seen: list[Tensor] = []
    model[2].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    torch.optim.swa_utils.update_bn(batches, model)
    assert torch.equal(model[0].running_mean, torch.full((3,), 7.0))
    assert torch.equal(model[1].running_mean, torch.full((3,), 7.0))
    # The average of two means, computed as a running one: a few units of the last place of 7.
    torch.testing.assert_close(model[2].running_mean, torch.cat(seen).mean(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3), nn.InstanceNorm1d(3, affine=True, track_running_stats=True)])
def test_statistics_are_reset_only_with_everything_else(norm):
    norm = copy.deepcopy(norm)
    norm.running_mean.fill_(7.0)
    normkit.freeze(norm)
    norm.reset_running_stats()
    assert torch.equal(norm.running_mean, torch.full((3,), 7.0))
    norm.reset_parameters()
    assert torch.equal(norm.running_mean, torch.zeros(3))
    normkit.unfreeze(norm, affine=False)
    norm.running_mean.fill_(7.0)
    norm.reset_running_stats()
    assert torch.equal(norm.running_mean, torch.zeros(3))


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.1, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("set_to_none", [True, False])
def test_an_optimizer_made_before_moves_no_frozen_parameter(name, set_to_none):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = OPTIMIZERS[name](model.parameters())

    def step() -> None:
        optimizer.zero_grad(set_to_none=set_to_none)
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()

    for _ in range(2):
        step()
    normkit.freeze(model)
    before = copy.deepcopy(model.state_dict())
    for _ in range(3):
        step()
    assert all(torch.equal(model.state_dict()[f"1.{key}"], before[f"1.{key}"]) for key in ("weight", "bias"))
    assert not torch.equal(model[0].weight, before["0.weight"])
    normkit.unfreeze(model)
    step()
    assert not torch.equal(model[1].weight, before["1.weight"])


def test_frozen_again_after_requires_grad():
    norm = nn.BatchNorm1d(3)
    normkit.freeze(norm)
    norm.requires_grad_(True)
    norm.weight.grad = torch.zeros(3)
    normkit.freeze(norm)
    assert not norm.weight.requires_grad
    assert norm.weight.grad is None
    normkit.unfreeze(norm)
    assert norm.weight.requires_grad


def test_norms_that_share_a_parameter_get_its_gradient_back():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    model[1].weight = model[0].weight
    normkit.freeze(model)
    normkit.unfreeze(model)
    assert model[0].weight.requires_grad


@pytest.mark.parametrize("options", [{"to": "group_norm"}, {"to": "layer_norm2d"}, {"to": "affine"}, {}])
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("mode", [True, False])
def test_a_converted_norm_is_frozen_as_far_as_it_can_be_and_let_go(options, calibrated, mode):
    model = trained().train(mode)
    model[1].bias.requires_grad_(False)
    normkit.freeze(model)
    more = {"calibrate": [image()]} if calibrated and options else {}
    converted, _ = normkit.convert(model, **options, **more)
    assert [p.requires_grad for p in converted[1].parameters()] == [False, False]
    assert is_frozen(converted[1]) == (not options)
    state = converted.state_dict()
    normkit.unfreeze(converted)
    assert converted[1].weight.requires_grad
    assert converted[1].training == mode
    if options.get("to") != "affine":
        assert not converted[1].bias.requires_grad
    converted[1].requires_grad_(True)
    assert normkit.freeze(converted, like=state).norms["1"][-1] == "affine"
    assert not any(p.requires_grad for p in converted[1].parameters())


def test_new_parameters_of_a_successor_train():
    model = trained()
    normkit.freeze(model)
    converted, _ = normkit.convert(model, to=lambda name, module: nn.GroupNorm(2, 4))
    assert converted[1].weight.requires_grad
    assert normkit.unfreeze(converted).norms == {}


def test_a_fold_freezes_no_activation():
    model, x = image_model("efficientnet_lite0")
    for parent in [m for m in model.modules() if getattr(m, "bn1", None) is not None]:
        parent.bn1.act = nn.PReLU()
    normkit.freeze(model)
    folded, _ = normkit.fold(model, x)
    activations = [m for m in folded.modules() if isinstance(m, nn.PReLU)]
    assert activations
    assert all(m.weight.requires_grad for m in activations)


def converters() -> dict:
    image_model("resnet10t")  # makes timm importable
    from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d, unfreeze_batch_norm_2d

    return {
        "torch": nn.SyncBatchNorm.convert_sync_batchnorm,
        "normkit": normkit.SyncBatchNorm.convert,
        "timm": convert_sync_batchnorm,
        "timm freezes": freeze_batch_norm_2d,
        "timm unfreezes": unfreeze_batch_norm_2d,
        "normkit converts": lambda model: normkit.convert(model)[0],
    }


@pytest.mark.parametrize("name", ["torch", "normkit", "timm", "timm freezes", "timm unfreezes", "normkit converts"])
@pytest.mark.parametrize("kind", ["resnet10t", "efficientnet_lite0"])
def test_a_frozen_model_stays_so_through_converters(kind, name):
    model, x = image_model(kind)
    normkit.recalibrate(model, [torch.randn_like(x)])
    expected = model(x)
    normkit.freeze(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = converters()[name](model)
    y = model.train()(x)
    # A frozen norm of another make rounds otherwise: through fifty layers of float32 below 1e-4 of the output.
    assert (y - expected).abs().max() <= 1e-4 * expected.abs().max()
    norms = [m for m in model.modules() if hasattr(m, "running_var")]
    assert norms
    if name != "timm freezes":
        assert all(map(is_frozen, norms))


def test_the_other_norms_are_converted():
    model = nn.Sequential(trained(), nn.BatchNorm2d(4))
    normkit.freeze(model, where="0.*")
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(synced[1], nn.SyncBatchNorm)
    assert not isinstance(synced[0][1], nn.SyncBatchNorm)
    normkit.unfreeze(synced)
    assert type(synced[0][1]) is nn.BatchNorm2d


def test_a_norm_with_frozen_parameters_alone_is_still_synchronized():
    model = trained()
    normkit.freeze(model, statistics=False)
    assert isinstance(model[1], _BatchNorm)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(synced[1], nn.SyncBatchNorm)
    assert not synced[1].weight.requires_grad
    with pytest.warns(UserWarning, match="left alone, because a subclass may do more: 1"):
        normkit.SyncBatchNorm.convert(trained_affine := copy.deepcopy(model))
    assert not isinstance(trained_affine[1], normkit.SyncBatchNorm)


def test_reverting_says_which_norms_are_frozen():
    model = normkit.SyncBatchNorm.convert(trained())
    normkit.freeze(model)
    with pytest.warns(UserWarning, match=r"1 \(its class changed since, as by freeze\)"):
        normkit.SyncBatchNorm.revert(model)
    normkit.unfreeze(model)
    normkit.SyncBatchNorm.revert(model)
    assert type(model[1]) is nn.BatchNorm2d


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(4),
        normkit.BatchNorm2d(4),
        normkit.SyncBatchNorm(4),
        normkit.BatchRenorm2d(4),
        normkit.GhostBatchNorm2d(4, virtual_batch_size=2),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_our_own_tools_know_a_frozen_batch_norm(norm):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), norm)
    model[1].running_mean.normal_()
    normkit.freeze(model)
    x = image()
    expected = model(x)
    constant = normkit.FrozenBatchNorm2d.from_batch_norm(model[1])
    # One root and one product in another order.
    torch.testing.assert_close(constant(model[0](x)), expected, rtol=1e-5, atol=1e-5)
    folded, _ = normkit.fold(model, x, strict=True)
    torch.testing.assert_close(folded(x), expected, rtol=1e-5, atol=1e-5)


def test_torch_fuses_a_frozen_norm():
    model = trained().train()
    normkit.freeze(model)
    x = image()
    fused = nn.utils.fusion.fuse_conv_bn_eval(model[0].eval(), model[1])
    torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-5)


class Abstract(nn.BatchNorm1d, abc.ABC):
    """A norm whose class has a type of its own."""


def test_a_norm_whose_class_is_not_of_type_type():
    norm = Abstract(3)
    normkit.freeze(norm)
    norm = copy.deepcopy(norm)
    file = io.BytesIO()
    torch.save(norm, file)
    assert is_frozen(norm)
    assert isinstance(norm, Abstract)
    assert not isinstance(norm, _BatchNorm)
    normkit.unfreeze(norm)
    assert type(norm) is Abstract


def test_a_norm_parametrized_since_cannot_be_frozen_further():
    norm = nn.BatchNorm1d(4)
    normkit.freeze(norm, statistics=False)
    nn.utils.parametrize.register_parametrization(norm, "weight", nn.Identity())
    with pytest.raises(StateError, match="freeze needs norms of the class that freeze gave them"):
        normkit.freeze(norm)
    nn.utils.parametrize.remove_parametrizations(norm, "weight")
    normkit.freeze(norm)
    assert is_frozen(norm)


@pytest.mark.parametrize("home", [nn, normkit])
def test_a_frozen_norm_compiles_without_a_graph_break(home):
    torch._dynamo.reset()
    model = trained(home=home)
    normkit.freeze(model)
    x = image()
    expected = model(x)
    compiled = torch.compile(model.train(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)


@pytest.mark.parametrize("told", [True, False])
def test_what_runs_a_model_in_evaluation_keeps_the_mode_that_unfreeze_finds(told):
    model = nn.Sequential(normkit.weight_norm(nn.Linear(3, 4)), nn.BatchNorm1d(4))
    normkit.freeze(model)
    model.train(told)
    x = torch.randn(16, 3)
    normkit.init_weight_norm(model, x)
    normkit.convert(model, to="group_norm", example=x, inplace=True)[1].revert(model)
    normkit.recalibrate(model, [x])
    normkit.fold(model, x)
    normkit.audit(model, x)
    normkit.unfreeze(model)
    assert model[1].training == told


class Merged(nn.Linear):
    """Adds a second weight to the first one in evaluation, as adapters of low rank do, and takes it off in training."""

    def train(self, mode: bool = True) -> nn.Module:
        if mode != self.training:
            with torch.no_grad():
                self.weight.add_(-1 if mode else 1)
        return super().train(mode)


def test_a_model_with_a_train_of_its_own_is_put_back():
    model = nn.Sequential(Merged(3, 4), nn.BatchNorm1d(4))
    before = model[0].weight.detach().clone()
    normkit.convert(model, to="group_norm", example=torch.randn(4, 3), inplace=True)
    # 1 is added and taken off again: one unit of the last place of 2.
    torch.testing.assert_close(model[0].weight.detach(), before, rtol=0, atol=2**-22)
    assert model[0].training


class DistributedDataParallel(nn.Module):
    """Known by its name, as those of other libraries are."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_parameters_in_a_wrapper_for_several_processes_are_frozen_before_it_is_made():
    """It waits for the gradients of the parameters that required one when it was made, and for no others."""
    wrapped = DistributedDataParallel(trained())
    with pytest.raises(StateError, match=r"freeze needs a model whose .*\(model.module, where it is wrapped already\)"):
        normkit.freeze(wrapped)
    assert all(p.requires_grad for p in wrapped.parameters())
    assert not is_frozen(wrapped.module[1])
    normkit.freeze(wrapped, affine=False)
    assert is_frozen(wrapped.module[1])
    normkit.freeze(wrapped.module)
    with pytest.raises(StateError, match="unfreeze needs a model whose"):
        normkit.unfreeze(wrapped)
    normkit.unfreeze(wrapped, affine=False)
    assert not is_frozen(wrapped.module[1])
    with pytest.raises(StateError, match="fold needs a model whose"):
        normkit.fold(wrapped.eval(), image())


def test_a_model_on_meta_is_frozen_before_it_has_values():
    model = trained().to("meta")
    normkit.freeze(model)
    full = trained()
    model.load_state_dict(full.state_dict(), assign=True)
    x = image()
    assert torch.equal(model.train()(x), full.eval()(x))
    assert not model[1].weight.requires_grad
    normkit.unfreeze(model)
    assert model[1].weight.requires_grad
