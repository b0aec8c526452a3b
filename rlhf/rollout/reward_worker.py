"""The process that runs reward functions: `main()` with SOCKET_FD and LIFELINE_FD on the command line.

Reads pickles from the driver (first a Load, then Jobs), answers with JSON lines. Its standard output and
error are a file that the driver made and can still read after killing it. It imports neither torch nor Ray,
and runs in its own process group, which the kernel kills when the driver is gone.
"""

import asyncio
import fcntl
import inspect
import json
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

from rlhf.errors import LoadError
from rlhf.importing import load_function
from rlhf.rollout.reward_shapes import RewardFunction, as_result, as_results, bind
from rlhf.types import Prompt, RewardResult, Trajectory, TrajectoryGroup

OUTPUT_BYTES = 2048
TRACEBACK_CHARACTERS = 1500


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSpec:
    """One reward as the worker needs it; `key` is the recipe key named in errors."""

    key: str
    use: str
    limit_s: float
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The first message: what to import, from where."""

    rewards: tuple[RewardSpec, ...]
    code_dir: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Grade these trajectories of one prompt with reward number `reward`."""

    reward: int
    group_index: int
    prompt: Prompt
    trajectories: tuple[Trajectory, ...]


class RewardWorker:
    """Loaded reward functions and the socket they answer on."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._pid = os.getpid()
        self._functions: list[RewardFunction] = []
        self._limits: list[float] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def serve(self, commands: BinaryIO) -> None:
        """Load, then grade until the driver closes the connection."""
        if not self._load(pickle.load(commands)):
            return
        while True:
            try:
                job = pickle.load(commands)
            except EOFError:
                return
            self._reply({"begin": True})
            self._grade(job)

    def _load(self, load: Load) -> bool:
        if load.code_dir is not None:
            sys.path.insert(0, load.code_dir)
        try:
            for spec in load.rewards:
                self._functions.append(_load_reward(spec))
                self._limits.append(spec.limit_s)
        except LoadError as error:
            self._reply({"refused": str(error)})
            return False
        self._reply({"loaded": [asdict(function.shape) for function in self._functions]})
        return True

    def _grade(self, job: Job) -> None:
        function = self._functions[job.reward]
        if not function.shape.is_per_sample:
            self._grade_together(function, job)
        elif function.shape.is_async:
            self._await(self._grade_concurrently(function, job))
        else:
            for index, trajectory in enumerate(job.trajectories):
                self._send(index, self._grade_one(function, job.prompt, trajectory))

    def _grade_one(self, function: RewardFunction, prompt: Prompt, trajectory: Trajectory) -> RewardResult:
        start = time.perf_counter()
        try:
            value = function.call(prompt, trajectory)
            if inspect.isawaitable(value):
                value = self._await(value)
        except (Exception, SystemExit) as error:  # noqa: BLE001
            return _failure(error, time.perf_counter() - start)
        return as_result(value, seconds=time.perf_counter() - start)

    async def _grade_concurrently(self, function: RewardFunction, job: Job) -> None:
        async def one(index: int, trajectory: Trajectory) -> None:
            start = time.perf_counter()
            try:
                async with asyncio.timeout(self._limits[job.reward]) as limit:
                    value = await function.call(job.prompt, trajectory)
                result = as_result(value, seconds=time.perf_counter() - start)
            except (Exception, SystemExit) as error:  # noqa: BLE001
                result = _failure(
                    error, time.perf_counter() - start, outcome="timeout" if limit.expired() else "error"
                )
            self._send(index, result)

        await asyncio.gather(*(one(i, t) for i, t in enumerate(job.trajectories)))

    def _grade_together(self, function: RewardFunction, job: Job) -> None:
        group = TrajectoryGroup(index=job.group_index, prompt=job.prompt, trajectories=job.trajectories)
        start = time.perf_counter()
        try:
            values = function.call_batch(group)
            if inspect.isawaitable(values):
                values = self._await(values)
            results = as_results(values, size=len(job.trajectories), seconds=time.perf_counter() - start)
        except (Exception, SystemExit) as error:  # noqa: BLE001
            self._reply({"failed": asdict(_failure(error, time.perf_counter() - start))})
            return
        for index, result in enumerate(results):
            self._send(index, result)

    def _await(self, awaitable: Awaitable[Any]) -> Any:
        # One loop for life: a judge's HTTP session belongs to the loop it was opened in.
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)

        async def run() -> Any:
            return await awaitable

        return self._loop.run_until_complete(run())

    def _send(self, index: int, result: RewardResult) -> None:
        self._reply({"index": index, "result": asdict(result)})
        _clear_output()

    def _reply(self, message: Mapping[str, Any]) -> None:
        # A reward that forks and returns in the child must not answer twice.
        if os.getpid() != self._pid:
            os._exit(0)
        self._connection.sendall(json.dumps(message).encode() + b"\n")


def _load_reward(spec: RewardSpec) -> RewardFunction:
    """Import, call the module's `warm_up()` if it has one (slow imports, outside deadlines), and bind."""
    try:
        loaded = load_function(spec.use, key=f"{spec.key}.use")
        module = sys.modules.get(getattr(loaded, "__module__", ""))
        warm_up = getattr(module, "warm_up", None)
        if callable(warm_up):
            warm_up()
        return bind(loaded, spec.kwargs, key=spec.key)
    except LoadError:
        raise
    except (Exception, SystemExit) as error:
        tail = "".join(traceback.format_exception(error))[-TRACEBACK_CHARACTERS:]
        raise LoadError(
            f"{spec.key}: loading {spec.use!r} raised {type(error).__name__}: {error}\n{tail}"
        ) from error


def _failure(error: BaseException, seconds: float, *, outcome: Any = "error") -> RewardResult:
    detail: dict[str, str | float] = {
        "error": f"{type(error).__name__}: {error}"[:500],
        "traceback": "".join(traceback.format_exception(error))[-TRACEBACK_CHARACTERS:],
        "output": _captured_output(),
    }
    return RewardResult(value=None, outcome=outcome, detail=detail, seconds=seconds)


def _captured_output() -> str:
    sys.stdout.flush()
    sys.stderr.flush()
    return os.pread(1, OUTPUT_BYTES, 0).decode(errors="replace")


def _clear_output() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fstat(1).st_size:
        os.ftruncate(1, 0)


def _tie_life_to(lifeline: int) -> None:
    """Have the whole process group killed when the driver's end of the pipe closes, however the driver died.

    On Linux the kernel does it, even while a regular expression holds the interpreter lock. PR_SET_PDEATHSIG
    would fire when the *thread* that started this process ends.
    """
    os.set_inheritable(lifeline, False)
    if sys.platform == "linux":
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgid(0))
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
        return

    def wait() -> None:
        os.read(lifeline, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Serve on the descriptors named on the command line until the driver goes away."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    _tie_life_to(int(sys.argv[2]))
    with connection, connection.makefile("rb") as commands:
        RewardWorker(connection).serve(commands)
