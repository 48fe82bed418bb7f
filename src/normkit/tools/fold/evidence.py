"""What is known about a model when a norm of it is to be folded, and what is to be changed then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from normkit.tools.fold.ties import Ties, joined
from normkit.tools.model.graph.dataflow import Dataflow
from normkit.tools.model.graph.symbolic import SymbolicGraph
from normkit.tools.model.refusal import RefusedError
from normkit.tools.model.tree import refuse_layer


@dataclass(frozen=True)
class Change:
    """New weight and bias, in float64, of one layer."""

    layer: nn.Module
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Evidence:
    """What is known from running a model on the example, and from its symbolic graph.

    Attributes:
        names: of all modules.
        flow: who reads the outputs and the parameters of norms and layers.
        graph: the symbolic graph; None if there is none.
        ties: the parameters that several modules share.
        untie: whether a layer may get its own copy of a shared parameter.
        training: the modules that are in training mode outside `fold`.
        limit: how far a folded layer may be from the original in float64, of its output's size.
    """

    names: dict[nn.Module, str]
    flow: Dataflow
    graph: SymbolicGraph | None
    ties: Ties
    untie: bool
    training: frozenset[nn.Module]
    limit: float

    def called(self, taker: nn.Module | str) -> str:
        """A reader of an output, as a text."""
        return taker if isinstance(taker, str) else repr(self.names[taker])

    def check_usable(self, layer: nn.Module) -> None:
        """The layer's weight is its own, plain, and used by nothing but its forward."""
        name = repr(self.names[layer])
        refuse_layer(layer, name)
        self.check_not_shared(layer)
        if self.graph is not None and self.graph.reads_values(layer):
            raise RefusedError(f"the model's graph also reads the weight of {name}")

    def check_not_shared(self, layer: nn.Module) -> None:
        """Nothing else reads its parameters; with `untie`, no other code than that of modules that share them."""
        name, shared = repr(self.names[layer]), self.shared(layer)
        reads = self.flow.reads[layer] - (self.flow.shared[layer] if self.untie else set())
        if reads:
            hint = f", as {next(iter(shared.values()))[0]!r}" if shared else ""
            hint += f": untie=True gives {name} its own" if shared and reads <= self.flow.shared[layer] else ""
            raise RefusedError(f"the weight of {name} is also read by {min(reads)}{hint}")
        if shared and not self.untie:
            key, others = next(iter(shared.items()))
            raise RefusedError(f"the {key} of {name} is also {others[0]!r}: untie=True gives {name} its own")
        self.ties.listed({joined(self.names[layer], key) for key in shared})

    def shared(self, layer: nn.Module) -> dict[str, list[str]]:
        """The parameters of a layer that are also those of others, with the names that they have there."""
        found = {
            key: self.ties.others(parameter, joined(self.names[layer], key))
            for key, parameter in layer.named_parameters(recurse=False)
        }
        return {key: others for key, others in found.items() if others}


def check_finite(layer: Any, name: str, *values: Tensor) -> None:
    """New values fit into the dtype of the layer."""
    dtype = layer.weight.dtype
    if not all(bool(tensor.to(dtype).isfinite().all()) for tensor in values):
        raise RefusedError(f"the folded weight of {name!r} would not be finite in {dtype}")
