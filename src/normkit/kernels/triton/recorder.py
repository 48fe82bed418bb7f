"""Writes down what a call launches: a recipe has the parts of tensors in the call in place of their addresses."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from normkit.kernels.triton import device, launch

MOST_PARAMETERS = 64
"""As in csrc/fastpath/gpu/recipe.h."""
APART = 256
"""Bytes; temporary tensors start at multiples of it in their common memory."""


class Slot(IntEnum):
    """The part of a tensor in a call, in the order of csrc/fastpath/gpu/recipe.h."""

    X = 0
    WEIGHT = 1
    BIAS = 2
    MEAN = 3
    STD = 4
    RESIDUAL = 5
    """In a backward pass, the gradient of the sum."""
    Y = 6
    SUM = 7
    RUNNING_MEAN = 8
    RUNNING_VAR = 9
    DY = 10
    DX = 11
    DWEIGHT = 12
    DBIAS = 13
    GATE = 14
    SKIP = 15
    DGATE = 16
    DSKIP = 17
    WORKSPACE = 18
    """The memory of all temporary tensors."""


CONSTANT, MOMENTUM, MOMENTUM_REST = -1, -2, -3
"""In place of a slot: a number of the recipe; the momentum, which may change from call to call; and what remains of the
momentum when it is rounded to fp32."""

Parameter = tuple[int, int]
"""The slot, and the distance from its start in bytes, or the bits of a constant."""
Launch = tuple[int, tuple[int, int, int], int, int, tuple[Parameter, ...]]
"""Function, grid, threads, shared memory and parameters."""
Recipe = tuple[int, torch.dtype, torch.dtype, tuple[Launch, ...]]
"""Bytes of the workspace, the dtypes of dweight and dbias, and the launches in order."""
Tensors = dict[Slot, Tensor | None]
Out = TypeVar("Out")


class UnsuitableError(Exception):
    """A call that C++ cannot repeat; the text says why."""


class _Launched(NamedTuple):
    form: Any
    grid: tuple[int, int, int]
    arguments: tuple[Any, ...]
    others: tuple[Any, ...]
    """The arguments with another momentum."""


# Parameters of machine code -----------------------------------------------------------------------------------

_FORMATS = {"fp32": "<fxxxx", "f32": "<fxxxx", "fp64": "<d"} | dict.fromkeys(("i1", "i8", "i16", "i32", "i64"), "<q")


def parameters(signature: Iterable[Any], arguments: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Type and value of every parameter of the machine code, in order, but for the two hidden ones after them.

    Tuples are flattened. Constants, None, and numbers that are 1 and specialized have no parameter.
    """
    for kind, value in zip(signature, arguments, strict=True):
        if isinstance(kind, tuple):
            yield from parameters(kind, value)
        elif kind != "constexpr":
            yield kind, value


def _bits(kind: str, number: float) -> int:
    """The 8 bytes whose first ones are a parameter of that type."""
    if kind not in _FORMATS:
        raise UnsuitableError(f"a parameter has the type {kind}")
    return int.from_bytes(struct.pack(_FORMATS[kind], number), "little")


_kept: dict[int, Any] = {}
"""The forms that recipes use, which unload their machine code when they are deleted."""


def _launch(launched: _Launched, pointer: Callable[[Tensor], Parameter], number: Callable[..., Parameter]) -> Launch:
    form, grid, arguments, others = launched
    found = form.metadata
    scratch = found.global_scratch_size, found.profile_scratch_size
    if any(scratch) or found.num_ctas != 1 or found.launch_cooperative_grid or getattr(found, "launch_pdl", False):
        raise UnsuitableError(f"{found.name} needs more than a plain launch")
    if found.target.backend not in ("cuda", "hip") or getattr(found, "instrumentation_mode", None):
        raise UnsuitableError(f"{found.name} is compiled for {found.target.backend}, or to be instrumented")
    types = form.src.signature.values()
    pairs = zip(parameters(types, arguments), parameters(types, others), strict=True)
    out = [pointer(one) if kind.startswith("*") else number(kind, one, other) for (kind, one), (_, other) in pairs]
    # Triton passes two pointers to memory for scratch and for profiling, null where no such memory is needed.
    out += [(CONSTANT, 0), (CONSTANT, 0)]
    if len(out) > MOST_PARAMETERS:
        raise UnsuitableError(f"{found.name} has {len(out)} parameters")
    _kept[id(form)] = form
    return form.function, grid, found.num_warps * found.target.warp_size, found.shared, tuple(out)


# Recording ----------------------------------------------------------------------------------------------------

_ALLOCATIONS = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.new_empty.default,
    torch.ops.aten.new_empty_strided.default,
}


