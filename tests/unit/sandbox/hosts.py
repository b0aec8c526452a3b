"""The machines that users have, played by a client with less: another user, a container's rules, an old kernel."""

import json
import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.sandbox import kernel
from rlhf.sandbox.syscalls import numbers
from tests.unit.sandbox.bpf import ALLOW, ARCHITECTURES, ERROR

PYTHON = "/usr/bin/python3"
"""Every user can read it, unlike one under root's own folder."""
UID = 65533
ROOT = Path(__file__).parents[3]
DOCKER_CAPABILITIES = (
    "chown,dac_override,fowner,fsetid,kill,setgid,setuid,setpcap,net_bind_service,net_raw,sys_chroot,mknod,"
    "audit_write,setfcap"
)
DOCKER_DENIES = (
    "unshare setns mount umount2 pivot_root fsopen fsmount fsconfig fspick move_mount open_tree mount_setattr bpf "
    "perf_event_open userfaultfd keyctl add_key request_key kexec_load reboot swapon swapoff"
)
LANDLOCK = "landlock_create_ruleset landlock_add_rule landlock_restrict_self"
_NEW_NAMESPACES = 0x7E020000
_CLIENT = """
import json, os, signal, sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
sys.path.insert(0, {source!r})
from rlhf.errors import SandboxError
from rlhf.sandbox import kernel, landlock, self_test
from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import Execution, Limits, Program
from rlhf.sandbox.policy import UNSAFE, Policy
{given}
answer = None
{code}
sys.stdout.write(json.dumps(answer))
"""
# As an engine does it: the filter first, while the right to install it is there.
_ENGINE = """
import os, sys
sys.path.insert(0, sys.argv[1])
from rlhf.sandbox import kernel
kernel.install_filter(bytes.fromhex(sys.argv[2]))
os.execvp(sys.argv[3], sys.argv[3:])
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the client process may do, and what its kernel knows."""

    uid: int = 0
    capabilities: str = ""
    """Root's, besides which it has none; empty: all that this root has."""
    no_new_privileges: bool = False
    denied: str = ""
    """Calls that fail with EPERM, and with them `clone` for namespaces."""
    absent: str = ""
    """Calls that fail with ENOSYS."""
    before: str = ""
    """Shell commands, as root in a mount namespace of their own."""
    landlock_abi: int | None = None
    is_pid_namespace: bool = False
    """Whether processes outside cannot be seen, although the kernel counts them."""
    python: str = PYTHON


DOCKER = Host(capabilities=DOCKER_CAPABILITIES, denied=DOCKER_DENIES, absent="clone3")
POD = Host(uid=UID, no_new_privileges=True, denied=DOCKER_DENIES, absent="clone3")


def why_not_here(host: Host) -> str:
    """Why this machine cannot play the host, or nothing."""
    if os.getuid():
        return "only root can play other users"
    missing = [name for name in ("setpriv", "unshare", PYTHON) if not shutil.which(name)]
    return f"not installed: {', '.join(missing)}" if missing else ""


def on(host: Host, code: str, folder: Path, **given: Any) -> Any:
    """What `code`, which finds what is `given`, leaves in `answer`, run by a client on that host.

    `folder`, for its files, must be open to all users.
    """
    source, home = folder / "source", folder / "home"
    if not source.exists():
        _copy_source(source, host.landlock_abi)
        home.mkdir()
        os.chown(home, host.uid, host.uid)
    assignments = "\n".join(f"{name} = {value!r}" for name, value in given.items())
    command = [host.python, "-B", "-c", _CLIENT.format(source=str(source), given=assignments, code=code)]
    rights = [f"+{name}" for name in host.capabilities.split(",") if name]
    command = ["--bounding-set", ",".join(["-all", *rights]), *command] if host.uid or rights else command
    if host.uid:
        command = ["--reuid", str(host.uid), "--regid", str(host.uid), "--clear-groups", *command]
    if host.no_new_privileges:
        command = ["--no-new-privs", *command]
    if command[0] != host.python:
        command = ["setpriv", *command]
    if host.denied or host.absent:
        command = [PYTHON, "-B", "-c", _ENGINE, str(source), _filter(host).hex(), *command]
    if host.is_pid_namespace:
        command = ["unshare", "-pf", "--mount-proc", *command]
    if host.before:
        command = ["unshare", "-m", "sh", "-ec", f'{host.before}\nexec "$@"', "-", *command]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        cwd="/",
        env={"PATH": os.defpath, "HOME": str(home), "TMPDIR": str(home)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _copy_source(target: Path, landlock_abi: int | None) -> None:
    """What the sandbox needs of this repository, where every user can read it, for a kernel as old as asked."""
    (target / "rlhf").mkdir(parents=True)
    for name in ("__init__.py", "errors.py"):
        shutil.copyfile(ROOT / "rlhf" / name, target / "rlhf" / name)
    shutil.copytree(
        ROOT / "rlhf/sandbox",
        target / "rlhf/sandbox",
        copy_function=shutil.copyfile,
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    if landlock_abi is not None:
        module = target / "rlhf/sandbox/landlock.py"
        module.write_text(f"{module.read_text()}\n\ndef abi() -> int:\n    return {landlock_abi}\n")


def _filter(host: Host) -> bytes:
    """A filter of the kind that container engines install."""
    known = numbers(kernel.ARCHITECTURE) | kernel.NUMBERS[kernel.ARCHITECTURE]
    verdicts = [(name, 1) for name in host.denied.split()] + [(name, 38) for name in host.absent.split()]
    lines = [
        (0x20, 0, 0, 4),
        (0x15, 1, 0, ARCHITECTURES[kernel.ARCHITECTURE]),
        (6, 0, 0, ALLOW),
        (0x20, 0, 0, 0),
    ]
    for name, code in verdicts:
        lines += [(0x15, 0, 1, known[name]), (6, 0, 0, ERROR | code)]
    if host.denied:
        clone = [(0x20, 0, 0, 16), (0x54, 0, 0, _NEW_NAMESPACES), (0x15, 1, 0, 0), (6, 0, 0, ERROR | 1)]
        lines += [(0x15, 0, len(clone), known["clone"]), *clone]
    return b"".join(struct.pack("<HBBI", *line) for line in [*lines, (6, 0, 0, ALLOW)])
