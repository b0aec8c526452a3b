"""How many tasks the kernel counts against a user's limit, where it counts by user and not by namespace."""

import contextlib
import os
import resource

SHARED = 512
"""Room for other programs of the same user, started and ended meanwhile: the watcher holds each of them."""


def seen() -> int:
    """How many tasks the present user has on this machine, as far as can be seen."""
    uid, count = os.getuid(), 0
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == uid:
                count += len(os.listdir(f"/proc/{name}/task"))
    return count


def counted() -> int:
    """How many tasks of the present user the kernel counts; 0 where it does not limit this user."""
    if _may_fork_at(1):
        return 0
    most = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    most = 1 << 22 if most == resource.RLIM_INFINITY else most
    low, high = 1, min(max(2, seen()), most)
    while high < most and not _may_fork_at(high):
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _may_fork_at(middle) else (middle, high)
    return low


def _may_fork_at(limit: int) -> bool:
    """Whether a process of this user could be started if `limit` were the most it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, hard))
    try:
        pid = os.fork()
    except BlockingIOError:
        return False
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return True
