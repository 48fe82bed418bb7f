"""Models whose norms have a gate, a weight for each head, none, or a condition: all are converted, in every dtype."""

import copy
import pickle

import pytest
import torch
from newer_models import CONFIGS, IMAGES, OTHERS, RMSNorm, newer_model, norm_of
from torch import nn

import normkit
from normkit.errors import StateError
from normkit.tools.model.tree import norms
from tools.subjects import Run, randomised, still

pytestmark = pytest.mark.filterwarnings("ignore:Casting complex values to real")  # of Llama 4's positions
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
NAMES = (*CONFIGS, *IMAGES, *OTHERS)
QUICK = ("qwen3_next", "mamba2", "diffusers")

GATED = {
    "qwen3_next": ("Qwen3NextRMSNormGated", {}, (None, False, "silu", "before")),
    "kimi_linear": ("KimiLinearRMSNormGated", {}, (None, False, "sigmoid", "after")),
    "mamba2": ("MambaRMSNormGated", {"group_size": 32}, (32, True, "silu", "before")),
    "falcon_h1": ("FalconH1RMSNormGated", {"n_groups": 2, "norm_before_gate": False}, (32, True, "silu", "after")),
    "falcon_h1 before": ("FalconH1RMSNormGated", {"n_groups": 2}, (32, False, "silu", "after")),
}
"""Norms with a gate, and group_size, gate_first, gate_activation and cast of the layers that they become."""


def model_of(name):
    torch.manual_seed(0)
    model, x = newer_model(name)
    return still(randomised(model)), x


def finite(gradients):
    """Float16 overflows in the backward pass of some of these models."""
    return all(bool(g.isfinite().all()) for g in gradients.values())


def faithful(name, dtypes):
    model, x = model_of(name)
    truth = Run.of(model, x, training=True, dtype=torch.float64)
    for dtype in dtypes:
        old = copy.deepcopy(model).to(dtype)
        new, report = normkit.convert(old, strict=True)
        assert {info.origin for _, info in norms(new)} == {"normkit"}
        assert list(new.state_dict()) == list(old.state_dict())
        copy.deepcopy(old).load_state_dict(new.state_dict(), strict=True)
        theirs, ours = (Run.of(each, x, training=True, dtype=dtype) for each in (old, new))
        # As near to the truth as the original: twice its error, because rounding is random. These norms compute in
        # float32 where the model is float64, so that two models differ by some roundings of float32.
        assert ours.errors(truth)["output"] <= 2 * theirs.errors(truth)["output"] + 2e-6
        assert ours.gradients.keys() == theirs.gradients.keys()
        if finite(truth.gradients) and finite(theirs.gradients):
            assert ours.gradient_error(truth) <= 2 * theirs.gradient_error(truth) + 1e-5
        reverted = report.revert(new)
        assert [type(m) for m in reverted.modules()] == [type(m) for m in old.modules()]
    return old, new


@pytest.mark.parametrize("name", QUICK)
def test_every_norm_of_newer_models_is_converted(name):
    faithful(name, (torch.float32, torch.bfloat16))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_norm_of_newer_models_is_converted_in_every_dtype(name):
    faithful(name, DTYPES)


@pytest.mark.parametrize("name", GATED)
def test_a_norm_with_a_gate_keeps_its_conventions(name):
    cls, options, conventions = GATED[name]
    old = norm_of(name.split()[0], cls, 64, eps=1e-3, **options).bfloat16()
    nn.init.normal_(old.weight)
    new, report = normkit.convert(old)
    assert (new.group_size, new.gate_first, new.gate_activation, new.cast) == conventions
    assert new.activation is None  # `activation` is that of the gate in some of these
    assert report.changes[0].method == "rms_norm"
    assert new.variance_epsilon == new.eps == 1e-3  # fused kernels read the first
    x, gate = torch.randn(2, 4, 16, 64).bfloat16()
    # The same roundings in the same order, where the mean square's own may turn a tie in one element of many.
    assert (new(x, gate) != old(x, gate)).float().mean() < 0.005
    # The output of a scan is float32.
    torch.testing.assert_close(new(x.float(), gate), old(x.float(), gate).float(), rtol=1e-5, atol=1e-5)


def test_a_norm_with_a_gate_becomes_no_other_method():
    norm = norm_of("mamba2", "MambaRMSNormGated", 64, 32)
    reason = "its output depends on a gate, which only a layer of the same method keeps"
    assert normkit.convert(norm, to="layer_norm")[1].refusals[0].reason == reason
    once, _ = normkit.convert(norm)
    assert normkit.convert(once)[1].kept == ("",)
    with pytest.raises(StateError, match=reason):
        normkit.convert(once, to="rms_norm", strict=True)


def test_weights_of_heads_and_norms_without_weight():
    assert repr(normkit.convert(norm_of("cohere", "CohereLayerNorm", (4, 8)))[0]) == (
        "Norm('... c1 [c2]', num_features=(4, 8), eps=1e-05, affine=True, bias=False, center=True)"
    )
    assert repr(normkit.convert(norm_of("llama4", "Llama4TextL2Norm", 1e-5))[0]) == (
        "Norm('... [c]', num_features=None, eps=1e-05, affine=False, bias=False, center=False)"
    )
    norm = norm_of("falcon_mamba", "FalconMambaWeightlessRMSNorm", 8)
    new, report = normkit.convert(norm)
    # Fused kernels read the weight, which is no parameter, and not always as wide as the input.
    assert torch.equal(new.half().weight, torch.ones(8).half())
    assert not list(new.state_dict())
    x = torch.randn(2, 5)
    for each in (new, copy.deepcopy(new), pickle.loads(pickle.dumps(new)), report.revert(copy.deepcopy(new))):
        torch.testing.assert_close(each(x), nn.functional.rms_norm(x, (5,), eps=1e-6))


def test_a_root_mean_square_norm_with_a_bias_is_refused_in_half_precision_alone():
    """It rounds before the weight, and `normkit.Norm`, which has a bias, does not."""
    norm = RMSNorm(16, 1e-6, bias=True)
    assert repr(normkit.convert(norm)[0]) == (
        "Norm('... [c]', num_features=(16,), eps=1e-06, affine=True, bias=True, center=False)"
    )
    assert "stored or rounded in a way" in normkit.convert(norm.bfloat16())[1].refusals[0].reason
