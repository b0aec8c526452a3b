"""Run one prompt's episodes: every wait has a deadline, every ending one row in `rlhf.types.STATUS_OF`."""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rlhf.config.environment import EnvironmentConfig, EpisodeLimits
from rlhf.episodes.context import Start
from rlhf.episodes.conversation import Conversation, Dialect, EpisodeEnded, Policy
from rlhf.episodes.host import EnvironmentHost, EpisodeGone, EpisodeProcess, Phases
from rlhf.episodes.ledger import TokenLedger
from rlhf.episodes.render import Renderer
from rlhf.errors import DataError, EpisodeError, ModelError
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
    StopReason,
    Trajectory,
    message_of,
)

logger = logging.getLogger(__name__)


class SingleTurn:
    """One question, one answer: an interfaces.RolloutFunction."""

    def __init__(self, engine: Sampler, *, renderer: Renderer) -> None:
        self._engine = engine
        self._renderer = renderer

    async def __call__(self, prompt: Prompt, *, seeds: Sequence[int], sampling: Sampling) -> list[Trajectory]:
        """One trajectory per seed, in order; all samples go to the engine as one request."""
        ids = self._renderer.encode_prompt(prompt)
        request = GenerateRequest(prompt_token_ids=ids, sampling=sampling, seeds=tuple(seeds))
        completions = await self._engine.generate(request)
        samples = enumerate(zip(completions, seeds, strict=True))
        return [self._record(ids, completion, index=i, seed=seed) for i, (completion, seed) in samples]

    def _record(self, ids: tuple[int, ...], completion: Completion, *, index: int, seed: int) -> Trajectory:
        ledger = TokenLedger()
        segment = ledger.open(ids)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How an attempt at an episode ended."""

    stop: StopReason
    score: Mapping[str, float] | None = None
    """In parts; None: not gradable, or not scored."""
    scalars: Mapping[str, float] | None = None
    error: str = ""


class EpisodeRunner:
    """Episodes in an environment: an interfaces.RolloutFunction.

    Episodes of one group are independent: what happens to one changes nothing for its siblings.
    """

    def __init__(
        self, engine: Sampler, host: EnvironmentHost, *, dialect: Dialect, config: EnvironmentConfig
    ) -> None:
        self._engine = engine
        self._host = host
        self._dialect = dialect
        self._config = config
        self._places = asyncio.Semaphore(config.max_live)

    async def __call__(self, prompt: Prompt, *, seeds: Sequence[int], sampling: Sampling) -> list[Trajectory]:
        """One trajectory per seed, in order."""
        limits = limits_of(prompt, self._config.limits)
        episodes = [
            self._sample(prompt, index=index, seed=seed, sampling=sampling, limits=limits)
            for index, seed in enumerate(seeds)
        ]
        return list(await asyncio.gather(*episodes))

    async def _sample(
        self, prompt: Prompt, *, index: int, seed: int, sampling: Sampling, limits: EpisodeLimits
    ) -> Trajectory:
        """An episode, tried again with the same seed while it ends in an error."""
        lost: list[Dropped] = []
        for attempt in range(self._config.retries + 1):
            policy = Policy(engine=self._engine, sampling=sampling, seed=seed, limits=limits)
            async with self._places:
                episode = _Episode(self._host, self._dialect, policy, self._config)
                episode.ledger = TokenLedger(lost)
                verdict = await episode.play(prompt, f"{prompt.id}/{index}/{attempt}")
            found = _record(episode.ledger, verdict, index=index, seed=seed)
            if found.status != "error" or attempt == self._config.retries:
                return replace(found, attempt=attempt)
            logger.warning("episode %s/%d, attempt %d: %s", prompt.id, index, attempt, verdict.error)
            if episode.ledger.num_sampled:
                lost.append(Dropped(num_tokens=episode.ledger.num_sampled, reason=found.stop))
        raise AssertionError("the last attempt returns")


class _Episode:
    """One attempt: a process that plays, conversations that are sampled, and the deadlines of both."""

    def __init__(
        self, host: EnvironmentHost, dialect: Dialect, policy: Policy, config: EnvironmentConfig
    ) -> None:
        self._host = host
        self._dialect = dialect
        self._policy = policy
        self._config = config
        self.ledger = TokenLedger()
        self._threads: list[Conversation] = []
        self._phases = Phases(policy.limits.episode_s)
        self._stop: StopReason | None = None
        """Decided here, and not in the episode's process."""
        self._hung: list[str] = []
        """Calls that hung since the model spoke last."""
        self._sampling: dict[asyncio.Task[None], int | None] = {}
        """With the numbers of the questions that they answer."""

    async def play(self, prompt: Prompt, episode_id: str) -> Verdict:
        """Play to the end, whatever that is."""
        try:
            process = await self._host.open()
        except (EpisodeError, TimeoutError, OSError) as error:
            return Verdict(stop="env_error", error=f"no process for the episode: {error!r}")
        start = Start(
            episode_id=episode_id,
            prompt=prompt,
            seed=self._policy.seed,
            limits=self._policy.limits,
            scores_truncated=self._config.score_truncated,
        )
        try:
            process.begin(start)
            return await self._serve(process)
        except EpisodeGone:
            return self._gone(process)
        except (EpisodeError, ModelError) as error:
            # What the environment said cannot be shown to this model.
            return Verdict(stop="env_error", error=str(error))
        finally:
            await _cancel(self._sampling)
            await process.end()

    async def _serve(self, process: EpisodeProcess) -> Verdict:
        verdict: Verdict | None = None
        hearing = asyncio.create_task(process.hear())
        try:
            while verdict is None:
                name, ends = self._phases.next_deadline()
                done, _ = await asyncio.wait(
                    {hearing, *self._sampling},
                    timeout=max(0.0, ends - time.monotonic()),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in [task for task in self._sampling if task.done()]:
                    del self._sampling[task]
                    task.result()
                if hearing in done:
                    verdict = self._obey(hearing.result(), process)
                    hearing = asyncio.create_task(process.hear())
                elif not done:
                    verdict = await self._late(name, process)
            return verdict
        finally:
            await _cancel([hearing])

    async def _late(self, name: str, process: EpisodeProcess) -> Verdict | None:
        """A deadline has passed. What hangs is killed; its checkpoint, if it kept one, will speak up."""
        if self._stop is not None or name in ("reset", "score", "close"):
            what = name or "what came after the end of the episode"
            return Verdict(stop="env_error", error=f"{what} took too long. {process.output()}")
        is_waiting = bool(self._sampling)
        if not name:
            self._stop = "episode_timeout"
            self._phases.ends = time.monotonic() + self._policy.limits.score_s
        elif name == "step" or self._hung or self._config.on_tool_timeout == "end":
            self._stop = "tool_timeout"
        else:
            self._hung = [name]
        if is_waiting and self._stop == "episode_timeout":
            asked = list(self._sampling.values())
            await _cancel(self._sampling)
            self._sampling.clear()
            for number in asked:
                process.tell({"id": number, "ended": self._stop})
        else:
            self._phases.clear()
            process.kill()
        return None

    def _gone(self, process: EpisodeProcess) -> Verdict:
        if self._stop is None and self._hung:
            self._stop = "tool_timeout"
        if self._stop is not None:
            return Verdict(stop=self._stop, error="killed, and nothing was kept that could be scored")
        where = self._phases.name() or "between two turns"
        return Verdict(stop="env_error", error=f"its process died in {where}. {process.output()}")

    def _obey(self, message: Mapping[str, Any], process: EpisodeProcess) -> Verdict | None:
        match message:
            case {"do": "enter", "phase": phase, "name": name, "limit_s": limit_s}:
                self._phases.enter(phase, name, limit_s)
            case {"do": "leave", "phase": phase}:
                self._phases.leave(phase)
            case {"do": "sample"}:
                self._hung.clear()
                task = asyncio.create_task(self._sample(message, process))
                self._sampling[task] = message.get("id")
            case {"do": "rewrite"}:
                self._thread(message).rewrite([message_of(m) for m in message["messages"]])
                process.tell({"id": message["id"]})
            case {"do": "fork"}:
                self._threads.append(self._thread(message).fork())
                process.tell({"id": message["id"], "thread": len(self._threads) - 1})
            case {"do": "reward", "value": value}:
                self.ledger.reward(value)
            case {"do": "restored", "pid": pid}:
                return self._restored(int(pid), process)
            case {"do": "done"}:
                stop = self._stop or message["stop"]
                return Verdict(stop=stop, score=message["score"], scalars=message["scalars"])
            case {"do": "failed"}:
                return Verdict(stop="env_error", error=f"{message['error']}\n{message['trace']}")
        return None

    def _restored(self, pid: int, process: EpisodeProcess) -> Verdict | None:
        """A checkpoint has woken, because the process before it is gone."""
        process.pid = pid
        if self._stop is not None:
            process.tell({"go": "score", "stop": self._stop})
        elif self._hung:
            process.tell({"go": "on", "hung": self._hung})
        else:
            return self._gone(process)
        return None

    def _thread(self, message: Mapping[str, Any]) -> Conversation:
        if not self._threads:
            self._threads.append(Conversation(self._dialect, self._policy, self.ledger))
        thread: int = message["thread"]
        return self._threads[thread]

    async def _sample(self, message: Mapping[str, Any], process: EpisodeProcess) -> None:
        conversation = self._thread(message)
        conversation.tools = tuple(message.get("tools") or conversation.tools)
        reply: dict[str, Any] = {"id": message.get("id")}
        conversation.show([message_of(m) for m in message["messages"]], message.get("seconds", ()))
        try:
            reply["message"] = asdict(await conversation.sample(max_tokens=message.get("max_tokens")))
        except EpisodeEnded as end:
            reply |= {"ended": end.stop, "message": None if end.last is None else asdict(end.last)}
        process.tell(reply)


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    found = list(tasks)
    for task in found:
        task.cancel()
    await asyncio.gather(*found, return_exceptions=True)


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
    if status == "error" or (score is None and status == "ok"):
        outcome: Outcome = "error" if status == "error" else "not_applicable"
        return RewardResult(
            value=None, outcome=outcome, detail={"stop": verdict.stop, "error": verdict.error[:500]}
        )
    parts = {"turns": of_turns, **(score or {})}
    value = of_turns + (score or {}).get("score", 0.0)
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
