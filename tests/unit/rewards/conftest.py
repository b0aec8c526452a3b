"""No comparing process outlives the tests that started it."""

from collections.abc import Iterator

import pytest

from rewards import math_process


@pytest.fixture(scope="package", autouse=True)
def no_comparing_process_is_left() -> Iterator[None]:
    yield
    math_process.stop()
