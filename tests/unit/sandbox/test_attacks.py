"""Programs that attack the sandbox, in every tier: what they wanted, they do not get; nothing of them is left."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import Limits, Program
from tests.unit.sandbox.attacks_limits import LIMITS
from tests.unit.sandbox.attacks_reach import REACH

TIGHT = Limits(
    cpu_s=0.3, wall_s=3.0, memory_mb=200, processes=10, file_mb=4, disk_mb=8, output_kb=64, open_files=100
)
HOST_IS_READABLE = {
    "host file",
    "host file by a relative path",
    "host file by a symbolic link",
    "host file through /proc/1/root",
    "host file through the parent's root",
    "folder of the host that anybody may write to",
    "temporary folder of the host",
    "shared memory folder of the host",
    "host file by a hard link",
}
"""What the tiers below the isolating ones do not stop, as their documentation says."""


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that every user of the host can reach, with a secret and a folder open to all."""
    folder = tmp_path_factory.mktemp("place")
    for path in (folder, *folder.parents):
        if path.owner() == "root" and str(path).startswith("/tmp/"):
            path.chmod(path.stat().st_mode | 0o011)
    (folder / "secret").write_text("secret")
    (folder / "open").mkdir()
    (folder / "open").chmod(0o777)
    yield folder
    Path("/tmp/escape-mark").unlink(missing_ok=True)
    Path("/dev/shm/escape-mark").unlink(missing_ok=True)


@pytest.mark.parametrize("name", REACH)
def test_attack_does_not_reach_out(sandbox: Sandbox, place: Path, name: str) -> None:
    if sandbox.tier not in ("namespaces", "landlock") and name in HOST_IS_READABLE:
        pytest.skip(f"{sandbox.tier}: the host's files are not isolated")
    code = REACH[name].format(secret=str(place / "secret"), open=str(place / "open"), victim=os.getpid())
    execution = sandbox.run(Program(code=code), limits=TIGHT)
    assert b"ESCAPED" not in execution.stdout, execution
    assert execution.status != "broken", execution
    assert execution.exit_code != 77
    assert not list((place / "open").iterdir())
    assert sandbox.run(Program(code="print('still here')")).stdout == b"still here\n"


@pytest.mark.parametrize("name", LIMITS)
def test_attack_stays_within_its_limits(sandbox: Sandbox, name: str) -> None:
    code, verdicts = LIMITS[name]
    sleeps = verdicts <= {"wall_limit", "exited"} and "wall_limit" in verdicts
    limits = replace(TIGHT, cpu_s=0.5, wall_s=1.5) if sleeps else TIGHT
    if "memory_limit" in verdicts:
        # Filling memory takes time, too.
        limits = replace(limits, cpu_s=4.0)
    began = time.monotonic()
    execution = sandbox.run(Program(code=code), limits=limits)
    assert time.monotonic() - began < limits.net_s + 20
    assert b"ESCAPED" not in execution.stdout, execution
    # Where a process takes long to start, CPU time ends first what would have slept. A tier that lets no program
    # write or fork has ended the attack before its limit.
    early = {"cpu_limit", "exited", "wall_limit"} if sandbox.tier == "read-only" else {"cpu_limit"}
    assert execution.status in verdicts | early, execution
    assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and b"86398" in _command(pid)]


def _command(pid: str) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


SCAN = """
import re
marks = re.compile(b"earlier" + b"-(code|input|output|file)")
found = set()
import os
if not os.access("/proc/self/mem", os.R_OK): raise SystemExit(print([]))
for line in open("/proc/self/maps"):
    span, rights, *rest = line.split()
    if "r" in rights and "[vvar" not in line and "[vsyscall" not in line:
        low, high = (int(end, 16) for end in span.split("-"))
        with open("/proc/self/mem", "rb", 0) as memory:
            memory.seek(low)
            try: found |= set(marks.findall(memory.read(high - low)))
            except OSError: pass
print(sorted(found))
"""


def test_no_memory_of_earlier_jobs_is_inherited(sandbox: Sandbox) -> None:
    earlier = Program(
        code="import sys\nprint('earlier' + '-output', sys.stdin.read())  # earlier-code",
        stdin=b"earlier-input" * 50,
        files={"f": b"earlier-file" * 50},
    )
    for _ in range(5):
        assert b"earlier-output" in sandbox.run(earlier).stdout
    execution = sandbox.run(Program(code=SCAN))
    assert execution.stdout == b"[]\n", execution
