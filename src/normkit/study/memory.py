"""What one training step keeps in memory for its backward pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def saved_bytes(model: nn.Module, loss: Any, inputs: Any, targets: Any) -> int:
    """Bytes of the tensors that autograd saves between forward and backward.

    A storage counts once, however many operations save it or views of it; parameters and buffers are there anyway and
    do not count. What a backward pass allocates for itself is not seen.

    Args:
        model: in the mode in which it is to be measured; buffers may change.
        loss: (outputs, targets) -> a number.
        inputs, targets: one batch.

    >>> import torch
    >>> layer = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Sigmoid())
    >>> x = torch.zeros(2, 4)
    >>> saved_bytes(layer, lambda y, _: y.sum(), x, None)  # x, and the output of the sigmoid
    96
    """
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    # Held until the end: a storage that was freed could come again as another tensor's.
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            kept.setdefault(place, tensor.detach())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(model(inputs), targets)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
