"""Every normalization as a function: arithmetic, no state; signatures as in `torch.nn.functional`."""

from normkit.functional.batch.ghost import ghost_batch_norm
from normkit.functional.batch.norm import batch_norm
from normkit.functional.batch.power_norm import power_norm
from normkit.functional.batch.renorm import batch_renorm
from normkit.functional.batch.sync import sync_batch_norm
from normkit.functional.batch.update import batch_norm_update
from normkit.functional.evo import evo_norm_b0, evo_norm_s0
from normkit.functional.general import normalize
from normkit.functional.group import group_norm
from normkit.functional.instance import instance_norm
from normkit.functional.iter_norm import iter_norm
from normkit.functional.layer import layer_norm, layer_norm2d
from normkit.functional.modulated.gated import gated_rms_norm
from normkit.functional.pointwise.dynamic_erf import dynamic_erf
from normkit.functional.pointwise.dynamic_tanh import dynamic_tanh
from normkit.functional.quantized import quantized_layer_norm, quantized_rms_norm
from normkit.functional.response.filter_response import filter_response_norm
from normkit.functional.response.global_response import global_response_norm
from normkit.functional.response.local_response import local_response_norm
from normkit.functional.revin import revin, revin_inverse
from normkit.functional.rms import rms_norm
from normkit.functional.scale import scale_norm
from normkit.functional.switchable import switchable_norm
from normkit.functional.weight_standardization import weight_standardization

__all__ = [
    "batch_norm",
    "batch_norm_update",
    "batch_renorm",
    "dynamic_erf",
    "dynamic_tanh",
    "evo_norm_b0",
    "evo_norm_s0",
    "filter_response_norm",
    "gated_rms_norm",
    "ghost_batch_norm",
    "global_response_norm",
    "group_norm",
    "instance_norm",
    "iter_norm",
    "layer_norm",
    "layer_norm2d",
    "local_response_norm",
    "normalize",
    "power_norm",
    "quantized_layer_norm",
    "quantized_rms_norm",
    "revin",
    "revin_inverse",
    "rms_norm",
    "scale_norm",
    "switchable_norm",
    "sync_batch_norm",
    "weight_standardization",
]
