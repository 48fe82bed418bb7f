"""The Transformers of the built-in suite: a causal character model, and a classifier of padded sequences.

A variant is ``method[:option]``. The option is a placement of the norms (``pre``, which is the default, ``post``,
``sandwich`` or ``peri``, as in `normkit.replace_placement`), or ``qk``: pre-norm, and the method also normalizes the
queries and the keys of each head.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normkit.errors import ArgumentError
from normkit.study.suite.networks import norm_of, with_norm_of_weights

HEADS = 4
PADDING = 0
"""The token that fills a sequence up to the length of the longest."""
PLACED = ("pre", "post", "sandwich", "peri")
QK = "qk"
QK_METHODS = ("layer_norm", "rms_norm")
"""The methods that normalize queries and keys."""


class Normed(nn.Module):
    """The norm of a method over the last dimension of (..., width), or nothing."""

    def __init__(self, method: str, width: int) -> None:
        super().__init__()
        self.norm = norm_of(method, width, 0)
        # Without running statistics a norm treats each token by itself, and padding changes nothing.
        self.of_positions = self.norm is not None and any(True for _ in self.norm.buffers())

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Normalize (..., width); statistics over positions skip those where `valid` (...) is False."""
        if self.norm is None:
            return x
        masks = {} if valid is None or not self.of_positions else {"mask": valid.flatten()}
        out: Tensor = self.norm(x.flatten(0, -2), **masks).view_as(x)
        return out


class Residual(nn.Module):
    """Abstract: a branch and its residual connection, with norms at the places of a placement."""

    def __init__(self, method: str, placement: str, width: int) -> None:
        super().__init__()
        self.post = placement == "post"
        self.norm = Normed(method, width)
        self.end = Normed(method if placement in ("sandwich", "peri") else "none", width)

    @abstractmethod
    def branch(self, x: Tensor, hidden: Tensor, valid: Tensor | None) -> Tensor:
        """The branch without norms; `hidden` (..., T, T) is True where a position does not see another."""

    def forward(self, x: Tensor, hidden: Tensor, valid: Tensor | None) -> Tensor:
        """(N, T, width) -> (N, T, width)."""
        if self.post:
            out: Tensor = self.norm(x + self.branch(x, hidden, valid), valid)
        else:
            out = x + self.end(self.branch(self.norm(x, valid), hidden, valid), valid)
        return out


