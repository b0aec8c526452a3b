"""Graded samples of a prompt as they lie on disk: one JSON line a prompt."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rlhf.types import Message, Outcome, Prompt, StopReason, ToolCall, Trajectory, message_of

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One attempt at a prompt, graded. `reward` None: it could not be graded."""

    index: int
    """Its place among the prompt's samples."""
    seed: int
    completion: str
    """Text of the last assistant turn: what rewards grade."""
    reward: float | None
    is_correct: bool
    """The task was solved: graded, and its first reward is above 0.5."""
    outcome: Outcome
    parts: Mapping[str, float]
    """What each reward gave."""
    stop: StopReason
    num_tokens: int
    """Sampled, over all turns."""
    is_episode: bool = False
    answer: str | None = None
    """What the first reward read as the final answer, where it tells."""
    messages: tuple[Message, ...] = ()
    """The whole conversation of an episode; nothing for a single answer, and for an episode that was several."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Schemas of the tools that such an episode offered."""

    @property
    def text(self) -> str:
        """All that the model wrote: what makes two samples the same."""
        if not self.messages:
            return self.completion
        said = [m for m in self.messages if m.role == "assistant"]
        return "\n\n".join(" ".join([m.reasoning or "", m.content, *map(_said, m.tool_calls)]) for m in said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """A prompt with its samples, in the order of their indices."""

    prompt: Prompt
    samples: tuple[Sample, ...]

    @property
    def num_gradable(self) -> int:
        """Samples with a reward."""
        return sum(sample.reward is not None for sample in self.samples)

    @property
    def num_correct(self) -> int:
        """Samples that solved the task."""
        return sum(sample.is_correct for sample in self.samples)


def conversation_of(trajectory: Trajectory) -> tuple[Message, ...]:
    """The messages of an episode, in order.

    Nothing for a single answer, nor for an episode that forked, or whose messages were rewritten or compacted: its
    turns make no one conversation.
    """
    reasons = [segment.reason for segment in trajectory.segments]
    is_one = reasons.count("start") == 1 and {*reasons} <= {"start", "template"}
    if not trajectory.is_episode or not is_one:
        return ()
    return (*trajectory.opening, *(turn.message for turn in trajectory.turns))


def prompt_record(prompt: Prompt) -> Json:
    """The prompt as JSON. What JSON has no word for in a row's columns is written as text."""
    columns = json.loads(json.dumps(dict(prompt.columns), ensure_ascii=False, default=str))
    return {
        "id": prompt.id,
        "messages": [_plain(message) for message in prompt.messages],
        "reference": prompt.reference,
        "columns": columns,
        "images": list(prompt.images),
        "is_chat": prompt.is_chat,
    }


def to_line(collected: Collected) -> str:
    """One line of JSON, with its end."""
    samples = [
        asdict(replace(sample, messages=())) | {"messages": [_plain(message) for message in sample.messages]}
        for sample in collected.samples
    ]
    return json.dumps(prompt_record(collected.prompt) | {"samples": samples}, ensure_ascii=False) + "\n"


def of_line(line: str | bytes) -> Collected:
    """What `to_line` wrote."""
    raw = json.loads(line)
    samples = tuple(
        Sample(**{**sample, "messages": _messages(sample["messages"]), "tools": tuple(sample["tools"])})
        for sample in raw.pop("samples")
    )
    prompt = Prompt(**{**raw, "messages": _messages(raw["messages"]), "images": tuple(raw["images"])})
    return Collected(prompt=prompt, samples=samples)


def read_lines(files: Sequence[Path]) -> Iterator[Collected]:
    """Every line of the files, in order, one at a time in memory."""
    for file in files:
        with file.open("rb") as lines:
            yield from map(of_line, lines)


def _said(call: ToolCall) -> str:
    return f"{call.name} {json.dumps(call.arguments, sort_keys=True)} {call.raw if call.arguments is None else ''}"


def _messages(raw: Sequence[Json]) -> tuple[Message, ...]:
    return tuple(message_of({"content": "", **message}) for message in raw)


def _plain(message: Message) -> Json:
    """The message without what is as it is by default."""
    empty = asdict(Message(role=message.role, content=""))
    full = asdict(message)
    return {"role": message.role} | {name: value for name, value in full.items() if value != empty[name]}
