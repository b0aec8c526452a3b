"""One episode that a program plays through the endpoint: which conversation a request goes on with, and its record."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.episodes.conversation import Answer, Conversation, Dialect, EpisodeEnded, Policy
from rlhf.episodes.endpoint_wire import (
    ChatAnswer,
    ChatRequest,
    RequestError,
    canonical,
    history_chain,
    message_key,
    next_digest,
    read_messages,
    written_message,
    written_usage,
)
from rlhf.episodes.ledger import TokenLedger
from rlhf.errors import ConfigError, ModelError
from rlhf.types import Completion, Dropped, Segment, StopReason, Turn

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Place:
    """A conversation after its first `num_messages`: where the model's turn has ended, or is to begin."""

    conversation: Conversation
    num_messages: int
    tools: str
    is_answer: bool


class Reply:
    """An answer that is being sampled, or was, and who has it."""

    def __init__(self, task: "asyncio.Task[ChatAnswer]") -> None:
        self.task = task
        self.num_waiting = 0
        """Clients that wait for it now."""
        self.was_delivered = False

    @property
    def has_failed(self) -> bool:
        """Whether there is no answer and will be none."""
        return self.task.done() and (self.task.cancelled() or self.task.exception() is not None)

    @property
    def is_lost(self) -> bool:
        """Whether whoever asked for it has gone without it."""
        return not self.was_delivered and not self.num_waiting


