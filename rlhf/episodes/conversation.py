"""The model's side of an episode: messages in, a message out, every token in the ledger, every limit kept."""

import asyncio
import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from rlhf.config.environment import EpisodeLimits
from rlhf.episodes.chat import ChatRenderer, Rendered, Schema
from rlhf.episodes.compaction import ASK, SHARE_LEFT_OUT, Compaction, with_summary, without_oldest
from rlhf.episodes.ledger import TokenLedger
from rlhf.episodes.parsing import Parse
from rlhf.episodes.template_check import check_template
from rlhf.errors import ConfigError, EpisodeError, ModelError
from rlhf.interfaces import GenerateRequest, Sampler
from rlhf.types import Completion, Message, Sampling, SegmentReason, StopReason, ToolCall

_LONGEST_TOKEN = 128
"""Characters that one token stands for at most, but for oddities: runs of spaces."""


class EpisodeEnded(Exception):
    """A limit was reached: nothing more is sampled in this episode."""

    def __init__(self, stop: StopReason, last: Message | None = None) -> None:
        super().__init__(stop)
        self.stop: StopReason = stop
        self.last = last
        """What was sampled last, if that was cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How messages become tokens and back: one for all episodes of a run."""

    chat: ChatRenderer
    parse: Parse
    history: Literal["append", "template"] = "append"
    compaction: Compaction = "none"
    compaction_at: float = 0.8
    """Share of limits.max_tokens at which a context is compacted."""


@dataclass(slots=True, kw_only=True)
class Policy:
    """Where an episode's turns are sampled, with what, and what of its limits is used up."""

    engine: Sampler
    sampling: Sampling
    seed: int
    limits: EpisodeLimits
    num_turns: int = 0
    num_calls: int = 0
    num_sampled: int = 0

    async def sample(self, context: tuple[int, ...], *, max_tokens: int | None = None) -> Completion:
        """The next turn. EpisodeEnded when there is no room for one."""
        room = self.room(len(context))
        request = GenerateRequest(
            prompt_token_ids=context,
            sampling=replace(self.sampling, max_tokens=min(room, max_tokens or room)),
            seeds=(turn_seed(self.seed, self.num_turns),),
        )
        self.num_turns += 1
        (completion,) = await self.engine.generate(request)
        self.num_sampled += len(completion.token_ids)
        return completion

    def room(self, num_context: int) -> int:
        """Tokens that the next turn may have."""
        limits = self.limits
        if self.num_turns >= limits.max_turns:
            raise EpisodeEnded("max_turns")
        left = limits.max_tokens - num_context
        if limits.max_sampled_tokens is not None:
            left = min(left, limits.max_sampled_tokens - self.num_sampled)
        if left <= 0:
            raise EpisodeEnded("max_tokens")
        return min(left, self.sampling.max_tokens)


