"""Rewards in processes that can be killed: deadlines hold, siblings keep their scores, one verdict each."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from rlhf.config.schema import RewardConfig
from rlhf.errors import ConfigError, LoadError, RewardError
from rlhf.rollout.reward_process import RewardProcess
from rlhf.rollout.reward_shapes import Shape
from rlhf.rollout.reward_totals import Part, RewardMeter, UngradableWatch, applies, compose, short_names
from rlhf.rollout.reward_worker import Job, Load, RewardSpec
from rlhf.types import RewardResult, TrajectoryGroup

_START_S = 120.0
"""Longest wait for a worker to import its rewards, or to take up a job it was sent."""
_AWAIT_GRACE_S = 1.0
"""What an asynchronous reward gets beyond limit_s to notice its own deadline before the worker is killed."""
_MAX_DEATHS = 2
"""A sample whose worker died this often alone is blamed; the first death may be someone else's kill."""


@dataclass(slots=True, kw_only=True)
class _Answers:
    """The results of one reward for one group, filled in as they come."""

    results: list[RewardResult | None]
    done: asyncio.Future[None]

    def give(self, index: int, result: RewardResult) -> None:
        self.results[index] = result
        if all(r is not None for r in self.results) and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """Some trajectories of a group to be graded by one reward in one go."""

    reward: int
    group: TrajectoryGroup
    indices: tuple[int, ...]
    answers: _Answers
    deaths: int = 0
    queued: float = field(default_factory=time.perf_counter)


