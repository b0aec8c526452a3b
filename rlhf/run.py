"""A run: its assembled parts, and the state that resuming needs."""

import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from rlhf.algorithms.catalogue import Algorithm
from rlhf.algorithms.correction import with_ess
from rlhf.algorithms.kl import next_kl_coef
from rlhf.algorithms.shaping import shaping_metrics
from rlhf.algorithms.teachers import teacher_metrics
from rlhf.algorithms.value_loss import with_explained_variance
from rlhf.batch import Batch
from rlhf.config.schema import Recipe
from rlhf.data.packing import pack, split_minibatches
from rlhf.data.steps import Decode
from rlhf.data.vision_model import VisionModel
from rlhf.interfaces import Learner, Placement, PromptLedger, Reward, RolloutEngine, WeightSync
from rlhf.rollout.buffer import GroupBuffer, Indexed
from rlhf.rollout.group import Producer, sample_seed
from rlhf.rollout.statistics import rollout_metrics, solved
from rlhf.run_folder import RunFolder
from rlhf.telemetry.live import LiveView
from rlhf.telemetry.recording import SampleRecorder
from rlhf.telemetry.sinks import Sink
from rlhf.types import TrajectoryGroup

logger = logging.getLogger(__name__)

Annotator = Callable[[Batch], Awaitable[Batch]]
Evaluator = Callable[[], Awaitable[Mapping[str, float]]]


@dataclass(slots=True)
class RunState:
    """All that resuming needs beside the learner's own checkpoint; the prompt ledger is the stream's."""

    step: int = 0
    num_tokens: int = 0
    """Sampled tokens trained on so far."""
    train_s: float = 0.0
    """Seconds of training so far, over all processes that worked on this run."""
    kl_coef: float | None = None
    """Weight of the KL where it is steered towards algorithm.kl_target."""


@dataclass(slots=True)
class Clock:
    """Where a step's time went."""

    spent: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @contextlib.contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add the block's seconds to `name`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - begin

    def lap(self) -> dict[str, float]:
        """The seconds of the step that ends here, `step_s` without evaluation and checkpoint; starts the next."""
        now = time.perf_counter()
        spent, self.spent = self.spent, {}
        aside = spent.get("eval_s", 0.0) + spent.get("checkpoint_s", 0.0)
        spent["step_s"] = now - self.started - aside
        self.started = now
        return spent


G = TypeVar("G", bound=Indexed)
T = TypeVar("T")


class Work(Protocol):
    """What fills the buffer."""

    async def run(self) -> None:
        """Admit groups until cancelled."""


class Driven(Protocol[G, T]):
    """What the loop drives: groups G of a step become one batch T."""

    sync: WeightSync
    placement: Placement
    buffer: GroupBuffer[G]
    state: RunState
    clock: Clock

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""

    @property
    def producer(self) -> Work:
        """What fills the buffer."""

    def pack(self, groups: Sequence[G]) -> T:
        """The groups of a step as one batch."""

    async def annotate(self, batch: T) -> T:
        """The batch with all that the loss reads."""

    async def update(self, batch: T) -> dict[str, float]:
        """Train on it; returns metrics."""

    def advance(self, groups: Sequence[G]) -> None:
        """Count the step: its groups are trained and their weights are live."""

    async def evaluate(self, *, first: bool = False) -> None:
        """Evaluate if this step is due."""

    def log(self, groups: Sequence[G], batch: T, measured: Mapping[str, float]) -> None:
        """Write the step down."""

    async def checkpoint(self) -> None:
        """Save everything if this step is due."""


