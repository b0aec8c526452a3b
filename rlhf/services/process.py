"""A service's process as its parent sees it: start, health, how it ended, close."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import IO

import aiohttp

from rlhf.errors import ServiceError
from rlhf.machine import free_port
from rlhf.services.settings import ServiceSettings

_LOOK_S = 0.2
_ASK_S = 2.0
_GRACE_S = 5.0
"""What a server gets to end by itself."""
_SHOWN_LINES = 15
_SHOWN_BYTES = 8192


class ServiceProcess:
    """A server that answers. Create with `start`; it ends with `close`, or with this process."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = replace(settings, port=free_port(settings.host))
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        read_end, write_end = os.pipe()
        self._lifeline = os.fdopen(write_end, "wb")
        source = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rlhf.services.launch", str(read_end), *self.settings.command()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=(read_end,),
            env={**os.environ, **self.settings.environment(), "PYTHONPATH": path},
            start_new_session=True,
        )
        os.close(read_end)

    @classmethod
    async def start(cls, settings: ServiceSettings, *, limit_s: float) -> "ServiceProcess":
        """A server that has said that it is well. ServiceError when it ends before, or has not within `limit_s`."""
        service = cls(settings)
        try:
            await service._wait_until_well(limit_s)
        except BaseException:
            await service.close()
            raise
        return service

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its process group."""
        return self._process.pid

    async def address(self) -> str:
        """`http://host:port`."""
        return f"http://{self.settings.host}:{self.settings.port}"

    async def ended(self) -> str:
        """Wait for the end of the process; how it ended, with its last words."""
        while (found := self._end_of_leader()) is None:
            await asyncio.sleep(_LOOK_S)
        how = f"ended with status {found.si_status}"
        if found.si_code != os.CLD_EXITED:
            how = f"was killed by {signal.Signals(found.si_status).name}"
        return f"{self._title} {how}. Its last lines were:\n{self.last_lines()}"

    async def close(self) -> None:
        """End the process and what it started."""
        try:
            await asyncio.to_thread(self._end)
        finally:
            self._lifeline.close()
            self._log.close()

    def last_lines(self) -> str:
        """The end of what the server has written."""
        size = os.fstat(self._log.fileno()).st_size
        start = max(0, size - _SHOWN_BYTES)
        text = os.pread(self._log.fileno(), _SHOWN_BYTES, start).decode(errors="replace")
        return "\n".join(text.strip().splitlines()[-_SHOWN_LINES:]) or "(it wrote nothing)"

    @property
    def _title(self) -> str:
        return f"service {self.settings.name!r} ({self.settings.engine}, {self.settings.model})"

    async def _wait_until_well(self, limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        timeout = aiohttp.ClientTimeout(total=_ASK_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while self._end_of_leader() is None:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with session.get(f"{await self.address()}/health") as response:
                        if response.status == 200:
                            return
                if time.monotonic() > deadline:
                    raise ServiceError(
                        f"{self._title} did not answer at {await self.address()}/health within {limit_s:g} s "
                        f"(timeouts.start_s). Its last lines were:\n{self.last_lines()}"
                    )
                await asyncio.sleep(_LOOK_S)
        raise ServiceError(
            f"{await self.ended()}\nMend services.{self.settings.name}, or its model's folder."
        )

    def _end(self) -> None:
        """SIGTERM to the group, and SIGKILL to what is left of it."""
        for number, wait_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, _GRACE_S)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            deadline = time.monotonic() + wait_s
            while self._end_of_leader() is None and time.monotonic() < deadline:
                time.sleep(0.02)
        self._process.wait()

    def _end_of_leader(self) -> os.waitid_result | None:
        # Reaped only at the end: until then the group's id cannot belong to anyone else.
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
