"""Policies without a model: what an episode's turns are, written down before it is played."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.check.grading import TEMPLATES
from rlhf.check.probes import GOLD_COLUMN
from rlhf.config.task import TaskConfig
from rlhf.episodes.chat import ChatRenderer, Schema
from rlhf.episodes.schema_values import arguments_for
from rlhf.interfaces import GenerateRequest
from rlhf.types import Completion, Message, Prompt, ToolCall

EMPTY, RANDOM, MALFORMED, TOOLS, REFERENCE, LONG = (
    "empty answer",
    "random tokens",
    "malformed call",
    "every tool once",
    "reference",
    "very long answer",
)
_MAX_RANDOM = 16
_LONG_WORDS = 100_000
_NO_CALL = "no call at all {"


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A policy for one row: the ids of turn after turn. One without a stop token is cut where there is no more room."""

    name: str
    turn: Callable[[int], Sequence[int]]
    num_turns: int
    """Turns that it needs at least to show what it can."""


class ScriptedSampler:
    """An interfaces.Sampler that plays one script, once."""

    def __init__(self, script: Script, *, stops: Sequence[int]) -> None:
        self._script = script
        self._stops = stops
        self._num_turns = 0

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """The next turn of the script, for every seed."""
        ids = tuple(self._script.turn(self._num_turns)[: request.sampling.max_tokens])
        self._num_turns += 1
        completion = Completion(
            token_ids=ids,
            logprobs=(-1.0,) * len(ids),
            versions=(0,) * len(ids),
            finish_reason="stop" if ids[-1] in self._stops else "length",
        )
        return [completion] * len(request.seeds)


class ScriptWriter:
    """Writes scripts in the tokens and the call syntax of one model."""

    def __init__(self, chat: ChatRenderer, task: TaskConfig) -> None:
        self._chat = chat
        self._stop = chat.stop_token_ids[0]
        self.is_told = "gold_template" in task.model_fields_set
        """Whether the recipe says what a right answer looks like."""
        self.template = task.gold_template if self.is_told else TEMPLATES[0]
        self._long = tuple(chat.tokenizer.encode("word " * 64, add_special_tokens=False))

    def first(self, prompt: Prompt) -> list[Script]:
        """Those that need no knowledge of the tools."""
        reference = self.reference(prompt)
        found = [
            self.empty(),
            Script(name=RANDOM, turn=lambda turn: self._random(prompt.id, turn), num_turns=1),
            Script(name=LONG, turn=lambda _: self._long * (_LONG_WORDS // len(self._long)), num_turns=1),
        ]
        return found if reference is None else [*found, reference]

    def empty(self) -> Script:
        """Nothing, at every turn."""
        return self._always(EMPTY, "")

    def reference(self, prompt: Prompt) -> Script | None:
        """The row's reference, at every turn; None without one."""
        if GOLD_COLUMN in prompt.columns:
            return self._always(REFERENCE, str(prompt.columns[GOLD_COLUMN]))
        if prompt.reference is None:
            return None
        return self._always(REFERENCE, self.template.replace("{reference}", prompt.reference))

    def with_tools(self, prompt: Prompt, tools: Sequence[Schema]) -> list[Script]:
        """Those that write calls, well or badly."""
        if not tools:
            return [self._always(MALFORMED, _NO_CALL)]
        words = prompt.messages[-1].content.replace("*", " ").split()
        word = next((word for word in words if not any(end in word for end in self._chat.stops)), "word")
        calls = [self._call(tool, arguments_for(tool, word=word), tools) for tool in tools]
        end = (self._stop,)
        half = (*calls[0][: max(1, len(calls[0]) * 2 // 3)], self._stop)
        return [
            Script(name=MALFORMED, turn=lambda _: half, num_turns=1),
            Script(
                name=TOOLS,
                turn=lambda turn: calls[turn] if turn < len(calls) else end,
                num_turns=len(calls) + 1,
            ),
        ]

    def _always(self, name: str, text: str) -> Script:
        ids = (*self._chat.tokenizer.encode(text, add_special_tokens=False), self._stop)
        return Script(name=name, turn=lambda _: ids, num_turns=1)

    def _random(self, row: str, turn: int) -> tuple[int, ...]:
        draw = random.Random(f"{row}/{turn}")
        stops = set(self._chat.stop_token_ids)
        drawn = (draw.randrange(len(self._chat.tokenizer)) for _ in range(draw.randint(1, _MAX_RANDOM)))
        return (*(token for token in drawn if token not in stops), self._stop)

    def _call(self, tool: Schema, arguments: Mapping[str, Any], tools: Sequence[Schema]) -> tuple[int, ...]:
        call = ToolCall(id="call00000", name=tool["function"]["name"], arguments=arguments)
        return self._chat.turn(Message(role="assistant", content="", tool_calls=(call,)), tools)
