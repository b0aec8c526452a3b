"""Runs code in a child interpreter that has taken a filter or Landlock, never in the one that runs the tests."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
_START = """
import ctypes, errno, os, socket, sys
sys.path.insert(0, {root!r})
from rlhf.sandbox import kernel, landlock, seccomp
from rlhf.sandbox.syscalls import numbers

def system(name, *arguments):
    result = kernel._libc.syscall(ctypes.c_long(numbers(kernel.ARCHITECTURE)[name]), *arguments)
    return result if result >= 0 else errno.errorcode[ctypes.get_errno()]

def attempt(action):
    try:
        action()
        return "ok"
    except OSError as error:
        return errno.errorcode[error.errno]

kernel.set_no_new_privileges()
"""


def confined(code: str, *, uid: int | None = None) -> list[str]:
    """What `code` printed, by word; it finds the modules above, `system(name, ...)` and `attempt(action)`."""
    done = subprocess.run(
        [sys.executable, "-c", _START.format(root=str(ROOT)) + code],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={"PATH": os.defpath},
        user=uid,
        group=uid,
        extra_groups=None if uid is None else [],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
