"""The figures of one call of one norm in one watched step."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

DEAD = 1e-3
"""A channel whose output deviates by less than this is dead; with a weight of 1 it would by about 1."""


@dataclass(frozen=True, slots=True)
class NormRecord:
    """The figures of one call of one norm. A figure that does not apply, or did not arrive, is None.

    Attributes:
        step: number of training forwards before this one.
        norm, kind: name of the norm in the model, and its class.
        call: 0 for the first call in this forward, 1 for the second call of a shared norm, and so on.
        channels: number of channels, or of features.
        input_mean, input_std: over all elements that are normalized: with the residual, without padding.
        input_mean_min, input_mean_max: smallest and largest mean of a channel over batch and positions.
        input_std_min, input_std_max: smallest and largest standard deviation of a channel.
        output_mean, output_std: the same of what the norm returns, after a fused activation.
        output_mean_min, output_mean_max, output_std_min, output_std_max: the same of the channels.
        running_shift: largest distance over the channels of the batch's mean from the running mean before this
            step, in running standard deviations.
        running_var_ratio: largest factor over the channels between the batch's variance and the running one, either
            way, eps included; at least 1. Of power norm that between the quadratic means; None for iterative norm,
            which keeps no variance, as is its `running_shift`.
        weight_min, weight_max: of the weight as it is applied: 1 is added where weight - 1 is stored.
        bias_min, bias_max: of the bias.
        grad_output: length of the gradient of the loss by the norm's output, ``sqrt(sum(g^2))``.
        grad_weight, grad_bias: the same for the parameters, over all calls; of the first backward.
        dead: channels whose output deviates by less than 1e-3 over batch and positions: the input hardly varies
            there, or the weight, or the activation, lets nothing through. None with a single value per channel.
        dead_weights: channels with a weight, as applied, within 1e-3 of 0.
        nonfinite_input, nonfinite_grad: elements of the input, and of the gradient by the output, that are inf or nan.
    """

    step: int
    norm: str
    kind: str
    call: int = 0
    channels: int | None = None
    input_mean: float | None = None
    input_std: float | None = None
    input_mean_min: float | None = None
    input_mean_max: float | None = None
    input_std_min: float | None = None
    input_std_max: float | None = None
    output_mean: float | None = None
    output_std: float | None = None
    output_mean_min: float | None = None
    output_mean_max: float | None = None
    output_std_min: float | None = None
    output_std_max: float | None = None
    running_shift: float | None = None
    running_var_ratio: float | None = None
    weight_min: float | None = None
    weight_max: float | None = None
    bias_min: float | None = None
    bias_max: float | None = None
    grad_output: float | None = None
    grad_weight: float | None = None
    grad_bias: float | None = None
    dead: int | None = None
    dead_weights: int | None = None
    nonfinite_input: int | None = None
    nonfinite_grad: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


FIELDS = tuple(field.name for field in fields(NormRecord))
COUNTS = ("channels", "dead", "dead_weights", "nonfinite_input", "nonfinite_grad")
FIGURES = tuple(name for name in FIELDS if name not in ("step", "norm", "kind", "call"))
"""The fields that are numbers and change from step to step."""
