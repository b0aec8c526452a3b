"""A sandbox of every tier that this machine has, started once."""

import os
from collections.abc import Iterator

import pytest

from rlhf.errors import SandboxError
from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import TIERS, Tier
from rlhf.sandbox.policy import UNSAFE, Policy

_running: dict[Tier, Sandbox] = {}


def policy(tier: Tier) -> Policy:
    """One that pins the tier; below the isolating ones the system's interpreter stands in for one under /root."""
    hidden = os.getuid() == 0 and tier in ("uid", "read-only") and os.path.exists("/usr/bin/python3")
    return Policy(tier=tier, unsafe=UNSAFE, python="/usr/bin/python3" if hidden else "")


@pytest.fixture(params=TIERS)
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    """Each tier in turn; skipped with the kernel's reason where it cannot be had."""
    tier: Tier = request.param
    if tier not in _running:
        _running[tier] = Sandbox(policy(tier))
    try:
        assert _running[tier].tier == tier
    except SandboxError as error:
        pytest.skip(str(error))
    return _running[tier]


@pytest.fixture(scope="session", autouse=True)
def _closed() -> Iterator[None]:
    yield
    for sandbox in _running.values():
        sandbox.close()
