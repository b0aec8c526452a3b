"""What the machine gives a process: cores, and a port to listen on."""

import contextlib
import os
import random
import socket

from rlhf.errors import PlacementError


def usable_cores() -> int:
    """Cores this process may use (its affinity, not the machine's count); macOS only tells how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_port(host: str = "") -> int:
    """A port that nobody listens on at this address of the machine; none: at any."""
    # Below the ports that the system hands out, any of which another process may have by the time it is used.
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind((host, port))
            return port
    raise PlacementError("a hundred ports between 20000 and 32000 are in use on this node: free some")
