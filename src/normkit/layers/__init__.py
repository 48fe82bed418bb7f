"""Every normalization as a layer: parameters and state, nothing else; names and signatures as in `torch.nn`."""

from normkit.layers.batch.frozen import FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d
from normkit.layers.batch.ghost import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d
from normkit.layers.batch.norm import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
)
from normkit.layers.batch.power_norm import PowerNorm
from normkit.layers.batch.renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from normkit.layers.batch.sync import SyncBatchNorm
from normkit.layers.evo import EvoNorm2dB0, EvoNorm2dS0
from normkit.layers.general import Norm
from normkit.layers.group import GroupNorm
from normkit.layers.instance import (
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LazyInstanceNorm1d,
    LazyInstanceNorm2d,
    LazyInstanceNorm3d,
)
from normkit.layers.iter_norm import IterNorm
from normkit.layers.layer import LayerNorm, LayerNorm2d
from normkit.layers.modulated.adain import AdaIN
from normkit.layers.modulated.adaptive import AdaptiveLayerNorm
from normkit.layers.modulated.conditional import ConditionalBatchNorm2d
from normkit.layers.modulated.gated import GatedRMSNorm
from normkit.layers.modulated.spade import SPADE
from normkit.layers.pointwise.dynamic_erf import DynamicErf
from normkit.layers.pointwise.dynamic_tanh import DynamicTanh
from normkit.layers.response.filter_response import FilterResponseNorm2d
from normkit.layers.response.global_response import GlobalResponseNorm
from normkit.layers.response.local_response import LocalResponseNorm
from normkit.layers.revin import RevIN
from normkit.layers.rms import RMSNorm
from normkit.layers.scale import ScaleNorm
from normkit.layers.switchable import SwitchableNorm

__all__ = [
    "SPADE",
    "AdaIN",
    "AdaptiveLayerNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "ConditionalBatchNorm2d",
    "DynamicErf",
    "DynamicTanh",
    "EvoNorm2dB0",
    "EvoNorm2dS0",
    "FilterResponseNorm2d",
    "FrozenBatchNorm1d",
    "FrozenBatchNorm2d",
    "FrozenBatchNorm3d",
    "GatedRMSNorm",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "GlobalResponseNorm",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "IterNorm",
    "LayerNorm",
    "LayerNorm2d",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
    "LocalResponseNorm",
    "Norm",
    "PowerNorm",
    "RMSNorm",
    "RevIN",
    "ScaleNorm",
    "SwitchableNorm",
    "SyncBatchNorm",
]
