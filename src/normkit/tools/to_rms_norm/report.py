"""The report of a conversion to RMS norm, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from normkit.tools.model.refusal import Refusal


@dataclass(frozen=True)
class Converted:
    """One layer norm that is an RMS norm now.

    Attributes:
        name, names: where it is; several names if it is shared.
        old, new: the layers in words.
    """

    name: str
    names: tuple[str, ...]
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.name}: {self.old} -> {self.new}"


@dataclass(frozen=True)
class Centred:
    """One parameter that lost its mean over the channels.

    Attributes:
        name: of the parameter.
        shape: its own.
        dim: the dimension over which its mean is 0 now.
        blocks: into how many parts that dimension is divided, each with a mean of 0; 1 unless it holds heads.
        scaled: whether a LayerScale multiplies its channels later; then the mean with those scales is 0.
        mean: the largest mean that it had, of its largest value then.
        rounding: the largest difference from the exact result in float64, of its largest value.
    """

    name: str
    shape: tuple[int, ...]
    dim: int
    blocks: int
    scaled: bool
    mean: float
    rounding: float

    def __str__(self) -> str:
        parts = f" in {self.blocks} parts" if self.blocks > 1 else ""
        scaled = ", with the scales that follow" if self.scaled else ""
        return f"{self.name} {self.shape}: centred over dimension {self.dim}{parts}{scaled}"


@dataclass(frozen=True)
class Untied:
    """One parameter that two modules shared, and no longer do.

    Attributes:
        name: the parameter that is a copy now, and is centred.
        other: the parameter that keeps its values.
        bytes: the memory of the copy.
    """

    name: str
    other: str
    bytes: int

    def __str__(self) -> str:
        return f"{self.name}: a copy of its own, {self.bytes} bytes more; {self.other} keeps its values"


@dataclass(frozen=True)
class RMSNormReport:
    """The report of `to_rms_norm`.

    Attributes:
        changes: the layer norms that were converted.
        refusals: those that were not, and why.
        kept: names of the norms that are no layer norms.
        centred: the parameters that were changed.
        untied: the parameters that are no longer shared.
        graph: whether symbolic tracing shows that every input takes the same path; otherwise the path is that of the
            example, and an input that takes another one is not covered.
        error: largest difference of an output on the example from before, of the output's largest value.
        tolerance: what it was allowed to be.
        exact_error: the same for copies in float64, on the example and on random inputs of the same shape; 0 if
            nothing was converted.
        exact_dtype: the dtype of these copies: float32 where the model does not run in float64.
    """

    changes: tuple[Converted, ...]
    refusals: tuple[Refusal, ...]
    kept: tuple[str, ...]
    centred: tuple[Centred, ...]
    untied: tuple[Untied, ...]
    graph: bool
    error: float
    tolerance: float
    exact_error: float
    exact_dtype: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        inputs = "for every input" if self.graph else "for inputs that take the same path as the example"
        tail = (
            f"{len(self.changes)} converted, {len(self.refusals)} stay; {inputs}; outputs changed by "
            f"{self.error:.1e}, in {self.exact_dtype} by {self.exact_error:.1e}"
        )
        return "\n".join(map(str, [*self.changes, *self.refusals, *self.untied, *self.centred, tail]))
