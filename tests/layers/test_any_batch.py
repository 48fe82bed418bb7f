"""One sample has the same bits in any batch: every layer, dtype and layout, on one thread and on two."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cases import CASES, DTYPES, Case, Oracle, layouts, make_input, make_layer
from normkit.functional import normalize
from normkit.kernels.layout import plan_of
from normkit.kernels.triton.schedule import schedule

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
PATTERNS = ("b c [...]", "b (g [c]) [...]", "b [c] ...", "b [c ...]", "b c [h] w", "... [c]")
# Around the sizes at which kernels change their way: registers, blocks, panels and spans.
WIDTHS = (
    1,
    2,
    3,
    7,
    8,
    15,
    16,
    17,
    31,
    33,
    64,
    100,
    127,
    128,
    256,
    257,
    768,
    1000,
    1024,
    1025,
    2049,
    4100,
    9000,
    40000,
)
# Local response norm calls torch's pow, whose last place depends on where in the tensor a value stands.
OURS = [case for case in CASES if case.per_sample and isinstance(case.oracle, Oracle)]


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def same_bits(a: Tensor, b: Tensor) -> bool:
    bits = BITS[a.element_size()]
    return torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", OURS, ids=str)
def test_every_layer_in_every_dtype_and_layout(case: Case, dtype: str, number: int) -> None:
    """Where the batch is outermost in memory: elsewhere a sample alone lies differently."""
    of_input, of_layer = DTYPES[dtype]
    layer = make_layer(case, of_layer).eval()
    many = replace(case, shape=(19, *case.shape[1:]))
    for layout in set(layouts(case)) - {"permuted", "expanded"}:
        x = make_input(many, of_input, layout)
        with threads(number):
            y = layer(x)
        with threads(3 - number):
            for start, end in ((0, 1), (9, 10), (18, 19), (3, 8)):
                assert same_bits(layer(x[start:end]), y[start:end]), (layout, start, end)


def drawn(seed: int) -> tuple[str, Tensor, dict[str, object]]:
    """A pattern, a batch and everything that a call may have."""
    at = random.Random(seed)
    torch.manual_seed(seed)
    pattern = PATTERNS[seed % len(PATTERNS)]
    dtype = at.choice([torch.float32, torch.float64, torch.bfloat16, torch.float16])
    while True:
        if pattern == "... [c]":
            shape = (at.choice([2, 5, 17, 64, 300]), at.choice([1, 2, 7, 33]), at.choice(WIDTHS))
        else:
            shape = (
                at.choice([2, 5, 9, 33]),
                8 * at.choice([1, 2, 3, 16, 64]),
                at.choice(WIDTHS[:13]),
                at.randint(1, 60),
            )
        if torch.Size(shape).numel() <= 200_000:
            break
    huge = dtype is not torch.float16 and at.random() < 0.1
    x = (torch.randn(shape) * (1e25 if huge else 2) + at.choice([0, 0, 30])).to(dtype)
    if len(shape) == 4 and at.random() < 0.5:
        x = x.contiguous(memory_format=torch.channels_last)
    channels = shape[1] if len(shape) == 4 else shape[2]
    parameters = at.choice([dtype, torch.float64 if dtype is torch.float64 else torch.float32])
    options: dict[str, object] = {"center": at.random() < 0.7}
    if at.random() < 0.7:
        options |= {"weight": torch.randn(channels).to(parameters), "bias": torch.randn(channels).to(parameters)}
    if "g" in pattern:
        options["num_groups"] = at.choice([1, 2, 4, 8])
    if at.random() < 0.3:
        options["residual"] = torch.randn_like(x)
    if at.random() < 0.3:
        options["activation"] = at.choice(["relu", "silu", "gelu", "tanh"])
    if at.random() < 0.3:
        places = shape[:1] + (shape[2:] if len(shape) == 4 else shape[1:2])
        options["mask"] = torch.rand(places) < 0.8
    return pattern, x, options


def test_regions_of_every_size_with_all_that_a_pass_includes() -> None:
    """Drawn at random, the same ones each time; both sides with a number of threads of their own."""
    for seed in range(60):
        pattern, x, options = drawn(seed)

        def call(start: int, end: int, pattern=pattern, x=x, options=options) -> Tensor:
            own = {name: value[start:end] if name in ("residual", "mask") else value for name, value in options.items()}
            return normalize(x[start:end], pattern, **own)

        with threads(1 + seed % 2):
            y = call(0, len(x))
        with threads(1 + seed // 2 % 2):
            for start, end in ((0, 1), (len(x) // 2, len(x) // 2 + 1), (len(x) - 2, len(x))):
                alone = call(start, end)
                assert same_bits(alone, y[start:end]), (seed, pattern, x.shape, x.dtype, x.stride(), [*options])


def test_a_gpu_cuts_a_region_alike_in_any_batch() -> None:
    """Contiguous and channels last: walk, tile, warps and parts of every pass; only 64-bit offsets follow the size."""
    at = random.Random(0)
    for _ in range(300):
        pattern = at.choice(PATTERNS).replace("(g", f"(g={at.choice([1, 2, 4, 8])}")
        if pattern == "... [c]":
            sizes: tuple[int, ...] = (at.choice([1, 2, 7, 197]), at.choice([2, 7, 64, 768, 4096, 20000, 70000]))
        else:
            sizes = (8 * at.choice([1, 2, 4, 16, 64]), at.choice([1, 3, 7, 28, 112]), at.choice([1, 2, 7, 56, 200]))
        last = len(sizes) == 3 and at.random() < 0.5
        layout = torch.channels_last if last else torch.contiguous_format
        itemsize, found = at.choice([2, 4, 8]), set()
        for batch in (1, 2, 3, 64, 1000):
            x = torch.empty((batch, *sizes), device="meta", memory_format=layout)
            plan = plan_of(pattern, x.shape, x.stride(), None)
            s = schedule(plan.view, plan.period, plan.inner, itemsize)
            found.add(
                tuple(
                    p and (p.walk, p.along, p.tile._replace(wide=False), p.warps, p.parts)
                    for p in (s.forward, s.backward, s.parts, s.sums)
                )
            )
        assert len(found) == 1, (pattern, sizes, layout, itemsize)
