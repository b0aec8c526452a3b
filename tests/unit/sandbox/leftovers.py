"""What a sandbox has left on this machine: processes, mounts, files."""

import glob
import os
import tempfile
import time

from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.launcher import FIRST_SLOT, NUM_SLOTS
from rlhf.sandbox.tree import ProcessTree

_WAIT_S = 60.0


def mounts() -> int:
    """How many mounts this process sees."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        return len(file.readlines())


def descriptors(pid: int) -> int:
    """How many descriptors a process holds open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def launcher_pid(sandbox: Sandbox) -> int:
    """The process id of a sandbox's launcher."""
    assert sandbox.tier
    launcher = sandbox._launcher
    assert launcher is not None
    return launcher.pid


def left_by(sandbox: Sandbox) -> list[str]:
    """What is left when no job runs: waits a moment for what is just ending."""
    pid = launcher_pid(sandbox)
    deadline = time.monotonic() + _WAIT_S
    while (left := _left(pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def _left(launcher: int) -> list[str]:
    processes = ProcessTree(launcher).pids()
    folders = [folder for pid in processes for folder in scratch_folders(pid)]
    return [*(f"process {pid}: {command(pid)}" for pid in processes), *folders]


def scratch_folders(monitor: int | str = "*") -> list[str]:
    """Scratch folders of one monitor, or of all on this machine."""
    return glob.glob(f"{tempfile.gettempdir()}/rlhf-sandbox-{monitor}-*")


def command(pid: int) -> str:
    """A process's command line, as far as it can be seen."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()[:200].decode(errors="replace")
    except OSError:
        return ""


def processes_of_slots() -> set[int]:
    """Processes of the user ids that are given to jobs only, on the whole machine."""
    found = set()
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and FIRST_SLOT <= os.stat(f"/proc/{name}").st_uid < FIRST_SLOT + NUM_SLOTS:
                found.add(int(name))
        except OSError:
            continue
    return found


def resident_mb(pid: int) -> float:
    """Memory of a process, what it shares with others counted in part."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) / 1024
