"""The runner's end of an environment: start its process, have episodes forked, talk to them, kill them."""

import asyncio
import contextlib
import itertools
import json
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
from typing import Any

from rlhf.episodes.context import Start
from rlhf.episodes.worker import Kind
from rlhf.episodes.zygote import LoadEnvironment
from rlhf.errors import EpisodeError, LoadError
from rlhf.sandbox import wire

_MAIN = "from rlhf.episodes.zygote import main; main()"
_LINE_BYTES = 1 << 26
_START_S = 120.0
"""Longest wait for an environment's module to be imported."""
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
        self._reader, self._writer = streams

    def begin(self, start: Start) -> None:
        """Tell it what to play."""
        self._writer.write(pickle.dumps(start, protocol=pickle.HIGHEST_PROTOCOL))

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send a message."""
        self._writer.write(json.dumps(message).encode() + b"\n")

    async def hear(self) -> dict[str, Any]:
        """Its next message. EpisodeGone when there will be none."""
        while True:
            try:
                line = await self._reader.readuntil(b"\n")
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError) as error:
                raise EpisodeGone(repr(error)) from error
            with contextlib.suppress(ValueError):
                return dict(json.loads(line))
            # Half a line of a process that was killed while it wrote.

    def kill(self) -> None:
        """End the process that speaks; a checkpoint that it kept goes on and tells."""
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
        self._numbers = itertools.count()
        self._answers: dict[tuple[str, int], asyncio.Future[dict[str, Any]]] = {}
        self._log = tempfile.TemporaryFile(mode="a+b")  # noqa: SIM115
        self._folder = ""
        self.kind: Kind = "object"

    async def start(self) -> None:
        """Import the environment in a process of its own."""
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
                env={"PYTHONHASHSEED": "0", **os.environ, "PYTHONPATH": path, **self._variables},
                start_new_session=True,
            )
        self._control = ours
        wire.send(ours, {}, blobs=[pickle.dumps(self._load)])
        answer = await asyncio.to_thread(self._first_word, ours)
        if "refused" in answer:
            await self.close()
            raise LoadError(answer["refused"])
        self.kind, self._folder = answer["loaded"], answer["folder"]
        asyncio.get_running_loop().add_reader(ours, self._read)

    def _first_word(self, control: socket.socket) -> dict[str, Any]:
        control.settimeout(_START_S)
        try:
            return wire.receive(control).header
        except (EOFError, OSError) as error:
            return {
                "refused": f"task.environment.use: the process of {self._load.use!r} ended or hung while it "
                f"was loaded ({error!r}): {self._log_tail()}"
            }
        finally:
            control.settimeout(None)

    async def open(self) -> EpisodeProcess:
        """Fork a process for an episode. EpisodeError when the environment's process is gone."""
        number = next(self._numbers)
        ours, theirs = socket.socketpair()
        with theirs:
            streams = await asyncio.open_connection(sock=ours, limit=_LINE_BYTES)
            try:
                started = self._expect("started", number)
                self.send({"start": number}, descriptors=[theirs.fileno()])
                pid = (await asyncio.wait_for(started, _ANSWER_S))["pid"]
            except BaseException:
                streams[1].close()
                raise
        return EpisodeProcess(self, number, pid, streams)

    async def end(self, number: int) -> None:
        """End an episode."""
        with contextlib.suppress(EpisodeError):
            ended = self._expect("ended", number)
            self.send({"end": number})
            await asyncio.wait_for(asyncio.shield(ended), _ANSWER_S)

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
            asyncio.get_running_loop().remove_reader(self._control)
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
            text = Path(f"{self._folder}/{number}.output").read_bytes()[-2000:]
        except OSError:
            return ""
        return text.decode(errors="replace")

    def _death(self) -> str:
        return (
            f"the process of environment {self._load.use!r} is gone: {self._log_tail() or 'it said nothing'}"
        )

    def _log_tail(self) -> str:
        self._log.seek(0)
        return self._log.read()[-2000:].decode(errors="replace")

    async def close(self) -> None:
        """End the environment's process and every episode."""
        control, self._control = self._control, None
        if control is not None:
            asyncio.get_running_loop().remove_reader(control)
            control.close()
        if self._process is not None:
            try:
                await asyncio.to_thread(self._process.wait, _ANSWER_S)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                await asyncio.to_thread(self._process.wait)
        self._log.close()
