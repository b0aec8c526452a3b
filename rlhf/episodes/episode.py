"""One attempt at an episode: what its process asks for, and every deadline of it."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

from rlhf.config.environment import EnvironmentConfig
from rlhf.episodes.chat import Schema
from rlhf.episodes.context import Start
from rlhf.episodes.conversation import Conversation, Dialect, EpisodeEnded, Policy
from rlhf.episodes.endpoint import RolloutServer
from rlhf.episodes.endpoint_session import Session
from rlhf.episodes.heard import checked, messages_of
from rlhf.episodes.host import EnvironmentHost, EpisodeGone, EpisodeProcess, Phases
from rlhf.episodes.ledger import TokenLedger
from rlhf.errors import EpisodeError, ModelError
from rlhf.types import STATUS_OF, Message, Prompt, StopReason, Turn

_SLACK_S = 2.0
Watch = Callable[[Mapping[str, Any]], None]
"""Given every message of an episode's process, as it comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How an attempt at an episode ended."""

    stop: StopReason
    score: Mapping[str, float] | None = None
    """In parts, none of them where it was not scored; None: not gradable."""
    scalars: Mapping[str, float] | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What the episodes of a run are played on: one for all of them."""

    host: EnvironmentHost
    server: RolloutServer
    dialect: Dialect
    config: EnvironmentConfig
    watch: Watch = lambda _: None


class Episode:
    """One attempt: a process that plays, conversations that are sampled, and the deadlines of both."""

    def __init__(self, stage: Stage, policy: Policy, ledger: TokenLedger) -> None:
        self._stage = stage
        self._config = stage.config
        self._policy = policy
        self._ledger = ledger
        self._open = AsyncExitStack()
        self._session: Session | None = None
        """Where a program of its own asks the model."""
        self._threads: list[Conversation] = []
        self._phases = Phases(policy.limits.episode_s)
        self._after = {"score", "close"}
        """What may still come after the end."""
        self._stop: StopReason | None = None
        """Decided here, and not in the episode's process."""
        self._limit: StopReason | None = None
        """Why the model did not answer, or only in part, when it was asked last."""
        self._is_over_time = False
        """Its time has passed while it was at work between two questions: the next one is not answered."""
        self._hung: list[str] = []
        """Calls that hung since the model spoke last."""
        self._sampling: dict[asyncio.Task[None], int | None] = {}
        """With the numbers of the questions that they answer."""
        self._serving: set[asyncio.Task[None]] = set()
        """Ends when a program is answered no more; raises what ends the run."""

    async def play(self, prompt: Prompt, episode_id: str) -> Verdict:
        """Play to the end, whatever that is."""
        try:
            process = await self._stage.host.open()
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
            await end_tasks([*self._sampling, *self._serving])
            await self._open.aclose()
            await process.end()

    async def _serve(self, process: EpisodeProcess) -> Verdict:
        verdict: Verdict | None = None
        hearing = asyncio.create_task(process.hear())
        try:
            while verdict is None:
                name, ends = self._phases.next_deadline()
                done, _ = await asyncio.wait(
                    {hearing, *self._sampling, *self._serving},
                    timeout=max(0.0, ends - time.monotonic()),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in [task for task in (*self._sampling, *self._serving) if task.done()]:
                    self._sampling.pop(task, None)
                    self._serving.discard(task)
                    task.result()
                if hearing in done:
                    verdict = self._obey(checked(hearing.result()), process)
                    hearing = asyncio.create_task(process.hear())
                elif not done:
                    verdict = await self._late(name, process)
            return verdict
        finally:
            await end_tasks([hearing])

    async def _late(self, name: str, process: EpisodeProcess) -> Verdict | None:
        """A deadline has passed. What hangs is killed; its checkpoint, if it kept one, will speak up."""
        if self._stop is not None or name in ("reset", "score", "close"):
            what = name or "what came after the end of the episode"
            return Verdict(stop="env_error", error=f"{what} took too long. {process.output()}")
        is_waiting = bool(self._sampling)
        if not (name or is_waiting or self._is_over_time):
            self._is_over_time = True
            self._phases.ends += _SLACK_S
            return None
        if not name:
            self._out_of_time()
        elif name == "step" or self._hung or self._config.on_tool_timeout == "end":
            self._stop = "tool_timeout"
        else:
            self._hung = [name]
        if is_waiting and not name:
            asked = list(self._sampling.values())
            await end_tasks(self._sampling)
            self._sampling.clear()
            for number in asked:
                process.tell({"id": number, "ended": self._stop})
        else:
            self._phases.clear()
            process.kill()
        return None

    def _out_of_time(self) -> None:
        self._stop = "episode_timeout"
        self._phases.ends = time.monotonic() + self._policy.limits.score_s

    def _gone(self, process: EpisodeProcess) -> Verdict:
        if self._stop is None and self._hung:
            self._stop = "tool_timeout"
        if self._stop is not None:
            return Verdict(
                stop=self._stop, score={}, error="killed, and nothing was kept that could be scored"
            )
        where = self._phases.name() or "between two turns"
        return Verdict(stop="env_error", error=f"its process died in {where}. {process.output()}")

    def _obey(self, message: Mapping[str, Any], process: EpisodeProcess) -> Verdict | None:
        self._stage.watch(message)
        match message:
            case {"do": "enter", "phase": phase, "name": name, "limit_s": limit_s}:
                self._phases.enter(phase, name, limit_s)
                if name in self._after:
                    # Outside the time that the episode itself has, and each but once: the name is only claimed.
                    self._after.remove(name)
                    ends = time.monotonic() + self._policy.limits.score_s + _SLACK_S
                    self._phases.ends = max(self._phases.ends, ends)
            case {"do": "leave", "phase": phase}:
                self._phases.leave(phase)
            case {"do": "reward", "value": value}:
                self._ledger.reward(value)
            case {"do": "restored", "pid": pid}:
                return self._restored(int(pid), process)
            case {"do": "done"}:
                return self._done(message)
            case {"do": "failed"}:
                return Verdict(stop="env_error", error=f"{message['error']}\n{message['trace']}")
            case _:
                self._answer(message, process)
        return None

    def _answer(self, message: Mapping[str, Any], process: EpisodeProcess) -> None:
        """What the process asks of the model's side."""
        match message["do"]:
            case "sample" if self._is_over_time:
                self._out_of_time()
                process.tell({"id": message["id"], "ended": self._stop})
            case "sample":
                self._hung.clear()
                self._limit = None
                self._begin(self._sample(message, process), message)
            case "serve":
                self._begin(self._serve_program(process), message)
            case "messages":
                ended = None if self._session is None else self._session.ended
                process.tell({"messages": [asdict(m) for m in self._messages()], "ended": ended})
            case "rewrite":
                self._thread(message).rewrite(messages_of(message["messages"]))
                process.tell({"id": message["id"]})
            case "fork":
                self._threads.append(self._thread(message).fork())
                process.tell({"id": message["id"], "thread": len(self._threads) - 1})

    def _begin(self, work: Coroutine[Any, Any, None], message: Mapping[str, Any]) -> None:
        self._sampling[asyncio.create_task(work)] = message.get("id")

    def _done(self, message: Mapping[str, Any]) -> Verdict:
        scalars, stop = dict(message["scalars"]), self._stop or message["stop"]
        if stop == "stop":
            # Whoever owns its loop may go on to a score of its own.
            stop = self._limit or "stop"
        if self._session is not None:
            scalars |= self._session.scalars
            if stop == "stop":
                stop = self._session.stop
            if self._session.error:
                return Verdict(stop="policy_error", error=self._session.error)
            failed = message.get("exit_code") not in (0, None) and self._session.ended is None
            if failed and self._session.num_answers == 0:
                what = f"the program ended with code {message['exit_code']} before it asked the model"
                return Verdict(stop="env_error", error=f"{what}: {message['stderr']}")
        is_scored = self._config.score_truncated or STATUS_OF[stop] != "truncated"
        return Verdict(stop=stop, score=message["score"] if is_scored else {}, scalars=scalars)

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
            self._threads.append(Conversation(self._stage.dialect, self._policy, self._ledger))
        thread: int = message["thread"]
        if not 0 <= thread < len(self._threads):
            raise EpisodeError(f"there is no conversation {thread}")
        return self._threads[thread]

    async def _serve_program(self, process: EpisodeProcess) -> None:
        """Open an endpoint of the episode's own for a program that asks the model by HTTP."""
        await self._stage.server.start()
        self._session = await self._open.enter_async_context(
            self._stage.server.episode(self._policy, ledger=self._ledger)
        )
        self._serving.add(asyncio.create_task(self._session.outlast()))
        process.tell({"base_url": self._session.base_url, "api_key": self._session.api_key})

    def _messages(self) -> Sequence[Message]:
        longest = self._longest()
        return [] if longest is None else longest.messages

    def _longest(self) -> Conversation | None:
        threads = self._threads if self._session is None else self._session.threads
        return max(threads, key=lambda thread: len(thread.messages), default=None)

    async def _sample(self, message: Mapping[str, Any], process: EpisodeProcess) -> None:
        reply: dict[str, Any] = {"id": message.get("id")}
        try:
            reply["message"] = asdict(await self._turn(message))
        except EpisodeEnded as end:
            self._limit = end.stop
            reply |= {"ended": end.stop, "message": None if end.last is None else asdict(end.last)}
        process.tell(reply)

    async def _turn(self, message: Mapping[str, Any]) -> Message:
        conversation = self._thread(message)
        conversation.tools = tuple(message.get("tools") or conversation.tools)
        new = [self._cut(m) for m in messages_of(message["messages"])]
        conversation.show(new, message.get("seconds") or ())
        if self._config.on_tool_timeout == "end" and any(m.failure == "timeout" for m in new):
            raise EpisodeEnded("tool_timeout")
        return await conversation.sample(max_tokens=message.get("max_tokens"))

    def _cut(self, message: Message) -> Message:
        """A tool's message with at most `max_tool_result_tokens`, from its middle."""
        most = self._policy.limits.max_tool_result_tokens
        if message.role != "tool" or len(message.content.encode()) <= most:
            return message
        content = self._stage.dialect.chat.shortened(message.content, most)
        return replace(message, content=content)

    @property
    def tools(self) -> tuple[Schema, ...]:
        """What the model was offered."""
        longest = self._longest()
        return () if longest is None else longest.tools

    def opening(self, turns: Sequence[Turn]) -> tuple[Message, ...]:
        """What came before the first turn."""
        longest = self._longest()
        if longest is None or not turns:
            return ()
        # The very message: another may read the same.
        return tuple(itertools.takewhile(lambda m: m is not turns[0].message, longest.messages))

    def settle(self) -> None:
        """Write down what was shown to the model and never answered."""
        with contextlib.suppress(ModelError):
            for thread in self._threads:
                thread.settle()


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel them, and wait until they have cleared up."""
    found = list(tasks)
    for task in found:
        task.cancel()
    await asyncio.gather(*found, return_exceptions=True)
