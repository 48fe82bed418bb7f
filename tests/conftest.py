"""Asserts in the shared contract explain themselves as those in tests do."""

import pytest

pytest.register_assert_rewrite("contract")