class Session:
    """An episode played by a program of its own; made by RolloutServer.episode.

    A request goes on with the conversation whose messages it repeats; what it does not repeat becomes a conversation
    of its own, which shares the ids up to the last common answer where it can. Thinking is not compared: clients do
    not send it back.
    """

    def __init__(
        self, dialect: Dialect, policy: Policy, ledger: TokenLedger, *, base_url: str, api_key: str
    ) -> None:
        self.base_url = base_url
        """What the program takes for OpenAI's API."""
        self.api_key = api_key
        self.ledger = ledger
        self.ignored: Counter[str] = Counter()
        """Requests by each parameter that was not obeyed."""
        self.conversations: Counter[str] = Counter()
        """Requests that could not go on where one ended, by cause. new: another first message. fork: the program went
        back, or asked again. edited: a history with answers of ours, but not as they came. tools: other tools."""
        self.num_replays = 0
        """Retries that were given the answer there was."""
        self.error = ""
        """What the engine, or the endpoint itself, failed with."""
        self._fatal: ConfigError | None = None
        self.over = asyncio.Event()
        """Set when nothing more is sampled."""
        self._dialect = dialect
        self._policy = policy
        self._stop: StopReason | None = None
        self._was_cut = False
        self._num_unread = 0
        """Turns in a row whose calls could not be read."""
        self.num_answers = 0
        """Turns that were sampled to their end."""
        self._is_sealed = False
        self._replies: dict[str, list[Reply]] = {}
        self._places: dict[str, list[_Place]] = {}
        self._answers: set[str] = set()
        self._busy: set[Conversation] = set()
        self.threads: list[Conversation] = []
        """All that was said here."""

    @property
    def stop(self) -> StopReason:
        """How the episode ended, as far as it went through here."""
        return self._stop or ("length" if self._was_cut else "stop")

    @property
    def ended(self) -> StopReason | None:
        """What ended it here, so that it was answered no more; None: it could have gone on."""
        return self._stop

    def ask(self, request: ChatRequest, *, is_retry: bool) -> Reply:
        """The answer to a request, on its way. RequestError when there will be none.

        A request that says it is a retry, or whose like was lost on the way to its client, is sampled once.
        """
        if known := self._known(request, is_retry=is_retry):
            self.num_replays += 1
            return known
        self.ignored.update(request.ignored)
        self._check()
        chain = history_chain(request.messages)
        try:
            conversation = self._conversation(request, chain)
        except ModelError as error:
            raise RequestError(f"messages: {error}", param="messages") from error
        except Exception as error:
            self._fail(error)
            raise self.refusal() from error
        if conversation not in self.threads:
            self.threads.append(conversation)
        self._busy.add(conversation)
        reply = Reply(asyncio.create_task(self._sample(conversation, request, chain[-1])))
        reply.task.add_done_callback(self._judge)
        self._replies.setdefault(request.digest, []).append(reply)
        return reply

    def end(self, stop: StopReason) -> None:
        """Sample nothing more, for this reason; the first one counts."""
        self._stop = self._stop or stop
        self.over.set()

    def expire(self) -> None:
        """The episode's time is up: what is being sampled is given up."""
        self.end("episode_timeout")
        self._cancel()

    async def outlast(self) -> None:
        """Wait until nothing more is sampled. ConfigError where no other episode would fare better."""
        await self.over.wait()
        if self._fatal is not None:
            raise self._fatal

    async def seal(self) -> None:
        """The episode is over: answer nothing more, give up what is being sampled."""
        self._is_sealed = True
        self.over.set()
        self._cancel()
        await asyncio.gather(*(reply.task for reply in self._all_replies()), return_exceptions=True)

    def finish(self) -> tuple[tuple[Segment, ...], tuple[Turn, ...], tuple[Dropped, ...]]:
        """The record, as TokenLedger.finish; after the episode."""
        return self.ledger.finish()

    @property
    def scalars(self) -> Mapping[str, float]:
        """Numbers about the episode."""
        return {
            "replays": float(self.num_replays),
            "ignored_parameters": float(self.ignored.total()),
            **{f"conversations_{cause}": float(count) for cause, count in self.conversations.items()},
        }

    def refusal(self) -> RequestError:
        """Why nothing more is answered, as a client is told. Of a kind that no client retries."""
        if self._is_sealed:
            return RequestError("this episode is over", status=404, code="episode_over")
        code = "policy_error" if self._stop == "policy_error" else "episode_limit"
        return RequestError(f"this episode has ended: {self._stop}. {self.error}".rstrip(), code=code)

    def _known(self, request: ChatRequest, *, is_retry: bool) -> Reply | None:
        replies = [reply for reply in self._replies.get(request.digest, ()) if not reply.has_failed]
        lost = next((reply for reply in replies if reply.is_lost), None)
        return lost or (replies[-1] if is_retry and replies else None)

    def _check(self) -> None:
        limits = self._policy.limits
        if self._policy.num_calls > limits.max_tool_calls:
            self.end("max_tool_calls")
        if self._num_unread >= limits.max_parse_errors:
            self.end("parse_error")
        if self._stop is not None or self._is_sealed:
            raise self.refusal()

    def _conversation(self, request: ChatRequest, chain: Sequence[str]) -> Conversation:
        """The one to be answered now, which has been shown all messages of the request."""
        tools = canonical(request.tools)
        place = self._longest(request, chain, tools)
        if place is None:
            conversation = self._begin(request, self._cause(request, chain, tools))
        else:
            conversation = place.conversation
            if not self._is_head(place):
                self.conversations["fork"] += 1
                conversation = conversation.fork(place.num_messages)
            conversation.show(request.messages[place.num_messages :])
        conversation.write()
        self._note(chain[-1], conversation, tools)
        return conversation

    def _longest(self, request: ChatRequest, chain: Sequence[str], tools: str) -> _Place | None:
        """Where most of the request's messages have been said, and the rest can follow."""
        for count in range(len(request.messages), 0, -1):
            rest = request.messages[count:]
            if any(message.role == "assistant" for message in rest):
                # What was not sampled here is shown as the template has it, all of it.
                return None
            known = self._places.get(chain[count], ())
            found = [place for place in known if place.tools == tools and (place.is_answer or not rest)]
            if found:
                return next(filter(self._is_head, found), found[0])
        return None

    def _is_head(self, place: _Place) -> bool:
        conversation = place.conversation
        return len(conversation.messages) == place.num_messages and conversation not in self._busy

    def _cause(self, request: ChatRequest, chain: Sequence[str], tools: str) -> str:
        known = [p for digest in chain[1:] for p in self._places.get(digest, ()) if p.is_answer]
        if known and all(place.tools != tools for place in known):
            return "tools"
        of_ours = (m for m in request.messages if m.role == "assistant" and message_key(m) in self._answers)
        return "edited" if known or any(of_ours) else "new"

    def _begin(self, request: ChatRequest, cause: str) -> Conversation:
        conversation = Conversation(self._dialect, self._policy, self.ledger, tools=request.tools)
        conversation.rewrite(request.messages, "start" if cause == "new" else "rewrite")
        self.conversations[cause] += 1
        return conversation

    def _note(self, digest: str, conversation: Conversation, tools: str, *, is_answer: bool = False) -> None:
        place = _Place(conversation, len(conversation.messages), tools, is_answer)
        self._places.setdefault(digest, []).append(place)

    async def _sample(self, conversation: Conversation, request: ChatRequest, history: str) -> ChatAnswer:
        try:
            answer = await conversation.answer(max_tokens=request.max_tokens)
        finally:
            self._busy.discard(conversation)
        self._watch(answer, request)
        given = self._given(answer, request)
        # As it will come back: calls nobody could read are text, thinking is gone.
        (message,) = read_messages([given.message])
        self._answers.add(message_key(message))
        self._note(next_digest(history, message), conversation, canonical(request.tools), is_answer=True)
        return given

    def _watch(self, answer: Answer, request: ChatRequest) -> None:
        """Note what limits count, and whether a limit cut the answer."""
        calls, completion = answer.message.tool_calls, answer.completion
        if request.reads_calls:
            self._num_unread = self._num_unread + 1 if calls and all(call.error for call in calls) else 0
        is_own_wish = request.max_tokens is not None and len(completion.token_ids) >= request.max_tokens
        self._was_cut = completion.finish_reason == "length" and not is_own_wish

    def _given(self, answer: Answer, request: ChatRequest) -> ChatAnswer:
        completion = answer.completion
        message = written_message(answer.message, request.tools, reads_calls=request.reads_calls)
        is_cut, has_calls = completion.finish_reason == "length", "tool_calls" in message
        self.num_answers += 1
        return ChatAnswer(
            message=message,
            finish_reason="length" if is_cut else "tool_calls" if has_calls else "stop",
            usage=written_usage(answer.num_context, completion),
            tokens=self._tokens(completion) if request.wants_logprobs else [],
            id=f"chatcmpl-{self.api_key}-{self.num_answers}",
            model=request.model,
            created=int(time.time()),
        )

    def _tokens(self, completion: Completion) -> list[dict[str, Any]]:
        pieces = self._dialect.chat.pieces(completion.token_ids)
        return [
            {"token": piece, "logprob": logprob, "bytes": None, "top_logprobs": []}
            for piece, logprob in zip(pieces, completion.logprobs, strict=True)
        ]

    def _judge(self, task: "asyncio.Task[ChatAnswer]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Note why there is no answer."""
        if isinstance(error, EpisodeEnded):
            self.end(error.stop)
            return
        if isinstance(error, ConfigError):
            self._fatal = error
        self.error = f"{type(error).__name__}: {error}"
        _log.error("episode of an endpoint: %s", self.error, exc_info=error)
        self.end("policy_error")

    def _cancel(self) -> None:
        for reply in self._all_replies():
            reply.task.cancel()

    def _all_replies(self) -> list[Reply]:
        return [reply for replies in self._replies.values() for reply in replies]
