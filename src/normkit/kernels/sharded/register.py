"""Registers the rules of all operators."""

from __future__ import annotations

import torch
from torch.distributed.tensor import DTensor

from normkit.kernels.sharded import others, rules

RULES = {
    "norm": rules.norm,
    "norm_backward": rules.norm_backward,
    "quantize": others.quantize,
    "weight_norm": others.weight_norm,
    "weight_norm_backward": others.weight_norm_backward,
}
for name, rule in RULES.items():
    torch.library.register_torch_dispatch(f"normkit::{name}", DTensor, rule)
