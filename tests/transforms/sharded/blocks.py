"""Blocks of two transformers, and the plans that torch's tensor and sequence parallelism takes for them."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, PrepareModuleInput, RowwiseParallel, SequenceParallel

import normkit

HEAD = 4


class Attention(nn.Module):
    """On the heads that this process has."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


class LlamaLike(nn.Module):
    """RMSNorm before attention and MLP, norms of queries and keys; the second norm also adds the residual."""

    def __init__(self, dim: int = 16, vocabulary: int = 11) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.attention_norm, self.mlp_norm, self.norm = (normkit.RMSNorm(dim, eps=1e-6) for _ in range(3))
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.q_norm, self.k_norm = normkit.RMSNorm(HEAD, eps=1e-6), normkit.RMSNorm(HEAD, zero_centered=True)
        self.attention = Attention()
        self.up, self.gate, self.down = nn.Linear(dim, 32), nn.Linear(dim, 32), nn.Linear(32, dim)
        self.output = nn.Linear(dim, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embedding(ids)
        y = self.attention_norm(h)
        q, k, v = (linear(y).unflatten(-1, (-1, HEAD)) for linear in (self.q, self.k, self.v))
        y, h = self.mlp_norm(
            self.o(self.attention(self.q_norm(q), self.k_norm(k), v)), residual=h, return_residual=True
        )
        h = h + self.down(self.up(y) * F.silu(self.gate(y)))
        return self.output(self.norm(h))


class ViTLike(nn.Module):
    """LayerNorm with bias before attention and MLP."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm = normkit.LayerNorm(dim), normkit.LayerNorm(dim), normkit.LayerNorm(dim)
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.attention = Attention()
        self.up, self.down = nn.Linear(dim, 32), nn.Linear(32, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (linear(y).unflatten(-1, (-1, HEAD)) for linear in (self.q, self.k, self.v))
        x = x + self.o(self.attention(q, k, v))
        return self.norm(x + self.down(F.gelu(self.up(self.norm2(x)))))


def _shared_plan() -> dict[str, Any]:
    """Between the norms each process has its heads and its hidden units; in them, its positions."""
    columns = {name: ColwiseParallel(input_layouts=Shard(1), use_local_output=False) for name in ("q", "k", "v", "up")}
    rows = {name: RowwiseParallel(output_layouts=Shard(1), use_local_output=False) for name in ("o", "down")}
    heads = (Shard(2),) * 3
    attention = PrepareModuleInput(input_layouts=heads, desired_input_layouts=heads, use_local_output=True)
    return {**columns, **rows, "attention": attention}


def llama_plan() -> dict[str, Any]:
    return {
        **_shared_plan(),
        "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1), use_local_output=False),
        "gate": ColwiseParallel(input_layouts=Shard(1), use_local_output=False),
        "q_norm": SequenceParallel(sequence_dim=2),
        "k_norm": SequenceParallel(sequence_dim=2),
        "attention_norm": SequenceParallel(),
        "mlp_norm": SequenceParallel(),
        "norm": SequenceParallel(),
        "output": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }


def vit_plan() -> dict[str, Any]:
    return {**_shared_plan(), **{name: SequenceParallel() for name in ("norm1", "norm2", "norm")}}
