"""The recurrent network of the built-in suite, also as a character model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import normkit
from normkit.study.suite.networks import norm_of


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
            nn.init.normal_(self.table.weight, std=0.5, generator=generator)
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


def recurrent(variant: str, seed: int, *, inputs: int, width: int, steps: int, classes: int = 10) -> nn.Module:
    """A `Recurrent` of a variant with one output at the end."""
    return Recurrent(variant, seed, inputs=inputs, width=width, steps=steps, classes=classes)


def characters(variant: str, seed: int, *, width: int, steps: int, classes: int = 96) -> nn.Module:
    """A `Recurrent` of a variant that predicts the next character at each position."""
    return Recurrent(variant, seed, inputs=0, width=width, steps=steps, classes=classes, at_every_step=True)
