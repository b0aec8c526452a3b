"""The model's side of an episode: messages in, a message out, every token in the ledger, every limit kept."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rlhf.config.environment import EpisodeLimits
from rlhf.episodes.chat import ChatRenderer, Schema, opens_thoughts
from rlhf.episodes.ledger import TokenLedger
from rlhf.episodes.parsing import Parse
from rlhf.errors import EpisodeError
from rlhf.interfaces import GenerateRequest, RolloutEngine
from rlhf.types import Completion, Message, Sampling, SegmentReason, StopReason, ToolCall


class EpisodeEnded(Exception):
    """A limit was reached: nothing more is sampled in this episode."""

    def __init__(self, stop: StopReason) -> None:
        super().__init__(stop)
        self.stop: StopReason = stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How messages become tokens and back: one for all episodes of a run."""

    chat: ChatRenderer
    parse: Parse
    history: Literal["append", "template"] = "append"


@dataclass(slots=True, kw_only=True)
class Policy:
    """Where an episode's turns are sampled, with what, and what of its limits is used up."""

    engine: RolloutEngine
    sampling: Sampling
    seed: int
    limits: EpisodeLimits
    num_turns: int = 0
    num_calls: int = 0
    num_sampled: int = 0

    async def sample(self, context: tuple[int, ...], max_tokens: int | None = None) -> Completion:
        """The next turn, of `max_tokens` at most. EpisodeEnded when there is no room for one."""
        room = self.room(len(context))
        request = GenerateRequest(
            prompt_token_ids=context,
            sampling=replace(self.sampling, max_tokens=room if max_tokens is None else min(room, max_tokens)),
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
        return min(left, limits.max_turn_tokens, self.sampling.max_tokens)


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
    is_closed: bool
    is_thinking: bool
    is_open: bool
    """The ids end where the model's turn begins."""


class Conversation:
    """One thread of messages over one segment at a time. An episode has one, or more where it forks."""

    def __init__(
        self, dialect: Dialect, policy: Policy, ledger: TokenLedger, *, tools: Sequence[Schema] = ()
    ) -> None:
        self._dialect = dialect
        self._policy = policy
        self._ledger = ledger
        self.tools = tuple(tools)
        """Schemas that the template shows."""
        self.messages: list[Message] = []
        """As the model was shown them, and what it answered."""
        self._segment: int | None = None
        self._is_closed = True
        self._is_thinking = False
        self._is_open = False
        self._marks: dict[int, _Mark] = {}
        """By the number of messages."""
        self._lock = asyncio.Lock()

    async def sample(self, *new: Message, max_tokens: int | None = None) -> Message:
        """Give the model messages and have it answer. EpisodeEnded when a limit does not allow it.

        An answer that was cut by a limit is recorded and ends the episode, too: nothing can be done with half a call.
        """
        answer = await self.answer(*new, max_tokens=max_tokens)
        if answer.completion.finish_reason == "length":
            num_tokens = answer.num_context + len(answer.completion.token_ids)
            raise EpisodeEnded("max_tokens" if num_tokens >= self._policy.limits.max_tokens else "length")
        return answer.message

    async def answer(self, *new: Message, max_tokens: int | None = None) -> Answer:
        """As `sample`, but an answer that was cut is given like any other, and can be gone on from."""
        async with self._lock:
            self.show(new)
            assert self._segment is not None
            context = self._ledger.context(self._segment)
            began = time.perf_counter()
            completion = await self._policy.sample(context, max_tokens)
            message = self._read(completion)
            self._ledger.append(
                self._segment,
                completion,
                seen=context,
                message=message,
                seconds=time.perf_counter() - began,
            )
            self._is_closed = completion.finish_reason == "stop"
            self._is_open = False
            self.messages.append(message)
            self._mark()
            return Answer(message=message, completion=completion, num_context=len(context))

    def show(self, new: Sequence[Message], seconds: Sequence[float] = ()) -> None:
        """Write messages down without asking for an answer."""
        if not new:
            if self._segment is None:
                raise EpisodeError("an episode must begin with a message: reset returned none")
            if not self._is_open:
                self._extend((), ())
            return
        if self._segment is None:
            self._open([*self.messages, *new], "start")
        elif self._is_open:
            # The model's turn has begun and cannot be unwritten.
            self._open([*self.messages, *new], "rewrite")
        elif self._dialect.history == "template" and self._would_drop(new):
            self._open([*self.messages, *new], "template")
        else:
            self._extend(new, seconds)
        self.messages += new
        self._mark()

    def rewrite(self, messages: Sequence[Message], reason: SegmentReason = "rewrite") -> None:
        """Go on from these messages instead: what was sampled stays a training row."""
        self._open(messages, reason)
        self.messages = list(messages)
        self._marks.clear()
        self._mark()

    def fork(self, num_messages: int | None = None) -> "Conversation":
        """Another conversation that begins with what this one has said, or with its first `num_messages`.

        Those must end with an answer, or with what was answered next: only there the ids are known.
        """
        other = Conversation(self._dialect, self._policy, self._ledger, tools=self.tools)
        count = len(self.messages) if num_messages is None else num_messages
        if count == 0:
            return other
        mark = self._marks.get(count)
        if mark is None:
            raise EpisodeError(
                f"a conversation cannot be forked after message {count}: no turn begins or ends there"
            )
        other._segment = self._ledger.open(self._ledger.context(mark.segment)[: mark.num_ids], "fork")
        other._is_closed, other._is_thinking, other._is_open = mark.is_closed, mark.is_thinking, mark.is_open
        other.messages = self.messages[:count]
        other._marks = {place: mark for place, mark in self._marks.items() if place <= count}
        return other

    @property
    def num_context(self) -> int:
        """Tokens that the model sees now."""
        return 0 if self._segment is None else len(self._ledger.context(self._segment))

    def _open(self, messages: Sequence[Message], reason: SegmentReason) -> None:
        ids = self._dialect.chat.start(messages, self.tools)
        self._segment = self._ledger.open(ids, reason)
        self._is_closed = self._is_open = True
        self._is_thinking = opens_thoughts(self._dialect.chat.opening)

    def _extend(self, new: Sequence[Message], seconds: Sequence[float]) -> None:
        assert self._segment is not None
        added = self._dialect.chat.extend(new, self.tools, is_closed=self._is_closed)
        self._ledger.observe(self._segment, added.token_ids, messages=new, seconds=seconds)
        self._is_closed, self._is_thinking, self._is_open = True, added.is_thinking, True

    def _mark(self) -> None:
        assert self._segment is not None
        self._marks[len(self.messages)] = _Mark(
            segment=self._segment,
            num_ids=len(self._ledger.context(self._segment)),
            is_closed=self._is_closed,
            is_thinking=self._is_thinking,
            is_open=self._is_open,
        )

    def _would_drop(self, new: Sequence[Message]) -> bool:
        """Whether the template shows less of what was sampled once these messages have come."""
        if not (self._dialect.chat.drops_thoughts and any(m.role == "user" for m in new)):
            return False
        last = max((i for i, m in enumerate(self.messages) if m.role == "user"), default=0)
        return any(m.reasoning for m in self.messages[last:])

    def _read(self, completion: Completion) -> Message:
        text = self._dialect.chat.text(completion.token_ids)
        message = self._dialect.parse(text, is_thinking=self._is_thinking)
        return replace(message, tool_calls=tuple(map(self._numbered, message.tool_calls)))

    def _numbered(self, call: ToolCall) -> ToolCall:
        # Nine letters and digits: what the strictest templates ask for.
        self._policy.num_calls += 1
        return replace(call, id=f"call{self._policy.num_calls:05d}")
