"""An episode's process's way to its runner: JSON lines on a socket, and a checkpoint that goes on when it is killed."""

import contextlib
import json
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

from rlhf.episodes.context import Start
from rlhf.interfaces import EpisodeOver
from rlhf.sandbox import kernel


class Line:
    """JSON lines on a stream socket: blocking, one question at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._file = connection.makefile("rb")
        self._open: dict[int, tuple[str, float]] = {}
        self._keeper: tuple[int, int] | None = None
        """The sleeping process, and what wakes it when it is closed."""

    def start(self) -> Start:
        """What the runner sent first."""
        start: Start = pickle.load(self._file)
        return start

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send and go on."""
        try:
            self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            # Nobody waits for this episode any more.
            os._exit(0)

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send and wait for the answer."""
        self.tell(message)
        return self.hear()

    def hear(self) -> dict[str, Any]:
        """The next message."""
        line = self._file.readline()
        if not line:
            os._exit(0)
        return dict(json.loads(line))

    # The context's link.

    def enter(self, phase: int, name: str, limit_s: float) -> None:
        """As Link."""
        self._open[phase] = name, limit_s
        self.tell({"do": "enter", "phase": phase, "name": name, "limit_s": limit_s})

    def leave(self, phase: int) -> None:
        """As Link."""
        self._open.pop(phase, None)
        self.tell({"do": "leave", "phase": phase})

    def checkpoint(self) -> frozenset[str]:
        """Fork: the child sleeps until this process is gone, then asks the runner how to go on."""
        self.drop_checkpoint()
        if threading.active_count() > 1 or len(os.listdir("/proc/self/task")) > 1:
            return frozenset()
        waits, holds = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid:
            # On both sides: the process may be killed with its group before the other has run at all.
            with contextlib.suppress(OSError):
                os.setpgid(pid, pid)
            os.close(waits)
            self._keeper = pid, holds
            return frozenset()
        os.setpgid(0, 0)
        os.close(holds)
        os.read(waits, 1)
        os.close(waits)
        # A process closes its files before its children get another parent.
        while os.getppid() == parent:
            time.sleep(0.001)
        kernel.die_with_parent()
        # What was being written when the other process died ends here.
        self._connection.sendall(b"\n")
        answer = self.ask({"do": "restored", "pid": os.getpid()})
        match answer["go"]:
            case "on":
                for phase, (name, limit_s) in self._open.items():
                    self.enter(phase, name, limit_s)
                # It, too, may have to be killed.
                return frozenset(answer["hung"]) | self.checkpoint()
            case "score":
                self._open.clear()
                raise EpisodeOver(answer["stop"])
        os._exit(0)

    def drop_checkpoint(self) -> None:
        """End the process that was kept."""
        if self._keeper is not None:
            pid, holds = self._keeper
            self._keeper = None
            # A user's code may have closed the pipe, which wakes it, or have children buried by the kernel.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            with contextlib.suppress(OSError):
                os.close(holds)
