"""A Python script that begins with its imports made: it runs in a fork of the process that has made them."""

import asyncio
import contextlib
import importlib
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.errors import ConfigError


@dataclass(frozen=True, slots=True)
class WarmScript:
    """As the command `python path *arguments`, but the modules in `imports` are imported once, before any episode.

    Which is so where it is made as the environment's module is loaded. ConfigError for what is not there. The script
    finds its folder, environment, arguments and `__main__` as usual; no `atexit` handlers run.
    """

    path: Path
    imports: Sequence[str] = ()
    arguments: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not (self.path.is_absolute() and self.path.is_file()):
            raise ConfigError(
                f"script: {str(self.path)!r} is no file, or a relative path. Give one beside your module as "
                "Path(__file__).with_name(...)."
            )
        for name in self.imports:
            try:
                importlib.import_module(name)
            except ImportError as error:
                raise ConfigError(f"imports: {name!r} cannot be imported: {error}") from error

    def start(self, folder: str, environment: Mapping[str, str], outputs: tuple[int, int]) -> "ForkedProcess":
        """Run it in a process group of its own."""
        process = multiprocessing.get_context("fork").Process(
            target=self._run, args=(folder, environment, outputs)
        )
        process.start()
        return ForkedProcess(process)

    def _run(self, folder: str, environment: Mapping[str, str], outputs: tuple[int, int]) -> None:
        os.setpgid(0, 0)
        # What belongs to the loop that was forked.
        asyncio._set_running_loop(None)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for place, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), *outputs)):
            os.dup2(descriptor, place)
        sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
        sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace")
        # The episode's line to its runner among them.
        os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = [str(self.path), *self.arguments]
        sys.path.insert(0, str(self.path.parent))
        runpy.run_path(str(self.path), run_name="__main__")


class ForkedProcess:
    """The part of asyncio's Process that is asked of a program."""

    def __init__(self, process: multiprocessing.process.BaseProcess) -> None:
        assert process.pid is not None
        self.pid = process.pid
        self._process = process
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # Both do: whoever of them comes first, the group is there.
            os.setpgid(self.pid, self.pid)

    async def wait(self) -> int:
        """Its exit code."""
        if (code := self._process.exitcode) is not None:
            return code
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        death = os.pidfd_open(self.pid)
        loop.add_reader(death, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(death)
            os.close(death)
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode
