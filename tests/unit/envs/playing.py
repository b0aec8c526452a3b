"""Plays an environment by a script, in this process: what a runner does, without its processes and deadlines."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.config.environment import EpisodeLimits
from rlhf.episodes.context import EpisodeContext, Start
from rlhf.types import Message, Prompt, Step, ToolCall


class NoLink:
    """Nobody keeps deadlines."""

    def enter(self, phase: int, name: str, limit_s: float) -> None:
        pass

    def leave(self, phase: int) -> None:
        pass

    def checkpoint(self) -> frozenset[str]:
        return frozenset()


def prompt_of(row: Mapping[str, Any]) -> Prompt:
    """The row, through JSON, as data on disk comes."""
    columns = json.loads(json.dumps(dict(row)))
    text, reference = columns.pop("prompt", "?"), columns.pop("reference", None)
    identity = columns.pop("id", "1")
    messages = (Message(role="user", content=text),)
    return Prompt(id=identity, messages=messages, reference=reference, columns=columns)


def context_of(row: Mapping[str, Any], folder: Any, **limits: Any) -> EpisodeContext:
    start = Start(episode_id="e1", prompt=prompt_of(row), seed=1, limits=EpisodeLimits(**limits))
    return EpisodeContext(start, folder=str(folder), link=NoLink())


class Episode:
    """An environment that was reset; ends with the `with` block."""

    def __init__(self, environment: Any, row: Mapping[str, Any], folder: Any, **limits: Any) -> None:
        self.environment = environment
        self.context = context_of(row, folder, **limits)

    def __enter__(self) -> "Episode":
        self.environment.reset(self.context.prompt, self.context)
        self.context.note(*self.context.prompt.messages)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(AttributeError):
            self.environment.close()

    def call(self, tool: str, /, **arguments: Any) -> str:
        """What a tool gives: its result as text, or its error's."""
        call = ToolCall(id="c", name=tool, arguments=arguments)
        self.context.note(Message(role="assistant", content="", tool_calls=(call,)))
        try:
            found = str(getattr(self.environment, tool)(**arguments))
        except Exception as error:  # noqa: BLE001 -- a tool may raise anything
            found = f"{type(error).__name__}: {error}"
        self.context.note(Message(role="tool", content=found, tool_call_id="c"))
        return found

    def say(self, text: str) -> Step | None:
        """A turn without calls: what `step` answers, if there is one."""
        action = Message(role="assistant", content=text)
        self.context.note(action)
        if not hasattr(self.environment, "step"):
            return None
        step: Step = self.environment.step(action, self.context)
        self.context.note(*step.messages)
        return step

    def score(self) -> Any:
        return self.environment.score(self.context)


def answers(step: Step | None) -> Sequence[str]:
    assert step is not None
    return [message.content for message in step.messages]
