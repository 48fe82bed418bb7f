"""What the tests of `fold_for_training` share: pairs of layer and norm, quantizers, and the training of a model."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

# In float64: sums of some hundred products, and a standard deviation of at least 0.1.
DOUBLE = {"rtol": 1e-10, "atol": 1e-10}


def models() -> list[nn.Sequential]:
    """One for each kind of layer, with and without groups and bias, and the shape of its input."""
    found = []
    for dims, groups, bias in itertools.product((1, 2, 3), (1, 2), (True, False)):
        for kind, more in ((CONVS, {"padding": 1}), (TRANSPOSED, {"output_padding": 1, "stride": 2})):
            layer = kind[dims](4, 6, 3, groups=groups, bias=bias, **more)
            found.append((nn.Sequential(layer, BATCH_NORMS[dims](6)), (4, *(5, 4, 3)[:dims])))
    found.append(
        (nn.Sequential(nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"), nn.BatchNorm2d(6)), (4, 5, 4))
    )
    for bias, affine, momentum in ((True, True, 0.1), (False, False, None)):
        norm = nn.BatchNorm1d(6, affine=affine, momentum=momentum)
        found.append((nn.Sequential(nn.Linear(4, 6, bias=bias), norm), (4,)))
    return [(model.double(), shape) for model, shape in found]


def rounded(weight: Tensor) -> Tensor:
    """To multiples of a sixteenth, with the gradient of the weight."""
    return weight + ((weight * 16).round() / 16 - weight).detach()


def trained(model: nn.Module, batches: list[Tensor], rate: float = 0.1) -> list[Tensor]:
    """Outputs, gradients and state of some steps of gradient descent; in evaluation at the end."""
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    seen = []
    for x in batches:
        y = model.train()(x)
        optimizer.zero_grad()
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y).sin()).sum().backward()
        seen += [y.detach(), *(p.grad.clone() for p in model.parameters())]
        optimizer.step()
        seen += [value.clone() for value in model.state_dict().values()]
    with torch.no_grad():
        seen.append(model.eval()(batches[0]))
    return seen
