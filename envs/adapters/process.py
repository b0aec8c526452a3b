"""A program beside an episode, asked over JSON lines: for what needs an interpreter or an event loop of its own."""

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.episodes.program import clean_environment
from rlhf.errors import EpisodeError


class AdapterProcess:
    """`command`, in a process group of its own, which ends with the episode.

    It reads lines {"id", ...} from standard input and answers each by a line with the same id on standard output.
    What it writes to standard error is told where the episode's own output is.
    """

    def __init__(self, command: Sequence[str], *, folder: str) -> None:
        self._command = list(command)
        self._read = b""
        self._num_asked = 0
        try:
            self._process = subprocess.Popen(
                self._command,
                cwd=folder,
                env=clean_environment(folder),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                process_group=0,
                bufsize=0,
            )
            # Its own children may hold its pipes for ever.
            self._death = os.pidfd_open(self._process.pid)
        except OSError as error:
            raise EpisodeError(f"the program {self._command} cannot be started: {error}") from error

    def ask(self, request: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Its answer. EpisodeError when there is none in time, after which the program is dead."""
        assert self._process.stdin is not None
        self._num_asked += 1
        number, ends = self._num_asked, time.monotonic() + timeout_s
        try:
            self._process.stdin.write(json.dumps({**request, "id": number}).encode() + b"\n")
            while True:
                answer = json.loads(self._line(ends))
                if answer["id"] == number:
                    return dict(answer)
        except TimeoutError as error:
            self.close()
            raise EpisodeError(f"{self._command} did not answer within {timeout_s:g} s") from error
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            self.close()
            raise EpisodeError(f"{self._command} gave no answer: {error!r}") from error

    def _line(self, ends: float) -> bytes:
        assert self._process.stdout is not None
        source = self._process.stdout.fileno()
        while b"\n" not in self._read:
            ready, _, _ = select.select([source, self._death], [], [], max(0.0, ends - time.monotonic()))
            if not ready:
                raise TimeoutError
            if source not in ready or not (data := os.read(source, 1 << 16)):
                raise EOFError("it has ended")
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return line

    def close(self) -> None:
        """Kill it and all of its group. May be called again."""
        if self._death < 0:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._death)
        self._death = -1
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
