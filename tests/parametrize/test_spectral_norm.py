"""Spectral norm of weights: right from the first forward, whatever the layer, and safe to use several times."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

import normkit
from normkit.errors import ArgumentError, ShapeError, StateError

LAYERS = {
    "linear": (lambda: nn.Linear(20, 30), 0),
    "one output": (lambda: nn.Linear(20, 1), 0),
    "conv": (lambda: nn.Conv2d(6, 8, 3), 0),
    "grouped conv": (lambda: nn.Conv1d(6, 4, 3, groups=2), 0),
    "transposed": (lambda: nn.ConvTranspose2d(6, 8, 3), 1),
    "embedding": (lambda: nn.Embedding(9, 5), 0),
}


def sigma(weight: Tensor, dim: int = 0) -> Tensor:
    """By the singular values themselves, in float64."""
    return torch.linalg.svdvals(weight.detach().double().movedim(dim, 0).flatten(1))[0]


def vectors(layer: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in layer.buffers()]


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_first_weight_is_already_right(name: str, mode: bool):
    make, dim = LAYERS[name]
    torch.manual_seed(0)
    layer = make().train(mode)
    plain = layer.weight.detach().clone()
    random = torch.get_rng_state()
    normkit.spectral_norm(layer)
    assert torch.equal(torch.get_rng_state(), random)
    # One product of float32 vectors of some dozens of elements.
    torch.testing.assert_close(sigma(layer.weight, dim), torch.ones(()).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(layer.weight.double(), plain.double() / sigma(plain, dim), rtol=1e-5, atol=1e-7)


def test_training_follows_the_weight_and_evaluation_does_not():
    layer = normkit.spectral_norm(nn.Linear(6, 5))
    before = vectors(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original.add_(torch.randn(5, 6))
    layer.eval()(torch.ones(1, 6))
    assert all(torch.equal(*pair) for pair in zip(vectors(layer), before, strict=True))
    layer.train()
    for _ in range(100):
        layer(torch.ones(1, 6))
    torch.testing.assert_close(sigma(layer.weight), torch.ones(()).double(), rtol=1e-5, atol=0)


def test_several_uses_in_one_forward_have_their_own_gradients():
    """Each is what a plain layer with the weight of that use gives; a later one changes nothing that was saved."""
    layer = normkit.spectral_norm(nn.Linear(5, 5, dtype=torch.float64))
    with torch.no_grad():  # so that every step of the power iteration moves the vectors
        layer.parametrizations.weight.original.add_(torch.randn(5, 5) * 0.3)
    original, (u, v) = layer.parametrizations.weight.original.detach().clone().requires_grad_(), vectors(layer)
    x = torch.randn(3, 5, dtype=torch.float64)
    y = expected = x
    for _ in range(3):
        y = layer(y)
        with torch.no_grad():
            v = nn.functional.normalize(original.T @ u, dim=0)
            u = nn.functional.normalize(original @ v, dim=0)
        expected = nn.functional.linear(expected, original / (u @ original @ v), layer.bias)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    torch.testing.assert_close(
        layer.parametrizations.weight.original.grad, torch.autograd.grad(expected.square().sum(), original)[0]
    )


def test_a_checkpoint_does_not_step_again():
    layer = normkit.spectral_norm(nn.Linear(5, 5))
    with torch.no_grad():
        layer.parametrizations.weight.original.add_(torch.randn(5, 5))
    twin, x = copy.deepcopy(layer), torch.randn(2, 5)
    layer(x).square().sum().backward()
    checkpoint(twin, x, use_reentrant=False).square().sum().backward()
    for mine, other in zip(layer.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(mine, other)
    torch.testing.assert_close(twin.parametrizations.weight.original.grad, layer.parametrizations.weight.original.grad)


def test_state_dicts_of_torch_load_both_ways():
    theirs = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 5)).eval()
    ours = normkit.spectral_norm(nn.Linear(6, 5)).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours.weight, theirs.weight)
    theirs.load_state_dict(normkit.spectral_norm(nn.Linear(6, 5)).state_dict())


def test_copies_are_independent():
    layer = normkit.spectral_norm(nn.Conv2d(2, 3, 3))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin.weight, layer.weight)
        normkit.remove_spectral_norm(twin)
        assert "parametrizations.weight.0._u" in layer.state_dict()


def test_removal_leaves_the_weight_of_the_last_forward_in_its_place():
    layer = normkit.spectral_norm(nn.Linear(6, 5))
    with torch.no_grad():
        layer.parametrizations.weight.original.add_(torch.randn(5, 6))
    x = torch.randn(2, 6)
    y = layer(x)
    normkit.remove_spectral_norm(layer)
    assert torch.equal(layer(x), y)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]


def test_transforms_and_compiled_layers():
    layers = [nn.Sequential(normkit.spectral_norm(nn.Linear(5, 4))) for _ in range(3)]
    parameters, buffers = stack_module_state(layers)
    x = torch.randn(2, 5)

    def call(parameters: object, buffers: object) -> Tensor:
        return functional_call(layers[0], (parameters, buffers), (x,))

    torch.testing.assert_close(vmap(call)(parameters, buffers), torch.stack([layer(x) for layer in layers]))
    twin = copy.deepcopy(layers[0])
    torch.testing.assert_close(torch.compile(twin, backend="eager", fullgraph=True)(x), layers[0](x))


def test_a_weight_of_zeros_stays_and_can_be_trained():
    layer = nn.Linear(4, 3)
    nn.init.zeros_(layer.weight)
    normkit.spectral_norm(layer)
    layer(torch.ones(2, 4)).sum().backward()
    assert not layer.weight.any()
    assert torch.equal(layer.parametrizations.weight.original.grad, torch.full((3, 4), 2.0))
    with torch.no_grad():
        layer.parametrizations.weight.original.add_(torch.randn(3, 4))
    for _ in range(200):
        weight = layer.weight
    torch.testing.assert_close(sigma(weight), torch.ones(()).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_a_weight_that_has_changed_its_sign_keeps_its_own(training: bool):
    """The vectors of the old weight estimate a negative singular value; a length has no sign."""
    layer = normkit.spectral_norm(nn.Linear(6, 4)).train(training)
    weights, gradients = [], []
    norms = layer.parametrizations.weight
    for _ in range(2):
        weights.append(layer.weight.detach().clone())
        layer.weight.square().sum().backward()
        gradients.append(norms.original.grad.clone())
        norms.original.grad = None
        with torch.no_grad():
            norms.original.neg_()
        estimate = torch.dot(norms[0]._u, norms.original.detach() @ norms[0]._v)
        assert estimate < 0 or len(weights) == 2
    # An odd function, and its square an even one. In training a step from exact vectors changes the sign of one alone.
    torch.testing.assert_close(weights[1], -weights[0])
    torch.testing.assert_close(gradients[1], -gradients[0])


def test_a_weight_that_is_not_finite_leaves_the_vectors_as_they_were():
    layer = normkit.spectral_norm(nn.Linear(4, 3))
    before, original = vectors(layer), layer.parametrizations.weight.original.detach().clone()
    for value in (torch.nan, torch.inf):
        with torch.no_grad():
            layer.parametrizations.weight.original[0, 0] = value
        layer(torch.ones(1, 4))
        assert all(torch.equal(*pair) for pair in zip(vectors(layer), before, strict=True))
    with torch.no_grad():
        layer.parametrizations.weight.original.copy_(original)
    torch.testing.assert_close(sigma(layer.weight), torch.ones(()).double(), rtol=1e-6, atol=0)


def test_errors_name_rule_value_and_remedy():
    with pytest.raises(ArgumentError, match="n_power_iterations of spectral_norm must be at least 1, got 0: use 1"):
        normkit.spectral_norm(nn.Linear(4, 3), n_power_iterations=0)
    with pytest.raises(ArgumentError, match="eps of spectral_norm must not be negative, got -1: use 1e-12"):
        normkit.spectral_norm(nn.Linear(4, 3), eps=-1)
    with pytest.raises(ArgumentError, match="dim must name a dimension of 'weight', which has 2; got 2"):
        normkit.spectral_norm(nn.Linear(4, 3), dim=2)
    with pytest.raises(StateError, match="'weight' of Linear already has SpectralNorm: remove that first"):
        normkit.spectral_norm(normkit.spectral_norm(nn.Linear(4, 3)))
    with pytest.raises(StateError, match="'weight' of Linear is not one: there is nothing to remove"):
        normkit.remove_spectral_norm(nn.Linear(4, 3))
    module = nn.Module()
    module.scale = nn.Parameter(torch.ones(()))
    with pytest.raises(ShapeError, match="a weight with a dimension, got the number 'scale'"):
        normkit.spectral_norm(module, "scale")
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight[0, 0] = torch.nan
    with pytest.raises(StateError, match="a finite weight, got one with NaN or infinity: initialise the layer again"):
        normkit.spectral_norm(layer)
