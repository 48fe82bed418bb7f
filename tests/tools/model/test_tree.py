"""The only editor of a model: everything is visited once and swapped wherever it stands."""

import collections
import copy
import importlib

import pytest
import torch
from torch import nn

import normkit
import zoo
from normkit.errors import DtypeError, StateError
from normkit.tools.model.names import fits
from normkit.tools.model.recognise import describe
from normkit.tools.model.tree import module_places, norms, replace


class Holder(nn.Module):
    """Holds one norm as a child, under a second name, and in plain attributes of every kind."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.again = self.norm
        self.layers = nn.ModuleList([nn.Linear(4, 4), self.norm])
        self.named = nn.ModuleDict({"a": self.norm})
        pair = collections.namedtuple("pair", "first second")
        self.plain = {"list": [self.norm, 1], "tuple": (self.norm, "x"), "pair": pair(self.norm, 2)}
        self.__dict__["hidden"] = self.norm
        self.loop = [self.plain]
        self.loop.append(self.loop)

    def forward(self, x):
        return self.named["a"](self.layers[1](self.again(self.norm(x))))


def test_every_module_once_with_all_its_names():
    places = list(module_places(Holder()))
    assert len({place.module for place in places}) == len(places)
    norm = next(place for place in places if isinstance(place.module, nn.BatchNorm1d))
    assert norm.names == ("norm", "again", "layers.1", "named.a")
    assert [key for _, key in norm.parents] == ["norm", "again", "1", "a"]
    assert fits(norm.names, "layers.*")
    assert not fits(norm.names, "other*")


def test_a_module_is_swapped_everywhere():
    model = Holder()
    new = nn.LayerNorm(4)
    assert replace(model, {model.norm: new}) is model
    held = [model.norm, model.again, model.layers[1], model.named["a"], model.hidden]
    held += [model.plain["list"][0], model.plain["tuple"][0], model.plain["pair"].first]
    assert all(module is new for module in held)
    assert model.plain["list"][1:] == [1]
    assert model.plain["pair"].second == 2


def test_the_model_itself_can_be_swapped():
    old, new = nn.LayerNorm(4).eval(), nn.LayerNorm(4)
    assert replace(old, {old: new}) is new
    assert not new.training


def test_a_stranger_is_refused_and_nothing_changes():
    model = nn.Sequential(nn.BatchNorm1d(4))
    with pytest.raises(StateError, match=r"only a module of the model can be replaced, and ReLU is not in Sequential"):
        replace(model, {model[0]: nn.Identity(), nn.ReLU(): nn.Identity()})
    assert isinstance(model[0], nn.BatchNorm1d)


def test_what_is_no_model_is_refused():
    with pytest.raises(DtypeError, match=r"a model must be a torch\.nn\.Module, got str"):
        list(module_places("model"))


def test_a_scripted_model_is_refused():
    with pytest.warns((DeprecationWarning, FutureWarning), match="jit"):
        scripted = torch.jit.script(nn.Sequential(nn.ReLU()))
    with pytest.raises(StateError, match="a scripted model cannot be exchanged"):
        list(module_places(scripted))


def test_hooks_go_along_and_their_handles_still_work():
    model = nn.Sequential(nn.BatchNorm1d(4))
    old, seen = model[0], []
    handles = [
        old.register_forward_pre_hook(lambda module, args: seen.append(("pre", module))),
        old.register_forward_hook(lambda module, args, y: seen.append(("forward", module))),
        old.register_full_backward_hook(lambda module, a, b: seen.append(("backward", module))),
        old.register_state_dict_post_hook(lambda module, *rest: seen.append(("state", module))),
        old.register_load_state_dict_pre_hook(lambda module, *rest: seen.append(("load", module))),
    ]
    old.note = "the user's"
    new = nn.LayerNorm(4)
    replace(model, {old: new})
    del old

    def exercise():
        seen.clear()
        model(torch.randn(3, 4, requires_grad=True)).sum().backward()
        model.state_dict()
        model.load_state_dict({"0.weight": torch.ones(4), "0.bias": torch.zeros(4)})
        return list(seen)

    assert exercise() == [(what, new) for what in ("pre", "forward", "backward", "state", "load")]
    assert new.note == "the user's"
    for handle in handles:
        handle.remove()
    assert exercise() == []


def test_a_wrapper_leaves_the_hooks_on_what_it_wraps():
    model = nn.Sequential(nn.Linear(4, 4))
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    replace(model, {model[0]: nn.Sequential(model[0], nn.ReLU())})
    model(torch.randn(2, 4))
    assert calls == [1]


KINDS = {
    nn.BatchNorm2d(6): ("batch_norm", "first", 2),
    nn.SyncBatchNorm(6): ("batch_norm", "first", None),
    nn.InstanceNorm1d(6, affine=True): ("instance_norm", "first", 1),
    nn.GroupNorm(2, 6): ("group_norm", "first", None),
    nn.LayerNorm(6): ("layer_norm", "last", None),
    nn.RMSNorm(6): ("rms_norm", "last", None),
    nn.LocalResponseNorm(3): ("local_response_norm", "first", None),
    normkit.BatchNorm3d(6): ("batch_norm", "first", 3),
    normkit.LayerNorm2d(6): ("layer_norm2d", "first", None),
    normkit.Norm("b [c ...]", 6): ("layer_norm", "first", None),
    normkit.Norm("b [c] ...", 6, center=False): ("rms_norm", "first", None),
}


@pytest.mark.parametrize("module", KINDS)
def test_the_kind_of_known_classes(module):
    facts = describe(module)
    assert (facts.kind, facts.axis, facts.rank) == KINDS[module]
    assert facts.reason == ""
    assert facts.synced == isinstance(module, nn.SyncBatchNorm)


def test_what_is_no_norm():
    assert describe(nn.ReLU()) is None
    assert describe(nn.Linear(2, 2)) is None
    # a norm of a weight is none of an activation
    model = nn.Sequential(
        normkit.weight_norm(nn.Linear(4, 4)), nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    )
    assert not list(norms(model))


class Renamed(nn.LayerNorm):
    """Only its making differs."""

    def __init__(self):
        super().__init__(6, eps=1e-3)


class OneMore(nn.LayerNorm):
    """Adds something to what it calls a layer norm."""

    def forward(self, x):
        return super().forward(x) + 0.01


class MyNorm(nn.Module):
    """A root mean square norm under a name that does not say so, with the eps outside the root or inside."""

    def __init__(self, outside):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))
        self.tiny = 1e-4
        self.outside = outside

    def forward(self, x):
        square = x.square().mean(-1, keepdim=True)
        root = square.sqrt() + self.tiny if self.outside else (square + self.tiny).sqrt()
        return x / root * self.weight


class DetachedNorm(MyNorm):
    """Right outputs, wrong gradients."""

    def forward(self, x):
        return x / (x.square().mean(-1, keepdim=True) + self.tiny).sqrt().detach() * self.weight


class ScaledRMSNorm(MyNorm):
    """Takes a second input."""

    def forward(self, x, scale=None):
        return super().forward(x)


def test_a_subclass_is_what_it_computes():
    assert describe(Renamed()).kind == "layer_norm"
    assert describe(Renamed()).eps == 1e-3
    assert describe(OneMore(6)).kind is None
    assert "no method of normkit agrees" in describe(OneMore(6)).reason


def test_a_foreign_class_is_what_it_computes():
    facts = describe(MyNorm(outside=False))
    assert (facts.kind, facts.eps, facts.weight, facts.bias) == ("rms_norm", 1e-4, True, False)
    for module in (MyNorm(outside=True), DetachedNorm(False)):
        assert "no method of normkit agrees" in describe(module).reason
    assert "other arguments than one input" in describe(ScaledRMSNorm(False)).reason


def test_recognition_changes_nothing():
    module = zoo.language_model("llama")[0].model.norm
    module.weight.grad = torch.ones_like(module.weight)
    before = copy.deepcopy(module.state_dict())
    random = torch.get_rng_state()
    assert describe(module).kind == "rms_norm"
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), module.state_dict().values(), strict=True))
    assert module.weight.grad is not None


def test_multiplying_after_the_cast_is_seen():
    module = zoo.language_model("llama")[0].model.norm
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        info = describe(module.to(dtype))
        assert (info.rounds_twice, info.rounds_its_own_way) == (True, False)


def calls_super(base):
    """A subclass with a forward of its own that computes the same, so that it has to be run to be known."""
    return type(f"My{base.__name__}", (base,), {"forward": lambda self, x: super(type(self), self).forward(x)})


class SmallNorm(nn.Module):
    """A layer norm as people write it."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.eps = 1e-6

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.weight + self.bias


