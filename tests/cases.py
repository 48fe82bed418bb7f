"""What the contract is run on: one case or more for each method, with oracles, layouts, dtypes and bad inputs.

Over 400 lines: the oracles of all methods are read side by side.
The oracles are written here from the definitions, in plain float64 torch, and call nothing of normkit. All
methods with a region share one formula and differ only in `average`, the mean over a region, repeated over it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import normkit
from versions import of_torch

Average = Callable[[Tensor], Tensor]
Parameters = dict[str, Tensor]


# The oracle -----------------------------------------------------------------------------------------------


def over(*dims: int) -> Average:
    """The mean over these dimensions."""
    return lambda x: x.mean(dims, keepdim=True)


def per_channel(x: Tensor) -> Tensor:
    return x.mean([d for d in range(x.dim()) if d != 1], keepdim=True)


def per_sample_and_channel(x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.dim())), keepdim=True)


def per_group(groups: int) -> Average:
    def average(x: Tensor) -> Tensor:
        rows = x.reshape(x.shape[0], groups, -1)
        return rows.mean(2, keepdim=True).expand(rows.shape).reshape(x.shape)

    return average


@dataclass(frozen=True)
class Oracle:
    """``y = (x - mean) / sqrt(var + eps) * weight + bias`` with `average` as the only thing that varies."""

    average: Average
    eps: float
    channels_first: bool
    center: bool = True

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.double()
        mean = self.average(x) if self.center else torch.zeros((), dtype=torch.float64)
        return mean, self.average((x - mean).square())

    def spread(self, t: Tensor, x: Tensor) -> Tensor:
        """A parameter in the shape that broadcasts against x."""
        return t.double().reshape(-1, *[1] * (x.dim() - 2)) if self.channels_first else t.double()

    def __call__(self, x: Tensor, p: Parameters, moments: tuple[Tensor, Tensor] | None = None) -> Tensor:
        mean, var = self.moments(x) if moments is None else moments
        y = (x.double() - mean) / (var + self.eps).sqrt()
        if "weight" in p:
            y = y * self.spread(p["weight"], x)
        return y + self.spread(p["bias"], x) if "bias" in p else y

    def given(self, x: Tensor, state: Parameters) -> Tensor:
        """The same with running statistics."""
        moments = self.spread(state["running_mean"], x), self.spread(state["running_var"], x)
        return self(x, state, moments)

    def condition(self, x: Tensor) -> Tensor:
        """``1 + |mean| / std``: what rounding x to its dtype already does to the result, in units of eps."""
        mean, var = self.moments(x)
        return 1 + mean.abs() / (var + self.eps).sqrt()


@dataclass(frozen=True)
class Thresholded(Oracle):
    """The same, and no less than a threshold."""

    def __call__(self, x: Tensor, p: Parameters, moments: tuple[Tensor, Tensor] | None = None) -> Tensor:
        y = super().__call__(x, p, moments)
        return torch.maximum(y, self.spread(p["threshold"], x))


@dataclass(frozen=True)
class Switched(Oracle):
    """A mixture of three means and three variances, each computed from all its values."""

    def mixed(self, x: Tensor, p: Parameters, batch: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        own, sample = INSTANCE.moments(x), Oracle(over(*range(1, x.dim())), self.eps, channels_first=True).moments(x)
        of_batch = BATCH.moments(x) if batch is None else batch
        mixed = []
        for i, name in enumerate(("mean_weight", "var_weight")):
            shares = p[name].double().softmax(0)
            mixed.append(shares[0] * own[i] + shares[1] * sample[i] + shares[2] * of_batch[i])
        return mixed[0], mixed[1]

    def __call__(self, x: Tensor, p: Parameters, moments: tuple[Tensor, Tensor] | None = None) -> Tensor:
        return super().__call__(x, p, self.mixed(x, p, moments))

    def condition(self, x: Tensor) -> Tensor:
        """The largest of the three: each mean is rounded in units of itself, and no variance outweighs the others."""
        averages = (per_channel, per_sample_and_channel, over(*range(1, x.dim())))
        own = [Oracle(average, self.eps, channels_first=True).condition(x).expand(x.shape) for average in averages]
        return torch.stack(own).amax(0)


@dataclass(frozen=True)
class Quadratic(Oracle):
    """By the quadratic mean of each channel, which in evaluation is a running one."""

    def given(self, x: Tensor, state: Parameters) -> Tensor:
        return self(x, state, (torch.zeros(1), self.spread(state["running_phi"], x)))


class Whitened:
    """The inverse square root of each group's covariance matrix, by its eigenvectors and not by an iteration."""

    def __init__(self, groups: int, eps: float) -> None:
        self.groups, self.eps = groups, eps

    def applied(self, x: Tensor, p: Parameters, mean: Tensor, whitening: Tensor) -> Tensor:
        rows = x.double().movedim(1, -1).reshape(-1, self.groups, x.shape[1] // self.groups) - mean
        y = torch.einsum("gij,ngj->ngi", whitening, rows).reshape(x.movedim(1, -1).shape).movedim(-1, 1)
        shape = [-1, *[1] * (x.dim() - 2)]
        return y * p["weight"].double().view(shape) + p["bias"].double().view(shape)

    def __call__(self, x: Tensor, p: Parameters) -> Tensor:
        rows = x.double().movedim(1, -1).reshape(-1, self.groups, x.shape[1] // self.groups)
        if not rows.numel():
            return x.double()
        mean = rows.mean(0)
        covariance = torch.einsum("ngi,ngj->gij", rows - mean, rows - mean) / len(rows)
        values, vectors = torch.linalg.eigh(covariance + self.eps * torch.eye(rows.shape[-1], dtype=torch.float64))
        return self.applied(x, p, mean, vectors @ torch.diag_embed(values.rsqrt()) @ vectors.mT)

    def given(self, x: Tensor, p: Parameters) -> Tensor:
        return self.applied(x, p, p["running_mean"].view(self.groups, -1), p["running_whitening"])


def local_response(size: int, alpha: float, beta: float, k: float) -> Callable[[Tensor, Parameters], Tensor]:
    def oracle(x: Tensor, p: Parameters) -> Tensor:
        x = x.double()
        channels = x.shape[1]
        out = []
        for c in range(channels):
            window = x[:, max(0, c - size // 2) : min(channels, c + (size - 1) // 2 + 1)]
            out.append(x[:, c] / (k + alpha / size * window.square().sum(1)) ** beta)
        return torch.stack(out, 1)

    return oracle


def over_channels(t: Tensor, x: Tensor) -> Tensor:
    """A parameter of the channels in dimension 1, in float64."""
    return t.double().reshape(-1, *[1] * (x.dim() - 2))


def global_response(positions: tuple[int, ...], channels: int, eps: float) -> Callable[[Tensor, Parameters], Tensor]:
    def oracle(x: Tensor, p: Parameters) -> Tensor:
        x = x.double()
        size = x.square().sum(positions, keepdim=True).sqrt()
        relative = size / (size.mean(channels, keepdim=True) + eps)
        weight, bias = p["weight"].double(), p["bias"].double()
        if channels == 1:
            weight, bias = over_channels(weight, x), over_channels(bias, x)
        return weight * (x * relative) + bias + x

    return oracle


def bounded(function: Callable[[Tensor], Tensor], channels_last: bool = True) -> Callable[[Tensor, Parameters], Tensor]:
    def oracle(x: Tensor, p: Parameters) -> Tensor:
        x = x.double()
        y = function(p["alpha"].double() * x + (p["shift"].double() if "shift" in p else 0.0))
        weight, bias = (p[name].double() if channels_last else over_channels(p[name], x) for name in ("weight", "bias"))
        return y * weight + bias

    return oracle


def unit_length(x: Tensor, p: Parameters) -> Tensor:
    x = x.double()
    return p["weight"].double() * x / x.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-5)


@dataclass(frozen=True)
class EvoB0:
    """``y = x / max(sqrt(batch_var + eps), v * x + sqrt(var + eps)) * weight + bias``."""

    eps: float

    def __call__(self, x: Tensor, p: Parameters) -> Tensor:
        x = x.double()
        return self.divided(x, p, per_channel((x - per_channel(x)).square()))

    def given(self, x: Tensor, p: Parameters) -> Tensor:
        return self.divided(x.double(), p, over_channels(p["running_var"], x))

    def divided(self, x: Tensor, p: Parameters, batch_var: Tensor) -> Tensor:
        v, weight, bias = (over_channels(p[name], x) for name in ("v", "weight", "bias"))
        var = per_sample_and_channel((x - per_sample_and_channel(x)).square())
        return x / torch.maximum((batch_var + self.eps).sqrt(), v * x + (var + self.eps).sqrt()) * weight + bias


def evo_s0(groups: int, eps: float) -> Callable[[Tensor, Parameters], Tensor]:
    def oracle(x: Tensor, p: Parameters) -> Tensor:
        x = x.double()
        v, weight, bias = (over_channels(p[name], x) for name in ("v", "weight", "bias"))
        average = per_group(groups)
        return x / (1 + (-v * x).exp()) / (average((x - average(x)).square()) + eps).sqrt() * weight + bias

    return oracle


def weight_normed_linear(x: Tensor, p: Parameters) -> Tensor:
    g, v = p["parametrizations.weight.original0"].double(), p["parametrizations.weight.original1"].double()
    return x.double() @ (g * v / v.square().sum(1, keepdim=True).sqrt()).T + p["bias"].double()


def weight_standardized_linear(x: Tensor, p: Parameters) -> Tensor:
    v = p["parametrizations.weight.original"].double()
    v = v - v.mean(1, keepdim=True)
    return x.double() @ (v / (v.square().mean(1, keepdim=True) + 1e-5).sqrt()).T + p["bias"].double()


def spectrally_normed_linear(x: Tensor, p: Parameters) -> Tensor:
    v = p["parametrizations.weight.original"].double()
    return x.double() @ (v / torch.linalg.svdvals(v)[0]).T + p["bias"].double()


def condition_of_filters(p: Parameters) -> Tensor:
    v = p["parametrizations.weight.original"].double()
    return 1 + v.mean(1).abs() / (v.var(1, correction=0) + 1e-5).sqrt()


# The rows -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bad:
    """An input that must be refused, and what the message must say besides the layer's name."""

    shape: tuple[int, ...]
    says: str


@dataclass(frozen=True)
class Case:
    """One way to use one method of the catalog.

    Attributes:
        row: the method's name in the catalog.
        ours, torch: make the layer with ``device`` and ``dtype``; torch is None where it has no such layer.
        shape: of a small input with at least two values in each region, and sizes that differ.
        oracle: of the layer with its parameters (and of the batch's statistics).
        bad: inputs to refuse.
        elementwise: the output has the input's shape and layout.
        per_sample: a sample's output does not depend on the others.
        smooth_in_training: no step of training is a constant for the gradient, and can be differentiated numerically.
        condition: ``1 + |mean| / std`` of parameters that a mean is subtracted from; 1 of all others.
    """

    row: str
    name: str
    ours: Callable[..., nn.Module]
    torch: Callable[..., nn.Module] | None
    shape: tuple[int, ...]
    oracle: Callable[..., Tensor]
    bad: tuple[Bad, ...] = ()
    elementwise: bool = True
    per_sample: bool = True
    smooth_in_training: bool = True
    condition: Callable[[Parameters], Tensor] = lambda parameters: torch.ones(())

    def __str__(self) -> str:
        return self.name

    def given(self, x: Tensor, state: Parameters) -> Tensor:
        """The oracle with running statistics."""
        assert isinstance(self.oracle, Oracle | EvoB0 | Whitened)
        return self.oracle.given(x, state)


Makers = tuple[Callable[..., nn.Module], Callable[..., nn.Module]]


def _both(name: str, *args: object, **kwargs: object) -> Makers:
    """A layer of ours, and torch's of the same name and arguments."""

    def ours(**where: object) -> nn.Module:
        layer: nn.Module = getattr(normkit, name)(*args, **kwargs, **where)
        return layer

    return ours, lambda **where: of_torch(name, *args, **kwargs, **where)


def _window(*args: object, **kwargs: object) -> Makers:
    """The one layer without state, and so without a dtype."""
    ours, theirs = _both("LocalResponseNorm", *args, **kwargs)
    return lambda **where: ours(), lambda **where: theirs()


def _linear(weight_norm: Callable[[nn.Module], nn.Module]) -> Callable[..., nn.Module]:
    return lambda **where: weight_norm(nn.Linear(5, 4, **where))


def _norm(*args: object, **kwargs: object) -> Callable[..., nn.Module]:
    return lambda **where: normkit.Norm(*args, **kwargs, **where)


BATCH = Oracle(per_channel, 1e-5, channels_first=True)
INSTANCE = Oracle(per_sample_and_channel, 1e-5, channels_first=True)
PIXEL = Oracle(over(1), 1e-6, channels_first=True)
GROUPS = Oracle(per_group(3), 1e-5, channels_first=True)


def layer_oracle(*dims: int, eps: float = 1e-5, center: bool = True) -> Oracle:
    return Oracle(over(*dims), eps, channels_first=False, center=center)


def _wrong_channels(*shape: int) -> Bad:
    return Bad(shape, rf"{shape[1]} in shape {re.escape(str(shape))}: make the layer for that many")


def _wrong_rank(*shape: int) -> Bad:
    return Bad(shape, rf"the input must be \(.*got shape {re.escape(str(shape))}: reshape it")


CASES = (
    Case("batch_norm", "batch_norm rows", *_both("BatchNorm1d", 5), (6, 5), BATCH,
         (_wrong_channels(6, 4), _wrong_rank(5), Bad((1, 5), "more than one value per channel.*larger batch")),
         per_sample=False),
    Case("batch_norm", "batch_norm 1d", *_both("BatchNorm1d", 5, bias=False), (3, 5, 4), BATCH,
         (_wrong_channels(3, 4, 5), _wrong_rank(1, 1, 5, 1)), per_sample=False),
    Case("batch_norm", "batch_norm 2d", *_both("BatchNorm2d", 4, momentum=None), (3, 4, 2, 3), BATCH,
         (_wrong_channels(3, 2, 4, 3), _wrong_rank(3, 4), Bad((1, 4, 1, 1), "more than one value per channel")),
         per_sample=False),
    Case("batch_norm", "batch_norm 3d", *_both("BatchNorm3d", 3, affine=False), (2, 3, 2, 1, 3), BATCH,
         (_wrong_channels(2, 4, 2, 1, 3), _wrong_rank(2, 3, 2, 1)), per_sample=False),
    Case("batch_norm", "batch_norm without statistics", *_both("BatchNorm2d", 4, track_running_stats=False),
         (3, 4, 2, 3), BATCH, (Bad((1, 4, 1, 1), "more than one value per channel"),), per_sample=False),
    Case("layer_norm", "layer_norm", *_both("LayerNorm", 7), (3, 2, 7), layer_oracle(-1),
         (Bad((3, 2, 6), r"end with normalized_shape \(7,\), got shape \(3, 2, 6\)"),
          Bad((), r"end with normalized_shape \(7,\), got shape \(\)"))),
    Case("layer_norm", "layer_norm of two dimensions", *_both("LayerNorm", (3, 4), bias=False), (3, 2, 3, 4),
         layer_oracle(-2, -1), (Bad((3, 2, 4, 3), r"end with normalized_shape \(3, 4\)"),)),
    Case("layer_norm2d", "layer_norm2d", lambda **where: normkit.LayerNorm2d(6, **where), None, (2, 6, 2, 3),
         PIXEL, (_wrong_channels(2, 5, 2, 3), Bad((6,), r"at least 2 dimensions.*got shape \(6,\)"))),
    Case("rms_norm", "rms_norm", *_both("RMSNorm", 7, eps=1e-5), (3, 2, 7), layer_oracle(-1, center=False),
         (Bad((3, 2, 6), r"end with normalized_shape \(7,\), got shape \(3, 2, 6\)"),)),
    Case("rms_norm", "rms_norm of two dimensions", *_both("RMSNorm", (3, 4), eps=1e-3, elementwise_affine=False),
         (3, 2, 3, 4), layer_oracle(-2, -1, eps=1e-3, center=False), (Bad((4, 3), r"end with normalized_shape"),)),
    Case("instance_norm", "instance_norm 1d", *_both("InstanceNorm1d", 3), (2, 3, 5), INSTANCE,
         (_wrong_rank(3, 1, 1, 1), Bad((2, 3, 1), "more than one position.*layer_norm"))),
    Case("instance_norm", "instance_norm 2d", *_both("InstanceNorm2d", 3, affine=True), (2, 3, 2, 4), INSTANCE,
         (_wrong_channels(2, 4, 3, 3), Bad((2, 3, 1, 1), "more than one position"), Bad((2, 3), "got shape"))),
    Case("instance_norm", "instance_norm 3d with statistics",
         *_both("InstanceNorm3d", 3, affine=True, track_running_stats=True), (2, 3, 2, 1, 3), INSTANCE,
         (_wrong_channels(2, 4, 2, 1, 3), Bad((2, 3, 1, 1, 1), "more than one position"))),
    Case("group_norm", "group_norm 1d", *_both("GroupNorm", 3, 6), (2, 6, 5), GROUPS,
         (_wrong_channels(2, 5, 6), Bad((6,), r"at least 2 dimensions.*got shape \(6,\)"))),
    Case("group_norm", "group_norm 2d", *_both("GroupNorm", 3, 6), (2, 6, 2, 3), GROUPS,
         (_wrong_channels(2, 9, 2, 3),)),
    Case("group_norm", "Norm of groups", _norm("b (g [c]) [...]", num_features=6, num_groups=3), None,
         (2, 6, 2, 3), GROUPS, (Bad((2, 9, 2, 3), r"must equal g=3 \* c=2, got 9 in shape \(2, 9, 2, 3\)"),
                                Bad((6,), "at least 2 dimensions"))),
    Case("rms_norm", "Norm of pixels, not centred",
         _norm("b [c] ...", num_features=6, center=False, bias=False), None, (2, 6, 2, 3),
         Oracle(over(1), 1e-5, channels_first=True, center=False), (Bad((2, 5, 3), "must equal c=6"),)),
    Case("local_response_norm", "local_response_norm", *_window(3, alpha=0.5, beta=0.6, k=1.5), (2, 5, 2, 3),
         local_response(3, 0.5, 0.6, 1.5), (Bad((2, 5), r"at least 3 dimensions.*got shape \(2, 5\)"),)),
    Case("local_response_norm", "local_response_norm, even window", *_window(4, alpha=0.5), (2, 5, 3),
         local_response(4, 0.5, 0.75, 1.0)),
    Case("filter_response_norm", "filter_response_norm",
         lambda **where: normkit.FilterResponseNorm2d(3, **where), None, (2, 3, 2, 5),
         Thresholded(per_sample_and_channel, 1e-6, channels_first=True, center=False),
         (_wrong_channels(2, 4, 2, 3), _wrong_rank(2, 3, 4), Bad((2, 3, 1, 1), "more than one position"))),
    Case("global_response_norm", "global_response_norm", lambda **where: normkit.GlobalResponseNorm(3, **where), None,
         (2, 3, 1, 3), global_response((2, 3), 1, 1e-6),
         (_wrong_channels(2, 4, 2, 3), Bad((2, 3), r"at least 3 dimensions.*got shape \(2, 3\)"))),
    Case("global_response_norm", "global_response_norm, channels last",
         lambda **where: normkit.GlobalResponseNorm(3, channels_last=True, **where), None, (2, 2, 1, 3),
         global_response((1, 2), -1, 1e-6), (Bad((2, 4, 2, 5), r"5 in shape \(2, 4, 2, 5\): make the layer"),)),
    Case("scale_norm", "scale_norm", lambda **where: normkit.ScaleNorm(5, **where), None, (3, 5), unit_length,
         (Bad((3, 4), r"layer's 5 features, got shape \(3, 4\)"), Bad((), r"got shape \(\)"))),
    Case("dynamic_tanh", "dynamic_tanh", lambda **where: normkit.DynamicTanh(5, **where), None, (3, 5),
         bounded(torch.tanh), (Bad((3, 4), r"end with normalized_shape \(5,\), got shape \(3, 4\)"),)),
    Case("dynamic_tanh", "dynamic_tanh, channels first",
         lambda **where: normkit.DynamicTanh(3, channels_last=False, **where), None, (2, 3, 1, 2),
         bounded(torch.tanh, channels_last=False), (_wrong_channels(2, 4, 3), Bad((3,), "at least 2 dimensions"))),
    Case("dynamic_erf", "dynamic_erf", lambda **where: normkit.DynamicErf((2, 3), **where), None, (3, 2, 3),
         bounded(torch.erf), (Bad((3, 3), r"end with normalized_shape \(2, 3\), got shape \(3, 3\)"),)),
    Case("dynamic_erf", "dynamic_erf, channels first",
         lambda **where: normkit.DynamicErf(3, channels_last=False, **where), None, (2, 3, 4),
         bounded(torch.erf, channels_last=False), (_wrong_channels(2, 4, 3),)),
    Case("evo_norm_b0", "evo_norm_b0", lambda **where: normkit.EvoNorm2dB0(3, **where), None, (2, 3, 1, 2),
         EvoB0(1e-5), (_wrong_channels(2, 4, 2, 3), _wrong_rank(2, 3, 4),
                       Bad((1, 3, 1, 1), "more than one value per channel.*evo_norm_s0")), per_sample=False),
    Case("evo_norm_s0", "evo_norm_s0", lambda **where: normkit.EvoNorm2dS0(4, 2, **where), None, (2, 4, 1, 3),
         evo_s0(2, 1e-5), (_wrong_channels(2, 3, 2, 3), _wrong_rank(2, 4, 4))),
    Case("power_norm", "power_norm in the warm-up", lambda **where: normkit.PowerNorm(2, **where), None, (3, 2, 2, 2),
         Quadratic(per_channel, 1e-5, channels_first=True, center=False),
         (_wrong_channels(3, 4, 2, 3), Bad((1, 2, 1, 1), "only the sign is left.*larger batch"),
          Bad((2,), r"at least 2 dimensions.*got shape \(2,\)")), per_sample=False),
    Case("switchable_norm", "switchable_norm", lambda **where: normkit.SwitchableNorm(2, **where), None, (3, 2, 2, 2),
         Switched(per_channel, 1e-5, channels_first=True),
         (_wrong_channels(2, 4, 2, 3), Bad((2, 2, 1, 1), "more than one position.*batch_norm"),
          Bad((3, 2), r"at least 3 dimensions.*got shape \(3, 2\)")), per_sample=False),
    Case("iter_norm", "iter_norm", lambda **where: normkit.IterNorm(4, num_groups=2, iterations=15, **where), None,
         (2, 4, 2, 3), Whitened(2, 1e-5),
         (_wrong_channels(3, 2, 4, 3), Bad((1, 4, 1, 1), "more than one value per channel.*larger batch")),
         per_sample=False, condition=lambda parameters: torch.tensor(4.0)),
    Case("revin", "revin", lambda **where: normkit.RevIN(3, **where), None, (2, 5, 3),
         Oracle(over(1), 1e-5, channels_first=False),
         (Bad((2, 5, 4), "4 in shape.*make the layer for that many"),
          Bad((5, 3), r"at least 3 dimensions.*got shape \(5, 3\)"))),
    Case("weight_norm", "weight_norm", _linear(normkit.weight_norm),
         _linear(nn.utils.parametrizations.weight_norm), (3, 5), weight_normed_linear, elementwise=False),
    Case("weight_standardization", "weight_standardization", _linear(normkit.weight_standardization), None,
         (3, 5), weight_standardized_linear, elementwise=False, condition=condition_of_filters),
    Case("spectral_norm", "spectral_norm, converged",
         _linear(lambda layer: normkit.spectral_norm(layer, n_power_iterations=200)), None,
         (3, 5), spectrally_normed_linear, elementwise=False, smooth_in_training=False),
)  # fmt: skip
"""At least one for each row of the catalog."""


# Layouts and dtypes ---------------------------------------------------------------------------------------


def _permuted(x: Tensor) -> Tensor:
    """Dense, with the dimensions in reverse order of memory."""
    order = list(range(x.dim()))[::-1]
    return x.permute(order).contiguous().permute(order)


def _strided(x: Tensor) -> Tensor:
    """Every second element of a wider tensor; the others are huge, and must not be seen."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), 1e4, dtype=x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def _inside(x: Tensor) -> Tensor:
    """The middle of a tensor with more rows in dimension 1."""
    wide = torch.full((x.shape[0], x.shape[1] + 3, *x.shape[2:]), 1e4, dtype=x.dtype)
    wide[:, 2:-1] = x
    return wide[:, 2:-1]


def _offset(x: Tensor) -> Tensor:
    """Contiguous, but starting where no vector register is aligned."""
    return torch.cat([torch.full((1,), 1e4, dtype=x.dtype), x.flatten()])[1:].view(x.shape)


def _expanded(x: Tensor) -> Tensor:
    """The first index of dimension 0 shown again and again."""
    return x[:1].expand(x.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "channels_last_3d": lambda x: x.contiguous(memory_format=torch.channels_last_3d),
    "permuted": _permuted,
    "strided": _strided,
    "inside": _inside,
    "offset": _offset,
    "expanded": _expanded,
}
"""All but the last give a tensor with the same values."""

RANKS = {"channels_last": 4, "channels_last_3d": 5}
DTYPES = {
    "float64": (torch.float64, torch.float64),
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16),
    "bfloat16 beside float32": (torch.bfloat16, torch.float32),
    "float16 beside float32": (torch.float16, torch.float32),
}
"""Of the input, and of the parameters."""


def layouts(case: Case) -> Sequence[str]:
    """The layouts that exist for the case's number of dimensions."""
    rank = len(case.shape)
    return [name for name in LAYOUTS if RANKS.get(name, rank) == rank]


def make_input(case: Case, dtype: torch.dtype = torch.float32, layout: str = "contiguous", seed: int = 0) -> Tensor:
    """Values of about 1 +- 2, laid out as asked; the same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(case.shape, generator=generator, dtype=torch.float64, device="cpu") * 2 + 1
    return LAYOUTS[layout](x.to(torch.get_default_device(), dtype))


def make_layer(case: Case, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """The layer with weights near 1, biases near 0 and running statistics that are not the initial ones."""
    torch.manual_seed(seed)
    layer = case.ours(dtype=dtype)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.randn(p.shape) * 0.3)
        for name, buffer in layer.named_buffers():
            if name == "running_mean":
                buffer.add_(torch.randn(buffer.shape))
            elif name in ("running_var", "running_phi", "running_whitening"):
                buffer.mul_(torch.rand(buffer.shape) + 0.5)
    return layer


def state_of(layer: nn.Module) -> Parameters:
    """Parameters and buffers in float64, detached."""
    return {name: t.detach().double() for name, t in layer.state_dict().items()}
