"""The parent of an environment's process: it outlives that one, and ends whatever it leaves, however it ended."""

import contextlib
import os
import select
import signal
import socket
import time
from typing import NoReturn

from rlhf.sandbox import storage

_END_S = 10.0
"""Longest wait for the environment's process to end its episodes once nobody wants them any more."""
_LAUNCHER_S = 3.0
"""What a sandbox's launcher has to see that its owner is gone, and to put away what its jobs have mounted."""
_LOOK_S = 0.01


def keep(process: int, control: socket.socket, folder: str) -> NoReturn:
    """Wait for the end of a child, or for that of the runner; then end all descendants and remove the folder.

    The caller is their subreaper. SIGTERM ends the child at once: nobody waits for it to be loaded.
    """
    signal.signal(signal.SIGTERM, lambda *_: kill([process]))
    # For the keyboard, there is the runner.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ended = os.pidfd_open(process)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    # Of this one only its end: what is said there is not for us.
    poll.register(control, 0)
    if all(number != ended for number, _ in poll.poll()):
        poll.unregister(control)
        if not poll.poll(_END_S * 1000):
            os.kill(process, signal.SIGKILL)
            poll.poll()
    _, status = os.waitpid(process, 0)
    # Its number may be another's now.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.WIFSIGNALED(status):
        os.write(2, f"ended by {signal.Signals(os.WTERMSIG(status)).name}\n".encode())
    control.close()
    _end_all()
    storage.remove(folder)
    os._exit(0)


def _end_all() -> None:
    began = time.monotonic()
    while left := descendants(os.getpid()):
        if time.monotonic() - began > _LAUNCHER_S:
            kill(left)
        reap()
        time.sleep(_LOOK_S)


def reap() -> None:
    """Bury the children that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def kill(pids: list[int]) -> None:
    """SIGKILL to each that is there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """The processes below one, parents first."""
    found = children(pid)
    for child in found:
        found += children(child)
    return found


def children(pid: int) -> list[int]:
    """A process's own, those of its threads included."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    return found
