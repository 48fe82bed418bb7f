"""`finish`: leaves plain layers where a model has modules that only training needs."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from normkit.errors import StateError
from normkit.tools.convert.fade import fades
from normkit.tools.fold_training.layer import TrainableFold, forget_training, plain_layers
from normkit.tools.model.tree import copy_of, replace
from normkit.tools.model.wrapped import refuse_wrapped

M = TypeVar("M", bound=nn.Module)


def finish(model: M, *, inplace: bool = False) -> M:
    """End what `fold_for_training` and ``convert(..., schedule=...)`` have begun: the model has plain layers again.

    - A `TrainableFold` becomes a plain layer with the folded weight and bias, the weight rounded by its quantizer. It
      gives exactly what the module gave in evaluation. The norm's place is taken by `torch.nn.Identity`, or by the
      dropout and activation that the norm had.
    - A `Fade` becomes its replacement, and the norm is gone. The keys of the state dict are those of the replacement.

    Args:
        model: any module with such modules.
        inplace: whether to change the model itself and not a copy.

    Returns:
        The changed model.

    Raises:
        StateError: the model has none of these modules, or a norm that has not faded yet; a model in a wrapper for
            several processes. The model is as it was then.

    Example:
        >>> import torch, normkit
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        >>> trained, _ = normkit.fold_for_training(model, torch.randn(2, 3))
        >>> normkit.finish(trained)
        Sequential(
          (0): Linear(in_features=3, out_features=4, bias=True)
          (1): Identity()
        )
    """
    refuse_wrapped(model, "finish")
    fading = fades(model)
    if not fading and not any(isinstance(module, TrainableFold) for module in model.modules()):
        raise StateError(
            f"finish needs modules of fold_for_training or of convert(..., schedule=...), {type(model).__name__} has "
            "none: call one of the two first"
        )
    for name, fade in fading.items():
        if float(fade.t) != 1:
            raise StateError(
                f"finish needs norms that have faded, and {name!r} is at t={float(fade.t):.3g}: "
                "call advance(model) beside each step of the optimizer until it returns 1"
            )
    if not inplace:
        model = copy_of(model)
    faded: dict[nn.Module, nn.Module] = {fade: fade.replacement for fade in fades(model).values()}
    plain = plain_layers(model)
    model = replace(model, faded | plain)  # type: ignore[assignment]  # the root itself may be one
    for module in plain.values():
        forget_training(module)
    for module in faded.values():
        vars(module).pop("schedule", None)
    return model
