"""Constants of norms, optimizer, loader and evaluation: what the rules NK310 to NK313 and NK405 to NK409 find."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import normkit
import zoo
from normkit.tools.audit.examples import HalfNorm, images
from normkit.tools.audit.measure.batches import Batch, difference
from normkit.tools.audit.measure.moments import moments, padded_share
from tools.audit.placed import Does, conv, found


def places(model, code, *given, **more):
    return [(f.severity, f.module) for f in normkit.audit(model, *given, **more).findings if f.code == code]


# ---- constants


@pytest.mark.parametrize("eps", [0.1, 0.8, 0.9, 0.99, 1])
@pytest.mark.parametrize("make", [nn.BatchNorm2d, normkit.BatchNorm2d, nn.InstanceNorm2d, normkit.GhostBatchNorm2d])
def test_an_eps_where_momentum_was_meant(make, eps):
    options = {"virtual_batch_size": 2} if make is normkit.GhostBatchNorm2d else {}
    (finding,) = (f for f in normkit.audit(make(8, eps=eps, **options)).findings if f.code == "NK310")
    assert finding.measured["eps"] == eps
    assert "the second argument; momentum, the third, is 0.1" in finding.message


def test_an_eps_that_is_in_use():
    norms = [nn.BatchNorm2d(8, 1e-3), nn.LayerNorm(8, 1e-12), nn.BatchNorm2d(8, 0.01), nn.RMSNorm(8), nn.Softplus()]
    assert not any(places(norm, "NK310") for norm in norms)
    assert places(nn.LayerNorm(8, 0.1), "NK310") == [("warning", "")]


@pytest.mark.parametrize("make", [nn.BatchNorm1d, normkit.BatchNorm1d, nn.InstanceNorm1d, normkit.BatchRenorm1d])
def test_a_momentum_of_one(make):
    tracks = {"track_running_stats": True} if make is nn.InstanceNorm1d else {}
    assert places(make(8, momentum=1.0, **tracks), "NK311") == [("warning", "")]
    assert not places(make(8, momentum=0.9, **tracks), "NK311")


def test_a_momentum_that_updates_nothing():
    assert not places(nn.BatchNorm1d(8, momentum=None), "NK311")
    assert not places(nn.BatchNorm1d(8, momentum=1.0, track_running_stats=False), "NK311")
    assert not places(nn.InstanceNorm1d(8, momentum=1.0), "NK311")
    held = nn.Sequential(nn.BatchNorm1d(8, momentum=1.0))
    held[0].eval()
    assert not places(held, "NK311")
    normkit.freeze(held)
    assert not places(held.train(), "NK311")


def zero(norm, frozen=True):
    nn.init.zeros_(norm.weight)
    norm.weight.requires_grad_(not frozen)
    return nn.Sequential(norm)


def test_a_zero_scale_that_never_learns():
    assert places(zero(nn.BatchNorm2d(8)), "NK312") == [("warning", "0")]
    assert places(zero(nn.GroupNorm(2, 8)), "NK312")
    buffered = nn.Sequential(normkit.FrozenBatchNorm2d(8))
    buffered[0].weight.zero_()
    assert places(buffered, "NK312") == [("warning", "0")]


def test_a_zero_scale_that_is_no_fault():
    partly = zero(nn.BatchNorm2d(8))
    partly[0].weight.data[3] = 1
    centred = nn.Sequential(normkit.RMSNorm(8, zero_centered=True)).requires_grad_(False)
    assert float(centred[0].weight.abs().max()) == 0
    plain = nn.Sequential(nn.BatchNorm2d(8, affine=False), nn.LayerNorm(8, elementwise_affine=False))
    hollow = nn.Sequential(nn.BatchNorm2d(8, device="meta"))
    fine = [zero(nn.BatchNorm2d(8), frozen=False), partly, centred, plain, hollow, nn.Sequential(nn.LazyBatchNorm2d())]
    assert not any(places(model.eval(), "NK312") for model in fine)


def test_gemma_stores_its_scale_less_one():
    model, x = zoo.language_model("gemma")
    for parameter in model.requires_grad_(False).parameters():
        if parameter.dim() == 1:
            parameter.data.zero_()
    assert not places(model, "NK312", x)


# ---- float16


class CarefulNorm(HalfNorm):
    """As in transformers: the squares in float32."""

    def forward(self, x):
        wide = x.float()
        return self.weight * (wide / (wide.square().mean(-1, keepdim=True) + self.eps).sqrt()).to(x.dtype)


class CentredNorm(HalfNorm):
    """A layer norm by hand, in the dtype of its input."""

    def forward(self, x):
        x = x - x.mean(-1, keepdim=True)
        return self.weight * x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt()


BIG = 300 * images(4, 8)


@pytest.mark.parametrize("make", [HalfNorm, CentredNorm])
def test_a_norm_that_squares_in_float16(make):
    assert places(make(8, 1e-5).half(), "NK313", BIG.half()) == [("error", "")]
    # A model in float32 or bfloat16 is not hurt, and would be.
    assert places(make(8, 1e-5), "NK313", BIG) == [("info", "")]
    assert places(make(8, 1e-5).bfloat16(), "NK313", BIG.bfloat16()) == [("info", "")]


def test_the_error_in_float16_is_that_of_the_arithmetic():
    model = nn.Sequential(nn.Linear(8, 8), HalfNorm(8, 1e-5)).half()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(8))
        model[0].bias.zero_()
    (finding,) = (f for f in normkit.audit(model, torch.full((2, 8), 300.0).half()).findings if f.code == "NK313")
    # 300 / sqrt(inf) is 0 in place of 1.
    assert finding.module == "1"
    assert finding.measured["error"] == pytest.approx(1, abs=1e-3)


def test_norms_that_square_in_float32_or_get_small_values():
    norms = [nn.LayerNorm(8), nn.RMSNorm(8), normkit.LayerNorm(8), normkit.RMSNorm(8), CarefulNorm(8, 1e-5)]
    assert not any(places(norm.half(), "NK313", BIG.half()) for norm in norms)
    assert not places(HalfNorm(8, 1e-5).half(), "NK313", images(4, 8).half())
    assert not places(normkit.GroupNorm(2, 8).half(), "NK313", BIG.half())
    # What is too large for float16 itself is no fault of the norm.
    assert not places(HalfNorm(8, 1e-5), "NK313", 1e6 * BIG)


def test_transformers_norms_do_not_overflow():
    for name in ("llama", "t5", "gemma"):
        model, x = zoo.language_model(name)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.data *= 100
        assert not places(model, "NK313", x)


# ---- optimizer


def block():
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())


def sgd(*parameters, **options):
    return torch.optim.SGD([*parameters], 0.1, **options)


def test_norms_that_the_optimizer_does_not_hold():
    model = nn.Sequential(block(), block(), nn.Linear(8, 2))
    layers = [p for m in model.modules() if isinstance(m, nn.Linear) for p in m.parameters()]
    assert places(model, "NK406", optimizer=sgd(*layers)) == [("warning", "0.1"), ("warning", "1.1")]
    one = sgd(*layers, *model[0][1].parameters())
    assert places(model, "NK406", optimizer=one) == [("warning", "1.1")]
    but = sgd(*layers, model[0][1].weight, *model[1][1].parameters())
    (finding,) = (f for f in normkit.audit(model, optimizer=but).findings if f.code == "NK406")
    assert finding.measured == {"parameters": ["bias"]}


def test_a_model_that_was_converted_after_its_optimizer_was_made():
    model = nn.Sequential(block(), block())
    optimizer = sgd(*model.parameters())
    assert not places(model, "NK406", optimizer=optimizer)
    converted, _ = normkit.convert(model, to="layer_norm")
    assert not places(model, "NK406", optimizer=optimizer)
    for name, part in converted.named_modules():
        # As one that is changed in place: the layers are the old ones.
        if isinstance(part, nn.Linear):
            converted.set_submodule(name, model.get_submodule(name))
    assert len(places(converted, "NK406", optimizer=optimizer)) == 2


def test_an_optimizer_of_one_part_of_a_model():
    model = nn.ModuleDict({"generator": nn.Sequential(block(), block()), "critic": nn.Sequential(block(), block())})
    for part in model.values():
        assert not places(model, "NK406", optimizer=sgd(*part.parameters()))
    probe = nn.Sequential(block(), block(), nn.LayerNorm(8), nn.Linear(8, 2))
    assert not places(probe, "NK406", optimizer=sgd(*probe[3].parameters()))
    frozen = copy.deepcopy(model)
    normkit.freeze(frozen)
    assert not places(frozen, "NK406", optimizer=sgd(*(p for p in frozen.parameters() if p.requires_grad)))
    assert not places(nn.BatchNorm1d(8), "NK406", optimizer=sgd(torch.zeros(1)))


def test_a_linear_probe_of_a_real_model():
    model, _ = zoo.image_model("vit_tiny_patch16_224")
    assert not places(model, "NK406", optimizer=sgd(*model.head.parameters()))
    layers = [p for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d) for p in m.parameters()]
    assert len(places(model, "NK406", optimizer=sgd(*layers))) == 25


def old_weight_norm(layer):
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(layer)


@pytest.mark.parametrize("normed", [normkit.weight_norm, parametrizations.weight_norm, old_weight_norm])
def test_lengths_of_weight_norm_under_decay(normed):
    model = nn.Sequential(nn.Linear(8, 8), normed(nn.Linear(8, 4)))
    (finding,) = (
        f
        for f in normkit.audit(model, optimizer=sgd(*model.parameters(), weight_decay=0.1)).findings
        if f.code == "NK407"
    )
    assert (finding.module, finding.severity, finding.measured) == ("1", "info", {"decay": 0.1})
    assert not places(model, "NK407", optimizer=sgd(*model.parameters()))
    groups = normkit.param_groups(model, weight_decay=0.1)
    assert not places(model, "NK407", optimizer=torch.optim.AdamW(groups))


def test_what_is_no_length_or_not_trained():
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(8, 8)), normkit.weight_standardization(nn.Linear(8, 8)))
    assert not places(model, "NK407", optimizer=sgd(*model.parameters(), weight_decay=0.1))
    frozen = nn.Sequential(normkit.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8))
    frozen[0].requires_grad_(False)
    assert not places(frozen, "NK407", optimizer=sgd(*frozen.parameters(), weight_decay=0.1))


# ---- evaluation


@pytest.mark.parametrize("make", [nn.BatchNorm1d, normkit.BatchNorm1d, nn.SyncBatchNorm])
def test_batch_statistics_in_evaluation(make):
    model = nn.Sequential(nn.Linear(8, 8), make(8, track_running_stats=False)).eval()
    assert places(model, "NK408") == [("warning", "1")]
    if make is not nn.SyncBatchNorm:
        x = torch.randn(4, 8)
        assert (model(x)[:2] - model(x[:2])).abs().max() > 0.1


def test_norms_that_keep_statistics_or_mix_no_samples():
    norms = [nn.BatchNorm1d(8), nn.InstanceNorm1d(8), nn.GroupNorm(2, 8), nn.LayerNorm(8), normkit.FrozenBatchNorm2d(8)]
    assert not any(places(norm, "NK408") for norm in norms)


# ---- loader


def domains(batches, shift=0.0, scale=1.0, samples=16):
    """Every second one of another distribution."""
    draw = torch.Generator().manual_seed(1)
    made = [torch.randn(samples, 3, 8, 8, generator=draw) for _ in range(batches)]
    return [shift + scale * x if index % 2 else x for index, x in enumerate(made)]


def first(model=None):
    return nn.Sequential(nn.BatchNorm2d(3), conv(3, 8)) if model is None else model


@pytest.mark.parametrize(("shift", "scale"), [(2, 1), (0, 3), (-5, 0.2)])
def test_domains_in_turn(shift, scale):
    (finding,) = (f for f in normkit.audit(first(), loader=domains(8, shift, scale)).findings if f.code == "NK409")
    assert (finding.module, finding.measured["share"], finding.measured["group"]) == ("0", 1, [1, 3, 5, 7])
    assert "numbers 1, 3, 5, 7 are one group" in finding.message


def test_what_batches_measure_is_the_distance_of_the_domains():
    (finding,) = (f for f in normkit.audit(first(), loader=domains(16, 2)).findings if f.code == "NK409")
    # Means 0 and 2 of std 1: one away from the middle, of a variance of 1 + 1.
    assert finding.measured["shift"] == pytest.approx(0.5**0.5, abs=0.01)
    assert finding.measured["ratio"] == pytest.approx(1, abs=0.05)


def test_classes_one_after_the_other_differ_without_two_groups():
    loader = [x + index for index, x in enumerate(domains(12))]
    (finding,) = (f for f in normkit.audit(first(), loader=loader).findings if f.code == "NK409")
    assert finding.measured["group"] == []


def test_batches_that_are_mixed_or_too_few_or_met_by_no_batch_norm():
    mixed = [*torch.cat(domains(8, 2))[torch.randperm(128)].split(16)]
    assert not places(first(), "NK409", loader=mixed)
    assert not places(first(), "NK409", loader=domains(3, 2))
    assert not places(first(), "NK409", loader=domains(8, 2, samples=4))
    assert not places(first(), "NK409", loader=domains(8, 0.4))
    for model in (conv(3, 8), nn.Sequential(nn.GroupNorm(1, 3)), nn.BatchNorm2d(3, track_running_stats=False)):
        assert not places(first(model), "NK409", loader=domains(8, 2))
    frozen = first()
    normkit.freeze(frozen)
    assert not places(frozen, "NK409", loader=domains(8, 2))
    twice = Does(lambda m, x: m.norm(x) + m.norm(x + 5), norm=nn.BatchNorm2d(3))
    assert not places(twice, "NK409", loader=domains(8))
    reasons = {skipped.code: skipped.reason for skipped in normkit.audit(first(), domains(1)[0]).not_run}
    assert reasons["NK409"] == "no loader is given"


@pytest.mark.parametrize("kind", ["bright", "contrast", "heavy", "sparse", "clusters"])
def test_batches_of_one_distribution_are_alike(kind):
    """Samples that differ much from each other, so that small batches do, too."""

    def draw():
        x = torch.randn(16, 4, 16)
        return {
            "bright": lambda: 2 * torch.randn(16, 1, 1) + x / 2,
            "contrast": lambda: x * torch.randn(16, 1, 1).exp(),
            "heavy": lambda: x + torch.randn(16, 1, 1) / (torch.rand(16, 1, 1).sqrt() + 1e-3),
            "sparse": lambda: (torch.rand(16, 4, 16) < 0.02) * torch.randn(16, 1, 1).exp(),
            "clusters": lambda: x + 6 * torch.randint(0, 2, (16, 1, 1)),
        }[kind]()

    differ = 0
    for _ in range(200):
        batches = [draw() for _ in range(6)]
        result = difference([Batch.of(x, moments(x)) for x in batches])
        differ += result.share > 0.5
    # One in 2000, when 2000 were drawn of each kind.
    assert differ == 0


# ---- models that nobody here wrote

NEW = {f"NK{n}" for n in (*range(108, 113), *range(310, 314), *range(405, 410))}


def untouched(name):
    """Neither with an optimizer nor with a loader, in either mode."""
    torch.manual_seed(0)
    model, x = zoo.image_model(name) if name in zoo.IMAGES else zoo.language_model(name)
    loader = [
        torch.randn(8, *x.shape[1:]) if x.is_floating_point() else torch.randint(0, 64, (8, 12)) for _ in range(8)
    ]
    optimizer = torch.optim.AdamW(normkit.param_groups(model, weight_decay=0.1))
    for given in ({"example": x, "optimizer": optimizer}, {"loader": loader}):
        for training in (False, True):
            report = normkit.audit(model.train(training), **given)
            assert not report.codes & NEW, str(report)


@pytest.mark.parametrize("name", ["bert", "mamba", "convnext_atto"])
def test_models_of_others_are_left_in_peace(name):
    untouched(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*zoo.IMAGES, *zoo.TEXT, *zoo.SOUND])
def test_every_model_of_others_is_left_in_peace(name):
    untouched(name)


# ---- padding on the left


def padded(left):
    x = images(4, 8, 20)
    for sample, length in enumerate([20, 15, 10, 5]):
        x[sample, :, slice(0, 20 - length) if left else slice(length, 20)] = 0
    return x


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(8), nn.GroupNorm(2, 8), nn.InstanceNorm1d(8)])
def test_padding_on_the_left_enters_statistics_as_that_on_the_right(norm):
    model = nn.Sequential(nn.Conv1d(8, 8, 3), norm)
    for left in (False, True):
        (finding,) = (f for f in normkit.audit(model, padded(left)).findings if f.code == "NK405")
        # After the convolution 18 positions are left; of samples padded by 5, 10 and 15 all but those at the border.
        assert finding.measured["share"] == pytest.approx((3 + 8 + 13) / 72)
    assert not found(nn.Sequential(nn.Conv1d(8, 8, 3), nn.LayerNorm([8, 18])), padded(True), "NK405")


def test_beginnings_that_all_samples_share_are_no_padding():
    x = images(4, 8, 20)
    x[:, :, :6] = 0
    assert padded_share(x) == 0
    assert padded_share(padded(True)) == padded_share(padded(False)) == 30 / 80
    causal = nn.Sequential(nn.ConstantPad1d((8, 0), 0.0), nn.Conv1d(8, 8, 3), nn.BatchNorm1d(8))
    assert not found(causal, images(4, 8, 20), "NK405")
