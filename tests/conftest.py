"""Asserts in the shared contract explain themselves as those in tests do; a test draws the same numbers each time."""

import os
import signal

import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads it when it is first imported, which may be by torch's own testing package.
    os.environ["TRITON_INTERPRET"] = "1"

pytest.register_assert_rewrite("contract")

# Started in the background, a shell has its commands ignore Ctrl-C, and they hand that down to what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Names that are the same in every process: without random numbers and addresses."""
    if isinstance(val, torch.Tensor):
        return "x".join(map(str, val.shape)) or "scalar"
    return type(val).__name__ if isinstance(val, torch.nn.Module) else None
