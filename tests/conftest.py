"""Asserts in the shared contract explain themselves as those in tests do; a test draws the same numbers each time."""

import gc
import os
import signal

import pytest

# What is imported and collected stays until the end: looking through it for garbage, again and again, takes a fifth of
# the time of collecting, and each full look during the tests takes as long as many tests.
gc.disable()

import torch  # noqa: E402

if not torch.cuda.is_available():
    # Triton reads it when it is first imported, which may be by torch's own testing package.
    os.environ["TRITON_INTERPRET"] = "1"

pytest.register_assert_rewrite("contract")

# Started in the background, a shell has its commands ignore Ctrl-C, and they hand that down to what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # libraries complain at the end of what they cannot release


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Names that are the same in every process: without random numbers and addresses."""
    if isinstance(val, torch.Tensor):
        return "x".join(map(str, val.shape)) or "scalar"
    return type(val).__name__ if isinstance(val, torch.nn.Module) else None
