"""The numbers that kernels compare with, by name. Triton compiles in only what is marked as a constant."""

from __future__ import annotations

import triton.language as tl

from normkit.kernels.formula import NUMBERS
from normkit.kernels.triton.arguments import Along, MaskIndexing, Walk

WALK_WHOLE = tl.constexpr(int(Walk.WHOLE))
WALK_TWICE = tl.constexpr(int(Walk.TWICE))
WALK_GIVEN = tl.constexpr(int(Walk.GIVEN))

ALONG_CELL = tl.constexpr(int(Along.CELL))
ALONG_R0 = tl.constexpr(int(Along.R0))
ALONG_R1 = tl.constexpr(int(Along.R1))
ALONG_OFFSET = tl.constexpr(int(Along.OFFSET))
ALONG_COLUMN = tl.constexpr(int(Along.COLUMN))

MASK_NONE = tl.constexpr(int(MaskIndexing.NONE))
MASK_AXES = tl.constexpr(int(MaskIndexing.AXES))

IDENTITY = tl.constexpr(NUMBERS["none"])
RELU = tl.constexpr(NUMBERS["relu"])
LEAKY_RELU = tl.constexpr(NUMBERS["leaky_relu"])
SILU = tl.constexpr(NUMBERS["silu"])
GELU = tl.constexpr(NUMBERS["gelu"])
GELU_TANH = tl.constexpr(NUMBERS["gelu_tanh"])
SIGMOID = tl.constexpr(NUMBERS["sigmoid"])
TANH = tl.constexpr(NUMBERS["tanh"])
PLUS_ONE = tl.constexpr(NUMBERS["plus_one"])
