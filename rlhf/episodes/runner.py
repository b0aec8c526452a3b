"""Run one prompt's episodes: every wait has a deadline, every ending one row in `rlhf.types.STATUS_OF`."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from rlhf.config.environment import EnvironmentConfig, EpisodeLimits
from rlhf.episodes.conversation import Dialect, Policy
from rlhf.episodes.endpoint import RolloutServer
from rlhf.episodes.episode import Episode, Stage, Verdict, Watch, end_tasks
from rlhf.episodes.host import EnvironmentHost
from rlhf.episodes.ledger import TokenLedger
from rlhf.episodes.lockstep import Lockstep
from rlhf.episodes.render import Renderer
from rlhf.errors import DataError
from rlhf.interfaces import GenerateRequest, Sampler
from rlhf.types import (
    STATUS_OF,
    Completion,
    Dropped,
    Message,
    Outcome,
    Prompt,
    RewardResult,
    Sampling,
    Trajectory,
)

logger = logging.getLogger(__name__)


class SingleTurn:
    """One question, one answer: an interfaces.RolloutFunction.

    Where `engine` is the rounds of episodes beside it, its requests wait for theirs and go in the same rounds.
    """

    def __init__(self, engine: Sampler | Lockstep, *, renderer: Renderer) -> None:
        self._engine = engine
        self._renderer = renderer

    async def __call__(self, prompt: Prompt, *, seeds: Sequence[int], sampling: Sampling) -> list[Trajectory]:
        """One trajectory per seed, in order; all samples go to the engine as one request."""
        ids = self._renderer.encode_prompt(prompt)
        request = GenerateRequest(
            prompt_token_ids=ids, sampling=sampling, seeds=tuple(seeds), images=prompt.images
        )
        completions = await self._ask(request)
        samples = enumerate(zip(completions, seeds, strict=True))
        return [self._record(request, completion, index=i, seed=seed) for i, (completion, seed) in samples]

    async def _ask(self, request: GenerateRequest) -> list[Completion]:
        if not isinstance(self._engine, Lockstep):
            return await self._engine.generate(request)
        try:
            return await self._engine.enter().generate(request)
        finally:
            self._engine.leave()

    def _record(
        self, request: GenerateRequest, completion: Completion, *, index: int, seed: int
    ) -> Trajectory:
        ledger, ids = TokenLedger(), request.prompt_token_ids
        segment = ledger.open(ids, images=request.images)
        message = Message(role="assistant", content=self._renderer.decode(completion.token_ids))
        ledger.append(segment, completion, seen=ids, message=message)
        segments, turns, _ = ledger.finish()
        return Trajectory(
            segments=segments,
            turns=turns,
            stop=completion.finish_reason,
            sample_index=index,
            seed=seed,
            seal=ledger.seal,
        )


class EpisodeRunner:
    """Episodes in an environment: an interfaces.RolloutFunction.

    Episodes of one group are independent: what happens to one changes nothing for its siblings. With
    `config.lockstep` the turns of all episodes are sampled in rounds.
    """

    def __init__(
        self,
        engine: Sampler | Lockstep,
        host: EnvironmentHost,
        *,
        dialect: Dialect,
        config: EnvironmentConfig,
        watch: Watch = lambda _: None,
    ) -> None:
        """`engine` may be the rounds themselves, which are then shared with what else asks in them."""
        if config.lockstep and not isinstance(engine, Lockstep):
            engine = Lockstep(engine)
        self._engine = engine
        self._config = config
        self._stage = Stage(
            host=host, server=RolloutServer(dialect), dialect=dialect, config=config, watch=watch
        )
        self._places = asyncio.Semaphore(config.max_live)
        self._queue = engine.new_queue(config.max_live) if isinstance(engine, Lockstep) else 0

    async def __call__(self, prompt: Prompt, *, seeds: Sequence[int], sampling: Sampling) -> list[Trajectory]:
        """One trajectory per seed, in order."""
        limits = limits_of(prompt, self._config.limits)
        episodes = []
        for index, seed in enumerate(seeds):
            rounds = self._engine
            engine = rounds.enter(self._queue) if isinstance(rounds, Lockstep) else rounds
            policy = Policy(engine=engine, sampling=sampling, seed=seed, limits=limits)
            episodes.append(asyncio.create_task(self._sample(prompt, index=index, fresh=policy)))
            if isinstance(rounds, Lockstep):
                episodes[-1].add_done_callback(partial(rounds.leave, queue=self._queue))
        try:
            return list(await asyncio.gather(*episodes))
        finally:
            # gather leaves the others running when one fails, or when it is cancelled itself.
            await end_tasks(episodes)

    async def close(self) -> None:
        """Stop answering programs."""
        await self._stage.server.close()

    async def _sample(self, prompt: Prompt, *, index: int, fresh: Policy) -> Trajectory:
        """An episode, tried again with a copy of the same policy while it ends in an error."""
        lost: list[Dropped] = []
        for attempt in range(self._config.retries + 1):
            async with self._places:
                ledger = TokenLedger(lost)
                episode = Episode(self._stage, replace(fresh), ledger)
                verdict = await episode.play(prompt, f"{prompt.id}/{index}/{attempt}")
            episode.settle()
            found = _record(ledger, verdict, index=index, seed=fresh.seed)
            if found.status != "error" or attempt == self._config.retries:
                opening = episode.opening(found.turns)
                return replace(found, attempt=attempt, opening=opening, tools=episode.tools)
            logger.warning("episode %s/%d, attempt %d: %s", prompt.id, index, attempt, verdict.error)
            if ledger.num_sampled:
                lost.append(Dropped(num_tokens=ledger.num_sampled, reason=found.stop))
        raise AssertionError("the last attempt returns")


class ScenarioRollout:
    """Rolls a prompt out as its scenario asks: an interfaces.RolloutFunction."""

    def __init__(self, runners: Mapping[str, EpisodeRunner], *, otherwise: SingleTurn) -> None:
        """`runners` by scenario; the prompts of all others are answered by `otherwise`."""
        self._runners = runners
        self._otherwise = otherwise

    async def __call__(self, prompt: Prompt, *, seeds: Sequence[int], sampling: Sampling) -> list[Trajectory]:
        """One trajectory per seed, in order."""
        chosen = self._runners.get(prompt.scenario, self._otherwise)
        return await chosen(prompt, seeds=seeds, sampling=sampling)

    async def close(self) -> None:
        """Stop answering programs."""
        for runner in self._runners.values():
            await runner.close()


def _record(ledger: TokenLedger, verdict: Verdict, *, index: int, seed: int) -> Trajectory:
    """The trajectory of an episode, its laws checked, with the environment's own reward."""
    segments, turns, dropped = ledger.finish()
    return Trajectory(
        segments=segments,
        turns=turns,
        stop=verdict.stop,
        sample_index=index,
        seed=seed,
        reward=_reward(verdict, sum(turn.reward for turn in turns)),
        dropped=dropped,
        seal=ledger.seal,
        error=verdict.error,
        scalars=dict(verdict.scalars or {}),
        is_episode=True,
    )


def _reward(verdict: Verdict, of_turns: float) -> RewardResult:
    status = STATUS_OF[verdict.stop]
    score = verdict.score
    if status == "error" or score is None:
        outcome: Outcome = "error" if status == "error" else "not_applicable"
        return RewardResult(
            value=None, outcome=outcome, detail={"stop": verdict.stop, "error": verdict.error[:500]}
        )
    parts = {"turns": of_turns, **score}
    value = of_turns + score.get("score", 0.0)
    return RewardResult(
        value=value,
        outcome="limit" if status == "truncated" else "ok",
        parts=parts,
        detail={"stop": verdict.stop},
    )


def limits_of(prompt: Prompt, limits: EpisodeLimits) -> EpisodeLimits:
    """The run's limits, tightened by the row's column `limits`. DataError for one that is not understood."""
    asked = prompt.columns.get("limits")
    if asked is None:
        return limits
    try:
        return limits.tightened(dict(asked))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"prompt {prompt.id}: column `limits` is {asked!r:.200}, expected a mapping of names of "
            f"task.environment.limits to lower values: {error}"
        ) from error
