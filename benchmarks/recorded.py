"""The real loop (`rlhf train`'s own code), stopped between steps so that something else can be timed there."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from rlhf.batch import Batch
from rlhf.interfaces import GenerateRequest, LossFunction, Placement, RolloutFunction, UpdateMetrics
from rlhf.rollout.group import Sampled
from rlhf.run import Run
from rlhf.telemetry.sinks import ListSink
from rlhf.types import Prompt, Sampling, Trajectory, TrajectoryGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step of the loop did, and where its seconds went."""

    number: int
    groups: Sequence[TrajectoryGroup]
    sampling: Sampling
    batch: Batch
    parts: Mapping[str, float]
    """`step` and its shares: rollout, score (from the last token to the batch), sleep, pack, update,
    forward_backward, optimizer, sync, probe."""

    @property
    def sampled(self) -> int:
        """Sampled tokens."""
        return sum(t.num_sampled for g in self.groups for t in g.trajectories)

    @property
    def completions(self) -> list[tuple[int, ...]]:
        """The sampled ids of every trajectory, in the order of `requests`."""
        return [
            tuple(i for i, sampled in zip(s.token_ids, s.loss_mask, strict=True) if sampled)
            for g in self.groups
            for t in g.trajectories
            for s in t.segments
        ]

    @property
    def requests(self) -> list[GenerateRequest]:
        """What the engine was asked for, in admission order."""
        return [
            GenerateRequest(
                prompt_token_ids=prompt_ids(g.trajectories[0]),
                sampling=self.sampling,
                seeds=tuple(t.seed for t in g.trajectories),
            )
            for g in self.groups
        ]


Between = Callable[[Step], Awaitable[None]]


def prompt_ids(trajectory: Trajectory) -> tuple[int, ...]:
    """The prompt of a single-turn trajectory."""
    (segment,) = trajectory.segments
    return segment.token_ids[: segment.loss_mask.index(True)]


class TimedRollout:
    """interfaces.RolloutFunction; remembers when the last group was generated.

    With `limits`, sample i of a prompt gets exactly limits[i] tokens: nothing else stops it.
    """

    def __init__(self, rollout: RolloutFunction, limits: Sequence[int] | None) -> None:
        self._rollout = rollout
        self._limits = limits
        self.ended = 0.0

    async def __call__(self, prompt: Prompt, *, seeds: Sequence[int], sampling: Sampling) -> list[Trajectory]:
        """One trajectory per seed, in order."""
        made = await (
            self._rollout(prompt, seeds=seeds, sampling=sampling)
            if self._limits is None
            else self._limited(prompt, seeds, sampling)
        )
        self.ended = time.perf_counter()
        return made

    async def _limited(self, prompt: Prompt, seeds: Sequence[int], sampling: Sampling) -> list[Trajectory]:
        assert self._limits is not None
        samples = {
            limit: [i for i, own in enumerate(self._limits) if own == limit] for limit in set(self._limits)
        }
        answers = await asyncio.gather(
            *(
                self._rollout(
                    prompt,
                    seeds=[seeds[i] for i in chosen],
                    sampling=replace(sampling, max_tokens=limit, stop_token_ids=()),
                )
                for limit, chosen in samples.items()
            )
        )
        made = {
            i: replace(trajectory, sample_index=i)
            for chosen, answer in zip(samples.values(), answers, strict=True)
            for i, trajectory in zip(chosen, answer, strict=True)
        }
        return [made[i] for i in range(len(seeds))]


class TimedPlacement:
    """interfaces.Placement; remembers when training began and how long the engine took to make room."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self.entered = 0.0
        self.sleep_s = 0.0

    @contextlib.asynccontextmanager
    async def training(self) -> AsyncIterator[None]:
        """As the placement it wraps."""
        self.entered = time.perf_counter()
        async with self._placement.training():
            self.sleep_s = time.perf_counter() - self.entered
            yield


class TimedLearner:
    """interfaces.Learner as the loop uses it; remembers what the ranks measured."""

    def __init__(self, learner: Any) -> None:
        self._learner = learner
        self.update_metrics = UpdateMetrics()

    async def update(self, minibatches: Sequence[Batch], loss: LossFunction) -> UpdateMetrics:
        """As the learner it wraps."""
        self.update_metrics = await self._learner.update(minibatches, loss)
        return self.update_metrics


@dataclass(slots=True, kw_only=True)
class RecordedRun(Run):
    """A Run that never saves, and hands each step to `between` in the time that a checkpoint would take."""

    between: Between
    rollout: TimedRollout
    work: Sampled
    metrics: ListSink
    seat: TimedPlacement
    timed: TimedLearner
    _step: Step | None = field(default=None)

    def log(self, groups: Sequence[TrajectoryGroup], batch: Batch, measured: Mapping[str, float]) -> None:
        """As a Run, and keep the step."""
        # Not super(): slots give the class a new identity.
        Run.log(self, groups, batch, measured)
        _, found = self.metrics.lines[-1]
        update = self.timed.update_metrics
        parts = {
            "step": found["time/step_s"],
            "rollout": found["time/rollout_wait_s"],
            "score": self.seat.entered - self.rollout.ended,
            "sleep": self.seat.sleep_s,
            "pack": found["time/pack_s"],
            "update": found["time/update_s"],
            "forward_backward": update.forward_backward_s,
            "optimizer": update.optimizer_s,
            "sync": found["time/sync_s"],
            "probe": found.get("sync/probe_s", 0.0),
        }
        self._step = Step(
            number=self.state.step, groups=groups, sampling=self.work.sampling, batch=batch, parts=parts
        )

    async def checkpoint(self) -> None:
        """Let `between` have its turn: engine and learner are idle, the producer waits for slots."""
        assert self._step is not None
        with self.clock.time("checkpoint_s"):
            await self.between(self._step)


def recorded(run: Run, between: Between, *, limits: Sequence[int] | None) -> RecordedRun:
    """The same run, timed from the inside; see RecordedRun."""
    work = run.producer.work
    assert isinstance(work, Sampled)
    rollout = TimedRollout(work.rollout, limits)
    run.producer.work = work = replace(work, rollout=rollout)
    sink = ListSink()
    parts = {item.name: getattr(run, item.name) for item in fields(Run)}
    seat, learner = TimedPlacement(run.placement), TimedLearner(run.learner)
    parts |= {"placement": seat, "learner": learner, "sinks": [*run.sinks, sink]}
    return RecordedRun(
        **parts, between=between, rollout=rollout, work=work, metrics=sink, seat=seat, timed=learner
    )
