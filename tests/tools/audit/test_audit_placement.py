"""Norms that are unused, under spectral norm, or reached by dropout; and faults planted in models of others."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

import normkit
import zoo
from normkit.tools.audit.examples import images, settled
from tools.audit.placed import Does, conv, found

X2, TOKENS = images(4, 3, 16, 16), images(4, 10, 6)
OVER = {"NK108", "NK111"}


# ---- unused norms


@dataclass
class Output:
    """What a model may return, and tree_leaves does not look into."""

    logits: Tensor
    cache: object = None


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def forgotten(m, x):
    m.norm(m.a(x))
    return m.a(x)


def dead_end(m, x):
    m.after(m.norm(m.a(x)))
    return m.a(x)


def buffered(m, x):
    """Writes into a part of a tensor, which the graph of calls does not follow."""
    out = torch.zeros(4, 10, 8)
    out[0].copy_(m.norm(m.a(x))[0])
    return out


UNUSED = {
    "called only": forgotten,
    "assigned to another name": lambda m, x: (m.norm(m.a(x)), m.a(x))[1],
    "branch": lambda m, x: (F.relu(m.norm(m.a(x))).sum(), Output(m.a(x)))[1],
}
USED = {
    "returned": lambda m, x: m.norm(m.a(x)),
    "auxiliary output": lambda m, x: {"logits": m.a(x), "aux": [m.norm(m.a(x))]},
    "in an object": lambda m, x: Output(m.a(x), Output(m.norm(m.a(x)))),
    "through a function of autograd": lambda m, x: Doubled.apply(m.norm(m.a(x))),
    "in place": buffered,
    "as numbers": lambda m, x: m.a(x) * float(m.norm(m.a(x)).max()),
    "as an index": lambda m, x: m.a(x)[:, m.norm(m.a(x))[0, :, 0].argsort()],
    "in training": lambda m, x: m.norm(m.a(x)) if m.training else forgotten(m, x),
    "in what cannot be looked into": lambda m, x: (m.a(x), iter([m.norm(m.a(x))])),
    "by the loss of a training": lambda m, x: (m.a(x), m.norm(m.a(x)).sum()) if m.training else forgotten(m, x),
}


def branch(does):
    return Does(does, a=nn.Linear(6, 8), norm=nn.LayerNorm(8))


@pytest.mark.parametrize("case", UNUSED)
def test_a_norm_whose_output_changes_nothing(case):
    assert found(branch(UNUSED[case]), TOKENS, "NK109") == [("NK109", "norm")]


@pytest.mark.parametrize("case", USED)
def test_a_norm_whose_output_is_used_in_any_way(case):
    assert not found(branch(USED[case]), TOKENS, "NK109")


def test_unused_norms_are_found_among_those_that_the_graph_loses():
    """All six seem to lead nowhere, because the function of autograd hides them; two do."""
    layers = {f"norm{index}": nn.LayerNorm(6) for index in range(6)}

    def does(m, x):
        for index in range(6):
            y = layers[f"norm{index}"](x)
            x = x if index in (2, 5) else Doubled.apply(y)
        return x

    assert found(Does(does, **layers), TOKENS, "NK109") == [("NK109", "norm2"), ("NK109", "norm5")]


@pytest.mark.parametrize("place", ["0.norm", "0", "", "0.after"])
def test_what_a_hook_may_read_is_used(place):
    model = nn.Sequential(Does(dead_end, a=nn.Linear(6, 8), norm=nn.LayerNorm(8), after=nn.ReLU()), nn.Linear(8, 8))
    assert found(model, TOKENS, "NK109") == [("NK109", "0.norm")]
    handle = model.get_submodule(place).register_forward_hook(lambda module, args, out: None)
    assert not found(model, TOKENS, "NK109")
    handle.remove()
    model[1].register_forward_hook(lambda module, args, out: None)
    assert found(model, TOKENS, "NK109") == [("NK109", "0.norm")]


def test_the_search_for_unused_norms_leaves_the_model_as_it_was():
    model = nn.Sequential(branch(forgotten), nn.BatchNorm1d(10)).train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    assert found(model, TOKENS, "NK109")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())


# ---- spectral norm


def old_spectral_norm(layer):
    return nn.utils.spectral_norm(layer)


@pytest.mark.parametrize("bounded", [spectral_norm, old_spectral_norm])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d, normkit.LayerNorm2d, lambda c: nn.GroupNorm(2, c)])
def test_spectral_norm_under_any_norm(bounded, norm):
    assert found(nn.Sequential(bounded(conv(3, 8)), norm(8)), X2, "NK110") == [("NK110", "0")]


def test_spectral_norm_apart_from_a_norm():
    between = nn.Sequential(spectral_norm(conv(3, 8)), nn.LeakyReLU(), conv(8, 8), nn.BatchNorm2d(8))
    before = nn.Sequential(nn.BatchNorm2d(3), spectral_norm(conv(3, 8)))
    forked = Does(lambda m, x: (y := m.a(x)) + m.norm(y), a=spectral_norm(conv(3, 8)), norm=nn.BatchNorm2d(8))
    others = nn.Sequential(nn.utils.parametrizations.orthogonal(conv(3, 8)), nn.BatchNorm2d(8))
    assert not any(found(model, X2, "NK110") for model in (between, before, forked, others))


# ---- dropout further away than one layer


class StochasticDepth(nn.Module):
    """Drops a whole sample, as timm's DropPath."""

    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        if not self.training:
            return x
        return x * torch.empty(len(x), *[1] * (x.dim() - 1)).bernoulli_(1 - self.drop_prob) / (1 - self.drop_prob)


