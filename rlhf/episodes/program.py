"""An existing agent program as an environment: it is run, told where the model is, and what it leaves is scored."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from rlhf.episodes.warm_script import ForkedProcess, WarmScript
from rlhf.errors import ConfigError, EpisodeError
from rlhf.interfaces import Context
from rlhf.types import Prompt, StopReason

TAIL_BYTES = 16_384
_AFTER_DEATH_S = 1.0
_SPARE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the policy answers as OpenAI's API would."""

    base_url: str
    api_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a program ended."""

    exit_code: int | None
    """Negative: the signal that ended it. None: it was killed at its deadline."""
    stdout: str = ""
    """The end of what it wrote."""
    stderr: str = ""
    seconds: float = 0.0
    value: Any = None
    """What a program that is a function returned."""
    ended: StopReason | None = None
    """The limit of ours, or failure of the engine, after which the model did not answer it any more."""


Command = Sequence[str] | WarmScript
Program = Command | Callable[[Prompt, Endpoint], Awaitable[Any]]
Score = Callable[[Context], float | Mapping[str, float] | None]


class ProgramEnvironment:
    """A program that owns its loop and asks the model over HTTP, unmodified.

    A command runs in the episode's folder, in a process group of its own, in an environment that holds
    OPENAI_BASE_URL, OPENAI_API_KEY and TASK_FILE (JSON: id, messages, columns) beside PATH, HOME, TMPDIR and LANG.
    A WarmScript is a command that begins in milliseconds. An async function is called with the prompt and the
    endpoint. `score` finds a Finished as `context.state`.
    """

    def __init__(
        self,
        command: Program,
        *,
        score: Score,
        files: Mapping[str, str | Path] | None = None,
        columns: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Files by their place in the folder: a text, or a Path to be copied. Columns of the row that TASK_FILE tells.

        The reference is told where `columns` names it. `environment` is added to the program's.
        """
        self._command = command
        self._score = score
        self._files = dict(files or {})
        self._columns = tuple(columns)
        self._environment = dict(environment or {})
        for place, source in self._files.items():
            if PurePath(place).is_absolute() or ".." in PurePath(place).parts:
                raise ConfigError(
                    f"files: {place!r} is no place in the episode's folder; leave out '/' and '..'"
                )
            if isinstance(source, Path) and not (source.is_absolute() and source.is_file()):
                raise ConfigError(
                    f"files: {place!r} is to be copied from {str(source)!r}, which is no file or a relative path. "
                    "Give one beside your module as Path(__file__).with_name(...)."
                )

    async def play(self, endpoint: Endpoint, context: Context) -> Finished:
        """Run the program to its end, or to a second before the episode's. EpisodeError when it cannot be started."""
        limit_s = max(0.0, context.time_left_s - _SPARE_S)
        if callable(self._command):
            finished = await call_program(self._command(context.prompt, endpoint), limit_s=limit_s)
        else:
            self._lay_out(context)
            environment = {
                **clean_environment(context.folder),
                **self._environment,
                **self._told(endpoint, context),
            }
            finished = await run_program(
                self._command, folder=context.folder, environment=environment, limit_s=limit_s
            )
        context.state = finished
        is_killed = finished.exit_code is None
        context.log(
            program_killed=float(is_killed), program_failed=float(finished.exit_code not in (0, None))
        )
        return finished

    def score(self, context: Context) -> float | Mapping[str, float] | None:
        """What the user's function says of the folder, the conversation and `context.state`."""
        return self._score(context)

    def _lay_out(self, context: Context) -> None:
        for place, source in self._files.items():
            target = Path(context.folder, place)
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(source, Path):
                shutil.copy(source, target)
            else:
                target.write_text(source, encoding="utf-8")
        task = task_of(context.prompt, self._columns)
        Path(context.folder, "task.json").write_text(json.dumps(task), encoding="utf-8")

    def _told(self, endpoint: Endpoint, context: Context) -> dict[str, str]:
        return {
            "OPENAI_BASE_URL": endpoint.base_url,
            "OPENAI_API_KEY": endpoint.api_key,
            "TASK_FILE": str(Path(context.folder, "task.json")),
        }


