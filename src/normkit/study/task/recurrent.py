"""Adds norms to recurrent networks, which have no layer that a norm could follow inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from normkit.tools.model.tree import module_places, replace


class NormedRecurrent(nn.Module):
    """A recurrent network whose outputs are normalized over their features.

    The last hidden state is the output of the last time step, so that it is normalized too; cell states and the hidden
    states of lower layers are not.

    Args:
        layer: an `nn.LSTM`, `nn.GRU` or `nn.RNN`.
        norm: for (..., features).

    >>> lstm = NormedRecurrent(nn.LSTM(3, 4, batch_first=True), nn.LayerNorm(4))
    >>> y, (hidden, cell) = lstm(torch.randn(2, 5, 3))
    >>> bool((y[:, -1] == hidden[-1]).all()), lstm.hidden_size
    (True, 4)
    """

    def __init__(self, layer: nn.RNNBase, norm: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm = layer, norm

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """As the recurrent network itself."""
        output, state = self.layer(*args, **kwargs)
        if isinstance(output, PackedSequence):
            output = PackedSequence(self.norm(output.data), *output[1:])
            steps, lengths = pad_packed_sequence(output, batch_first=True)
            ends = steps[:, 0], steps[torch.arange(len(steps)), lengths - 1]
        else:
            output = self.norm(output)
            time = 1 if self.layer.batch_first and output.dim() == 3 else 0
            ends = output.select(time, 0), output.select(time, -1)
        if isinstance(state, tuple):
            return output, (self._last(state[0], *ends), *state[1:])
        return output, self._last(state, *ends)

    def _last(self, hidden: Tensor, first: Tensor, last: Tensor) -> Tensor:
        """The hidden states with those of the upper layer taken from the normalized outputs."""
        width = hidden.shape[-1]
        upper = [last[..., :width]] + ([first[..., width:]] if self.layer.bidirectional else [])
        return torch.cat([hidden[: -len(upper)], torch.stack(upper)])


def with_layer_norms(model: nn.Module) -> nn.Module | None:
    """The model with a layer norm after each recurrent network; None if it has none."""
    new: dict[nn.Module, nn.Module] = {}
    for place in module_places(model):
        layer = place.module
        if isinstance(layer, nn.RNNBase):
            width = (layer.proj_size or layer.hidden_size) * (1 + layer.bidirectional)
            new[layer] = NormedRecurrent(layer, nn.LayerNorm(width))
    return replace(model, new) if new else None
