"""Memory and disk that no name and no process shows at first sight."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import Program
from rlhf.sandbox.policy import ISOLATED

ROOT = Path(__file__).parents[3]
UID = 65533
SYSTEM_PYTHON = "/usr/bin/python3"
# A user who is also the job's: what root may see anyway, this one sees only of processes that can be dumped.
_CLIENT = """
import json, sys
sys.path.insert(0, {source!r})
from rlhf.errors import SandboxError
from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import Limits, Program
from rlhf.sandbox.policy import UNSAFE, Policy
limits = Limits(cpu_s=10.0, wall_s=60.0, memory_mb=200, processes=8, file_mb=4, disk_mb=8, output_kb=64)
try:
    with Sandbox(Policy(tier={tier!r}, unsafe=UNSAFE)) as sandbox:
        done = sandbox.run(Program(code={code!r}), limits=limits)
        answer = [done.status, done.stdout.decode(), done.stderr.decode()]
except SandboxError as error:
    answer = ["none", "", str(error)]
sys.stdout.write(json.dumps(answer))
"""
_NAMELESS = """
import os, time
held = []
try:
    for _ in range(30):
        held.append(os.open("file", os.O_RDWR | os.O_CREAT))
        os.unlink("file")
        os.write(held[-1], bytes(3 << 20))
except OSError as error:
    print(error.errno)
time.sleep(600)
"""
_FORKED = """
import os, time
shared = bytearray(b"x") * (60 << 20)
for _ in range(6):
    if os.fork() == 0:
        sum(shared[::4096])
        time.sleep(1)
        os._exit(0)
for _ in range(6): os.wait()
print("held once")
"""


def run_as_user(code: str, tier: str) -> list[str]:
    """Status, output and errors of `code` in a sandbox that an ordinary user started."""
    is_root = os.getuid() == 0
    if is_root and not os.access(SYSTEM_PYTHON, os.X_OK):
        pytest.skip(f"root's own interpreter cannot be read by others, and there is no {SYSTEM_PYTHON}")
    folder = Path(tempfile.mkdtemp(prefix="user-"))
    try:
        folder.chmod(0o777)
        shutil.copytree(ROOT / "rlhf/sandbox", folder / "rlhf/sandbox", copy_function=shutil.copyfile)
        for name in ("__init__.py", "errors.py"):
            shutil.copyfile(ROOT / "rlhf" / name, folder / "rlhf" / name)
        done = subprocess.run(
            [
                SYSTEM_PYTHON if is_root else sys.executable,
                "-B",
                "-c",
                _CLIENT.format(source=str(folder), tier=tier, code=code),
            ],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            cwd="/",
            env={"PATH": os.defpath, "TMPDIR": str(folder)},
            user=UID if is_root else None,
            group=UID if is_root else None,
            extra_groups=[] if is_root else None,
        )
    finally:
        shutil.rmtree(folder)
    assert done.returncode == 0, done.stderr
    answer: list[str] = json.loads(done.stdout)
    if answer[0] == "none":
        pytest.skip(answer[2])
    return answer


def test_files_without_a_name_count_where_monitor_and_job_are_one_user():
    assert run_as_user(_NAMELESS, "landlock")[0] == "disk_limit"


@pytest.mark.parametrize("tier", ISOLATED)
def test_pages_shared_after_a_fork_count_once_where_monitor_and_job_are_one_user(tier):
    status, output, errors = run_as_user(_FORKED, tier)
    assert (status, output) == ("exited", "held once\n"), errors


def test_zeros_can_be_read(sandbox: Sandbox) -> None:
    code = "f = open('/dev/zero', 'rb')\nprint(f.read(9000) == bytes(9000) == f.read(9000))"
    assert sandbox.run(Program(code=code)).stdout == b"True\n"


def test_zeros_cannot_be_mapped_for_writing(sandbox: Sandbox) -> None:
    if sandbox.tier == "uid":
        pytest.skip("uid: programs see the machine's own devices")
    execution = sandbox.run(Program(code="open('/dev/zero', 'r+b')"))
    assert execution.stderr.splitlines()[-1].startswith((b"OSError: [Errno 30]", b"PermissionError")), (
        execution
    )


_UNSEEN_START = "import ctypes, mmap, socket\nlibc = ctypes.CDLL(None, use_errno=True)\n"
_UNSEEN = {
    "mapping without a file": "mmap.mmap(-1, 1 << 20)",
    "pages lent to a pipe": "libc.vmsplice(1, None, 0, 0)\nif ctypes.get_errno() == 1: raise PermissionError",
    "large socket": "socket.socketpair()[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)",
}


@pytest.mark.parametrize("way", _UNSEEN)
def test_memory_that_no_process_shows_cannot_be_had(sandbox: Sandbox, way: str) -> None:
    execution = sandbox.run(Program(code=f"{_UNSEEN_START}{_UNSEEN[way]}"))
    assert execution.stderr.splitlines()[-1].startswith(b"PermissionError"), execution
