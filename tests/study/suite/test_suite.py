"""Data and networks of the built-in suite: disjoint parts, equal weights with every method."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import nn

import normkit
from normkit.errors import ArgumentError
from normkit.study.suite import forecasting, networks, transformers
from normkit.study.task import embedded
from normkit.study.task.embedded import METHODS

DIGITS = embedded.digits()
SMALL = replace(DIGITS, probe=None)


def convnet(method: str, seed: int) -> nn.Sequential:
    return networks.convnet(method, seed, channels=embedded.CHANNELS)


def test_no_image_is_in_two_parts() -> None:
    images = [{tuple(image.flatten().tolist()) for image in part.data[0]} for part in (DIGITS.train, DIGITS.validation)]
    images.append({tuple(image.flatten().tolist()) for image in DIGITS.test.data[0]})
    # The noise makes every image different, so sets lose none.
    assert [len(part) for part in images] == [600, 400, 797]
    assert len(set.union(*images)) == 1797


def test_data_follow_the_seed_and_nothing_else() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = embedded.digits()
    assert torch.equal(torch.get_rng_state(), before)
    assert again.fingerprint() == DIGITS.fingerprint()
    assert embedded.digits(1).fingerprint() != DIGITS.fingerprint()


@pytest.mark.parametrize("method", METHODS)
def test_all_methods_start_from_the_same_weights(method: str) -> None:
    plain = [m for m in convnet("none", 7) if isinstance(m, (nn.Conv2d, nn.Linear))]
    other = [m for m in convnet(method, 7) if isinstance(m, (nn.Conv2d, nn.Linear))]
    for a, b in zip(plain, other, strict=True):
        # weight_norm computes the weight from length and direction: equal up to one rounding of each.
        torch.testing.assert_close(a.weight, b.weight, rtol=1e-6, atol=0.0)
    first = convnet(method, 8)[0]
    assert not torch.equal(first.weight, other[0].weight)


def test_global_response_norm_follows_the_activation_beside_a_layer_norm() -> None:
    plain, added = convnet("layer_norm2d", 0), convnet("global_response_norm", 0)
    kinds = [type(module).__name__ for module in added[:4]]
    assert kinds == ["Conv2d", "LayerNorm2d", "ReLU", "GlobalResponseNorm"]
    images = DIGITS.test.data[0][:4]
    # A new one returns its input.
    torch.testing.assert_close(added(images), plain(images), rtol=0, atol=0)


def test_norms_of_weights_are_on_the_blocks_of_a_transformer() -> None:
    plain, normed = (transformers.transformer(name, 0, width=8, depth=1, steps=5) for name in ("none", "weight_norm"))
    assert [name for name, _ in normed.named_parameters() if "original0" in name]
    tokens = torch.randint(96, (2, 5))
    # Length and direction give the weight up to one rounding of each.
    torch.testing.assert_close(normed(tokens), plain(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (
            lambda: convnet("scale_norm", 0),
            "scale_norm does not fit .*features of a token, which are the last dimension",
        ),
        (lambda: convnet("revin", 0), "revin does not fit .*normalizes the series of a window"),
        (lambda: embedded.characters().build("instance_norm", 0), "instance_norm does not fit .*cover positions"),
        # Over all positions it would show the characters that are to be predicted.
        (lambda: embedded.characters().build("global_response_norm", 0), "global_response_norm does not fit"),
        (lambda: embedded.forecast().build("evo_norm_s0", 0), "evo_norm_s0 does not fit .*cover positions"),
    ],
)
def test_a_method_that_does_not_fit_says_why(build: Callable[[], nn.Module], why: str) -> None:
    with pytest.raises(ArgumentError, match=why):
        build()


@pytest.mark.parametrize("kind", ["cycle", "reverting"])
def test_series_have_their_level_and_scale(kind: Literal["cycle", "reverting"]) -> None:
    window, target = forecasting.series(4000, 0, kind, level=3.0, scale=2.0)
    values = torch.cat([window, target], 1)
    # 12 000 independent series: the standard error of the mean is about 2 / sqrt(12 000) = 0.02, of the variance 0.05.
    assert values.mean().item() == pytest.approx(3.0, abs=0.08)
    assert values.var(dim=0).mean().item() == pytest.approx(4.0, abs=0.2)
    plain = forecasting.series(4000, 0, kind)[0]
    torch.testing.assert_close(window, 3 + 2 * plain)
    later = values[:, 12:] - 3.0
    kept = (later * (values[:, :-12] - 3.0)).mean() / 4.0
    # One period later: the whole sine and 0.8^12 of the noise, each half the variance; or 0.95^12 of the noise.
    assert kept.item() == pytest.approx(0.5 + 0.5 * 0.8**12 if kind == "cycle" else 0.95**12, abs=0.05)


def test_a_reversible_forecast_follows_level_and_scale() -> None:
    model = forecasting.forecaster("revin", 0, width=8).double()
    window = torch.randn(5, forecasting.WINDOW, forecasting.SERIES, dtype=torch.float64)
    # Up to eps 1e-5 against a variance of 1.
    torch.testing.assert_close(model(3 + 2 * window), 3 + 2 * model(window), rtol=1e-4, atol=1e-4)
    plain = forecasting.forecaster("none", 0, width=8).double()
    assert not torch.allclose(plain(3 + 2 * window), 3 + 2 * plain(window), atol=0.1)


def test_building_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    convnet("batch_norm", 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", METHODS)
def test_the_norm_is_normkits_and_replaces_the_bias(method: str) -> None:
    model = convnet(method, 0)
    norms = {
        "batch_norm": normkit.BatchNorm2d,
        "layer_norm": normkit.Norm,
        "instance_norm": normkit.InstanceNorm2d,
        "group_norm": normkit.GroupNorm,
    }
    convs = [i for i, m in enumerate(model) if isinstance(m, nn.Conv2d)]
    assert len(convs) == len(embedded.CHANNELS)
    for i in convs:
        conv, after = model[i], model[i + 1]
        assert (conv.bias is None) == (method in norms)
        assert isinstance(after, norms.get(method, nn.ReLU))
        assert hasattr(conv, "parametrizations") == (method == "weight_norm")
        if method in norms:
            assert isinstance(model[i + 2], nn.ReLU)
            assert after.weight is not None
            assert after.bias is not None


def test_layer_norm_covers_a_whole_image() -> None:
    norm = convnet("layer_norm", 0)[1]
    x = torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(0)) * 3 + 1
    y = norm(x)
    # 0 and 1 up to fp32 rounding over 1024 values, and eps 1e-5 against a variance of 9.
    torch.testing.assert_close(y.mean(dim=(1, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.var(dim=(1, 2, 3), unbiased=False), torch.ones(3), rtol=1e-5, atol=0)
