"""Ends the warm process after the last command."""

from collections.abc import Iterator

import pytest

from tests.cli.command import end_warm


@pytest.fixture(scope="package", autouse=True)
def _warm_ends() -> Iterator[None]:
    yield
    end_warm()
