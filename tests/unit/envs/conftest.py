"""The sandbox that environments share ends with their tests."""

from collections.abc import Iterator

import pytest

from rewards import math_process
from rlhf.sandbox.client import default_sandbox


@pytest.fixture(scope="package", autouse=True)
def no_sandbox_is_left() -> Iterator[None]:
    yield
    default_sandbox().close()
    math_process.stop()
