"""The row of the fast path in `show_backends`; the fast path works with one build of torch only."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from normkit import build
from normkit.kernels import fastpath

INSTALLED = f"{torch.__version__} {torch.version.git_version}"
REMEDY = ": python -m normkit.build builds it"


def fast_path(**variables):
    """The row of the fast path in `show_backends`, from a separate process."""
    code = "import normkit; print([r for r in normkit.show_backends().rows if r.name == 'fast path'][0])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | variables,
        check=True,
    )
    return done.stdout


def test_backends_say_whether_it_is_in_use():
    assert f"in_use=True, reason='built for torch {INSTALLED}'" in fast_path()
    assert "in_use=False, reason='turned off by NORMKIT_FASTPATH=0'" in fast_path(NORMKIT_FASTPATH="0")
    assert "in_use=False, reason='there are no C++ kernels for it to call'" in fast_path(NORMKIT_NATIVE="0")


@pytest.mark.parametrize(
    ("built", "reason"),
    [
        (INSTALLED, f"built for torch {INSTALLED}"),
        # Two builds from source have the same version number, with or without the part after "+".
        (f"{torch.__version__} 0123abc", f"built for torch {torch.__version__} 0123abc, not for {INSTALLED}{REMEDY}"),
        (torch.__version__, f"built for torch {torch.__version__}, not for {INSTALLED}{REMEDY}"),
        (ModuleNotFoundError("_fastpath"), f"not built for torch {INSTALLED} and this Python{REMEDY}"),
        (ImportError("undefined symbol"), f"built for another torch{REMEDY}"),
    ],
)
def test_one_of_another_torch_is_refused(built, reason, monkeypatch, tmp_path):
    monkeypatch.setenv("NORMKIT_CACHE", str(tmp_path))  # in which none has been built

    def found(name):
        if isinstance(built, Exception):
            raise built
        return SimpleNamespace(torch_version=built, ignore_mode=lambda _: None)

    monkeypatch.setattr(build, "import_module", found)
    module, given = fastpath._load()
    assert given == reason
    assert (module is None) == (built != INSTALLED)
