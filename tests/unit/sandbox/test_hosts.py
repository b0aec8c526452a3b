"""What users get on the machines they have: ordinary accounts, containers, old kernels. Played, see hosts.py."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.sandbox import landlock
from rlhf.sandbox.self_test import ATTACKS
from tests.unit.sandbox import programs
from tests.unit.sandbox.hosts import DOCKER, LANDLOCK, POD, UID, Host, on, why_not_here

USER = Host(uid=UID)
TIER = "with Sandbox() as sandbox: answer = sandbox.tier"
MASKED = "mount --make-rprivate / && mount -t tmpfs -o ro none /proc/sys"
LIMITS = """
short = Limits(cpu_s=0.3, wall_s=1.0, memory_mb=256, processes=8, file_mb=4, disk_mb=8, output_kb=64)
fork = "import os, time\\ncount = 0\\ntry:\\n  while count < 100:\\n    if os.fork() == 0:\\n      time.sleep(5)\\n" \\
    "      os._exit(0)\\n    count += 1\\nexcept OSError: pass\\nprint('below', count < 8, flush=True)"
programs = {
    "cpu_limit": "while True: pass",
    "wall_limit": "import time; time.sleep(100)",
    "output_limit": "import os\\nwhile True: os.write(1, b'x' * 4096)",
    "memory": "x = bytearray(1 << 30)",
    "disk": "for i in range(50): open(f'f{i}', 'wb').write(b'x' * (2 << 20))\\nimport time\\ntime.sleep(0.3)",
    "processes": fork,
}
with Sandbox() as sandbox:
    answer = {"tier": sandbox.tier}
    for name, code in programs.items():
        done = sandbox.run(Program(code=code), limits=short)
        answer[name] = [done.status, done.stdout.decode()[-40:], done.stderr.decode().strip()[-60:]]
"""
BATTERY = """
report = self_test.examine({tier!r})
answer = {{"stopped": report.stopped, "escaped": report.escaped, "broken": report.broken, "why": report.unavailable}}
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that every user can enter, which pytest's own is not."""
    path = Path(tempfile.mkdtemp(prefix="host-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(autouse=True)
def _can_play() -> None:
    if reason := why_not_here(USER):
        pytest.skip(reason)
    if not landlock.abi():
        pytest.skip("this kernel has no Landlock")


@pytest.mark.parametrize(
    ("host", "tier"),
    [
        pytest.param(USER, "namespaces", id="ordinary user"),
        pytest.param(DOCKER, "landlock", id="root in Docker's profile"),
        pytest.param(POD, "landlock", id="user in a restricted pod"),
        pytest.param(replace(USER, before=MASKED), "namespaces", id="user, masked /proc"),
        pytest.param(replace(POD, landlock_abi=1), "landlock", id="restricted pod, kernel 5.13"),
    ],
)
def test_host_gets_its_tier(folder, host, tier):
    assert on(host, TIER, folder) == tier
