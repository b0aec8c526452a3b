"""The runner's end of an environment: start its process, have episodes forked, talk to them, kill them."""

import asyncio
import contextlib
import itertools
import json
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from rlhf.episodes.context import Start
from rlhf.episodes.played import Kind
from rlhf.episodes.zygote import LoadEnvironment
from rlhf.errors import EpisodeError, LoadError
from rlhf.sandbox import wire

logger = logging.getLogger(__name__)

_MAIN = "from rlhf.episodes.zygote import main; main()"
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "2"}
"""Address space is what limits.memory_mb counts: of that, glibc reserves 64 MB for each thread otherwise."""
_LINE_BYTES = 1 << 24
_TAIL_BYTES = 2000
_ANSWER_S = 30.0
"""Longest wait for a fork or an end that was asked for."""


class EpisodeGone(Exception):
    """The episode's process has ended without a last word."""


class Phases:
    """What an episode's process is at, and until when it may be."""

    def __init__(self, limit_s: float) -> None:
        self._open: dict[int, tuple[str, float]] = {}
        self.ends = time.monotonic() + limit_s
        """When the episode does."""

    def enter(self, phase: int, name: str, limit_s: float) -> None:
        """A phase begins."""
        self._open[phase] = name, time.monotonic() + limit_s

    def leave(self, phase: int) -> None:
        """It has ended."""
        self._open.pop(phase, None)

    def clear(self) -> None:
        """None is open any more."""
        self._open.clear()

    def next_deadline(self) -> tuple[str, float]:
        """The phase whose time is up first, and when; the empty name stands for the episode."""
        return min([*self._open.values(), ("", self.ends)], key=lambda item: item[1])

    def name(self) -> str:
        """What was entered last, for people."""
        return next(reversed(self._open.values()), ("", 0.0))[0]