SUBCLASSES = {
    "batch norm": (lambda: calls_super(nn.BatchNorm2d)(8), "batch_norm"),
    "batch norm, average of all": (lambda: calls_super(nn.BatchNorm1d)(8, momentum=None), "batch_norm"),
    "batch norm, batch's own": (lambda: calls_super(nn.BatchNorm2d)(8, track_running_stats=False), "batch_norm"),
    "batch norm, no affine": (lambda: calls_super(nn.BatchNorm3d)(8, affine=False), "batch_norm"),
    "batch norm, one channel": (lambda: calls_super(nn.BatchNorm2d)(1), "batch_norm"),
    "timm's batch norm": (lambda: zoo._timm().layers.BatchNormAct2d(8), "batch_norm"),
    "timm's, SiLU": (lambda: zoo._timm().layers.BatchNormAct2d(8, act_layer=nn.SiLU), "batch_norm"),
    "instance norm": (lambda: calls_super(nn.InstanceNorm2d)(8, affine=True), "instance_norm"),
    "instance norm, tracking": (lambda: calls_super(nn.InstanceNorm1d)(8, track_running_stats=True), "instance_norm"),
    "group norm": (lambda: calls_super(nn.GroupNorm)(2, 8), "group_norm"),
    "group norm, two a group": (lambda: calls_super(nn.GroupNorm)(4, 8), "group_norm"),
    "group norm, one a group": (lambda: calls_super(nn.GroupNorm)(8, 8), "group_norm"),
    "timm's group norm, one a group": (lambda: zoo._timm().layers.GroupNormAct(8, 8), "group_norm"),
    "layer norm": (lambda: calls_super(nn.LayerNorm)(8), "layer_norm"),
    "layer norm of two": (lambda: calls_super(nn.LayerNorm)(2), "layer_norm"),
    "layer norm of one": (lambda: SmallNorm(1), "layer_norm"),
    "layer norm by hand": (lambda: SmallNorm(8), "layer_norm"),
    "RMS norm": (lambda: calls_super(nn.RMSNorm)(8), "rms_norm"),
    "RMS norm of two": (lambda: calls_super(nn.RMSNorm)(2), "rms_norm"),
    "timm's for images": (lambda: zoo._timm().layers.LayerNorm2d(8), "layer_norm2d"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SUBCLASSES)
def test_neither_dtype_nor_size_decide(name, dtype):
    make, kind = SUBCLASSES[name]
    module = make().to(dtype)
    facts = describe(module)
    assert (facts.kind, facts.reason) == (kind, "")
    # Only where weight and normalized value are rounded one by one is there a second rounding to keep. This one rounds
    # its mean and variance, too.
    assert facts.rounds_twice == facts.rounds_its_own_way == (name == "layer norm by hand")
    converted, report = normkit.convert(nn.Sequential(module))
    assert not report.refusals
    assert type(converted[0]).__module__.startswith("normkit.")


def test_a_norm_that_knows_one_dtype_is_found_in_it():
    class Strict(nn.LayerNorm):
        def forward(self, x):
            return nn.functional.layer_norm(x.float(), self.normalized_shape, self.weight, self.bias, self.eps)

    assert describe(Strict(8)).kind == "layer_norm"
    # what it gives has another dtype than its input, or it fails
    assert describe(Strict(8).bfloat16()).kind is None


def test_children_of_a_norm_that_ignores_them_are_no_extras():
    norm = nn.BatchNorm2d(4)
    norm.act = nn.ReLU()
    assert describe(norm).extras == ()
    x = torch.randn(3, 4, 2, 2)
    torch.testing.assert_close(normkit.convert(norm)[0].eval()(x), norm.eval()(x))


FOREIGN = {
    "vitdet.modeling_vitdet.VitDetLayerNorm": ("layer_norm2d", 0.0),
    "cohere.modeling_cohere.CohereLayerNorm": ("layer_norm", 0.0),
    "olmo.modeling_olmo.OlmoLayerNorm": ("layer_norm", 0.0),
    "nemotron.modeling_nemotron.NemotronLayerNorm1P": ("layer_norm", 1.0),
    "helium.modeling_helium.HeliumRMSNorm": ("rms_norm", 0.0),
    "udop.modeling_udop.UdopLayerNorm": ("rms_norm", 0.0),
    "gemma3.modeling_gemma3.Gemma3RMSNorm": ("rms_norm", 1.0),
    "squeezebert.modeling_squeezebert.SqueezeBertLayerNorm": ("layer_norm2d", 0.0),
}


@pytest.mark.parametrize("path", FOREIGN)
def test_names_do_not_decide(path):
    zoo.language_model("llama")  # lets transformers be imported here
    module, name = path.rsplit(".", 1)
    norm = getattr(importlib.import_module(f"transformers.models.{module}"), name)(16)
    facts = describe(norm)
    assert (facts.kind, facts.offset) == FOREIGN[path]
    assert facts.shape == (16,)


@pytest.mark.parametrize(
    ("subject", "kinds"),
    [
        ("resnetv2_50", {("BatchNormAct2d", "batch_norm", 0.0, ("drop", "act"))}),
        ("convnext_atto", {("LayerNorm2d", "layer_norm2d", 0.0, ())}),
        ("poolformer_s12", {("GroupNorm1", "group_norm", 0.0, ()), ("LayerNorm2d", "layer_norm2d", 0.0, ())}),
        ("gemma", {("GemmaRMSNorm", "rms_norm", 1.0, ())}),
        ("t5", {("T5LayerNorm", "rms_norm", 0.0, ())}),
    ],
)
def test_norms_of_libraries(subject, kinds):
    make = zoo.language_model if subject in zoo.TEXT else zoo.image_model
    found = list(norms(make(subject)[0]))
    assert {(type(place.module).__name__, f.kind, f.offset, f.extras) for place, f in found} == kinds
