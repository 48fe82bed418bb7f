"""What functions that run a model ask of it first."""

from __future__ import annotations

from torch import nn

from normkit.errors import StateError


def check_values(function: str, model: nn.Module) -> None:
    """Refuse a model on the meta device, whose tensors have shapes and no values."""
    for name, module in model.named_modules():
        tensors = {**module._parameters, **module._buffers}
        empty = next((key for key, tensor in tensors.items() if tensor is not None and tensor.is_meta), None)
        if empty is not None:
            raise StateError(
                f"{function} needs tensors with values, {f'{name}.{empty}'.lstrip('.')!r} is on the meta device: "
                "load a state dict first, with load_state_dict(state, assign=True) or after to_empty(device=...)"
            )
