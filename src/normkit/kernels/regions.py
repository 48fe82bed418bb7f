"""The region of a pattern, for code that Dynamo may trace: it cannot trace the reader of patterns."""

from __future__ import annotations

import torch

from normkit.pattern import Region, parse


class _Regions:
    """Those that a graph reads, as attributes, of which Dynamo finds new ones while it traces."""


def _kept(pattern: str) -> str:
    """The name of the attribute that has the region; Dynamo runs this while it traces."""
    name = f"pattern_{pattern.encode().hex()}"
    if not hasattr(_Regions, name):
        setattr(_Regions, name, parse(pattern))
    return name


# As `torch.compiler.assume_constant_result` does, which would load the whole compiler.
_kept._dynamo_marked_constant = True  # type: ignore[attr-defined]


def region_of(pattern: str) -> Region:
    """`normkit.pattern.parse`, which a graph may call for a pattern that nobody has read before."""
    if torch.compiler.is_compiling():
        region: Region = getattr(_Regions, _kept(pattern))
        return region
    return parse(pattern)
