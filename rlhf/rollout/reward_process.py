"""The driver's end of one reward worker: start it, talk to it, kill its whole process group."""

import asyncio
import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from rlhf.rollout.reward_usage import Growth, Usage, memory_mb, usage
from rlhf.rollout.reward_worker import OUTPUT_BYTES

_MAIN = "from rlhf.rollout.reward_worker import main; main()"
_REPLY_BYTES = 1 << 24
_LATE_S = 0.25
_GRACE_S = 2.0
"""What helpers in sessions of their own get to end by themselves when their worker is gone."""


class RewardProcess:
    """A running worker. Create with `start`; after `kill` the object is spent."""

    def __init__(
        self, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], worker: socket.socket
    ) -> None:
        self._reader, self._writer = streams
        self._output = tempfile.TemporaryFile(mode="a+b")  # noqa: SIM115
        read_end, write_end = os.pipe()
        self._lifeline = os.fdopen(write_end, "wb")
        source = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
        # Sets have one order in every worker, unless the user wants another seed.
        environment = {"PYTHONHASHSEED": "0", **os.environ, "PYTHONPATH": path}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-u", "-c", _MAIN, str(worker.fileno()), str(read_end)],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            pass_fds=(worker.fileno(), read_end),
            env=environment,
            start_new_session=True,
        )
        os.close(read_end)
        self._watched = psutil.Process(self._process.pid)
        self._over_mb: float | None = None
        self.growth: Growth | None = None
        """Known once the rewards are loaded."""

    @classmethod
    async def start(cls) -> "RewardProcess":
        """A worker in its own session; all it shares with the driver is a socket, a lifeline and a file."""
        ours, theirs = socket.socketpair()
        with theirs:
            # Connected first: a cancelled await between starting and owning a process would leak it.
            return cls(await asyncio.open_connection(sock=ours, limit=_REPLY_BYTES), theirs)

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its process group."""
        return self._process.pid

    async def send(self, message: Any) -> None:
        """Send a pickled message. ConnectionError when the worker is gone."""
        self._writer.write(pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL))
        await self._writer.drain()

    async def receive(self, seconds: float) -> dict[str, Any]:
        """The next reply. TimeoutError after `seconds`, ConnectionError when the worker is gone."""
        try:
            async with asyncio.timeout(seconds):
                return await self._line()
        except TimeoutError:
            # The driver's own loop may have been busy: an answer that is already here counts.
            async with asyncio.timeout(_LATE_S):
                return await self._line()

    async def _line(self) -> dict[str, Any]:
        try:
            line = await self._reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            raise ConnectionError("the reward worker closed its connection") from error
        except asyncio.LimitOverrunError as error:
            raise ConnectionError(f"the reward worker's reply exceeds {_REPLY_BYTES} bytes") from error
        return dict(json.loads(line))

    def output(self) -> str:
        """The first 2 kB of what the current call printed, readable also after a kill."""
        return os.pread(self._output.fileno(), OUTPUT_BYTES, 0).decode(errors="replace")

    def usage(self) -> Usage | None:
        """What the worker holds now; None when it is gone."""
        return usage(self._watched)

    def kill_above(self, limit_mb: int) -> None:
        """Kill the process group when the worker's resident memory is above the limit; `ended` says so."""
        if self._over_mb is None and (held := memory_mb(self._watched)) > limit_mb:
            self._over_mb = held
            self._kill_group()

    @property
    def is_over_memory(self) -> bool:
        """Whether `kill_above` ended it."""
        return self._over_mb is not None

    async def ended(self) -> str:
        """How the worker ended, after its connection closed."""
        if self._over_mb is not None:
            return f"held {self._over_mb:.0f} MB, above task.reward_memory_mb, and was killed"
        deadline = time.monotonic() + _LATE_S
        while time.monotonic() < deadline:
            status = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if status is None:
                await asyncio.sleep(0.01)
            elif status.si_code == os.CLD_EXITED:
                return f"exited with code {status.si_status}"
            else:
                return f"was killed by {signal.Signals(status.si_status).name}"
        return "closed its connection"

    async def kill(self) -> None:
        """SIGKILL the process group, then what is left of the worker's descendants; reap it, close everything."""
        try:
            await asyncio.to_thread(self._end)
        finally:
            self._writer.close()
            self._lifeline.close()
            self._output.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    def _kill_group(self) -> None:
        # Reaped only after the kill: until then the group id cannot belong to anyone else.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _end(self) -> None:
        try:
            descendants = self._watched.children(recursive=True)
        except psutil.Error:
            descendants = []
        self._kill_group()
        self._process.wait()
        # A supervisor of sandboxes ends when its pipe closes, and ends its jobs first: not to be forestalled.
        deadline = time.monotonic() + _GRACE_S
        while (left := [p for p in descendants if _is_alive(p)]) and time.monotonic() < deadline:
            time.sleep(0.02)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
