"""What runs below the process of the tests."""

import contextlib
import time
from collections.abc import Iterator

import psutil


def living() -> set[psutil.Process]:
    """All descendants but zombies."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.add(process)
    return found


@contextlib.contextmanager
def leaves_none() -> Iterator[None]:
    """What other tests keep for the session may stay; nothing else."""
    before = living()
    yield
    # Killed is not yet dead.
    deadline = time.monotonic() + 60
    while (left := living() - before) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left