def task_of(prompt: Prompt, columns: Sequence[str] = ()) -> dict[str, Any]:
    """What a program may know of its task. EpisodeError for a column that the row lacks."""
    known = {"reference": prompt.reference, **prompt.columns}
    missing = [name for name in columns if name not in known]
    if missing:
        raise EpisodeError(
            f"prompt {prompt.id}: columns={list(columns)} are to be told to the program, but the row has only "
            f"{sorted(prompt.columns)}"
        )
    return {
        "id": prompt.id,
        "messages": [{"role": message.role, "content": message.content} for message in prompt.messages],
        "columns": {name: known[name] for name in columns},
    }


def clean_environment(folder: str) -> dict[str, str]:
    """What a program needs of an environment, and nothing of ours; `python` is the interpreter that runs this."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.defpath])
    return {"PATH": path, "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"}


async def run_program(
    command: Command, *, folder: str, environment: Mapping[str, str], limit_s: float
) -> Finished:
    """Run a command to its end; after it, or at the deadline, kill its whole process group.

    The group stays in this process's session. EpisodeError when the command cannot be started.
    """
    began = time.monotonic()
    exit_code: int | None = None
    async with _tail() as stdout, _tail() as stderr:
        process = await _start(command, folder, environment, (stdout.write_end, stderr.write_end))
        stdout.close_write_end()
        stderr.close_write_end()
        try:
            async with asyncio.timeout(limit_s):
                exit_code = await process.wait()
        except TimeoutError:
            pass
        finally:
            _kill_group(process.pid)
            await process.wait()
        # One that has left the group may hold the pipes for ever.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_AFTER_DEATH_S):
                await stdout.ended.wait()
                await stderr.ended.wait()
    return Finished(
        exit_code=exit_code, stdout=stdout.text, stderr=stderr.text, seconds=time.monotonic() - began
    )


async def _start(
    command: Command, folder: str, environment: Mapping[str, str], outputs: tuple[int, int]
) -> asyncio.subprocess.Process | ForkedProcess:
    try:
        if isinstance(command, WarmScript):
            return command.start(folder, environment, outputs)
        program = shutil.which(command[0], path=environment.get("PATH")) or command[0]
        return await asyncio.create_subprocess_exec(
            program,
            *command[1:],
            cwd=folder,
            env=dict(environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=outputs[0],
            stderr=outputs[1],
            process_group=0,
        )
    except OSError as error:
        named = [str(command.path)] if isinstance(command, WarmScript) else list(command)
        raise EpisodeError(f"the program {named} cannot be started in {folder}: {error}") from error


async def call_program(program: Awaitable[Any], *, limit_s: float) -> Finished:
    """Await a function to its end or the deadline; what it raises is an exit with code 1 and the traceback."""
    began = time.monotonic()
    value, exit_code, told = None, 0, ""
    try:
        async with asyncio.timeout(limit_s) as deadline:
            value = await program
    except Exception:  # noqa: BLE001 -- a user's program may raise anything, and a limit reaches it as an error
        if deadline.expired():
            return Finished(exit_code=None, seconds=time.monotonic() - began)
        exit_code, told = 1, traceback.format_exc()[-TAIL_BYTES:]
    return Finished(exit_code=exit_code, stderr=told, seconds=time.monotonic() - began, value=value)


class _Tail(asyncio.Protocol):
    """The end of what is written into a pipe.

    A pipe of our own: asyncio has a process with pipes end only when all who hold them have.
    """

    def __init__(self, write_end: int) -> None:
        self.write_end = write_end
        self.ended = asyncio.Event()
        self._kept = bytearray()

    def data_received(self, data: bytes) -> None:
        """As asyncio calls it."""
        self._kept += data
        del self._kept[:-TAIL_BYTES]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio's signature
        """As asyncio calls it."""
        self.ended.set()

    def close_write_end(self) -> None:
        """Leave the pipe to those who have inherited it."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    @property
    def text(self) -> str:
        return self._kept.decode("utf-8", "replace")


@contextlib.asynccontextmanager
async def _tail() -> AsyncIterator[_Tail]:
    read_end, write_end = os.pipe()
    tail = _Tail(write_end)
    source = os.fdopen(read_end, "rb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: tail, source)
    try:
        yield tail
    finally:
        tail.close_write_end()
        transport.close()


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
