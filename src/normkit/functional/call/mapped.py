"""``normkit::move_running``: the kernel that updates running statistics, for layers mapped by `torch.func.vmap`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normkit.kernels import context
from normkit.kernels.batched import stacked
from normkit.kernels.devices import kernels_for
from normkit.kernels.operator import BODIES, library

library.define(
    "move_running(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor mean, Tensor std, int values, float momentum)"
    " -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def move_running(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, std: Tensor, values: int, momentum: float
) -> None:
    """Body of ``normkit::move_running``: move the statistics towards the moments of a batch, in place."""
    kernels = kernels_for(mean)
    assert kernels is not None
    kernels.move_running(running_mean, running_var, mean, std, values, momentum)
    # A compiled operator does not count in-place changes; its caller has to.
    torch.autograd.graph.increment_version([running_mean, running_var])


library.impl("move_running", move_running, "CompositeExplicitAutograd")
BODIES[torch.ops.normkit.move_running.default] = move_running


def _mapped(
    info: Any,
    in_dims: tuple[int | None, ...],
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    std: Tensor,
    values: int,
    momentum: float,
) -> tuple[None, None]:
    """`torch.func.vmap`: the channels of all copies in a row are those of one layer."""
    copies = info.batch_size
    into = [t.movedim(at, 0) for t, at in zip((running_mean, running_var), in_dims[:2], strict=True)]  # type: ignore[arg-type]
    flat = [t.reshape(-1) for t in into]
    # The moments of each sample are next to each other; those of a sample must be so for all copies.
    moments = [
        stacked(t, at, copies).reshape(copies, -1, into[0][0].numel()).transpose(0, 1).reshape(-1)
        for t, at in zip((mean, std), in_dims[2:4], strict=True)
    ]
    torch.ops.normkit.move_running.default(*flat, *moments, values, momentum)
    for t, moved in zip(into, flat, strict=True):
        if moved.data_ptr() != t.data_ptr():
            t.copy_(moved.view(t.shape))
    return None, None


torch.library.register_vmap("normkit::move_running", _mapped, lib=library)


def is_mapped(*tensors: Tensor) -> bool:
    """Whether only `torch.func.vmap` watches a call, and these tensors differ between its copies."""
    return (
        context.is_transformed()
        and context.is_only_mapped()
        and all(torch._C._functorch.is_batchedtensor(t) for t in tensors)
    )