class Attention(Residual):
    """Attention with several heads; with `qk` queries and keys are normalized in each head."""

    def __init__(self, method: str, placement: str, width: int, qk: bool) -> None:
        super().__init__(method, placement, width)
        self.mixed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.query, self.key = (Normed(method if qk else "none", width // HEADS) for _ in range(2))

    def branch(self, x: Tensor, hidden: Tensor, valid: Tensor | None) -> Tensor:
        q, k, v = self.mixed(x).unflatten(2, (3, HEADS, -1)).movedim(2, 0).transpose(2, 3)
        q, k = self.query(q), self.key(k)
        # Written out, because torch.func.vmap runs torch's own attention one copy at a time.
        weight = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).masked_fill(hidden, -torch.inf).softmax(-1)
        out: Tensor = self.out((weight @ v).transpose(1, 2).flatten(2))
        return out


class Perceptron(Residual):
    """Two linear layers on each token."""

    def __init__(self, method: str, placement: str, width: int) -> None:
        super().__init__(method, placement, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def branch(self, x: Tensor, hidden: Tensor, valid: Tensor | None) -> Tensor:
        out: Tensor = self.narrow(F.gelu(self.wide(x)))
        return out


class Blocks(nn.Module):
    """Abstract: embeddings of tokens and positions, `depth` blocks of attention and perceptron, and a linear head."""

    def __init__(
        self, variant: str, seed: int, *, width: int, depth: int, steps: int, tokens: int, outputs: int
    ) -> None:
        super().__init__()
        method, placement, qk = parts_of(variant)
        generator = torch.Generator().manual_seed(seed)
        # Constructors draw weights that are overwritten below; the caller's random state must not change.
        with torch.random.fork_rng(devices=[]):
            self.table, self.places = nn.Embedding(tokens, width), nn.Embedding(steps, width)
            self.into = Normed(method if placement == "peri" else "none", width)
            self.blocks = nn.ModuleList()
            for _ in range(depth):
                self.blocks.extend([Attention(method, placement, width, qk), Perceptron(method, placement, width)])
            self.last = Normed("none" if placement == "post" else method, width)
            self.head = nn.Linear(width, outputs)
        for module in self.modules():
            _draw(module, generator)
        for module in [module for module in self.blocks.modules() if isinstance(module, nn.Linear)]:
            with_norm_of_weights(module, method.partition(":")[0])

    def features(self, values: Tensor, hidden: Tensor, valid: Tensor | None = None) -> Tensor:
        """(N, T) tokens -> (N, T, width) normalized features."""
        x = self.into(self.table(values) + self.places.weight[: values.shape[1]], valid)
        for block in self.blocks:
            x = block(x, hidden, valid)
        out: Tensor = self.last(x, valid)
        return out


class Transformer(Blocks):
    """A causal Transformer that predicts the next character at each position.

    Batch norm takes its statistics over samples and positions alike.
    """

    def forward(self, values: Tensor) -> Tensor:
        """(N, T) whole numbers -> (N, classes, T)."""
        length = values.shape[1]
        hidden = torch.ones(length, length, dtype=torch.bool, device=values.device).triu(1)
        out: Tensor = self.head(self.features(values, hidden)).transpose(1, 2)
        return out


class Classifier(Blocks):
    """A Transformer over padded sequences: attention, statistics over positions and the last mean skip padding."""

    def forward(self, values: Tensor) -> Tensor:
        """(N, T) tokens, `PADDING` after the end of a sequence -> (N, classes)."""
        valid = values != PADDING
        features = self.features(values, ~valid[:, None, None], valid)
        mean = features.masked_fill(~valid.unsqueeze(2), 0.0).sum(1) / valid.sum(1, keepdim=True)
        out: Tensor = self.head(mean)
        return out


def parts_of(variant: str) -> tuple[str, str, bool]:
    """The method, the placement, and whether queries and keys are normalized.

    Options that belong to the method itself stay with it.

    Raises:
        ArgumentError: ``qk`` with a method that does not normalize queries and keys.

    >>> parts_of("layer_norm"), parts_of("rms_norm:qk"), parts_of("batch_norm:ghost-4")
    (('layer_norm', 'pre', False), ('rms_norm', 'pre', True), ('batch_norm:ghost-4', 'pre', False))
    """
    method, _, option = variant.partition(":")
    if option == QK and method not in QK_METHODS:
        raise ArgumentError(
            f"queries and keys are normalized by {' or '.join(QK_METHODS)}, got {variant!r}: write layer_norm:qk, say"
        )
    if option == QK:
        return method, "pre", True
    return (method, option, False) if option in PLACED else (variant, "pre", False)


def _draw(module: nn.Module, generator: torch.Generator) -> None:
    """Small normal weights, no bias."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        std = 0.5 if isinstance(module, nn.Embedding) else module.weight.shape[1] ** -0.5
        nn.init.normal_(module.weight, std=std, generator=generator)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def transformer(variant: str, seed: int, *, width: int, depth: int, steps: int, classes: int = 96) -> nn.Module:
    """A `Transformer` of a variant."""
    return Transformer(variant, seed, width=width, depth=depth, steps=steps, tokens=classes, outputs=classes)


def classifier(variant: str, seed: int, *, width: int, depth: int, steps: int, tokens: int, classes: int) -> nn.Module:
    """A `Classifier` of a variant.

    >>> model = classifier("rms_norm:qk", 0, width=8, depth=1, steps=5, tokens=4, classes=2)
    >>> model(torch.tensor([[1, 3, 2, 0, 0]])).shape
    torch.Size([1, 2])
    """
    return Classifier(variant, seed, width=width, depth=depth, steps=steps, tokens=tokens, outputs=classes)
