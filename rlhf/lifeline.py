"""A process group that ends with whoever started it, however that one ended."""

import fcntl
import os
import select
import signal
import sys
import threading


def tie_life_to(lifeline: int) -> None:
    """Have the whole process group killed when the other end of the pipe closes: `lifeline` is the end for reading.

    On Linux the kernel does it, even while a regular expression holds the interpreter lock. PR_SET_PDEATHSIG
    would fire when the *thread* that started this process ends.
    """
    os.set_inheritable(lifeline, False)
    if sys.platform == "linux":
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgid(0))
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
        if _is_closed(lifeline):  # before this, so no signal comes any more
            os.killpg(0, signal.SIGKILL)
        return

    def wait() -> None:
        os.read(lifeline, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def _is_closed(lifeline: int) -> bool:
    poll = select.poll()
    poll.register(lifeline, 0)  # the end of the other side is told without asking
    return bool(poll.poll(0))
