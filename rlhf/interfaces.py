"""What the parts promise each other. Protocols, not base classes; the contract suites enforce them."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from rlhf.types import (
    Completion,
    Message,
    Prompt,
    RewardResult,
    Sampling,
    Step,
    StopReason,
    Trajectory,
    TrajectoryGroup,
)

if TYPE_CHECKING:
    from torch import Tensor

    from rlhf.batch import Batch
    from rlhf.config.environment import EpisodeLimits
    from rlhf.sandbox.client import Sandbox


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """`len(seeds)` samples of one prompt; they share its prefill. Sample i is drawn with seeds[i]."""

    prompt_token_ids: tuple[int, ...]
    sampling: Sampling
    seeds: tuple[int, ...]
    images: tuple[str, ...] = ()
    """References, one for each run of image tokens in the prompt."""


class Sampler(Protocol):
    """Tokens in, tokens out."""

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """One Completion per seed, in seed order."""


class RolloutEngine(Sampler, Protocol):
    """All engines of a run behind one door. Calls made in one tick are submitted together."""

    async def forget_prefixes(self) -> None:
        """Drop cached prefixes."""

    async def probe(
        self, sequences: Sequence[Sequence[int]], images: Sequence[Sequence[str]] = ()
    ) -> list[list[list[float]]]:
        """[engine][sequence][T-1]: log-probability (temperature 1, full vocabulary) of each token after the first.

        `images` has the references of each sequence, as GenerateRequest has them; nothing: none shows any.
        """

    async def pause(self) -> None:
        """Stop decoding; requests in flight keep their place."""

    async def resume(self) -> None:
        """Go on decoding."""

    async def sleep(self) -> None:
        """Free the device (colocated placement)."""

    async def wake(self) -> None:
        """Take the device back."""

    async def close(self) -> None:
        """End every process of the engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Name, dtype name ('float32') and shape of one published tensor, in Hugging Face naming."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateMetrics:
    """What one learner update reports, already reduced over ranks and micro-batches."""

    values: Mapping[str, float] = field(default_factory=dict)
    forward_backward_s: float = 0.0
    optimizer_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """A micro-batch's share of the optimizer batch's loss, and sums for metrics (name -> (numerator, denominator)).

    Numerators and denominators are added over micro-batches, ranks and mini-batches, then divided. An entry whose
    name ends in `_max` is reduced by max instead and not divided (its quantity is >= 0; no token gives 0). An entry
    whose denominators add up to 0 saw no token and is left out. Every call gives the same names in the same order.
    """

    loss: "Tensor"
    sums: Mapping[str, "tuple[Tensor, Tensor]"] = field(default_factory=dict)


LossFunction = Callable[["Tensor", "Tensor | None", "Batch"], LossOutput]
"""(logprobs [N] with grad, 0 where not trained; entropy [N] or None; batch) -> LossOutput. Sums, never means.

A critic's loss is given its values [N] in place of the log-probabilities, and None."""


class Learner(Protocol):
    """All learner ranks behind one door. It does not know the algorithm."""

    async def update(self, minibatches: Sequence["Batch"], loss: LossFunction) -> UpdateMetrics:
        """One optimizer step per mini-batch, in order. Advantages and loss_weights must be filled in."""

    async def logprobs(
        self, batch: "Batch", *, reference: bool = False, teacher: str | None = None
    ) -> "Tensor":
        """[N] log-probabilities under the current weights, those of the frozen reference, or of one of the teachers;
        0 where not trained.
        """

    async def reset_reference(self) -> None:
        """Make the current weights the reference."""

    async def values(self, batch: "Batch") -> "tuple[Tensor, Tensor]":
        """The critic's values of the state before each trained token [N] (0 elsewhere) and after each row [B]."""

    async def update_critic(self, minibatches: Sequence["Batch"], loss: LossFunction) -> UpdateMetrics:
        """As `update`, for the critic."""

    async def probe(
        self, sequences: Sequence[Sequence[int]], images: Sequence[Sequence[str]] = ()
    ) -> list[list[float]]:
        """[sequence][T-1], as RolloutEngine.probe."""

    async def save(self, folder: str) -> None:
        """Model, optimizer, schedule and RNG into `folder` (torch DCP)."""

    async def load(self, folder: str) -> None:
        """Restore what `save` wrote, at any number of ranks."""

    async def export(self, folder: str) -> None:
        """A Hugging Face folder that vLLM and transformers load."""

    async def close(self) -> None:
        """End every rank."""


class WeightSender(Protocol):
    """The learner side of a transfer. One object per rank, made there, kept for the run."""

    def send(self, weights: Iterable["tuple[str, Tensor]"], version: int) -> Mapping[str, Any] | None:
        """Every rank iterates `weights` (a collective); rank 0 returns the engines' update info, others None."""

    def release(self) -> None:
        """Free what `send` made. Called when every engine has finished, or has failed."""


