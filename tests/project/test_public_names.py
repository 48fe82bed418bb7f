"""An unknown name of the package is answered with the nearest known one, and not with a list of all of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

import normkit


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *(("DyT", "DynamicTanh"), ("dyt", "DynamicTanh"), ("Derf", "DynamicErf"), ("FRN", "FilterResponseNorm2d")),
        *(("GRN", "GlobalResponseNorm"), ("EvoNormB0", "EvoNorm2dB0"), ("LN2d", "LayerNorm2d"), ("WN", "weight_norm")),
        *(("SwitchNorm", "SwitchableNorm"), ("iterative_norm", "IterNorm"), ("power_norm", "PowerNorm")),
        *(("GroupNrom", "GroupNorm"), ("Batchnorm2D", "BatchNorm2d"), ("recalibration", "recalibrate")),
    ],
)
def test_the_nearest_name_is_suggested(name: str, meant: str):
    with pytest.raises(AttributeError) as caught:
        getattr(normkit, name)
    assert str(caught.value) == f"normkit has no {name!r}: did you mean {meant!r}?"
    assert hasattr(normkit, meant)


def test_a_name_near_to_none_gets_no_list():
    with pytest.raises(AttributeError) as caught:
        normkit.xyzzy  # noqa: B018
    assert str(caught.value) == "normkit has no 'xyzzy': dir(normkit) lists its names"


def test_asking_loads_neither_torch_nor_a_method():
    code = (
        "import sys, normkit; hasattr(normkit, 'DyT'); "
        "print([name for name in ('torch', 'normkit.layers', 'normkit.tools') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
