"""Ends the warm process with the session."""

from collections.abc import Iterator

import pytest

from tests.cli.command import end_warm


@pytest.fixture(scope="session", autouse=True)
def _warm_ends() -> Iterator[None]:
    yield
    end_warm()
