"""The process that runs reward functions: `main()` with SOCKET_FD and LIFELINE_FD on the command line.

Reads pickles from the driver (first a Load, then Jobs), answers with JSON lines. Its standard output and
error are a file that the driver made and can still read after killing it. It imports neither torch nor Ray,
and runs in its own process group, which the kernel kills when the driver is gone.
"""

import asyncio
import inspect
import json
import os
import pickle
import socket
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

from rlhf.errors import LoadError, RlhfError
from rlhf.importing import load_function, warm_up_of
from rlhf.lifeline import tie_life_to
from rlhf.rollout.reward_retries import Retries, bind_retries
from rlhf.rollout.reward_shapes import CallLog, RewardFunction, Shape, TrainerState, bind
from rlhf.rollout.reward_values import as_result, as_results
from rlhf.sandbox.client import set_default_policy
from rlhf.sandbox.policy import Policy
from rlhf.types import Prompt, RewardResult, Trajectory, TrajectoryGroup

OUTPUT_BYTES = 2048
TRACEBACK_CHARACTERS = 1500
_OURS = frozenset({__file__, inspect.getfile(bind)})
"""Files whose frames say nothing to who wrote the reward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSpec:
    """One reward as the worker needs it; `key` is the recipe key named in errors."""

    key: str
    use: str
    limit_s: float
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    retry_on: tuple[str, ...] = ()
    retry_times: int = 0
    concurrency: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The first message: what to import, from where."""

    rewards: tuple[RewardSpec, ...]
    code_dir: str | None
    max_steps: int = 0
    sandbox: Policy = field(default_factory=Policy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Grade the trajectories of these groups with reward number `reward`.

    More than one group only for a reward that grades samples one by one. `step` is the weight version that
    sampled them.
    """

    reward: int
    groups: tuple[TrajectoryGroup, ...]
    step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grader:
    """A loaded reward and how it is to be called."""

    spec: RewardSpec
    function: RewardFunction
    retries: Retries


class RewardWorker:
    """Loaded reward functions and the socket they answer on."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._pid = os.getpid()
        self._graders: list[_Grader] = []
        self._max_steps = 0
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
        self._max_steps = load.max_steps
        set_default_policy(load.sandbox)
        try:
            self._graders = [_load_reward(spec) for spec in load.rewards]
        except LoadError as error:
            self._reply({"refused": str(error)})
            return False
        _clear_output()
        self._reply({"loaded": [asdict(grader.function.shape) for grader in self._graders]})
        return True

    def _grade(self, job: Job) -> None:
        grader = self._graders[job.reward]
        samples = [(group.prompt, t) for group in job.groups for t in group.trajectories]
        if not grader.function.shape.is_per_sample:
            self._grade_together(grader, job.groups[0], step=job.step)
        elif grader.function.shape.is_async:
            self._await(self._grade_concurrently(grader, samples))
        else:
            for index, (prompt, trajectory) in enumerate(samples):
                self._send(index, self._grade_one(grader, prompt, trajectory))

    def _grade_one(self, grader: _Grader, prompt: Prompt, trajectory: Trajectory) -> RewardResult:
        start = time.perf_counter()
        try:
            value = self._try(grader, lambda: grader.function.call(prompt, trajectory))
            return as_result(value, seconds=time.perf_counter() - start)
        except (Exception, SystemExit) as error:  # noqa: BLE001
            return _failure(error, time.perf_counter() - start)

    async def _grade_concurrently(self, grader: _Grader, samples: list[tuple[Prompt, Trajectory]]) -> None:
        async def one(index: int, prompt: Prompt, trajectory: Trajectory) -> None:
            async with room:
                start = time.perf_counter()
                try:
                    async with asyncio.timeout(grader.spec.limit_s) as limit:
                        value = await self._try_async(
                            grader, lambda: grader.function.call(prompt, trajectory)
                        )
                    result = as_result(value, seconds=time.perf_counter() - start)
                except (Exception, SystemExit) as error:  # noqa: BLE001
                    outcome = "timeout" if limit.expired() else "error"
                    result = _failure(error, time.perf_counter() - start, outcome=outcome)
                self._send(index, result)

        room = asyncio.Semaphore(grader.spec.concurrency or len(samples))
        await asyncio.gather(*(one(i, *sample) for i, sample in enumerate(samples)))

    def _grade_together(self, grader: _Grader, group: TrajectoryGroup, *, step: int) -> None:
        size = len(group.trajectories)
        state = TrainerState(global_step=step, max_steps=self._max_steps)
        log = CallLog(size=size)
        start = time.perf_counter()

        def call() -> Any:
            log.columns.clear()
            log.metrics.clear()
            return grader.function.call_batch(group, state=state, log=log)

        try:
            values = self._try(grader, call, size=size)
            seconds = time.perf_counter() - start
            results = as_results(values, size=size, seconds=seconds, extra=log.columns)
        except (Exception, SystemExit) as error:  # noqa: BLE001
            self._reply({"failed": asdict(_failure(error, time.perf_counter() - start))})
            return
        if log.metrics:
            self._reply({"metrics": log.metrics})
        for index, result in enumerate(results):
            self._send(index, result)

    def _try(self, grader: _Grader, call: Callable[[], Any], *, size: int = 1) -> Any:
        """What `call` gives, tried again after errors that the recipe names, while the deadline allows it."""
        end = time.monotonic() + grader.spec.limit_s * size
        failures = 0
        while True:
            try:
                value = call()
                return self._await(value) if inspect.isawaitable(value) else value
            except grader.retries.on as error:
                failures += 1
                time.sleep(self._pause(grader, failures, end, error))

    async def _try_async(self, grader: _Grader, call: Callable[[], Any]) -> Any:
        end = time.monotonic() + grader.spec.limit_s
        failures = 0
        while True:
            try:
                return await call()
            except grader.retries.on as error:
                failures += 1
                await asyncio.sleep(self._pause(grader, failures, end, error))

    def _pause(self, grader: _Grader, failures: int, end: float, error: Exception) -> float:
        pause = grader.retries.pause(failures, left_s=end - time.monotonic())
        if pause is None:
            error.add_note(f"try {failures} of {grader.retries.times + 1}; none is left, or no time for it")
            raise error
        self._reply({"retried": True})
        return pause

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


def _load_reward(spec: RewardSpec) -> _Grader:
    """Import, call the module's `warm_up()` if it has one (slow imports, outside deadlines), and bind."""
    try:
        loaded = load_function(spec.use, key=f"{spec.key}.use")
        if warm_up := warm_up_of(spec.use, loaded, key=f"{spec.key}.use"):
            warm_up()
        function = bind(loaded, spec.kwargs, key=spec.key)
    except LoadError:
        raise
    except RlhfError as error:
        raise LoadError(f"{spec.key}: {error}") from error
    except (Exception, SystemExit) as error:
        tail = "".join(traceback.format_exception(error))[-TRACEBACK_CHARACTERS:]
        raise LoadError(
            f"{spec.key}: loading {spec.use!r} raised {type(error).__name__}: {error}\n{tail}"
        ) from error
    _refuse_short_limit(spec, function)
    if spec.concurrency is not None:
        _refuse_idle_concurrency(spec, function.shape)
    return _Grader(
        spec=spec,
        function=function,
        retries=bind_retries(spec.retry_on, spec.retry_times, key=spec.key),
    )


def _refuse_short_limit(spec: RewardSpec, function: RewardFunction) -> None:
    """A reward that knows how long it may take says so: what it would have judged must not become a timeout."""
    longest_s = getattr(function.function, "longest_s", None)
    if longest_s is not None and spec.limit_s < longest_s:
        raise LoadError(
            f"{spec.key}.limit_s is {spec.limit_s:g}, but with its kwargs the reward may take {longest_s:g} s for one "
            f"sample, which then has no score. Set limit_s: {longest_s:g} or more, or lower the limits in kwargs."
        )


def _refuse_idle_concurrency(spec: RewardSpec, shape: Shape) -> None:
    if shape.is_async and shape.is_per_sample:
        return
    why = (
        "grades all samples in one call" if shape.is_async else "is not `async`: it takes one after the other"
    )
    raise LoadError(
        f"{spec.key}.concurrency is {spec.concurrency}, but {spec.use} {why}. Remove it, or write the reward as "
        "`async def` of one sample; task.reward_workers is the number of processes."
    )


def _failure(error: BaseException, seconds: float, *, outcome: Any = "error") -> RewardResult:
    where = error.__traceback__
    while where is not None and where.tb_next is not None and where.tb_frame.f_code.co_filename in _OURS:
        where = where.tb_next
    error = error.with_traceback(where)
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


def main() -> None:
    """Serve on the descriptors named on the command line until the driver goes away."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    tie_life_to(int(sys.argv[2]))
    with connection, connection.makefile("rb") as commands:
        RewardWorker(connection).serve(commands)
