"""What the sandbox does where newer system calls are missing: a filter answers for the older kernel."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
YOUNG = ("mount_setattr", "close_range")
_START = """
import contextlib, errno, json, os, resource, struct, sys
folder, root = sys.argv[1:]
sys.path.insert(0, root)
from rlhf.sandbox import kernel, landlock

def attempt(action):
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"

def lose(*names, code=errno.ENOSYS):
    load, equal, answer = (0x20, 0, 0, 0), 0x15, 0x06
    lines = [load]
    for name in names:
        number = kernel.NUMBERS[kernel.ARCHITECTURE][name]
        lines += [(equal, 0, 1, number), (answer, 0, 0, 0x00050000 | code)]
    lines.append((answer, 0, 0, 0x7FFF0000))
    kernel.set_no_new_privileges()
    kernel.install_filter(b"".join(struct.pack("=HBBI", *line) for line in lines))

def enter_mounts():
    try:
        kernel.unshare(kernel.CLONE_NEWNS)
    except PermissionError:
        kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS)
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE, "")

def tell(value):
    sys.stdout.write(json.dumps(value))
"""


def child(code: str, *, folder: Path | str = "", loses: tuple[str, ...] = ()) -> Any:
    """What `code` tells, run with the standard library alone on a kernel without the calls in `loses`."""
    setup = f"lose(*{loses!r})\n" if loses else ""
    command = [sys.executable, "-P", "-s", "-S", "-c", _START + setup + code, str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if "PermissionError" in done.stderr and "unshare" in done.stderr:
        pytest.skip("mount namespaces are denied here")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("loses", [(), YOUNG])
@pytest.mark.parametrize("recursive", [True, False])
def test_mount_and_those_below_it_become_readonly(tmp_path, loses, recursive):
    code = f"""
enter_mounts()
places = [folder + name for name in ("/top", "/top/a b\\\\c", "/top-beside")]
for place in places:
    os.mkdir(place)
    kernel.mount("tmpfs", place, "tmpfs", kernel.MS_NOEXEC, "")
kernel.set_mount_readonly(places[0], recursive={recursive})
options = {{line.split()[4]: line.split()[5].split(",") for line in open("/proc/self/mountinfo")}}
tell([[attempt(lambda: os.mkdir(p + "/new")) for p in places], options[places[0]]])
"""
    results, options = child(code, folder=tmp_path, loses=loses)
    assert results == ["EROFS", "EROFS" if recursive else "ok", "ok"]
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(options)


@pytest.mark.parametrize("loses", [(), YOUNG])
@pytest.mark.parametrize("has_table", [True, False])
def test_descriptors_above_a_lowered_limit_are_closed(loses, has_table):
    cover = "enter_mounts()\nkernel.mount('tmpfs', '/proc', 'tmpfs', 0, '')\n"
    code = """
import fcntl
low, high = os.dup(0), fcntl.fcntl(0, fcntl.F_DUPFD, 700)
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
kernel.close_descriptors_from(3)
tell([attempt(lambda d=d: os.fstat(d)) for d in (0, low, high)])
"""
    assert child(("" if has_table else cover) + code, loses=loses) == ["ok", "EBADF", "EBADF"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSYS, "no Landlock"),
        (errno.EOPNOTSUPP, "switched on"),
        (errno.EPERM, "seccomp profile"),
        (errno.EINVAL, "landlock_create_ruleset: Invalid argument"),
    ],
)
def test_absent_landlock_says_why(code, reason):
    version, found, failure = child(
        f"""
lose("landlock_create_ruleset", code={code})
tell([landlock.abi(), landlock.absence(), attempt(lambda: landlock.restrict(readable=[], writable=[]))])
"""
    )
    assert version == 0
    assert reason in found
    assert failure == errno.errorcode[code]


def test_present_landlock_gives_no_reason():
    version, reason = child("tell([landlock.abi(), landlock.absence()])")
    assert bool(version) != bool(reason)


_RUN = """
from rlhf.errors import SandboxError
from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import Program
from rlhf.sandbox.policy import Policy
code = '''
import os
try: os.mkdir("/usr/new")
except OSError as error: print(error.errno, os.listdir("/proc/self/fd"))
'''
try:
    with Sandbox(Policy(tier={tier!r})) as sandbox:
        tell(sandbox.run(Program(code=code)).stdout.decode())
except SandboxError as error:
    tell(str(error))
"""


def test_namespaces_hold_on_an_older_kernel():
    now = child(_RUN.format(tier="namespaces"))
    if "No sandbox" in now:
        pytest.skip(now)
    assert now.startswith(f"{errno.EROFS} ")
    assert child(_RUN.format(tier="namespaces"), loses=YOUNG) == now


def test_refused_landlock_tier_carries_the_reason():
    refusal = child(_RUN.format(tier="landlock"), loses=("landlock_create_ruleset",))
    assert "landlock: this kernel has no Landlock" in refusal
    assert "Ways out" in refusal
