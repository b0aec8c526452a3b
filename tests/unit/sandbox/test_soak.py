"""Hundreds of mixed jobs: nothing grows. `benchmarks/sandbox_soak.py` runs ten thousand."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.sandbox_soak import soak
from rlhf.errors import SandboxError
from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import Tier
from rlhf.sandbox.policy import ISOLATED
from tests.unit.sandbox.conftest import policy


@pytest.fixture
def folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sandboxes of other tests come and go in the system's."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("folder_of_its_own")
@pytest.mark.parametrize("tier", ISOLATED)
def test_mixed_jobs_leave_memory_descriptors_mounts_and_files_flat(tier: Tier) -> None:
    # Not the sandbox that other tests share: its folder would go with this one's.
    with Sandbox(policy(tier)) as own:
        try:
            assert own.tier == tier
        except SandboxError as error:
            pytest.skip(str(error))
        _, first, *_, last = soak(own, jobs=300, parts=3)
    assert last.client_descriptors == first.client_descriptors
    assert last.launcher_descriptors == first.launcher_descriptors
    assert (last.processes, last.mounts, last.files) == (first.processes, first.mounts, 0)
    assert last.launcher_mb - first.launcher_mb < 1
    assert last.client_mb - first.client_mb < 4
    assert last.broken == 0
    assert last.unexpected < 10
