"""Starts the launcher process, and is our end of it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from rlhf.sandbox import wire
from rlhf.sandbox.execution import Tier

_MAIN = "import sys; sys.path.insert(0, {source!r}); from rlhf.sandbox.launcher import main; del sys.path[0]; main()"
_START_S = 30.0
_CLOSE_S = 5.0
"""Longest wait for a launcher to end; with jobs still running it ends by itself after them."""


class LauncherProcess:
    """Our end of a launcher process."""

    def __init__(self, tier: Tier, *, without: Sequence[str], python: str, max_jobs: int) -> None:
        self.connection, theirs = socket.socketpair()
        self.num_jobs = 0
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        settings = {
            "control": theirs.fileno(),
            "tier": tier,
            "without": list(without),
            "max_jobs": max_jobs,
            "prefixes": [] if python else sorted({sys.prefix, sys.exec_prefix}),
            "folder": tempfile.gettempdir(),
            "packages": "" if python else sysconfig.get_path("purelib"),
        }
        source = str(Path(__file__).parents[2])
        with theirs:
            self._process = subprocess.Popen(
                [
                    python or sys.executable,
                    "-P",
                    "-s",
                    "-S",
                    "-B",
                    "-c",
                    _MAIN.format(source=source),
                    json.dumps(settings),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                pass_fds=(theirs.fileno(),),
                env={"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"},
                cwd="/",
                start_new_session=True,
            )
        self.refusal = self._await_ready()

    def _await_ready(self) -> str:
        self.connection.settimeout(_START_S)
        try:
            header = wire.receive(self.connection).header
        except (EOFError, OSError) as error:
            header = {"refused": f"the launcher did not start ({error!r}): {self.log()}"}
        self.connection.settimeout(None)
        return str(header.get("refused", ""))

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def log(self) -> str:
        """The last of what it wrote to standard error."""
        self._log.seek(0)
        return self._log.read()[-2000:].decode(errors="replace")

    def has_ended(self) -> bool:
        """Whether it is gone; it is reaped then."""
        return self._process.poll() is not None

    def close(self, *, wait: bool) -> None:
        """Have it end when its last job has ended."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()
        if wait:
            try:
                self._process.wait(_CLOSE_S)
            except subprocess.TimeoutExpired:
                # Should somebody have stopped it.
                self._process.send_signal(signal.SIGCONT)
        self._log.close()
