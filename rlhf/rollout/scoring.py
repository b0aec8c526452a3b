"""Rewards in processes that can be killed: deadlines hold, siblings keep their scores, one verdict each."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from rlhf.config.rewards import RewardConfig
from rlhf.errors import ConfigError, LoadError, RewardError
from rlhf.rollout.reward_process import RewardProcess
from rlhf.rollout.reward_queue import Answers, RewardQueue, RewardTask
from rlhf.rollout.reward_shapes import Shape
from rlhf.rollout.reward_totals import Part, RewardMeter, UngradableWatch, applies, compose, short_names
from rlhf.rollout.reward_usage import Growth
from rlhf.rollout.reward_worker import Job, Load, RewardSpec
from rlhf.sandbox.policy import Policy
from rlhf.types import RewardResult, TrajectoryGroup

ENVIRONMENT = "environment"
"""Name of the part that the environment itself scored."""
_START_S = 120.0
"""Longest wait for a worker to import its rewards, or to take up a job it was sent."""
_AWAIT_GRACE_S = 1.0
"""What an asynchronous reward gets beyond limit_s to notice its own deadline before the worker is killed."""
_MAX_DEATHS = 2
"""A sample whose worker died this often alone is blamed; the first death may be someone else's kill or leak."""
_MAX_STARTS = 4
"""Tries to start a worker that dies while it loads, which may be someone else's kill."""
_LOOK_S = 0.05
"""Between two looks at the memory of a worker that is busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What the workers of a pool have in common beside what they import."""

    memory_mb: int = 2048
    """Resident memory above which a worker is killed in a call, or replaced after one."""
    max_steps: int = 0
    """schedule.num_steps, for rewards that ask; 0: unknown."""
    keys: tuple[str, ...] = ()
    """Keys of the rewards in the recipe, for errors; default: those of task.rewards."""
    sandbox: Policy = field(default_factory=Policy)
    """What `default_sandbox` accepts in the workers."""
    environments: tuple[RewardConfig, ...] = ()
    """How the score of an environment counts, which trajectories bring with them, and for which prompts."""


