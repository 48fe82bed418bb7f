"""Layers for `kernels.kernelize`, by the names that transformers gives to its layers.

Each has a forward and no state: weight, bias and eps are those of the module that it is put on.
"""

import torch
from torch import nn

from normkit import functional


class RMSNorm(nn.Module):
    """The RMS norm of Llama: the normalized value is cast to the dtype of the input, then multiplied by the weight."""

    has_backward = True
    can_torch_compile = True
    weight: torch.Tensor
    variance_epsilon: float

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon, cast="before")


class RMSNormZeroCentered(nn.Module):
    """The RMS norm of Gemma and Qwen 3.5: the weight is stored around 0, and multiplied before the cast."""

    has_backward = True
    can_torch_compile = True
    weight: torch.Tensor
    eps: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps, zero_centered=True)


class RMSNormGated(nn.Module):
    """The RMS norm of Qwen3-Next: cast, multiplied by the weight, then by the activation of the gate."""

    has_backward = True
    can_torch_compile = True
    weight: torch.Tensor
    variance_epsilon: float
    activation: str

    def forward(self, hidden_states: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        return functional.gated_rms_norm(
            hidden_states, gate, self.weight, self.variance_epsilon, gate_activation=self.activation, cast="before"
        )


class LayerNorm(nn.Module):
    """`torch.nn.LayerNorm`."""

    has_backward = True
    can_torch_compile = True
    normalized_shape: tuple[int, ...]
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    eps: float

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
