"""The device and the dtype of a design."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normkit.study.task import Task
from normkit.study.training.design import Design


def weight_dtype(design: Design) -> torch.dtype:
    """The dtype of the weights."""
    return torch.float64 if design.dtype == "float64" else torch.float32


def model_of(task: Task, design: Design, method: str, seed: int) -> nn.Module:
    """A new model on the device and in the dtype of a design."""
    return task.build(method, seed).to(design.device, weight_dtype(design))


def to_device(design: Design, tree: Any) -> Any:
    """Tensors on the device and in the dtype of a design; whole numbers keep their dtype."""
    if (design.device, design.dtype) == ("cpu", "float32"):
        return tree

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(design.device, weight_dtype(design) if leaf.is_floating_point() else None)

    return pytree.tree_map(move, tree)


def autocast(design: Design) -> torch.autocast:
    """The context for operations in lower precision than the weights, if the design uses it."""
    kind = torch.device(design.device).type
    return torch.autocast(kind, torch.bfloat16, enabled=design.dtype == "bfloat16")