class RewardPool:
    """The rewards of a recipe behind `interfaces.Reward`. Workers start at the first score, or with `start`.

    `code_dir` comes first on the workers' import path. RewardError is raised by `score` when more than
    `max_ungradable` of the last 200 totals have no value. Use it within one event loop.
    """

    def __init__(
        self,
        rewards: Sequence[RewardConfig],
        *,
        num_workers: int = 2,
        code_dir: str | None = None,
        max_ungradable: float = 0.05,
    ) -> None:
        if all(reward.gate for reward in rewards):
            raise ConfigError(
                "task.rewards: every reward is a gate, so there is nothing to add up. Set gate: false on one."
            )
        self._rewards = tuple(rewards)
        self.names = short_names(rewards)
        self.shapes: tuple[Shape, ...] = ()
        specs = tuple(
            RewardSpec(key=f"task.rewards[{i}]", use=r.use, limit_s=r.limit_s, kwargs=r.kwargs)
            for i, r in enumerate(rewards)
        )
        self._load = Load(rewards=specs, code_dir=code_dir)
        self._num_workers = num_workers
        self._watch = UngradableWatch(max_ungradable)
        self._meters = [RewardMeter() for _ in rewards]
        self._queue: asyncio.Queue[_Task] = asyncio.Queue()
        self._starting = asyncio.Lock()
        self._workers: list[asyncio.Task[None]] = []
        self._processes: dict[int, RewardProcess] = {}

    async def start(self) -> None:
        """Start the workers. LoadError when a reward cannot be loaded or has an unknown signature."""
        async with self._starting:
            if self._workers:
                return
            slots = range(self._num_workers)
            started = await asyncio.gather(*(self._replace(slot) for slot in slots), return_exceptions=True)
            failures = [outcome for outcome in started if isinstance(outcome, BaseException)]
            if failures:
                await self._kill_all()
                raise failures[0]
            self._workers = [asyncio.create_task(self._serve(slot)) for slot in range(self._num_workers)]

    @property
    def required_columns(self) -> Mapping[str, tuple[str, ...]]:
        """For every reward (by short name) the prompt columns it cannot do without. Known after `start`."""
        return {name: shape.columns for name, shape in zip(self.names, self.shapes, strict=True)}

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the living workers."""
        return tuple(process.pid for process in self._processes.values())

    async def score(self, group: TrajectoryGroup) -> list[RewardResult]:
        """One verdict per trajectory, in order; see `reward_totals.compose` for how rewards add up."""
        parts = await self.grade(group)
        totals = compose(parts, len(group.trajectories))
        self._watch.see(parts, totals)
        return totals

    async def grade(self, group: TrajectoryGroup) -> list[Part]:
        """What each reward that applies says of every trajectory, not yet added up."""
        await self.start()
        chosen = [i for i, reward in enumerate(self._rewards) if applies(reward, group.prompt.columns)]
        results = await asyncio.gather(*(self._grade(i, group) for i in chosen))
        return [
            Part(name=self.names[i], reward=self._rewards[i], results=graded)
            for i, graded in zip(chosen, results, strict=True)
        ]

    def metrics(self) -> dict[str, float]:
        """Per reward: mean, outcome shares, seconds, queue time, kills. Reading resets."""
        read = [meter.read(name) for name, meter in zip(self.names, self._meters, strict=True)]
        self._meters = [RewardMeter() for _ in self._rewards]
        return {name: value for metrics in read for name, value in metrics.items()}

    async def close(self) -> None:
        """End every worker and what it started."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._workers = []
        await self._kill_all()
        while not self._queue.empty():
            self._queue.get_nowait().answers.fail(
                RewardError("the reward workers were closed before this was graded")
            )

    async def _kill_all(self) -> None:
        processes, self._processes = list(self._processes.values()), {}
        await asyncio.gather(*(process.kill() for process in processes))

    async def _grade(self, reward: int, group: TrajectoryGroup) -> list[RewardResult]:
        size = len(group.trajectories)
        if not self.shapes[reward].needs_tokens:
            # Token ids and log-probabilities are most of a trajectory's bytes.
            group = replace(group, trajectories=tuple(replace(t, segments=()) for t in group.trajectories))
        answers = _Answers(results=[None] * size, done=asyncio.get_running_loop().create_future())
        self._queue.put_nowait(_Task(reward=reward, group=group, indices=tuple(range(size)), answers=answers))
        await answers.done
        results = [r for r in answers.results if r is not None]
        self._meters[reward].results += results
        return results

    async def _serve(self, slot: int) -> None:
        while True:
            task = await self._queue.get()
            self._meters[task.reward].queue_s.append(time.perf_counter() - task.queued)
            try:
                await self._run(slot, task)
            except asyncio.CancelledError:
                task.answers.fail(RewardError("the reward workers were closed before this was graded"))
                raise
            except Exception as error:  # noqa: BLE001
                task.answers.fail(error)

    async def _run(self, slot: int, task: _Task) -> None:
        process = self._processes.get(slot) or await self._replace(slot)
        remaining = list(task.indices)
        job = Job(
            reward=task.reward,
            group_index=task.group.index,
            prompt=task.group.prompt,
            trajectories=tuple(task.group.trajectories[i] for i in task.indices),
        )
        try:
            await self._converse(process, job, task, remaining)
        except TimeoutError:
            limit_s = self._rewards[task.reward].limit_s
            await self._bury(slot, task, remaining, f"no answer within limit_s = {limit_s:g} s")
        except ConnectionError:
            await self._bury(slot, task, remaining, None)

    async def _converse(self, process: RewardProcess, job: Job, task: _Task, remaining: list[int]) -> None:
        """Have the job done; answered indices leave `remaining`. ConnectionError when the worker dies."""
        await process.send(job)
        await process.receive(_START_S)
        while remaining:
            reply = await process.receive(self._deadline(task.reward, len(remaining)))
            if "failed" in reply:
                self._blame(task, remaining, RewardResult(**reply["failed"]))
                return
            index = task.indices[reply["index"]]
            remaining.remove(index)
            task.answers.give(index, RewardResult(**reply["result"]))

    def _deadline(self, reward: int, remaining: int) -> float:
        shape, limit_s = self.shapes[reward], self._rewards[reward].limit_s
        if not shape.is_per_sample:
            return limit_s * remaining
        return limit_s + _AWAIT_GRACE_S if shape.is_async else limit_s

    async def _bury(self, slot: int, task: _Task, remaining: list[int], late: str | None) -> None:
        """Kill the slot's worker, which is `late` or dead, and settle what it had not answered."""
        process = self._processes.pop(slot)
        reason = late or f"the worker {await process.ended()}"
        detail = {"error": reason, "output": process.output()}
        await process.kill()
        self._meters[task.reward].kills += 1
        limit_s = self._rewards[task.reward].limit_s
        if late:
            verdict = RewardResult(value=None, outcome="timeout", detail=detail, seconds=limit_s)
            self._blame(task, remaining, verdict)
        else:
            self._blame(task, remaining, RewardResult(value=None, outcome="error", detail=detail), died=True)

    def _blame(self, task: _Task, remaining: list[int], verdict: RewardResult, *, died: bool = False) -> None:
        """Give the verdict to the sample at fault and put its siblings back; split where it is unknown."""
        shape = self.shapes[task.reward]
        in_order = shape.is_per_sample and not shape.is_async
        if in_order or shape.kind == "group" or len(remaining) == 1:
            # A group is graded as a whole, so it fails as a whole.
            culprits = remaining if shape.kind == "group" else remaining[:1]
            rest = remaining[len(culprits) :]
            deaths = task.deaths + died
            if died and deaths < _MAX_DEATHS:
                self._requeue(task, culprits, deaths=deaths)
            else:
                for index in culprits:
                    task.answers.give(index, verdict)
            self._requeue(task, rest)
            return
        half = len(remaining) // 2
        self._requeue(task, remaining[:half])
        self._requeue(task, remaining[half:])

    def _requeue(self, task: _Task, indices: list[int], *, deaths: int = 0) -> None:
        if indices:
            again = replace(task, indices=tuple(indices), deaths=deaths, queued=time.perf_counter())
            self._queue.put_nowait(again)

    async def _replace(self, slot: int) -> RewardProcess:
        """Start a worker in `slot` and have it load the rewards."""
        process = self._processes[slot] = await RewardProcess.start()
        try:
            await process.send(self._load)
            reply = await process.receive(_START_S)
            if "refused" in reply:
                raise LoadError(str(reply["refused"]))
        except Exception as error:
            del self._processes[slot]
            ended, output = await process.ended(), process.output()
            await process.kill()
            if isinstance(error, LoadError):
                raise
            raise RewardError(f"a reward worker {ended} while loading the rewards.\n{output}") from error
        self.shapes = tuple(
            Shape(**{**shape, "columns": tuple(shape["columns"])}) for shape in reply["loaded"]
        )
        return process