def turn_seed(seed: int, turn: int) -> int:
    """The seed of one turn, in [0, 2**63): the episode's own for the first."""
    return (seed + turn * 0x9E3779B97F4A7C15) & ((1 << 63) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A turn of the model: what it meant, what was sampled, after how many tokens of context."""

    message: Message
    completion: Completion
    num_context: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mark:
    """Where a conversation stood after some of its messages, in ids."""

    segment: int
    num_ids: int
    is_asked: bool
    is_thinking: bool


@lru_cache(maxsize=64)
def _check_once(chat: ChatRenderer, tools: str) -> None:
    """Which tools there are, only an episode knows. ConfigError: no other episode would fare better."""
    try:
        check_template(chat, json.loads(tools))
    except ModelError as error:
        raise ConfigError(str(error)) from error


class Conversation:
    """One thread of messages over one segment at a time. An episode has one, or more where it forks.

    Messages become tokens when the model is asked: those shown since its last turn together, as the template wants.
    """

    def __init__(
        self, dialect: Dialect, policy: Policy, ledger: TokenLedger, *, tools: Sequence[Schema] = ()
    ) -> None:
        self._dialect = dialect
        self._policy = policy
        self._ledger = ledger
        self.tools = tuple(tools)
        """Schemas that the template shows."""
        self.messages: list[Message] = []
        """What the model sees, and what it answered."""
        self._num_written = 0
        """Messages of these that have become tokens."""
        self._seconds: list[float] = []
        """What each of the others took."""
        self._segment: int | None = None
        self._reason: SegmentReason = "start"
        """Of the segment that is opened next."""
        self._is_asked = False
        """The segment ends where the model's turn begins."""
        self._is_thinking = False
        self._marks: dict[int, _Mark] = {}
        """By the number of messages: where turns of the model began and ended."""
        self._lock = asyncio.Lock()

    async def sample(self, *new: Message, max_tokens: int | None = None) -> Message:
        """Give the model messages and have it answer. EpisodeEnded when a limit does not allow it.

        An answer that was cut by a limit is recorded and ends the episode, too: nothing can be done with half a call.
        """
        async with self._lock:
            self.show(new)
            await self._make_room()
            answer = await self._ask(max_tokens)
            if answer.completion.finish_reason != "stop":
                full = self.num_context >= self._policy.limits.max_tokens
                raise EpisodeEnded("max_tokens" if full else "length", answer.message)
            return answer.message

    async def answer(self, *, max_tokens: int | None = None) -> Answer:
        """As `sample`, for whoever owns the history: never compacted, and an answer that was cut is one like others."""
        async with self._lock:
            return await self._ask(max_tokens)

    def write(self) -> None:
        """Make tokens of what was shown, up to the model's turn. EpisodeEnded where there is no room for one."""
        if self._num_written < len(self.messages) or (self._segment is not None and not self._is_asked):
            rendered, reason = self._next()
            self._policy.room(self._length_with(rendered, reason))
            self._write(rendered, reason)
        if self._segment is None:
            raise EpisodeError("an episode must begin with a message: reset returned none")

    def show(self, new: Sequence[Message], seconds: Sequence[float] = ()) -> None:
        """Messages that the model will see when it is asked next; `seconds` is what each took to make."""
        self.messages += new
        self._seconds += seconds or [0.0] * len(new)

    def settle(self) -> None:
        """Write down what was shown and never answered, for the record; not what the context has no room for."""
        if self._num_written < len(self.messages):
            with contextlib.suppress(EpisodeEnded):
                rendered, reason = self._next()
                if self._length_with(rendered, reason) <= self._policy.limits.max_tokens:
                    self._write(rendered, reason)

    def rewrite(self, messages: Sequence[Message], reason: SegmentReason = "rewrite") -> None:
        """Go on from these messages instead: what was sampled stays a training row.

        EpisodeError while the model is answering: its turn would belong to neither history.
        """
        if self._lock.locked():
            raise EpisodeError(
                "the messages were rewritten while the model was answering them: await its answer first"
            )
        self._begin_anew(messages, reason)

    def _begin_anew(self, messages: Sequence[Message], reason: SegmentReason) -> None:
        self.messages, self._num_written = list(messages), 0
        self._seconds = [0.0] * len(messages)
        self._segment, self._reason, self._is_asked = None, reason, False
        self._marks.clear()

    def fork(self, num_messages: int | None = None) -> "Conversation":
        """Another conversation that begins with what this one has said, or with its first `num_messages`.

        Those must end where a turn of the model began or ended: there the ids are known. EpisodeError otherwise.
        """
        other = Conversation(self._dialect, self._policy, self._ledger, tools=self.tools)
        if num_messages is not None:
            other._begin_as(self, num_messages)
            return other
        other.messages, other._num_written = list(self.messages), self._num_written
        other._seconds, other._reason = list(self._seconds), self._reason
        if self._segment is not None:
            other._segment = self._ledger.open(self._ledger.context(self._segment), "fork")
            other._is_asked, other._is_thinking = self._is_asked, self._is_thinking
        other._marks = dict(self._marks)
        return other

    @property
    def num_context(self) -> int:
        """Tokens of the context, as far as it is written."""
        return 0 if self._segment is None else self._ledger.length(self._segment)

    def _begin_as(self, other: "Conversation", num_messages: int) -> None:
        mark = other._marks.get(num_messages)
        if mark is None:
            raise EpisodeError(
                f"no turn of the model begins or ends after message {num_messages} of a conversation"
            )
        self._segment = self._ledger.open(self._ledger.context(mark.segment)[: mark.num_ids], "fork")
        self._is_asked, self._is_thinking = mark.is_asked, mark.is_thinking
        self.messages, self._num_written = other.messages[:num_messages], num_messages
        self._marks = {place: known for place, known in other._marks.items() if place <= num_messages}

    async def _ask(self, max_tokens: int | None = None) -> Answer:
        """The model's turn, recorded."""
        self.write()
        assert self._segment is not None
        context = self._ledger.context(self._segment)
        began = time.perf_counter()
        completion = await self._policy.sample(context, max_tokens=max_tokens)
        message = self._read(completion)
        seconds = time.perf_counter() - began
        self._ledger.append(self._segment, completion, seen=context, message=message, seconds=seconds)
        self._is_asked = False
        # Others may have been shown meanwhile.
        self.messages.insert(self._num_written, message)
        self._num_written += 1
        self._mark()
        return Answer(message=message, completion=completion, num_context=len(context))

    def _mark(self) -> None:
        assert self._segment is not None
        self._marks[self._num_written] = _Mark(
            segment=self._segment,
            num_ids=self.num_context,
            is_asked=self._is_asked,
            is_thinking=self._is_thinking,
        )

    def _next(self) -> tuple[Rendered, SegmentReason | None]:
        """What would be written now, and why in a new segment, if so. EpisodeEnded for what can have no room."""
        chat, new = self._dialect.chat, self.messages[self._num_written :]
        reason = self._reason_to_begin(new)
        tools = json.dumps(self.tools) if reason else ""
        most = self._policy.limits.max_tokens * _LONGEST_TOKEN
        if len(tools) + sum(map(_num_characters, self.messages if reason else new)) > most:
            # Not to be tokenised: that would keep all other episodes waiting.
            raise EpisodeEnded("max_tokens")
        if self._segment is None:
            _check_once(chat, tools)
        elif reason is None:
            return chat.extend(new, self.tools, after=self._ledger.last_id(self._segment)), None
        return chat.start(self.messages, self.tools), reason

    def _reason_to_begin(self, new: Sequence[Message]) -> SegmentReason | None:
        """Why what is written next, with these messages, begins a segment; None: it goes on."""
        if self._segment is None:
            return self._reason
        if self._is_asked:
            # Nothing can follow the opening of a turn that never came.
            return "rewrite"
        if self._dialect.history == "template" and self._would_drop(new):
            return "template"
        return None

    def _length_with(self, rendered: Rendered, reason: SegmentReason | None) -> int:
        return len(rendered.token_ids) + (0 if reason else self.num_context)

    def _write(self, rendered: Rendered, reason: SegmentReason | None) -> None:
        new = self.messages[self._num_written :]
        if reason is None:
            assert self._segment is not None
            self._ledger.observe(self._segment, rendered.token_ids, messages=new, seconds=self._seconds)
        elif self._num_written == 0:
            self._segment = self._ledger.open(rendered.token_ids, reason)
        else:
            self._segment = self._ledger.open((), reason)
            self._ledger.observe(self._segment, rendered.token_ids, messages=new, seconds=self._seconds)
        self._num_written, self._seconds = len(self.messages), []
        self._is_asked, self._is_thinking = True, rendered.is_thinking
        if new:
            self._mark()

    async def _make_room(self) -> None:
        """Compact a context that has become too long, as the recipe says."""
        how = self._dialect.compaction
        if how == "none" or self._num_written in (0, len(self.messages)):
            return
        full = self._dialect.compaction_at * self._policy.limits.max_tokens
        if self._length_with(*self._next()) < full:
            return
        if how == "summary" and (summary := await self._summary()) is not None:
            self._begin_anew(with_summary(self.messages, summary), "compaction")
            return
        for share in (SHARE_LEFT_OUT.get(how, 0.75), 1.0):
            shorter = without_oldest(self.messages, share)
            if shorter == self.messages:
                return
            self._begin_anew(shorter, "compaction")
            if self._length_with(*self._next()) < full:
                return

    async def _summary(self) -> str | None:
        """The model's own, sampled at the end of the full context; None where there is no room for one."""
        asked = len(self.messages)
        self.show([ASK])
        room = self._policy.limits.max_tokens - self._length_with(*self._next())
        if room < self._policy.limits.max_tokens // 20:
            del self.messages[asked:], self._seconds[-1:]
            return None
        summary = (await self._ask()).message.content
        del self.messages[asked:]
        return summary

    def _would_drop(self, new: Sequence[Message]) -> bool:
        """Whether the template shows less of what was thought once these messages have come."""
        if not (self._dialect.chat.drops_thoughts and any(m.role == "user" for m in new)):
            return False
        known = self.messages[: self._num_written]
        last = max((i for i, m in enumerate(known) if m.role == "user"), default=0)
        return any(m.reasoning is not None for m in known[last:])

    def _read(self, completion: Completion) -> Message:
        text = self._dialect.chat.text(completion.token_ids)
        message = self._dialect.parse(text, is_thinking=self._is_thinking, tools=self.tools)
        return replace(message, tool_calls=tuple(map(self._numbered, message.tool_calls)))

    def _numbered(self, call: ToolCall) -> ToolCall:
        # Nine letters and digits: what the strictest templates ask for.
        self._policy.num_calls += 1
        return replace(call, id=f"call{self._policy.num_calls:05d}")


def _num_characters(message: Message) -> int:
    calls = [(call.name, call.arguments) for call in message.tool_calls]
    return len(message.content) + len(message.reasoning or "") + len(json.dumps(calls) if calls else "")
