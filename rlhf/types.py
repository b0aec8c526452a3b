"""The vocabulary: what a prompt, a completion, a trajectory and a group are. No torch here.

Index convention: element t of a per-token field speaks about token t itself
(its log-probability was computed from tokens before t). The shift happens once, in `learner/forward.py`.
"""

import hashlib
from array import array
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rlhf.image_codes import DrawnImages, ImageCodes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length"]
CallError = Literal["invalid_json", "not_an_object", "unknown_tool", "invalid_arguments"]
CallFailure = Literal[CallError, "raised", "timeout", "over_limit"]
Status = Literal["ok", "truncated", "error"]
StopReason = Literal[
    "stop",
    "env_done",
    "env_truncated",
    "length",
    "max_turns",
    "max_tokens",
    "max_tool_calls",
    "parse_error",
    "tool_timeout",
    "episode_timeout",
    "env_error",
    "policy_error",
    "cancelled",
]
STATUS_OF: Mapping[StopReason, Status] = {
    "stop": "ok",
    "env_done": "ok",
    "env_truncated": "truncated",
    "length": "truncated",
    "max_turns": "truncated",
    "max_tokens": "truncated",
    "max_tool_calls": "truncated",
    "parse_error": "truncated",
    "tool_timeout": "truncated",
    "episode_timeout": "truncated",
    "env_error": "error",
    "policy_error": "error",
    "cancelled": "error",
}
"""Every ending of an episode. What is truncated is graded as it stands; an error has no reward and is not trained."""
SegmentReason = Literal["start", "template", "rewrite", "compaction", "fork"]
Outcome = Literal["ok", "wrong", "unparsable", "limit", "not_applicable", "timeout", "error"]
NOT_SAMPLED = -1
"""Weight version of a token that no engine sampled (prompt, tool output)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that the model wrote. Each is answered by exactly one tool message with its id."""

    id: str
    name: str
    arguments: Mapping[str, Any] | None
    """None where they could not be read."""
    raw: str = ""
    """The text that was sampled."""
    error: CallError | None = None
    """Why it is not executed."""
    is_text: bool = False
    """The arguments are texts as written, without a type (`qwen_xml`, `glm4`): the tool says what they mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One chat message. What the model wrote is parsed into the assistant's fields, never tokenised again."""

    role: Role
    content: str
    reasoning: str | None = None
    """The assistant's thinking."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    """Of a tool message: the call that it answers."""
    name: str | None = None
    """Of a tool message: the tool."""
    is_error: bool = False
    """Of a tool message: the call failed, and the content says why."""
    failure: CallFailure | None = None
    """Of such a message: in what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One task to be solved: where it came from, what is asked, what is right.

    `id` is unique within its source and stable across runs. `reference` is the gold answer,
    `columns` every other field of the row (rewards and environments ask for them by name).
    """

    id: str
    messages: tuple[Message, ...]
    reference: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    images: tuple[str, ...] = ()
    """References (rlhf/data/images.py); each stands as `<image>` in the messages, in order."""
    is_chat: bool = False
    """Whether the row's prompt was a list of messages rather than a text."""
    scenario: str = ""
    """The name under task.scenarios that it comes from; it stands in `columns`, too."""

    def __post_init__(self) -> None:
        if not self.messages:
            raise ValueError(f"prompt {self.id!r} has no messages")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the engine draws tokens. Log-probabilities are always those of this processed distribution."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_token_ids: tuple[int, ...] = ()
    kept_limit: int = 0
    """Report what top-p and top-k left of the vocabulary, for sets of at most so many tokens; 0: do not."""
    banned: tuple[int, ...] = ()
    """Ids that are never drawn: the distribution is over the others."""
    image_codes: ImageCodes | None = None

    @property
    def reports_kept(self) -> bool:
        """Whether completions tell their kept sets: asked to, and only a part of the vocabulary is sampled from."""
        return self.kept_limit > 0 and self.temperature > 0 and (self.top_p < 1 or self.top_k > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What an engine returned for one sample: exactly the ids it sampled.

    token_ids, logprobs (nats, of the processed sampling distribution) and versions
    (weight version that sampled each token) all have length [T]. The stop token, if any, is included.

    Equality leaves the arrays out.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    finish_reason: FinishReason
    routing: "NDArray[np.int16] | None" = field(default=None, compare=False, repr=False)
    """[P + T, L, k] over prompt and sampled tokens: the experts of each decoder layer when the token was the
    input. -1 in layers without experts and for the last token, which never is an input."""
    kept: "tuple[NDArray[np.int32], ...] | None" = field(default=None, compare=False, repr=False)
    """[T] of what each token was sampled from: the ids that top-p and top-k left, ascending; none where they
    were more than `Sampling.kept_limit`."""
    drawn: DrawnImages | None = None
    """The images among the sampled tokens, where `Sampling.image_codes` asks for them."""
    num_cached: int | None = field(default=None, compare=False)
    """Tokens of the prompt that were in the engine's prefix cache; None where it keeps none."""

    def __post_init__(self) -> None:
        _same_length(token_ids=self.token_ids, logprobs=self.logprobs, versions=self.versions, kept=self.kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One contiguous token sequence as an engine saw it = one training row.

    All fields have length [T]. `loss_mask` is True only where an engine sampled the token;
    elsewhere rollout_logprobs is 0.0 and versions is NOT_SAMPLED. Equality leaves the arrays out.
    """

    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    rollout_logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    images: tuple[str, ...] = ()
    """References, one for each run of image tokens, in order."""
    reason: SegmentReason = "start"
    """Why it is not the last one's continuation."""
    routing: "NDArray[np.int16] | None" = field(default=None, compare=False, repr=False)
    """[T, L, k]: as Completion.routing; -1 also for tokens after the last sampled one."""
    kept: "tuple[NDArray[np.int32], ...] | None" = field(default=None, compare=False, repr=False)
    """[T]: as Completion.kept; nothing for tokens that were not sampled."""
    drawn: DrawnImages | None = None
    """As Completion.drawn, in the places of the segment."""

    def __post_init__(self) -> None:
        _same_length(
            token_ids=self.token_ids,
            loss_mask=self.loss_mask,
            rollout_logprobs=self.rollout_logprobs,
            versions=self.versions,
            routing=self.routing,
            kept=self.kept,
        )
        if any(m != (v != NOT_SAMPLED) for m, v in zip(self.loss_mask, self.versions, strict=True)):
            raise ValueError("segment: loss_mask and versions disagree about which tokens were sampled")

    @property
    def num_sampled(self) -> int:
        """Number of tokens that an engine sampled."""
        return sum(self.loss_mask)

    @property
    def trained_mask(self) -> tuple[bool, ...]:
        """[T]: sampled, and not from a set too large to be reported: that cannot be compared on one support."""
        if self.kept is None:
            return self.loss_mask
        return tuple(m and len(ids) > 0 for m, ids in zip(self.loss_mask, self.kept, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A message and where its tokens lie: `segments[segment].token_ids[start:stop]`."""

    message: Message
    segment: int
    start: int
    stop: int
    finish: FinishReason | None = None
    """How sampling ended; None for a message that nobody sampled."""
    context_digest: str = ""
    """Of the ids that the engine was asked with, `token_digest(token_ids[:start])`; empty if nobody sampled it."""
    reward: float = 0.0
    """What the environment gave for a sampled turn, beside its final score."""
    seconds: float = 0.0
    """What it took to sample it, or the tool or environment to answer."""
    num_cached: int | None = field(default=None, compare=False)
    """Tokens of its context, the first `start` of the segment, that were in the engine's prefix cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What an environment answers a turn with."""

    messages: tuple[Message, ...] = ()
    """Roles tool, user, system; one tool message for each call of the turn."""
    reward: float = 0.0
    """Of the turn just taken, beside the final score."""
    terminated: bool = False
    """The task is over, well or badly."""
    truncated: bool = False
    """The environment cut it short: it is truncated, as by a limit."""
    seconds: tuple[float, ...] = ()
    """What each message took; none: not told."""
    is_invalid: bool = False
    """The turn asked for something, and nothing of it could be done as it was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """Sampled tokens that are not trained on, and why."""

    num_tokens: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardResult:
    """The verdict on one trajectory. `value` None means: not gradable, left out of the baseline; never a silent 0."""

    value: float | None
    outcome: Outcome = "ok"
    parts: Mapping[str, float] = field(default_factory=dict)
    detail: Mapping[str, str | float] = field(default_factory=dict)
    seconds: float = 0.0
    steps: tuple[tuple[int, float], ...] = ()
    """(end, value) of each step that was judged by itself; it ends before character `end` of the completion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One attempt at a prompt: token-exact segments, readable turns, how it ended, its reward once scored."""

    segments: tuple[Segment, ...]
    turns: tuple[Turn, ...]
    stop: StopReason
    sample_index: int
    seed: int
    temperature: float = 1.0
    """That it was sampled with: the one of the weight version at which its group was admitted."""
    reward: RewardResult | None = None
    dropped: tuple[Dropped, ...] = ()
    seal: str = ""
    """Of what the engine returned in all turns, dropped or not, made as it came: the number of tokens, a dash, a
    digest. Shows whether a record that was saved, sent or changed is still whole (`episodes.ledger.check_record`)."""
    attempt: int = 0
    """Episodes of this sample that ended in an error before."""
    error: str = ""
    """What went wrong, for people; the status says whether it counts."""
    scalars: Mapping[str, float] = field(default_factory=dict)
    """What the environment logged."""
    is_episode: bool = False
    """Played in an environment, rather than one question and one answer."""
    opening: tuple[Message, ...] = ()
    """What such an episode began with, before the first turn."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """JSON schemas of the tools that it offered."""

    @property
    def status(self) -> Status:
        """ok, truncated or error: a function of how it stopped."""
        return STATUS_OF[self.stop]

    @property
    def completion(self) -> str:
        """Text of the last assistant turn: what rewards grade."""
        return next((t.message.content for t in reversed(self.turns) if t.message.role == "assistant"), "")

    @property
    def num_sampled(self) -> int:
        """Number of tokens sampled over all segments."""
        return sum(segment.num_sampled for segment in self.segments)

    @property
    def oldest_version(self) -> int:
        """The oldest weight version that sampled any token of this trajectory."""
        return min((v for s in self.segments for v in s.versions if v != NOT_SAMPLED), default=NOT_SAMPLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryGroup:
    """All attempts at one prompt that share a baseline. `index` is its place in admission order."""

    index: int
    prompt: Prompt
    trajectories: tuple[Trajectory, ...]
    version: int | None = None
    """The weight version at which it was admitted, which decides the rewards that count; None: not of training."""

    @property
    def oldest_version(self) -> int:
        """The oldest weight version that sampled any token of the group."""
        versions = [t.oldest_version for t in self.trajectories if t.oldest_version != NOT_SAMPLED]
        return min(versions, default=NOT_SAMPLED)


def message_of(raw: Mapping[str, Any]) -> Message:
    """The message whose `dataclasses.asdict` was `raw`, through JSON, too."""
    calls = tuple(ToolCall(**call) for call in raw.get("tool_calls", ()))
    return Message(**{**raw, "tool_calls": calls})


def token_digest(ids: Sequence[int]) -> str:
    """32 hexadecimal digits that stand for these ids in this order."""
    return hashlib.blake2b(array("q", ids).tobytes(), digest_size=16).hexdigest()


def _same_length(**fields: Sized | None) -> None:
    lengths = {name: len(value) for name, value in fields.items() if value is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"per-token fields must have one length, found {lengths}")
