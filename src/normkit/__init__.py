"""One engine for every normalization, and the tools to choose, check and change the normalization of a model.

The public names. Each is loaded from its module when it is first used, so that ``import normkit`` costs nothing and
the command line does not wait for torch.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING
from typing import Any as _Any

if TYPE_CHECKING:
    from normkit import functional as functional
    from normkit.backends import show_backends as show_backends
    from normkit.layers import SPADE as SPADE
    from normkit.layers import AdaIN as AdaIN
    from normkit.layers import AdaptiveLayerNorm as AdaptiveLayerNorm
    from normkit.layers import BatchNorm1d as BatchNorm1d
    from normkit.layers import BatchNorm2d as BatchNorm2d
    from normkit.layers import BatchNorm3d as BatchNorm3d
    from normkit.layers import BatchRenorm1d as BatchRenorm1d
    from normkit.layers import BatchRenorm2d as BatchRenorm2d
    from normkit.layers import BatchRenorm3d as BatchRenorm3d
    from normkit.layers import ConditionalBatchNorm2d as ConditionalBatchNorm2d
    from normkit.layers import DynamicErf as DynamicErf
    from normkit.layers import DynamicTanh as DynamicTanh
    from normkit.layers import EvoNorm2dB0 as EvoNorm2dB0
    from normkit.layers import EvoNorm2dS0 as EvoNorm2dS0
    from normkit.layers import FilterResponseNorm2d as FilterResponseNorm2d
    from normkit.layers import FrozenBatchNorm1d as FrozenBatchNorm1d
    from normkit.layers import FrozenBatchNorm2d as FrozenBatchNorm2d
    from normkit.layers import FrozenBatchNorm3d as FrozenBatchNorm3d
    from normkit.layers import GatedRMSNorm as GatedRMSNorm
    from normkit.layers import GhostBatchNorm1d as GhostBatchNorm1d
    from normkit.layers import GhostBatchNorm2d as GhostBatchNorm2d
    from normkit.layers import GhostBatchNorm3d as GhostBatchNorm3d
    from normkit.layers import GlobalResponseNorm as GlobalResponseNorm
    from normkit.layers import GroupNorm as GroupNorm
    from normkit.layers import InstanceNorm1d as InstanceNorm1d
    from normkit.layers import InstanceNorm2d as InstanceNorm2d
    from normkit.layers import InstanceNorm3d as InstanceNorm3d
    from normkit.layers import IterNorm as IterNorm
    from normkit.layers import LayerNorm as LayerNorm
    from normkit.layers import LayerNorm2d as LayerNorm2d
    from normkit.layers import LazyBatchNorm1d as LazyBatchNorm1d
    from normkit.layers import LazyBatchNorm2d as LazyBatchNorm2d
    from normkit.layers import LazyBatchNorm3d as LazyBatchNorm3d
    from normkit.layers import LazyInstanceNorm1d as LazyInstanceNorm1d
    from normkit.layers import LazyInstanceNorm2d as LazyInstanceNorm2d
    from normkit.layers import LazyInstanceNorm3d as LazyInstanceNorm3d
    from normkit.layers import LocalResponseNorm as LocalResponseNorm
    from normkit.layers import Norm as Norm
    from normkit.layers import PowerNorm as PowerNorm
    from normkit.layers import RevIN as RevIN
    from normkit.layers import RMSNorm as RMSNorm
    from normkit.layers import ScaleNorm as ScaleNorm
    from normkit.layers import SwitchableNorm as SwitchableNorm
    from normkit.layers import SyncBatchNorm as SyncBatchNorm
    from normkit.parametrize import init_weight_norm as init_weight_norm
    from normkit.parametrize import remove_spectral_norm as remove_spectral_norm
    from normkit.parametrize import remove_weight_norm as remove_weight_norm
    from normkit.parametrize import remove_weight_standardization as remove_weight_standardization
    from normkit.parametrize import spectral_norm as spectral_norm
    from normkit.parametrize import weight_norm as weight_norm
    from normkit.parametrize import weight_standardization as weight_standardization
    from normkit.study import compare as compare
    from normkit.study.task import Task as Task
    from normkit.tools.audit import audit as audit
    from normkit.tools.convert import advance as advance
    from normkit.tools.convert import convert as convert
    from normkit.tools.finish import finish as finish
    from normkit.tools.fold import fold as fold
    from normkit.tools.fold_training import TrainableFold as TrainableFold
    from normkit.tools.fold_training import fold_for_training as fold_for_training
    from normkit.tools.freeze import freeze as freeze
    from normkit.tools.freeze import unfreeze as unfreeze
    from normkit.tools.insert import insert as insert
    from normkit.tools.kernelize import kernelize as kernelize
    from normkit.tools.param_groups import param_groups as param_groups
    from normkit.tools.recalibrate import recalibrate as recalibrate
    from normkit.tools.replace_placement import replace_placement as replace_placement
    from normkit.tools.to_rms_norm import to_rms_norm as to_rms_norm
    from normkit.tools.watch import watch as watch

__version__ = "0.1.0"

_NAMES = {
    "normkit.backends": "show_backends",
    "normkit.layers": "BatchNorm1d BatchNorm2d BatchNorm3d "
    "BatchRenorm1d BatchRenorm2d BatchRenorm3d GhostBatchNorm1d GhostBatchNorm2d GhostBatchNorm3d "
    "DynamicErf DynamicTanh EvoNorm2dB0 EvoNorm2dS0 GlobalResponseNorm ScaleNorm "
    "FilterResponseNorm2d FrozenBatchNorm1d FrozenBatchNorm2d FrozenBatchNorm3d "
    "GroupNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d "
    "LayerNorm LayerNorm2d LazyBatchNorm1d LazyBatchNorm2d LazyBatchNorm3d LazyInstanceNorm1d LazyInstanceNorm2d "
    "LazyInstanceNorm3d LocalResponseNorm Norm RMSNorm SyncBatchNorm "
    "IterNorm PowerNorm RevIN SwitchableNorm "
    "AdaIN AdaptiveLayerNorm ConditionalBatchNorm2d GatedRMSNorm SPADE",
    "normkit.parametrize": "init_weight_norm remove_weight_norm remove_weight_standardization weight_norm "
    "weight_standardization remove_spectral_norm spectral_norm",
    "normkit.study": "compare",
    "normkit.study.task": "Task",
    "normkit.tools.audit": "audit",
    "normkit.tools.fold": "fold",
    "normkit.tools.freeze": "freeze unfreeze",
    "normkit.tools.recalibrate": "recalibrate",
    "normkit.tools.param_groups": "param_groups",
    "normkit.tools.convert": "advance convert",
    "normkit.tools.fold_training": "TrainableFold fold_for_training",
    "normkit.tools.finish": "finish",
    "normkit.tools.insert": "insert",
    "normkit.tools.kernelize": "kernelize",
    "normkit.tools.to_rms_norm": "to_rms_norm",
    "normkit.tools.replace_placement": "replace_placement",
    "normkit.tools.watch": "watch",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = ["functional", *_HOME]


def __getattr__(name: str) -> _Any:
    if name == "functional":
        return _import_module("normkit.functional")
    if name in _HOME:
        value = getattr(_import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if not name.startswith("_"):
        raise AttributeError(f"normkit has no {name!r}: {_remedy(name)}")
    raise AttributeError(name)


def _remedy(name: str) -> str:
    """The nearest public name, also by what the catalog calls its methods; or where all names are."""
    from difflib import get_close_matches

    from normkit.catalog import METHODS

    known = {each.casefold(): each for each in __all__}
    for method in METHODS:
        own = [each for each in (*method.layers, method.name) if each in _HOME]
        for alias in (method.name, method.title, *method.aliases) if own else ():
            known.setdefault(alias.casefold(), own[0])
    close = get_close_matches(name.casefold(), known, n=1)
    return f"did you mean {known[close[0]]!r}?" if close else "dir(normkit) lists its names"


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