SenderFactory = Callable[[int, Sequence[TensorSpec]], WeightSender]
"""(rank, what will be sent) -> that rank's sender. Pickled to the ranks."""


class WeightSync(Protocol):
    """Moves the learner's weights into every engine, and proves it."""

    async def publish(self, version: int) -> Mapping[str, float]:
        """Put version `version` live in every engine, verified; returns metrics. Raises SyncError with the cause."""


class Reward(Protocol):
    """The composed rewards of a recipe, run in killable workers."""

    async def score(self, group: TrajectoryGroup) -> list[RewardResult]:
        """One result per trajectory, in order."""

    def metrics(self) -> Mapping[str, float]:
        """`reward/` metrics since the last call."""

    async def close(self) -> None:
        """End every worker."""


class Context(Protocol):
    """What an environment may know of its episode. One object per episode, in the episode's own process."""

    episode_id: str
    prompt: Prompt
    rng: random.Random
    """Seeded by the episode: the same in every retry."""
    limits: "EpisodeLimits"
    state: Any
    """Whatever the environment keeps here; tools find it by annotating a parameter `Context`."""
    folder: str
    """An empty folder of the episode's own, removed with it."""

    @property
    def messages(self) -> Sequence[Message]:
        """The conversation so far."""

    @property
    def sandbox(self) -> "Sandbox":
        """Where programs of the model run, as `sandbox` of the recipe has it. SandboxError when there is none."""

    @property
    def time_left_s(self) -> float:
        """Seconds until the episode ends by `limits.episode_s`."""

    def log(self, **scalars: float) -> None:
        """Numbers about the episode, averaged over episodes as `env/log/<name>`."""


class Environment(Protocol):
    """One object per episode, made in the episode's own process; methods may be plain or async.

    `close()`, where there is one, is called at the end, after an error, too, unless the process was killed;
    `score(context)`, where there is one, once, also after a limit.
    """

    def reset(self, prompt: Prompt, context: Context) -> Sequence[Message] | str | None:
        """The messages that begin the episode; a text: as the user's; None: the prompt's own."""

    def step(self, action: Message, context: Context) -> Step:
        """What follows the model's turn."""


class EpisodeOver(Exception):
    """The model does not answer any more: a limit was reached, or cut its answer.

    A function that owns its loop may catch it and return its score of what there is; one that does not gets none.
    """

    def __init__(self, stop: StopReason, last: Message | None = None) -> None:
        super().__init__(stop)
        self.stop: StopReason = stop
        self.last = last
        """What it wrote last, if that was cut."""


class Model(Protocol):
    """The policy, as an environment that is a function sees it."""

    async def __call__(self, *new: Message, max_tokens: int | None = None) -> Message:
        """Show the model messages and have it answer, in `max_tokens` (from 1) at most. EpisodeOver at a limit."""

    async def rewrite(self, messages: Sequence[Message]) -> None:
        """Go on from these messages instead: what was sampled before stays a training row. Not while it answers."""

    async def fork(self) -> "Model":
        """Another conversation that begins with what this one has said."""


class Scorer(Protocol):
    """A served reward model."""

    async def score(self, messages: Sequence[Mapping[str, str]], images: Sequence[str] = ()) -> float:
        """A scalar preference score."""


class Placement(Protocol):
    """Who holds the device when."""

    def training(self) -> AbstractAsyncContextManager[None]:
        """Entered around packing and the update. Colocated: the engine sleeps inside. Split: nothing happens."""


class PromptLedger(Protocol):
    """Hands out prompts for ever and keeps the ledger of what became of each; nothing is lost or trained twice."""

    def next(self) -> tuple[int, Prompt]:
        """(admission index, prompt); it is in flight from now on."""

    def trained(self, index: int, solved: Sequence[bool] = ()) -> None:
        """Settle an admission: the weights have learned from it. `solved` says so of each gradable attempt."""

    def discard(self, index: int, reason: str, solved: Sequence[bool] = ()) -> None:
        """Settle an admission that will not be trained on; counted by reason."""

    @property
    def in_flight(self) -> list[int]:
        """Admissions handed out (or to be handed out again) and not settled, oldest first."""

    @property
    def num_trained(self) -> int:
        """Admissions trained on so far."""

    @property
    def discarded(self) -> Mapping[str, int]:
        """Discarded admissions by reason."""

    def metrics(self) -> Mapping[str, float]:
        """What it measured since the last call."""

    def state_dict(self) -> dict[str, Any]:
        """The ledger as plain JSON."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` was called. Raises CheckpointError for other prompts or another seed."""


class RolloutFunction(Protocol):
    """Makes the trajectories of one prompt (single turn now; an environment's episode later)."""

    async def __call__(self, prompt: Prompt, *, seeds: Sequence[int], sampling: Sampling) -> list[Trajectory]:
        """One Trajectory per seed, in order, not yet scored."""