class EpisodeProcess:
    """One episode's process, and the checkpoint that may have taken its place."""

    def __init__(
        self,
        host: "EnvironmentHost",
        number: int,
        pid: int,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._host = host
        self.number = number
        self.pid = pid
        self._is_cut = False
        """What it is saying may end in the middle: it has been killed."""
        self._reader, self._writer = streams

    def begin(self, start: Start) -> None:
        """Tell it what to play."""
        self._writer.write(pickle.dumps(start, protocol=pickle.HIGHEST_PROTOCOL))

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send a message."""
        self._writer.write(json.dumps(message).encode() + b"\n")

    async def hear(self) -> dict[str, Any]:
        """Its next message. EpisodeGone when there will be none, EpisodeError for what is none."""
        while True:
            try:
                line = await self._reader.readuntil(b"\n")
            except asyncio.LimitOverrunError as error:
                raise EpisodeError(f"it sent a message of more than {_LINE_BYTES >> 20} MB") from error
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                raise EpisodeGone(repr(error)) from error
            with contextlib.suppress(ValueError, RecursionError):
                message = json.loads(line)
                if isinstance(message, dict):
                    return message
            # Empty: what a checkpoint says first.
            if line.strip() and not self._is_cut:
                raise EpisodeError(f"something else wrote on its runner's socket: {line[:100]!r}")

    def kill(self) -> None:
        """End the process that speaks; a checkpoint that it kept goes on and tells."""
        self._is_cut = True
        self._host.send({"kill": self.number, "pid": self.pid})

    async def end(self) -> None:
        """End everything of the episode; nothing of it is left when this returns."""
        self._writer.close()
        await self._host.end(self.number)

    def output(self) -> str:
        """The last of what the episode printed."""
        return self._host.output(self.number)


class EnvironmentHost:
    """An environment's process and its episodes. Start with `start`; LoadError when it cannot be loaded."""

    def __init__(self, load: LoadEnvironment, *, temp_dir: str | None = None) -> None:
        """`temp_dir`: where its processes keep temporary files, if not where this one does."""
        self._load = load
        self._variables = {} if temp_dir is None else {"TMPDIR": temp_dir}
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._is_loaded = False
        self._starting = asyncio.Lock()
        self._numbers = itertools.count()
        self._answers: dict[tuple[str, int], asyncio.Future[dict[str, Any]]] = {}
        self._log = tempfile.TemporaryFile(mode="a+b")  # noqa: SIM115
        self._folder = ""
        self.kind: Kind = "object"

    async def start(self) -> None:
        """Import the environment in a process of its own. LoadError also when that takes longer than `start_s`."""
        ours, theirs = socket.socketpair()
        source = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _MAIN, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(theirs.fileno(),),
                env={**_ENVIRONMENT, **os.environ, "PYTHONPATH": path, **self._variables},
                start_new_session=True,
            )
        self._control = ours
        wire.send(ours, {}, blobs=[pickle.dumps(self._load)])
        answer = await self._first_word(ours)
        if "refused" in answer:
            await self._stop()
            raise LoadError(answer["refused"])
        self.kind, self._folder, self._is_loaded = answer["loaded"], answer["folder"], True
        asyncio.get_running_loop().add_reader(ours, self._read)

    async def _first_word(self, control: socket.socket) -> dict[str, Any]:
        what = f"task.environment.use: the process of {self._load.use!r}"
        try:
            await asyncio.wait_for(_readable(control), self._load.start_s)
            return wire.receive(control).header
        except TimeoutError:
            how = f"was still loading it after timeouts.start_s = {self._load.start_s:g} s"
        except (EOFError, OSError):
            how = "ended while it was loaded"
        return {"refused": f"{what} {how}: {self._log_tail() or 'it said nothing'}"}

    async def open(self) -> EpisodeProcess:
        """Fork a process for an episode; from a new environment's process if that is gone. EpisodeError in vain."""
        async with self._starting:
            if self._is_loaded and self._control is None:
                logger.warning("%s; it is started anew", self._death())
                await self._stop()
                await self.start()
        number = next(self._numbers)
        ours, theirs = socket.socketpair()
        with theirs:
            streams = await asyncio.open_connection(sock=ours, limit=_LINE_BYTES)
            try:
                started = self._expect("started", number)
                self.send({"start": number}, descriptors=[theirs.fileno()])
                answer = await asyncio.wait_for(started, _ANSWER_S)
                if "refused" in answer:
                    raise EpisodeError(answer["refused"])
            except BaseException:
                streams[1].close()
                with contextlib.suppress(EpisodeError):
                    self.send({"end": number})
                raise
        return EpisodeProcess(self, number, answer["pid"], streams)

    async def end(self, number: int) -> None:
        """End an episode."""
        try:
            ended = self._expect("ended", number)
            self.send({"end": number})
            await asyncio.wait_for(asyncio.shield(ended), _ANSWER_S)
        except EpisodeError:
            # Its keeper ends what is left.
            pass
        except TimeoutError:
            logger.warning("processes of an episode of %r do not end", self._load.use)

    def send(self, header: dict[str, Any], *, descriptors: tuple[int, ...] | list[int] = ()) -> None:
        """Give an order. EpisodeError when nobody is there to take it."""
        try:
            if self._control is None:
                raise BrokenPipeError
            wire.send(self._control, header, descriptors=descriptors)
        except OSError as error:
            raise EpisodeError(self._death()) from error

    def _expect(self, what: str, number: int) -> asyncio.Future[dict[str, Any]]:
        future = asyncio.get_running_loop().create_future()
        self._answers[what, number] = future
        return future

    def _read(self) -> None:
        assert self._control is not None
        try:
            header = wire.receive(self._control).header
        except (EOFError, OSError):
            self._hang_up()
            for future in self._answers.values():
                if not future.done():
                    future.set_exception(EpisodeError(self._death()))
            self._answers.clear()
            return
        for key in [key for key in self._answers if header.get(key[0]) == key[1]]:
            future = self._answers.pop(key)
            if not future.done():
                future.set_result(header)

    def output(self, number: int) -> str:
        """The last of what an episode printed."""
        try:
            with open(f"{self._folder}/{number}.output", "rb") as file:
                return _tail(file)
        except OSError:
            return ""

    def _death(self) -> str:
        return (
            f"the process of environment {self._load.use!r} is gone: {self._log_tail() or 'it said nothing'}"
        )

    def _log_tail(self) -> str:
        return _tail(self._log)

    def _hang_up(self) -> None:
        control, self._control = self._control, None
        if control is not None:
            asyncio.get_running_loop().remove_reader(control)
            control.close()

    async def _stop(self) -> None:
        """End the environment's process and all below it."""
        self._hang_up()
        process, self._process = self._process, None
        if process is None:
            return
        if not self._is_loaded:
            process.terminate()
        try:
            await asyncio.to_thread(process.wait, _ANSWER_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            await asyncio.to_thread(process.wait)

    async def close(self) -> None:
        """End the environment's process and every episode."""
        await self._stop()
        self._is_loaded = False
        self._log.close()


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(connection, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection)


def _tail(file: IO[bytes]) -> str:
    """The last of what was written."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
    return file.read(_TAIL_BYTES).decode(errors="replace").strip()