@dataclass(slots=True, kw_only=True)
class _Open:
    """The samples of a job that have no answer yet, by task: places in the job -> (task, index in its group)."""

    places: dict[int, tuple[RewardTask, int]]

    @classmethod
    def of(cls, tasks: Sequence[RewardTask]) -> "_Open":
        return cls(places=dict(enumerate((task, index) for task in tasks for index in task.indices)))

    def give(self, place: int, result: RewardResult) -> None:
        task, index = self.places.pop(place)
        task.answers.give(index, result)

    def by_task(self) -> list[tuple[RewardTask, list[int]]]:
        grouped: dict[int, tuple[RewardTask, list[int]]] = {}
        for task, index in self.places.values():
            grouped.setdefault(id(task), (task, []))[1].append(index)
        return list(grouped.values())


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
        settings: WorkerSettings | None = None,
    ) -> None:
        self._settings = settings or WorkerSettings()
        if all(reward.gate for reward in (*rewards, *self._settings.environments)):
            raise ConfigError(
                "task.rewards: every reward is a gate, so there is nothing to add up. Set gate: false on one."
            )
        if not self._settings.max_steps and any(
            min(reward.first_step or 0, reward.last_step or 0) < 0 for reward in rewards
        ):
            raise ConfigError(
                "task.rewards: a first_step or last_step is negative, which counts from the end, but how many steps "
                "there are is not known here. Give the step from the start."
            )
        self._rewards = tuple(rewards)
        self.names = short_names(rewards)
        self.shapes: tuple[Shape, ...] = ()
        keys = self._settings.keys
        if len(keys) != len(rewards):
            keys = tuple(f"task.rewards[{i}]" for i in range(len(rewards)))
        self._load = Load(
            rewards=tuple(_spec(key, reward) for key, reward in zip(keys, rewards, strict=True)),
            code_dir=code_dir,
            max_steps=self._settings.max_steps,
            sandbox=self._settings.sandbox,
        )
        self._num_workers = num_workers
        self._watch = UngradableWatch(max_ungradable)
        self._meters = [RewardMeter(name=name) for name in self.names]
        self._queue = RewardQueue(lambda reward: self._rewards[reward].concurrency or 1)
        self._starting = asyncio.Lock()
        self._workers: list[asyncio.Task[None]] = []
        self._processes: dict[int, RewardProcess] = {}

    async def start(self) -> None:
        """Start the workers. LoadError when a reward cannot be loaded or has an unknown signature."""
        async with self._starting:
            if self._workers or not self._rewards:
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
        """What each reward that applies, and counts at this time, says of every trajectory, not yet added up."""
        await self.start()
        columns = group.prompt.columns
        chosen = [
            i
            for i, reward in enumerate(self._rewards)
            if applies(reward, columns) and self._counts(reward, group.version)
        ]
        results = await asyncio.gather(*(self._grade(i, group) for i in chosen))
        given = [t.reward or RewardResult(value=None, outcome="not_applicable") for t in group.trajectories]
        return [
            *(
                Part(name=ENVIRONMENT, reward=reward, results=given)
                for reward in self._settings.environments
                if applies(reward, columns)
            ),
            *(
                Part(name=self.names[i], reward=self._rewards[i], results=graded)
                for i, graded in zip(chosen, results, strict=True)
            ),
        ]

    def _counts(self, reward: RewardConfig, version: int | None) -> bool:
        """Whether the reward counts at this weight version; outside of training, at the last one."""
        if not reward.is_scheduled:
            return True
        num_steps = self._settings.max_steps
        if version is None:
            # Nobody knows the last of an unknown number: what never ends counts.
            return reward.counts_at(num_steps - 1, num_steps) if num_steps else reward.last_step is None
        return reward.counts_at(version, num_steps)

    def metrics(self) -> dict[str, float]:
        """Per reward: mean, outcome shares, seconds, queue time, kills, retries, leaks. Reading resets them."""
        metrics = {name: value for meter in self._meters for name, value in meter.read().items()}
        return metrics | {"reward/ungradable_share": self._watch.share}

    async def close(self) -> None:
        """End every worker and what it started."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._workers = []
        await self._kill_all()
        for task in self._queue.clear():
            task.answers.fail(RewardError("the reward workers were closed before this was graded"))

    async def _kill_all(self) -> None:
        processes, self._processes = list(self._processes.values()), {}
        await asyncio.gather(*(process.kill() for process in processes))

    async def _grade(self, reward: int, group: TrajectoryGroup) -> list[RewardResult]:
        size = len(group.trajectories)
        step = max(group.oldest_version, 0)
        if not self.shapes[reward].needs_tokens:
            # Token ids and log-probabilities are most of a trajectory's bytes.
            group = replace(group, trajectories=tuple(replace(t, segments=()) for t in group.trajectories))
        answers = Answers(results=[None] * size, done=asyncio.get_running_loop().create_future())
        whole = tuple(range(size))
        self._queue.put(RewardTask(reward=reward, group=group, step=step, indices=whole, answers=answers))
        await answers.done
        results = [r for r in answers.results if r is not None]
        self._meters[reward].count(results)
        return results

    async def _serve(self, slot: int) -> None:
        while True:
            tasks = await self._queue.take()
            reward, now = tasks[0].reward, time.perf_counter()
            self._meters[reward].queue_s += [now - task.queued for task in tasks]
            try:
                await self._run(slot, tasks)
            except asyncio.CancelledError:
                for task in tasks:
                    task.answers.fail(RewardError("the reward workers were closed before this was graded"))
                raise
            except Exception as error:  # noqa: BLE001
                for task in tasks:
                    task.answers.fail(error)
            finally:
                self._queue.free(reward)

    async def _run(self, slot: int, tasks: Sequence[RewardTask]) -> None:
        reward, still_open = tasks[0].reward, _Open.of(tasks)
        groups = tuple(task.trajectories() for task in tasks)
        job = Job(reward=reward, groups=groups, step=tasks[0].step)
        try:
            process = await self._hand_out(slot, job)
            guard = asyncio.create_task(self._guard_memory(process))
            try:
                await self._converse(process, job, still_open)
            finally:
                guard.cancel()
        except TimeoutError:
            limit_s = self._rewards[reward].limit_s
            await self._bury(slot, reward, still_open, late=f"no answer within limit_s = {limit_s:g} s")
        except ConnectionError:
            await self._bury(slot, reward, still_open)
        else:
            await self._look_for_leaks(slot, reward)

    async def _hand_out(self, slot: int, job: Job) -> RewardProcess:
        """Have the slot's worker take up the job; one that has died since its last job is replaced first."""
        tries = 0
        while True:
            process = self._processes.get(slot) or await self._replace(slot)
            try:
                await process.send(job)
                await process.receive(_START_S)
                return process
            except ConnectionError:
                tries += 1
                if tries == _MAX_STARTS:
                    raise
            del self._processes[slot]
            await process.kill()
            self._meters[job.reward].kills += 1

    async def _guard_memory(self, process: RewardProcess) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            process.kill_above(self._settings.memory_mb)

    async def _converse(self, process: RewardProcess, job: Job, still_open: _Open) -> None:
        """Have the job done; what is answered is open no longer. ConnectionError when the worker dies."""
        meter, deadline = self._meters[job.reward], self._deadline(job.reward, len(still_open.places))
        while still_open.places:
            reply = await process.receive(deadline - time.monotonic())
            if "retried" in reply:
                meter.retries += 1
            elif "metrics" in reply:
                meter.log(reply["metrics"])
            elif "failed" in reply:
                self._blame(job.reward, still_open, RewardResult(**reply["failed"]))
                return
            else:
                still_open.give(reply["index"], RewardResult(**reply["result"]))
                deadline = self._deadline(job.reward, len(still_open.places))

    def _deadline(self, reward: int, num_open: int) -> float:
        shape, limit_s = self.shapes[reward], self._rewards[reward].limit_s
        if not shape.is_per_sample:
            return time.monotonic() + limit_s * num_open
        return time.monotonic() + limit_s + (_AWAIT_GRACE_S if shape.is_async else 0.0)

    async def _bury(self, slot: int, reward: int, still_open: _Open, *, late: str | None = None) -> None:
        """Kill the slot's worker, which is `late` or dead, and settle what it had not answered."""
        process = self._processes.pop(slot)
        reason = late or f"the worker {await process.ended()}"
        detail = {"error": reason, "output": process.output()}
        await process.kill()
        self._meters[reward].kills += 1
        leak = process.growth.memory_leak() if process.is_over_memory and process.growth else None
        if leak is not None:
            self._meters[leak.reward].leak(leak.text)
        if late:
            limit_s = self._rewards[reward].limit_s
            verdict = RewardResult(value=None, outcome="timeout", detail=detail, seconds=limit_s)
            self._blame(reward, still_open, verdict)
        else:
            verdict = RewardResult(value=None, outcome="error", detail=detail)
            self._blame(reward, still_open, verdict, died=True)

    async def _look_for_leaks(self, slot: int, reward: int) -> None:
        """Replace the slot's worker when it holds too much after a call; nothing is in flight in it."""
        process = self._processes[slot]
        used = process.usage()
        leak = None if used is None or process.growth is None else process.growth.note(reward, used)
        if leak is not None:
            self._meters[leak.reward].leak(leak.text)
            del self._processes[slot]
            await process.kill()

    def _blame(self, reward: int, still_open: _Open, verdict: RewardResult, *, died: bool = False) -> None:
        """Give the verdict to the sample at fault and put its siblings back; split where it is unknown."""
        parts = still_open.by_task()
        if len(parts) > 1:
            for task, indices in parts:
                self._queue.put(task.part(indices))
            return
        shape, (task, indices) = self.shapes[reward], parts[0]
        in_order = shape.is_per_sample and not shape.is_async
        if not in_order and shape.kind != "group" and len(indices) > 1:
            half = len(indices) // 2
            self._queue.put(task.part(indices[:half]))
            self._queue.put(task.part(indices[half:]))
            return
        # A group is graded as a whole, so it fails as a whole.
        culprits = indices if shape.kind == "group" else indices[:1]
        if died and task.deaths + 1 < _MAX_DEATHS:
            self._queue.put(task.part(culprits, deaths=task.deaths + 1))
        else:
            for index in culprits:
                task.answers.give(index, verdict)
        if rest := indices[len(culprits) :]:
            self._queue.put(task.part(rest))

    async def _replace(self, slot: int) -> RewardProcess:
        """Start a worker in `slot` and have it load the rewards."""
        for _ in range(_MAX_STARTS - 1 if self._workers else 0):
            try:
                return await self._launch(slot)
            except RewardError as error:
                if not isinstance(error.__cause__, ConnectionError):
                    raise
        return await self._launch(slot)

    async def _launch(self, slot: int) -> RewardProcess:
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
        await self._measure(slot, process)
        return process

    async def _measure(self, slot: int, process: RewardProcess) -> None:
        loaded, limit_mb = process.usage(), self._settings.memory_mb
        if loaded is not None and loaded.memory_mb > limit_mb:
            del self._processes[slot]
            await process.kill()
            raise ConfigError(
                f"task.reward_memory_mb is {limit_mb}, but a worker that has only loaded the rewards "
                f"({', '.join(self.names)}) holds {loaded.memory_mb:.0f} MB. Raise it, or load less."
            )
        process.growth = None if loaded is None else Growth(loaded, limit_mb=limit_mb)


def _spec(key: str, reward: RewardConfig) -> RewardSpec:
    retries = reward.retries
    return RewardSpec(
        key=key,
        use=reward.use,
        limit_s=reward.limit_s,
        kwargs=reward.kwargs,
        retry_on=() if retries is None else retries.on,
        retry_times=0 if retries is None else retries.times,
        concurrency=reward.concurrency,
    )
