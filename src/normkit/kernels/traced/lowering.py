"""Inductor calls the kernels of a CPU directly, by `normkit.kernels.traced.entry`, and not through the dispatcher.

A call with fixed sizes whose tensors go to the kernels as they are is bound to its plan when the graph is loaded. All
others stay calls of the operator: sizes that vary, a mask, parameters to be converted, wrappers in C++.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import getitem
from typing import Any

import torch
from torch._inductor import ir
from torch._inductor.codegen.wrapper import PythonWrapperCodegen
from torch._inductor.lowering import add_layout_constraint, register_lowering
from torch._inductor.virtualized import V
from torch._prims_common import make_contiguous_strides_for

from normkit.kernels.dtypes import arithmetic_dtype
from normkit.kernels.formula import Arguments
from normkit.kernels.layout import direct_plan
from normkit.kernels.native import native
from normkit.kernels.traced.entry import Facts, settings_of

_SIZE = len(Arguments._fields)
_IMPORT = "from normkit.kernels.traced import entry as normkit_entry"


def register() -> None:
    """Replace how Inductor takes the two operators; it is called once."""
    for name, kernel in (("norm", _Forward), ("norm_backward", _Backward)):
        op = getattr(torch.ops.normkit, name).default
        add_layout_constraint(op, kernel.constrained)
        register_lowering(op, type_promotion_kind=None)(_lowering(op, kernel))


def _lowering(op: Any, kernel: type[ir.FallbackKernel]) -> Callable[..., Any]:
    def lower(*args: Any, **kwargs: Any) -> Any:
        outputs: Any = kernel.create(op, *args, **kwargs)
        return tuple([ir.TensorBox.create(t) if isinstance(t, ir.IRNode) else t for t in outputs])

    return lower


class _Direct(ir.FallbackKernel):
    """A call of an operator; in generated code, where that is possible, a call of what `entry` has bound."""

    entry: str
    first = 0
    """The place of x among the arguments of the operator."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.node = V.graph.current_node
        self.is_bound = False

    def codegen(self, wrapper: Any) -> None:
        if type(wrapper) is PythonWrapperCodegen and not V.graph.cpp_wrapper:
            args, kwargs = self.unflatten_args(self.inputs, self.constant_args)
            binding = self.binding(*args, **kwargs)
            if binding is not None:
                self.is_bound, name = True, f"normkit_{self.get_name()}"
                wrapper.add_import_once(_IMPORT)
                wrapper.header.writeline(f"{name} = normkit_entry.{self.entry}({', '.join(map(repr, binding))})")
                self.python_kernel_name = name
        super().codegen(wrapper)

    def codegen_args(self) -> list[str]:
        args: list[Any] = super().codegen_args()
        if not self.is_bound:
            return args
        a = Arguments(*args[self.first : self.first + _SIZE])
        tensors = (a.x, a.weight, a.bias, a.mean, a.var, a.residual, a.gate, a.skip)
        return [*args[: self.first], *[str(t) for t in tensors]]

    def codegen_kwargs(self, skip_out: bool = False) -> list[str]:
        return [] if self.is_bound else super().codegen_kwargs(skip_out)

    def binding(self, *args: Any, **kwargs: Any) -> Facts | None:
        """The arguments of `entry` for this call."""
        raise NotImplementedError


def _facts(a: Arguments, fixed: bool, want: int) -> Facts | None:
    """The arguments of `entry.forward` and `entry.backward`; None if the call stays with the operator."""
    fakes = {name: _fake(t) for name, t in a._asdict().items() if isinstance(t, ir.IRNode)}
    x: Any = a.x
    if a.mask is not None or x.get_device().type != "cpu" or native().kernels is None:
        return None
    if any(t is None for t in fakes.values()):
        return None
    fake = Arguments(**{**a._asdict(), **fakes})
    x = fake.x
    wide = arithmetic_dtype(x.dtype)
    if x.numel() == 0:
        return None
    for t in (fake.weight, fake.bias):
        if t is not None and (not t.is_contiguous() or t.element_size() > wide.itemsize):
            return None
    for t in (fake.mean, fake.var):
        if t is not None and t.numel() and (t.dtype is not wide or not t.is_contiguous()):
            return None
    varying = fake.varying()
    plan, strides = direct_plan(a.pattern, x.shape, x.stride(), varying, "cpu")
    alike = (fake.residual, fake.gate, fake.skip)
    if plan < 0 or any(t is not None and t.stride() != strides for t in alike):
        return None
    return Facts(settings_of(a), tuple(x.shape), x.stride(), str(x.dtype).removeprefix("torch."), varying, fixed, want)


def _fake(t: ir.IRNode) -> torch.Tensor | None:
    """A tensor without data of the same layout; None if its sizes vary."""
    sizes = [*t.get_size(), *t.get_layout().stride]
    if not all(getattr(size, "is_Integer", isinstance(size, int)) for size in sizes):
        return None
    shape, strides = ([int(n) for n in numbers] for numbers in (t.get_size(), t.get_layout().stride))
    return torch.empty_strided(shape, strides, dtype=t.get_dtype(), device="meta")


class _Forward(_Direct):
    entry = "forward"

    def binding(self, *args: Any, **kwargs: Any) -> Facts | None:
        a = Arguments(*args, **kwargs)
        moments = any(user.target is not getitem or user.args[1] in (2, 3) for user in self.node.users)
        return _facts(a, a.var is not None, int(moments))

    @staticmethod
    def constrained(node: torch.fx.Node, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        laid_out = _laid_out(Arguments(*args, **kwargs), _values(node), node.meta["val"][0].stride())
        return laid_out[: len(args)], {name: getattr(laid_out, name) for name in kwargs}


class _Backward(_Direct):
    entry = "backward"
    first = 1

    def binding(self, *args: Any, **kwargs: Any) -> Facts | None:
        fixed, *wants = args[1 + _SIZE :]
        want = sum(bool(one) << i for i, one in enumerate(wants))
        return _facts(Arguments(*args[1 : 1 + _SIZE]), fixed, want)

    @staticmethod
    def constrained(node: torch.fx.Node, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        fake = _values(node, 1)
        strides = torch.empty_like(fake.x).stride()
        laid_out = _laid_out(Arguments(*args[1 : 1 + _SIZE]), fake, strides)
        return (_strided(args[0], strides), *laid_out, *args[1 + _SIZE :]), kwargs


def _values(node: torch.fx.Node, first: int = 0) -> Arguments:
    """The arguments of a node, with tensors that have no data."""

    def value(t: Any) -> Any:
        return t.meta["val"] if isinstance(t, torch.fx.Node) else t

    args = [value(t) for t in node.args[first : first + _SIZE]]
    return Arguments(*args, **({name: value(t) for name, t in node.kwargs.items()} if first == 0 else {}))


def _laid_out(a: Arguments, fake: Arguments, strides: Any) -> Arguments:
    """The tensors as the kernels take them: x as in eager mode, what has its size as the result, others contiguous."""
    as_they_are = {"x": fake.x.stride(), "mask": None if fake.mask is None else fake.mask.stride()}
    as_result = dict.fromkeys(("residual", "gate", "skip"), strides)
    parameters = ("weight", "bias", "mean", "var")
    whole = {n: make_contiguous_strides_for(t.shape) for n in parameters if (t := getattr(fake, n)) is not None}
    wanted = {**as_they_are, **as_result, **whole}
    return a._replace(**{n: _strided(t, wanted[n]) for n in wanted if (t := getattr(a, n)) is not None})


def _strided(t: Any, strides: Any) -> Any:
    return ir.ExternKernel.require_exact_strides(t, strides)
