"""The sequence models of the built-in suite: a recurrent network, also as a character model, and a Transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normkit
from normkit.study.suite.networks import norm_of, with_norm_of_weights
from normkit.tools.replace_placement import PLACEMENTS, replace_placement


class Recurrent(nn.Module):
    """A tanh RNN; the norm is applied to the input of the tanh.

    Batch norm keeps one set of statistics for all time steps, because one layer is used in the loop; with the option
    ``each-step`` it keeps one set for each step.

    Args:
        variant: a method, or ``batch_norm:each-step``.
        seed: seed of the weights.
        inputs: number of values at each time step; 0 for whole numbers below `classes`, which are embedded.
        width: width of the state.
        steps: number of time steps.
        classes: number of outputs.
        at_every_step: whether there is an output at each time step, or one at the end.
    """

    def __init__(
        self, variant: str, seed: int, *, inputs: int, width: int, steps: int, classes: int, at_every_step: bool = False
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        method, _, option = variant.partition(":")
        self.at_every_step = at_every_step
        # Constructors draw weights that are overwritten below; the caller's random state must not change.
        with torch.random.fork_rng(devices=[]):
            self.table = None if inputs else nn.Embedding(classes, width)
            self.into = nn.Linear(inputs or width, width)
            self.again = nn.Linear(width, width, bias=False)
            self.head = nn.Linear(width, classes)
            count = steps if option == "each-step" else 1
            norms = [norm_of(method, width, 0) for _ in range(count)]
            self.norms = nn.ModuleList([norm for norm in norms if norm is not None])
        if self.table is not None:
            _draw(self.table, generator)
        for layer in (self.into, self.head):
            nn.init.xavier_normal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.orthogonal_(self.again.weight, generator=generator)
        if method == "weight_norm":
            normkit.weight_norm(self.into)
            normkit.weight_norm(self.again)

    def forward(self, values: Tensor) -> Tensor:
        """(N, T, inputs) or (N, T) -> (N, classes), or (N, classes, T) at every step."""
        rows = self.into(values if self.table is None else self.table(values))
        state = torch.zeros_like(rows[:, 0])
        states = []
        for t in range(rows.shape[1]):
            total = rows[:, t] + self.again(state)
            if len(self.norms):
                total = self.norms[t % len(self.norms)](total)
            state = torch.tanh(total)
            states.append(state)
        out: Tensor = self.head(torch.stack(states, 1)).transpose(1, 2) if self.at_every_step else self.head(state)
        return out


class Transformer(nn.Module):
    """A causal character Transformer with its norms before attention and before each perceptron.

    Batch norm takes its statistics over samples and positions alike.
    """

    def __init__(
        self, variant: str, seed: int, *, width: int, depth: int, heads: int, steps: int, classes: int
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            self.table, self.places = nn.Embedding(classes, width), nn.Embedding(steps, width)
            self.blocks = nn.ModuleList([Block(variant, width, heads) for _ in range(depth)])
            self.last = Normed(variant, width)
            self.head = nn.Linear(width, classes)
        for module in self.modules():
            _draw(module, generator)
        for module in [module for module in self.blocks.modules() if isinstance(module, nn.Linear)]:
            with_norm_of_weights(module, variant)

    def forward(self, values: Tensor) -> Tensor:
        """(N, T) whole numbers -> (N, classes, T)."""
        x = self.table(values) + self.places.weight[: values.shape[1]]
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.last(x)).transpose(1, 2)
        return out


class Block(nn.Module):
    """Attention and a perceptron, each preceded by a norm and bypassed by a residual connection."""

    def __init__(self, variant: str, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = Normed(variant, width), Normed(variant, width)
        self.mixed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) -> (N, T, width)."""
        q, k, v = self.mixed(self.first(x)).unflatten(2, (3, self.heads, -1)).movedim(2, 0).transpose(2, 3)
        # Written out, because torch.func.vmap runs torch's own attention one copy at a time.
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        weight = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).masked_fill(later, -torch.inf).softmax(-1)
        seen = (weight @ v).transpose(1, 2).flatten(2)
        x = x + self.out(seen)
        out: Tensor = x + self.narrow(F.gelu(self.wide(self.second(x))))
        return out


class Normed(nn.Module):
    """The norm of a variant over the last dimension of (N, T, width), or nothing."""

    def __init__(self, variant: str, width: int) -> None:
        super().__init__()
        self.norm = norm_of(variant, width, 0)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) -> (N, T, width)."""
        if self.norm is None:
            return x
        out: Tensor = self.norm(x.flatten(0, 1)).view_as(x)
        return out


def _draw(module: nn.Module, generator: torch.Generator) -> None:
    """Small normal weights, no bias."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        std = 0.5 if isinstance(module, nn.Embedding) else module.weight.shape[1] ** -0.5
        nn.init.normal_(module.weight, std=std, generator=generator)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def recurrent(variant: str, seed: int, *, inputs: int, width: int, steps: int, classes: int = 10) -> nn.Module:
    """A `Recurrent` of a variant with one output at the end."""
    return Recurrent(variant, seed, inputs=inputs, width=width, steps=steps, classes=classes)


def characters(variant: str, seed: int, *, width: int, steps: int, classes: int = 96) -> nn.Module:
    """A `Recurrent` of a variant that predicts the next character at each position."""
    return Recurrent(variant, seed, inputs=0, width=width, steps=steps, classes=classes, at_every_step=True)


def transformer(variant: str, seed: int, *, width: int, depth: int, steps: int, classes: int = 96) -> nn.Module:
    """A `Transformer` of a variant; an option such as ``layer_norm:post`` is a placement of its norms."""
    method, _, option = variant.partition(":")
    placement = next((name for name in PLACEMENTS if name == option), None)
    sizes = {"width": width, "depth": depth, "heads": 4, "steps": steps, "classes": classes}
    model = Transformer(method if placement else variant, seed, **sizes)
    if placement is not None:
        example = torch.zeros(2, steps, dtype=torch.long)
        replace_placement(model, placement, example=example, calibrate=False, inplace=True, strict=True)
    return model
