"""Asserts in the shared contract explain themselves as those in tests do; a test draws the same numbers each time."""

import pytest
import torch

pytest.register_assert_rewrite("contract")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