@dataclass(slots=True, kw_only=True)
class Run:
    """The parts of one training run, assembled by build.py and driven by train.py."""

    recipe: Recipe
    folder: RunFolder
    learner: Learner
    engine: RolloutEngine
    sync: WeightSync
    placement: Placement
    algorithm: Algorithm
    annotators: Sequence[Annotator]
    reward_parts: Sequence[str]
    """Parts of the reward that the algorithm reads one by one."""
    vision: VisionModel | None = None
    """Of the model, where it sees images."""
    decode_steps: Decode | None
    """Text of token ids, where the algorithm reads the rewards of steps."""
    reward: Reward
    prompts: PromptLedger
    buffer: GroupBuffer[TrajectoryGroup]
    producer: Producer[TrajectoryGroup]
    evaluator: Evaluator | None
    sinks: Sequence[Sink]
    recorder: SampleRecorder
    view: LiveView
    state: RunState
    clock: Clock = field(default_factory=Clock)
    _evaluated: Mapping[str, float] = field(default_factory=dict)
    _busy_mark: float = 0.0
    _discard_mark: dict[str, int] = field(default_factory=dict)

    def pack(self, groups: Sequence[TrajectoryGroup]) -> Batch:
        """The groups of a step as one batch, with what the algorithm reads of their rewards."""
        environments = self.recipe.task.environments
        batch = pack(
            groups,
            reward_parts=self.reward_parts,
            decode=self.decode_steps,
            truncated={name: environment.truncated for name, environment in environments.items()},
            vision=self.vision,
        )
        names, column = self.algorithm.teachers, self.recipe.algorithm.teacher_by
        if not names or column is None:
            return batch
        teachers = [names.index(group.prompt.columns[column]) for group in groups]
        return replace(batch, teacher_ids=torch.tensor(teachers)[batch.group_ids])

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.recipe.schedule.num_steps

    async def annotate(self, batch: Batch) -> Batch:
        """Old and reference log-probabilities, values: what the algorithm needs; then its advantages."""
        for annotate in self.annotators:
            batch = await annotate(batch)
        return self.current_algorithm().add_advantages(batch)

    def minibatches(self, batch: Batch) -> list[Batch]:
        """The optimizer steps of a batch in their order, every pass over it split by a seed of its own."""
        schedule, algorithm = self.recipe.schedule, self.current_algorithm()
        seeds = [
            sample_seed(self.recipe.seed, "minibatches", epoch, self.state.step)
            for epoch in range(schedule.inner_epochs)
        ]
        return [
            algorithm.add_loss_weights(part, seed=seed)
            for seed in seeds
            for part in split_minibatches(batch, schedule.minibatches, seed=seed)
        ]

    def current_algorithm(self) -> Algorithm:
        """The algorithm as it stands at this step."""
        if self.recipe.algorithm.kl_target is None:
            return self.algorithm
        if self.state.kl_coef is None:
            self.state.kl_coef = self.algorithm.kl_coef
        return self.algorithm.with_kl_coef(self.state.kl_coef)

    async def update(self, batch: Batch) -> dict[str, float]:
        """Train critic and policy on the batch, and what follows from the step; returns its metrics."""
        config, number = self.recipe.algorithm, self.state.step + 1
        algorithm, minibatches = self.current_algorithm(), self.minibatches(batch)
        measured: dict[str, float] = {}
        if algorithm.value_loss is not None:
            measured |= (await self.learner.update_critic(minibatches, algorithm.value_loss)).values
        if algorithm.value_loss is None or number > self.recipe.critic.pretrain_steps:
            measured |= (await self.learner.update(minibatches, algorithm.loss)).values
        if config.reference_reset_every and number % config.reference_reset_every == 0:
            await self.learner.reset_reference()
        if config.kl_target is not None and "update/kl" in measured:
            measured["update/kl_coef"] = algorithm.kl_coef
            self.state.kl_coef = next_kl_coef(
                algorithm.kl_coef,
                measured["update/kl"],
                target=config.kl_target,
                horizon=config.kl_horizon,
                num_samples=self.recipe.schedule.prompts_per_step * self.recipe.schedule.samples_per_prompt,
            )
        masked = measured.get("mismatch/masked_share", 0.0)
        if masked > config.masked_share_warning:
            logger.warning(
                "step %d: off-policy masks dropped %.0f %% of the trained tokens (algorithm.masked_share_warning: "
                "%g). Lower schedule.max_staleness or learner.lr, or widen the bounds of algorithm.correction.",
                number,
                100 * masked,
                config.masked_share_warning,
            )
        return measured

    def advance(self, groups: Sequence[TrajectoryGroup]) -> None:
        """Count the step: its groups are trained and their weights are live."""
        self.state.step += 1
        self.state.num_tokens += sum(t.num_sampled for g in groups for t in g.trajectories)
        for group in groups:
            self.prompts.trained(group.index, solved(group))

    async def evaluate(self, *, first: bool = False) -> None:
        """Evaluate on held-out prompts if this step is due; `first` only before any training."""
        every, step = self.recipe.eval.every, self.state.step
        due = every > 0 and (step % every == 0 or step == self.recipe.schedule.num_steps)
        if self.evaluator is None or not due or (first and step > 0):
            return
        with self._aside("eval_s"):
            self._evaluated = await self.evaluator()
        self.reward.metrics()  # what evaluation graded is not of the next step
        if self.recipe.schedule.max_staleness == 0:
            # A resumed run has not evaluated: the next wave must not find prefixes that this one left.
            await self.engine.forget_prefixes()
        if first:
            self._emit({**self._evaluated, "time/eval_s": self.clock.lap()["eval_s"]})

    def log(self, groups: Sequence[TrajectoryGroup], batch: Batch, measured: Mapping[str, float]) -> None:
        """Write the step down: metrics to every sink, samples for the report, one update of the live view."""
        spent = self.clock.lap()
        self.state.train_s += spent["step_s"]
        metrics = dict(self.reward.metrics())
        metrics |= rollout_metrics(groups, version=self.state.step - 1)
        metrics |= with_explained_variance(with_ess(measured))
        metrics |= {f"time/{name}": seconds for name, seconds in spent.items()}
        metrics["rollout/tokens_per_s"] = metrics["rollout/num_tokens"] / max(spent["step_s"], 1e-9)
        metrics |= self._buffer_metrics(spent) | dict(self.prompts.metrics())
        metrics |= shaping_metrics(batch) | teacher_metrics(batch, self.algorithm.teachers)
        assert batch.advantages is not None
        metrics["update/num_tokens"] = float(batch.num_tokens)
        sample = self.recorder.record(self.state.step, groups, row_advantages(groups, batch))
        self._emit(metrics | dict(self._evaluated), sample)

    async def checkpoint(self) -> None:
        """Save everything if this step is due. A checkpoint is complete or absent."""
        every, step = self.recipe.checkpoint.every, self.state.step
        if step != self.recipe.schedule.num_steps and (every == 0 or step % every):
            return
        with self._aside("checkpoint_s"), self.folder.new_checkpoint(step) as draft:
            await self.learner.save(str(draft / "learner"))
            state = {"state": vars_of(self.state), "prompts": self.prompts.state_dict()}
            (draft / "state.json").write_text(json.dumps(state))
        self.folder.prune(self.recipe.checkpoint.keep)

    def _emit(self, metrics: Mapping[str, float], sample: str | None = None) -> None:
        for sink in self.sinks:
            sink.log(self.state.step, metrics)
        self._evaluated = {}
        self.view.step(self.state.step, self.recipe.schedule.num_steps, metrics, sample)

    @contextlib.contextmanager
    def _aside(self, name: str) -> Iterator[None]:
        """Time spent beside the step: neither its seconds nor what the engines do meanwhile count as the step's."""
        before = self.buffer.busy_until_now()
        with self.clock.time(name):
            yield
        self._busy_mark += self.buffer.busy_until_now() - before

    def _buffer_metrics(self, spent: Mapping[str, float]) -> dict[str, float]:
        busy = self.buffer.busy_until_now()
        # What was busy while the loop did not wait for it ran beside the learner.
        overlap = max(busy - self._busy_mark - spent.get("rollout_wait_s", 0.0), 0.0)
        metrics = {
            "buffer/in_flight": float(self.buffer.in_flight),
            "time/rollout_busy_s": busy - self._busy_mark,
            "time/overlap_share": min(overlap / max(spent["step_s"], 1e-9), 1.0),
        }
        self._busy_mark = busy
        counts = {r: n - self._discard_mark.get(r, 0) for r, n in self.buffer.discarded.items()}
        self._discard_mark = dict(self.buffer.discarded)
        discarded = sum(counts.values())
        metrics["rollout/discarded"] = float(discarded)
        metrics["rollout/discarded_share"] = discarded / (discarded + self.buffer.groups_per_step)
        return metrics | {f"rollout/discarded/{reason}": float(n) for reason, n in counts.items()}


def row_advantages(groups: Sequence[TrajectoryGroup], batch: Batch) -> list[list[float]]:
    """Each trajectory's advantage (of its last trained token; 0 where nothing was trained), group by group."""
    assert batch.advantages is not None
    last = [0.0] * batch.num_rows
    rows = batch.segment_ids[batch.loss_mask].tolist()
    for row, value in zip(rows, batch.advantages[batch.loss_mask].tolist(), strict=True):
        last[row] = value
    result, row = [], 0
    for group in groups:
        values = []
        for trajectory in group.trajectories:
            row += len(trajectory.segments)
            values.append(last[row - 1])
        result.append(values)
    return result


def vars_of(state: RunState) -> dict[str, Any]:
    """The state as JSON-able values."""
    return asdict(state)


def load_state(checkpoint: Path) -> tuple[RunState, dict[str, Any]]:
    """(RunState, the prompt stream's state) of a checkpoint folder."""
    raw = json.loads((checkpoint / "state.json").read_text())
    return RunState(**raw["state"]), raw["prompts"]