class Recorder(TorchDispatchMode):
    """Sees every launch and every operator of torch while a call is carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[_Launched] = []
        self.problem = ""
        self._made: list[Tensor] = []
        self._is_launching = False
        self._repeated = 0  # launches still to be repeated with another momentum
        self._momenta = 0.0, 0.0

    def watch(self, call: Callable[[], Out], plan: int, x: Tensor) -> Out | None:
        """Carry out a call, and write down what it launches; None for a plan that has been given up."""
        try:
            launch.schedule_of(plan, x)  # before, because tuning launches kernels, too
            device.recording.recorder = self
            with self:
                return call()
        except KeyError as error:
            if error.args != (plan,):
                raise
            return None
        finally:
            device.recording.recorder = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self._is_launching:
            return out
        if func in _ALLOCATIONS:
            self._made.append(out)
        elif not func.is_view:
            self.problem = f"the call needs {func}"
        return out

    def launch(self, run: Any, grid: tuple[int, int, int], arguments: tuple[Any, ...]) -> None:
        """Run a kernel and write it down; `run` returns its compiled form."""
        if self._repeated:
            place = -self._repeated
            self._repeated -= 1
            self.launched[place] = self.launched[place]._replace(others=arguments)
            return
        self._is_launching = True
        try:
            form = run()
        finally:
            self._is_launching = False
        if form is None:
            self.problem = "a kernel has no compiled form"
        elif device.is_watched():
            self.problem = "hooks of Triton watch launches"
        self.launched.append(_Launched(form, grid, arguments, arguments))

    def move(self, update: Callable[[float], object], momentum: float) -> None:
        """Update running statistics, and find out which numbers of the launches follow from the momentum."""
        before = len(self.launched)
        update(momentum)
        self._repeated = len(self.launched) - before
        self._momenta = momentum, momentum + 0.1234567891
        update(self._momenta[1])

    def recipe(self, inputs: Tensors, outputs: Tensors) -> Recipe | None:
        """The recipe of what has been launched; None, and the reason in `problem`, if C++ cannot repeat it."""
        try:
            if self.problem:
                raise UnsuitableError(self.problem)
            return self._recipe(inputs, outputs)
        except (UnsuitableError, AttributeError) as error:  # another Triton may lack an attribute
            self.problem = str(error)
            return None

    def _number(self, kind: str, value: float, other: float) -> Parameter:
        """A number, or where it comes from if it is another one with another momentum."""
        if value == other:
            return CONSTANT, _bits(kind, value)
        for slot, of in ((MOMENTUM, float), (MOMENTUM_REST, _rest)):
            if [_bits(kind, n) for n in (value, other)] == [_bits(kind, of(m)) for m in self._momenta]:
                return slot, 0
        raise UnsuitableError("a kernel takes a number that C++ cannot make of the momentum")

    def _recipe(self, inputs: Tensors, outputs: Tensors) -> Recipe:
        given: dict[int, Slot] = {}
        for slot, t in inputs.items():
            if t is not None and t.numel() and given.setdefault(t.data_ptr(), slot) is not slot:
                raise UnsuitableError("two tensors that the call was given share their memory")
        made = {t.untyped_storage().data_ptr(): t for t in self._made if t.numel()}
        slots: dict[int, tuple[int, int]] = {}  # by storage
        for slot, t in outputs.items():
            if t is None or not t.numel():
                continue
            storage = t.untyped_storage().data_ptr()
            alone = t.untyped_storage().nbytes() == t.numel() * t.element_size()
            if storage not in made or storage in slots or not alone:
                raise UnsuitableError(f"the output {slot.name} has no memory that is its alone")
            slots[storage] = slot, 0
        size = 0

        def pointer(t: Tensor) -> Parameter:
            nonlocal size
            storage = t.untyped_storage().data_ptr()
            if storage in made:
                if storage not in slots:
                    slots[storage] = Slot.WORKSPACE, size
                    size += -(-t.untyped_storage().nbytes() // APART) * APART
                slot, start = slots[storage]
                return slot, start + int(t.storage_offset()) * t.element_size()
            if t.data_ptr() not in given:
                raise UnsuitableError("a kernel reads a tensor that the call was not given")
            return given[t.data_ptr()], 0

        launches = tuple([_launch(each, pointer, self._number) for each in self.launched])
        unused = [t for slot, t in outputs.items() if t is not None and t.numel() and not _is_written(slot, launches)]
        if unused:
            raise UnsuitableError("an output is not written by a kernel")
        dweight, dbias = outputs.get(Slot.DWEIGHT), outputs.get(Slot.DBIAS)
        return size, _dtype(dweight), _dtype(dbias), launches


def _rest(momentum: float) -> float:
    """What remains when it is rounded to fp32."""
    return momentum - ctypes.c_float(momentum).value


def _dtype(t: Tensor | None) -> torch.dtype:
    return torch.float32 if t is None else t.dtype


def _is_written(slot: Slot, launches: tuple[Launch, ...]) -> bool:
    return any(slot == place for each in launches for place, _ in each[-1])
