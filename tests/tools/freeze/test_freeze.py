"""A frozen norm stays frozen through everything that happens to a model, and is what it was once unfrozen."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

import normkit
from normkit.errors import ArgumentError, StateError
from normkit.tools.freeze import is_frozen
from normkit.tools.model.tree import replace
from versions import evaluation_moves_statistics
from zoo import image_model

NORMS = [
    (nn.BatchNorm1d(4), (6, 4)),
    (nn.BatchNorm2d(4), (6, 4, 3, 3)),
    (nn.BatchNorm3d(4), (6, 4, 1, 2, 3)),
    (nn.SyncBatchNorm(4), (6, 4, 3)),
    (nn.InstanceNorm1d(4, affine=True, track_running_stats=True), (6, 4, 5)),
    (normkit.BatchNorm1d(4), (6, 4)),
    (normkit.BatchNorm2d(4, affine=False), (6, 4, 3, 3)),
    (normkit.BatchNorm2d(4, momentum=None), (6, 4, 3, 3)),
    (normkit.InstanceNorm2d(4, affine=True, track_running_stats=True), (6, 4, 3, 3)),
]


def model_of() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), normkit.BatchNorm1d(4), nn.LayerNorm(4))


def saved_and_loaded(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "itself": lambda m: m,
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": saved_and_loaded,
    "twice": lambda m: copy.deepcopy(pickle.loads(pickle.dumps(m))),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize(("norm", "shape"), NORMS, ids=lambda value: type(value).__name__)
def test_a_frozen_norm_survives_train_and_copies(norm, shape, how):
    norm, kind = copy.deepcopy(norm).train(), type(norm)
    if kind is nn.InstanceNorm1d and evaluation_moves_statistics():
        pytest.skip("torch's own evaluation moves the statistics here")
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    x = torch.randn(shape) * 3 + 1
    expected = copy.deepcopy(norm).eval()(x)
    state = copy.deepcopy(norm.state_dict())
    normkit.freeze(norm)
    norm = COPIES[how](norm)
    assert torch.equal(norm.train()(x), expected)
    norm.training = True
    assert torch.equal(norm(x), expected)
    assert not norm.training
    assert norm.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in norm.state_dict().items())
    assert not any(parameter.requires_grad for parameter in norm.parameters())
    assert isinstance(norm, kind)

    normkit.unfreeze(norm)
    assert type(norm) is kind
    assert norm.training
    assert all(parameter.requires_grad for parameter in norm.parameters())


@pytest.mark.parametrize(("norm", "shape"), NORMS[:3] + NORMS[4:], ids=lambda value: type(value).__name__)
def test_unfrozen_is_what_it_was(norm, shape):
    norm, plain = copy.deepcopy(norm), copy.deepcopy(norm)
    normkit.freeze(norm)
    assert isinstance(norm, type(plain))
    assert repr(norm) == repr(plain)
    normkit.unfreeze(norm)
    assert type(norm) is type(plain)
    assert vars(norm).keys() == vars(plain).keys()
    x = torch.randn(shape)
    assert torch.equal(norm.train()(x), plain.train()(x))
    assert torch.equal(norm.running_var, plain.running_var)


def test_the_rest_of_the_model_trains_on():
    model = model_of()
    report = normkit.freeze(model)
    model.train()
    assert [module.training for module in model] == [True, False, True, False, True]
    assert report.norms == {"1": ("statistics", "affine"), "3": ("statistics", "affine")}
    assert model[4].weight.requires_grad
    model(torch.randn(6, 4)).square().sum().backward()
    assert model[0].weight.grad is not None
    assert model[1].weight.grad is None


@pytest.mark.parametrize("train_before", [True, False])
@pytest.mark.parametrize("train_after", [True, False])
def test_unfreeze_gives_the_mode_last_asked_for_and_each_parameter_its_own_flag(train_before, train_after):
    model = model_of().train(train_before)
    model[1].bias.requires_grad_(False)
    normkit.freeze(model)
    normkit.freeze(model)
    model.train(train_after)
    normkit.unfreeze(model)
    assert {module.training for module in model.modules()} == {train_after}
    assert [p.requires_grad for p in model[1].parameters()] == [True, False]
    assert [p.requires_grad for p in model[3].parameters()] == [True, True]


def test_parts_are_frozen_and_let_go_one_by_one():
    norm = nn.BatchNorm1d(4)
    x = torch.randn(6, 4)
    assert normkit.freeze(norm, statistics=False).norms == {"": ("affine",)}
    assert norm.training
    assert not is_frozen(norm)
    norm(x)
    assert norm.num_batches_tracked == 1
    normkit.freeze(norm, affine=False)
    norm.train()(x)
    assert norm.num_batches_tracked == 1
    assert normkit.unfreeze(norm, statistics=False).norms == {"": ("affine",)}
    assert norm.weight.requires_grad
    assert not norm.training
    assert normkit.unfreeze(norm).norms == {"": ("statistics",)}
    assert norm.training
    assert normkit.unfreeze(norm).norms == {}


def test_a_shallow_copy_is_unfrozen_alone():
    norm = nn.BatchNorm1d(4)
    normkit.freeze(norm)
    other = copy.copy(norm)
    normkit.unfreeze(other)
    assert is_frozen(norm)
    assert not norm.training
    assert not is_frozen(other)


def test_a_name_a_pattern_or_a_function_picks_the_norms():
    for where in ("3", "[2-4]", ["3"], lambda name, norm: isinstance(norm, normkit.BatchNorm1d)):
        model = model_of()
        assert list(normkit.freeze(model, where=where).norms) == ["3"]
        assert [is_frozen(module) for module in model] == [False, False, False, True, False]
    assert normkit.unfreeze(model, where="*").left == {"1": "it is not frozen"}


def test_a_shared_norm_answers_to_each_name():
    model = nn.Module()
    model.first = model.second = nn.BatchNorm1d(4)
    assert list(normkit.freeze(model, where="second").norms) == ["first"]
    assert is_frozen(model.first)


def test_norms_without_running_statistics_are_left():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.InstanceNorm1d(4, affine=True))
    report = normkit.freeze(model)
    assert report.left == {"1": "it has no running statistics"}
    assert model[1].weight.requires_grad
    assert "left: it has no running statistics" in str(report)
    assert report.to_dict()["norms"] == {"0": ("statistics", "affine")}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"where": "4"}, "got '4', which fits none of its 2: "),
        ({"where": lambda name, norm: False}, "Sequential has none there: for the parameters of other norms"),
        ({"statistics": False, "affine": False}, "got neither: call unfreeze"),
        ({"like": {}}, "got a dict without: give what state_dict"),
        ({"like": nn.BatchNorm1d(4).state_dict(), "where": "1"}, "got both"),
    ],
)
def test_what_cannot_be_frozen_is_refused(options, text):
    model = model_of()
    with pytest.raises(ArgumentError, match=text):
        normkit.freeze(model, **options)
    assert not any(is_frozen(module) for module in model)


def test_a_state_loads_strictly_into_plain_models_and_remembers():
    frozen = model_of()
    normkit.freeze(frozen, where="1")
    normkit.freeze(frozen, affine=False, where="3")
    file = io.BytesIO()
    torch.save(frozen.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    fresh = model_of()
    assert fresh.load_state_dict(state, strict=True) == ([], [])
    assert not any(is_frozen(module) for module in fresh)
    report = normkit.freeze(fresh, like=state)
    assert report.norms == {"1": ("statistics", "affine"), "3": ("statistics",)}
    assert [is_frozen(module) for module in fresh] == [False, True, False, True, False]
    assert [m.weight.requires_grad for m in (fresh[1], fresh[3])] == [False, True]
    # A state of a plain model loads into a frozen one, which stays frozen.
    assert frozen.load_state_dict(model_of().state_dict(), strict=True) == ([], [])
    assert is_frozen(frozen[1])
    with pytest.raises(ArgumentError, match="freezes '1', which is no norm of this model"):
        normkit.freeze(nn.Sequential(nn.BatchNorm1d(4)), like=state)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models_obey(backend):
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    x = torch.randn(6, 4)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    compiled.train()(x)
    assert model[1].num_batches_tracked == 1
    normkit.freeze(model)
    expected = copy.deepcopy(model).eval()(x)
    torch.testing.assert_close(compiled.train()(x), expected)
    assert model[1].num_batches_tracked == 1
    normkit.unfreeze(model)
    compiled(x)
    assert model[1].num_batches_tracked == 2


def test_graphs_see_the_norm_as_it_is():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    normkit.freeze(model)
    graph = torch.fx.symbolic_trace(model)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["0", "1"]
    exported = torch.export.export(model.train(), (torch.randn(6, 4),)).module()
    x = torch.randn(6, 4)
    torch.testing.assert_close(exported(x), copy.deepcopy(model).eval()(x))


def test_what_takes_the_place_of_a_frozen_norm_is_frozen():
    model = model_of()
    normkit.freeze(model, where="1")
    model.train()
    model.insert(4, nn.Identity())
    new = normkit.BatchNorm1d(4)
    replace(model, {model[1]: new, model[4]: nn.ReLU()})
    assert model[1] is new
    assert is_frozen(new)
    normkit.unfreeze(model)
    assert type(new) is normkit.BatchNorm1d
    assert new.training
    normkit.freeze(model, where="1")
    replace(model, {new: nn.LayerNorm(4)})
    assert not any(is_frozen(module) for module in model)
    assert "normkit_frozen" not in vars(model[1])


def test_a_norm_parametrized_since_cannot_be_unfrozen():
    norm = nn.BatchNorm1d(4)
    normkit.freeze(norm)
    nn.utils.parametrize.register_parametrization(norm, "weight", nn.Identity())
    with pytest.raises(StateError, match="ParametrizedBatchNorm1d was made since: remove its parametrization"):
        normkit.unfreeze(norm)
    nn.utils.parametrize.remove_parametrizations(norm, "weight")
    normkit.unfreeze(norm)
    assert type(norm) is nn.BatchNorm1d


def test_a_model_of_timm_keeps_its_activations_and_statistics():
    model, x = image_model("efficientnet_lite0")
    expected = model(x)
    before = {key: value.clone() for key, value in model.named_buffers()}
    report = normkit.freeze(model, affine=False)
    assert len(report.norms) == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) > 30
    torch.manual_seed(0)
    model = copy.deepcopy(model).train()
    y: Tensor = model(x)
    # Dropout and drop path are off by default in this model, so only the norms could differ.
    assert torch.equal(y, expected)
    assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())
