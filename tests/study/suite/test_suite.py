"""Data and networks of the built-in suite: disjoint parts, equal weights with every method."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import normkit
from normkit.study.suite import networks
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
