"""Filter response normalization: what the contract does not ask of it, its threshold with padding and a residual."""

from __future__ import annotations

import torch
from torch.autograd import gradcheck

import normkit
from normkit import functional


def test_a_new_layer_has_weight_one_and_the_rest_zero():
    state = normkit.FilterResponseNorm2d(3).state_dict()
    assert {name: set(t.tolist()) for name, t in state.items()} == {"weight": {1.0}, "bias": {0.0}, "threshold": {0.0}}
    plain = normkit.FilterResponseNorm2d(3, affine=False, threshold=False)
    assert not plain.state_dict()
    assert repr(plain) == "FilterResponseNorm2d(3, eps=1e-06, affine=False, threshold=False)"
    # The mean square of what is divided by its own root mean square is 1, but for eps.
    squares = plain(torch.randn(2, 3, 4, 4, dtype=torch.float64)).square().mean((2, 3))
    torch.testing.assert_close(squares, torch.ones_like(squares), rtol=0, atol=1e-4)


def test_threshold_comes_before_activation_and_padding():
    x, residual = torch.randn(2, 2, 3, 5, dtype=torch.float64)
    threshold = torch.full((3,), 0.3, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([3, 5])[:, None]
    total, valid = x + residual, mask[:, None]
    square = (total.square() * valid).sum(2, keepdim=True) / valid.sum(2, keepdim=True)
    expected = torch.tanh(torch.maximum(total / (square + 1e-6).sqrt(), threshold[:, None])) * valid
    y, kept = functional.filter_response_norm(
        x, threshold=threshold, mask=mask, residual=residual, return_residual=True, activation="tanh"
    )
    torch.testing.assert_close(y, expected)
    assert torch.equal(kept, total)
    leaf = x.clone().requires_grad_()
    assert gradcheck(lambda x: functional.filter_response_norm(x, threshold=threshold, mask=mask), (leaf,))