def summed(drop):
    return Does(
        lambda m, x: m.norm(m.a(x) + m.drop(m.b(x))), a=conv(3, 8), b=conv(3, 8), drop=drop, norm=nn.BatchNorm2d(8)
    )


MANY = images(32, 3, 8, 8)


def test_dropout_before_a_sum_is_measured():
    model = summed(nn.Dropout(0.5))
    (finding,) = (f for f in normkit.audit(model, MANY).findings if f.code == "NK112")
    # The branch is about as large as the stream: 1 + 2 in place of 1 + 1, and what its mean adds.
    assert 1.35 < finding.measured["ratio"] < 1.8
    assert finding.measured == {"ratio": finding.measured["ratio"], "dropout": "drop", "p": 0.5}
    # A new model is only remarked on, and so are random numbers.
    assert finding.severity == "info"
    data = MANY.cumsum(-1)
    (finding,) = (f for f in normkit.audit(settled(model, data), data).findings if f.code == "NK112")
    assert finding.severity == "warning"


def test_stochastic_depth_is_a_remark():
    model = settled(summed(StochasticDepth(0.5)), MANY.cumsum(-1))
    (finding,) = (f for f in normkit.audit(model, MANY.cumsum(-1)).findings if f.code == "NK112")
    assert (finding.severity, finding.measured["dropout"]) == ("info", "drop")


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.Upsample(scale_factor=2), nn.Softmax2d()])
def test_dropout_before_a_pool(pool):
    model = nn.Sequential(conv(3, 8), nn.ReLU(), nn.Dropout(0.8), pool, nn.BatchNorm2d(8))
    assert found(model, MANY, "NK112", "NK104") == [("NK112", "4")]


def test_dropout_as_a_function():
    model = Does(lambda m, x: m.norm(m.a(x) + F.dropout(m.a(x), 0.6, m.training)), a=conv(3, 8), norm=nn.BatchNorm2d(8))
    assert found(model, MANY, "NK112") == [("NK112", "norm")]


def test_dropout_that_raises_no_variance_of_a_batch_norm():
    assert not found(summed(nn.Dropout(0.05)), MANY, "NK112")
    assert not found(summed(nn.Dropout(0.0)), MANY, "NK112")
    after = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.AvgPool2d(2))
    renewed = nn.Sequential(conv(3, 8), nn.Dropout(0.5), nn.AvgPool2d(2), nn.GroupNorm(1, 8), nn.BatchNorm2d(8))
    frozen = summed(nn.Dropout(0.5))
    normkit.freeze(frozen)
    without = nn.Sequential(summed(nn.Dropout(0.5)))
    without[0].norm = nn.BatchNorm2d(8, track_running_stats=False)
    assert not any(found(model, MANY, "NK112") for model in (after, renewed, frozen, without))


def test_dropout_directly_before_is_left_to_its_own_rule():
    model = nn.Sequential(conv(3, 8), nn.Dropout(0.5), nn.BatchNorm2d(8))
    assert found(model, MANY, "NK104", "NK112") == [("NK104", "2")]


def test_a_model_that_cannot_be_run_in_training_is_not_measured():
    def does(m, x):
        if m.training:
            raise ValueError("needs targets")
        return m.inner(x)

    model = Does(does, inner=summed(nn.Dropout(0.5)))
    assert not found(model, MANY, "NK112")


# ---- in models that nobody here wrote


def planted(name):
    torch.manual_seed(0)
    model, x = zoo.image_model(name) if name in zoo.IMAGES else zoo.language_model(name)
    before = set(found(model, x, *OVER, "NK109", "NK110", "NK112"))
    assert not before
    return model, x


def test_faults_planted_in_real_models():
    model, x = planted("resnet10t")
    model.layer2[0].bn1 = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.LayerNorm(8))
    assert found(model, x, *OVER) == [("NK108", "layer2.0.bn1.1")]
    model, x = planted("resnet10t")
    spectral_norm(model.layer1[0].conv2)
    assert found(model, x, "NK110") == [("NK110", "layer1.0.conv2")]
    model, x = planted("bert")
    model.model.embeddings.LayerNorm = nn.BatchNorm1d(12)
    assert found(model, x, *OVER) == [("NK111", "model.embeddings.LayerNorm")]
    model, x = planted("vit_tiny_patch16_224")
    forward = model.blocks[3].norm2.forward
    model.blocks[3].mlp.norm = nn.Sequential(Does(lambda m, y: (m.norm(y), y)[1], norm=nn.LayerNorm(768)))
    assert found(model, x, "NK109") == [("NK109", "blocks.3.mlp.norm.0.norm")]
    assert model.blocks[3].norm2.forward == forward
