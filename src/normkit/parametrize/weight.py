"""Weight normalization: a weight is learned as a length and a direction, ``w = g * v / ||v||``.

It is a parametrization of `torch.nn.utils.parametrize`: the module keeps ``g`` and ``v`` as
``parametrizations.weight.original0`` and ``original1``, and computes ``weight`` whenever it is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils import parametrize

from normkit.errors import ArgumentError, DtypeError, ShapeError, StateError, nearest
from normkit.kernels.context import is_traced
from normkit.kernels.weight import length_of, normalized_weight
from normkit.parametrize.checks import is_readable

M = TypeVar("M", bound=nn.Module)


class NormOfWeight(nn.Module):
    """Computes a weight from the parameters that replace it; abstract."""

    originals: tuple[str, ...] = ("original",)
    """The names of these parameters."""

    def __init__(self) -> None:
        super().__init__()
        # The names of the parameters that follow the weight in its module. Removal restores the weight before them,
        # because the state of an optimizer identifies parameters by their position.
        self.followers: tuple[str, ...] = ()


class WeightNorm(NormOfWeight):
    """Computes a weight from its lengths and directions; made by `weight_norm`.

    Args:
        dim: the dimension that counts the lengths; None, or -1 as in torch, for a single length.

    Raises:
        ArgumentError: another negative dim, because only `weight_norm` knows the number of dimensions.
    """

    originals = ("original0", "original1")

    def __init__(self, dim: int | None = 0) -> None:
        super().__init__()
        if dim is not None and dim < -1:
            raise ArgumentError(f"dim of WeightNorm must be at least 0, -1 or None, got {dim}: call weight_norm")
        self.dim = None if dim == -1 else dim

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        """The weight, in the dtype of `v`; 0 where `v` is 0, with finite gradients."""
        return normalized_weight(v, g, self.dim)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """``(g, v)`` for a weight: its lengths and a copy of itself.

        Raises:
            StateError: a length too large for the dtype of the weight.
        """
        length = length_of(weight, self.dim).to(weight.dtype)
        if is_readable(length) and not length.isfinite().all() and weight.isfinite().all():
            raise StateError(
                f"the lengths of a weight must be finite as {weight.dtype}, whose largest number is "
                f"{torch.finfo(weight.dtype).max:.3g}, got {float(weight.double().norm()):.3g} for the whole weight: "
                "call weight_norm on the layer in float32"
            )
        # A copy, because training v would otherwise change a parameter that another module shares.
        return length, weight.detach().clone()

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


def weight_norm(module: M, name: str = "weight", dim: int | None = 0) -> M:
    """Learn a weight as a length and a direction.

    ``w = g * v / ||v||``, the norm taken over every dimension but `dim`, in fp32 or better. The weight
    itself does not change (in half precision, by at most one rounding). Make the optimizer afterwards,
    because the parameters are new.

    Args:
        module: the module with the parameter; changed in place.
        name: name of the parameter, which has any shape with at least one element.
        dim: the dimension that counts the lengths: 0 is one length for each output of a Linear
            or Conv layer, 1 for each output channel of a ConvTranspose. None gives one length for the whole
            tensor, and so does -1, as in torch; other negative values count from the end.

    Returns:
        The module. The keys of its ``state_dict`` are those of `torch.nn.utils.parametrizations.weight_norm`,
        ``parametrizations.weight.original0`` (g) and ``original1`` (v); it also loads the older ``weight_g``
        and ``weight_v``.
        A vector ``v = 0`` has no direction: its weight is 0, and trains only where ``g`` is not 0.

    Raises:
        ArgumentError: no such parameter, or no such dimension.
        ShapeError: a parameter without elements.
        DtypeError: a parameter that is not floating point.
        StateError: the parameter is normalized already, or not initialised yet, or a length is too large for its dtype.

    Example:
        >>> import torch, normkit
        >>> layer = normkit.weight_norm(torch.nn.Linear(3, 2))
        >>> [(key, tuple(value.shape)) for key, value in layer.state_dict().items()][1:]
        [('parametrizations.weight.original0', (2, 1)), ('parametrizations.weight.original1', (2, 3))]

    Source: Salimans & Kingma 2016, Weight Normalization, arXiv:1602.07868.
    """
    parameter = plain_parameter(module, name)
    norm = WeightNorm(_dimension(dim, name, parameter))
    norm.followers = followers_of(module, name)
    parametrize.register_parametrization(module, name, norm)
    adopt(module)
    return module


def remove_weight_norm(module: M, name: str = "weight") -> M:
    """Make the weight a plain parameter again, with exactly the values that the last forward used.

    ``w = g * v / ||v||`` is computed once more and stored. It requires a gradient if ``g`` or ``v`` did, and
    has its former position among the parameters. The parametrization is removed completely.

    Args:
        module: as given to `weight_norm`; changed in place.
        name: name of the parameter.

    Returns:
        The module.

    Raises:
        StateError: the parameter has no weight norm.

    Example:
        >>> import torch, normkit
        >>> layer = normkit.remove_weight_norm(normkit.weight_norm(torch.nn.Linear(3, 2)))
        >>> type(layer).__name__, list(layer.state_dict())
        ('Linear', ['weight', 'bias'])
    """
    norm = weight_norm_of(module, name)
    if norm is None:
        known = [other for other in parametrized(module) if weight_norm_of(module, other)]
        remedy = nearest(name, known) if known else "there is nothing to remove; call weight_norm first"
        raise StateError(
            f"remove_weight_norm needs a parameter that weight_norm was called on; "
            f"{name!r} of {_kind(module)} is not one: {remedy}"
        )
    make_plain(module, name, norm.followers)
    return module


def followers_of(module: nn.Module, name: str) -> tuple[str, ...]:
    """The parameters after this one; removal restores the weight before them."""
    names = list(module._parameters)
    return tuple(names[names.index(name) + 1 :])


def make_plain(module: nn.Module, name: str, followers: tuple[str, ...]) -> None:
    """Make the present weight a plain parameter again, before the parameters named in `followers`."""
    trainable = any(p.requires_grad for p in parametrized(module)[name].parameters())
    weight = nn.Parameter(getattr(module, name).detach().clone(), trainable)
    parametrize.remove_parametrizations(module, name)
    # torch leaves a buffer if nothing was trainable, or if gradients are disabled now.
    delattr(module, name)
    module.register_parameter(name, weight)
    for follower in followers:
        if follower in module._parameters:
            module._parameters[follower] = module._parameters.pop(follower)


def weight_norm_of(module: nn.Module, name: str = "weight") -> WeightNorm | None:
    """The weight norm on a parameter, or None."""
    norms = parametrized(module).get(name)
    return norms[0] if norms is not None and isinstance(norms[0], WeightNorm) else None


def parametrized(module: nn.Module) -> dict[str, nn.ModuleList]:
    """The parametrizations of a module, by the name of the parameter."""
    if not parametrize.is_parametrized(module):
        return {}
    return cast("dict[str, nn.ModuleList]", dict(cast(nn.ModuleDict, module.parametrizations)))


def plain_parameter(module: nn.Module, name: str, norm: str = "weight_norm") -> nn.Parameter:
    """The parameter, if `norm` can be applied to it."""
    if name in parametrized(module):
        norms = " and ".join(type(norm).__name__ for norm in parametrized(module)[name])
        raise StateError(
            f"a weight is normalized once; {name!r} of {_kind(module)} already has {norms}: "
            "remove that first (remove_weight_norm, or torch.nn.utils.parametrize.remove_parametrizations)"
        )
    if f"{name}_g" in module._parameters and f"{name}_v" in module._parameters:
        raise StateError(
            f"a weight is normalized once; {name!r} of {_kind(module)} has the old hook of "
            f"torch.nn.utils.weight_norm: call torch.nn.utils.remove_weight_norm(module, {name!r}) first"
        )
    parameter = module._parameters.get(name)
    if parameter is None:
        known = [key for key, value in module._parameters.items() if value is not None]
        remedy = nearest(name, known) if known else "it has no parameters itself; pass the layer that has them"
        raise ArgumentError(f"{norm} needs a parameter of {_kind(module)}; {name!r} is none: {remedy}")
    if isinstance(parameter, nn.UninitializedParameter):
        raise StateError(
            f"{norm} needs a weight with values; {name!r} of {_kind(module)} is not initialised: "
            "run one batch through the lazy module first"
        )
    if not parameter.is_floating_point():
        raise DtypeError(
            f"{norm} is defined for real floating point weights; {name!r} is {parameter.dtype}: "
            "convert it with module.float()"
        )
    if parameter.numel() == 0:
        raise ShapeError(
            f"{norm} needs a weight with elements; {name!r} has shape {tuple(parameter.shape)}: "
            "leave this layer as it is"
        )
    return parameter


def _dimension(dim: int | None, name: str, parameter: Tensor) -> int | None:
    if dim is None or dim == -1:
        return None  # torch stores None as -1, so both mean a single length
    if -parameter.ndim <= dim < parameter.ndim:
        return dim % parameter.ndim
    raise ArgumentError(
        f"dim must name a dimension of {name!r}, which has {parameter.ndim}; got {dim}: "
        "use 0 for one length for each output, None for one length in all"
    )


def _kind(module: nn.Module) -> str:
    return parametrize.type_before_parametrizations(module).__name__


def adopt(module: nn.Module) -> None:
    """Add to the class that torch made for this module: pickling, independent copies, old keys.

    torch refuses to pickle a parametrized module, because its class cannot be imported by name. A deep copy shares
    the class of its original, so removing the norm from one would break the other. Both are solved by methods that
    make the class again. They belong to that class, so they disappear with it.
    """
    made = type(module)
    base: Any = made.__bases__[0]

    def reduce_ex(self: nn.Module, protocol: int) -> tuple[Any, ...]:
        state = base.__getstate__(self)
        if isinstance(self, nn.RNNBase):
            # It stores the weights of its last forward, which can be copied only without their graph; it updates
            # them at each forward.
            last = [w if w is None or w.is_leaf else w.detach() for w in state["_flat_weights"]]
            state["_flat_weights"] = last
        return _rebuild, (base, tuple(parametrized(self))), state

    def load(self: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in parametrized(self):
            old = f"{prefix}{name}_g", f"{prefix}{name}_v"
            if weight_norm_of(self, name) and all(key in state_dict for key in old):
                for index, key in enumerate(old):
                    state_dict[f"{prefix}parametrizations.{name}.original{index}"] = state_dict.pop(key)
        base._load_from_state_dict(self, state_dict, prefix, *rest)

    extra: dict[str, Any] = {"__reduce_ex__": reduce_ex, "_load_from_state_dict": load}
    for key, method in extra.items():
        setattr(made, key, method)
    if "__deepcopy__" in vars(made):
        delattr(made, "__deepcopy__")
    for name in parametrized(module):
        by_modules = vars(made)[name]
        if not isinstance(by_modules, _Read):
            setattr(made, name, _Read(name, by_modules))


class _Read(property):
    """Reads a weight without calling the modules around its norm, which take longer than a small weight's arithmetic.

    This is done only if those calls would have no other effect: a single norm, no hooks, no cache, no tracing.
    """

    def __init__(self, name: str, by_modules: property) -> None:
        slow = cast("Callable[[nn.Module], Tensor]", by_modules.fget)

        def read(module: nn.Module) -> Tensor:
            lists = cast(nn.Module, module._modules["parametrizations"])
            norms = cast(nn.Module, lists._modules[name])
            norm = norms._modules.get("0")
            if (
                isinstance(norm, NormOfWeight)
                and len(norms._modules) == 1
                and not (parametrize._cache_enabled or _has_hooks(norm) or _has_hooks(norms) or _has_any_global_hook())
                and not (torch.compiler.is_compiling() or is_traced())
            ):
                parameters = norms._parameters
                if all(map(parameters.__contains__, norm.originals)):  # a frozen one may be a buffer
                    weight: Tensor = norm.forward(*[parameters[original] for original in norm.originals])
                    return weight
            return slow(module)

        super().__init__(read, by_modules.fset)


def _has_hooks(module: nn.Module) -> bool:
    """Whether calling the module does more than its forward."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _rebuild(base: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    """An empty module of the class that torch makes for `base`; pickle or deepcopy adds the state."""
    module = base.__new__(base)
    nn.Module.__init__(module)
    for name in names:
        module.register_parameter(name, nn.Parameter(torch.empty(0)))
        parametrize.register_parametrization(module, name, nn.Identity())
    adopt(module)
    return module
