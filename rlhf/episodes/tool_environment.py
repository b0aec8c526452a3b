"""Environments out of tools: the model calls them until it answers without a call."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from rlhf.episodes.context import EpisodeContext
from rlhf.episodes.mcp import MCP
from rlhf.episodes.tool_calls import run_calls, settled
from rlhf.episodes.tools import Tool, by_name, tools_of
from rlhf.errors import ConfigError
from rlhf.importing import load_object
from rlhf.types import CallError, Message, Prompt, Step

ToolSource = Callable[..., Any] | Tool | MCP | object
_ASKED: Mapping[str, Callable[[EpisodeContext], Any]] = {
    "context": lambda context: context,
    "prompt": lambda context: context.prompt,
    "reference": lambda context: context.prompt.reference,
    "state": lambda context: context.state,
    "messages": lambda context: context.messages,
    "answer": lambda context: next(
        (m.content for m in reversed(context.messages) if m.role == "assistant"), ""
    ),
}
"""What may be asked for by the name of a parameter; any other name is a column of the row."""


class ToolEnvironment:
    """An interfaces.Environment of tools: functions, objects whose public methods they are, Tool, MCP servers.

    A class among them is made anew for each episode; if it is the only one, what was made is `context.state`, unless
    `setup` returns another. Classes, `setup` and `score` are given by name what their parameters ask for: `context`,
    `prompt`, `reference`, `state`, `messages`, `answer` (the last turn's text), or a column of the row. `system` goes
    before the prompt's messages where they have no system message.
    """

    keeps_checkpoints = True
    """A step keeps its own."""
    score: Callable[[EpisodeContext], Any]
    """Missing where the recipe's rewards alone judge."""

    def __init__(
        self,
        tools: Sequence[ToolSource],
        *,
        score: Callable[..., Any] | None,
        setup: Callable[..., Any] | None = None,
        system: str | None = None,
    ) -> None:
        self._sources = tuple(tools)
        self._setup = setup
        self._system = system
        self._opened: list[object] = []
        """What was made for this episode."""
        self._num_calls = 0
        known = [s for s in self._sources if not isinstance(s, MCP | type)]
        self._tools = by_name(tool for source in known for tool in _tools(source))
        if not self._sources:
            raise ConfigError("ToolEnvironment: tools is empty, expected at least one.")
        for function in filter(None, (score, setup, *(s for s in self._sources if isinstance(s, type)))):
            _wanted(function)
        if score is not None:
            self.score = lambda context: call_with_context(score, context)

    @property
    def tools(self) -> tuple[Tool, ...]:
        """In the order given; those of MCP servers and of classes only after `reset`."""
        return tuple(self._tools.values())

    def reset(self, prompt: Prompt, context: EpisodeContext) -> Sequence[Message]:
        """The prompt's messages; servers are started, objects and the state made."""
        self._num_calls = 0
        self._tools = by_name(tool for source in self._sources for tool in self._open(source, context))
        made = [one for one in self._opened if not isinstance(one, MCP)]
        if len(made) == 1:
            context.state = made[0]
        if self._setup is not None:
            context.state = settled(call_with_context(self._setup, context))
        return with_system(prompt.messages, self._system)

    def step(self, action: Message, context: EpisodeContext) -> Step:
        """The calls' results; the end where there is no call."""
        if not action.tool_calls:
            return Step(terminated=True)
        answers = run_calls(action.tool_calls, self._tools, context=context, num_before=self._num_calls)
        self._num_calls += len(action.tool_calls)
        messages = tuple(message for message, _ in answers)
        return Step(
            messages=messages,
            seconds=tuple(seconds for _, seconds in answers),
            is_invalid=all(message.failure in get_args(CallError) for message in messages),
        )

    def close(self) -> None:
        """Ends servers, and closes what was made for the episode."""
        while self._opened:
            close = getattr(self._opened.pop(), "close", None)
            if callable(close):
                settled(close())

    def _open(self, source: ToolSource, context: EpisodeContext) -> Sequence[Tool]:
        if isinstance(source, MCP):
            self._opened.append(source)
            return source.start(context.limits)
        if isinstance(source, type):
            source = call_with_context(source, context)
            self._opened.append(source)
        return _tools(source)


class ClassEnvironment:
    """A class whose public methods are tools, with `reset(prompt, context)` and perhaps `score(context)`, `close()`."""

    keeps_checkpoints = True
    score: Callable[[EpisodeContext], Any]

    def __init__(self, kind: type, kwargs: Mapping[str, Any]) -> None:
        self._instance = kind(**kwargs)
        self._played = ToolEnvironment(tools_of(self._instance), score=None)
        self.tools = self._played.tools
        if hasattr(kind, "score"):
            self.score = self._instance.score

    def reset(self, prompt: Prompt, context: EpisodeContext) -> Any:
        """What the object's `reset` gives; none: the prompt's own messages."""
        self._played.reset(prompt, context)
        context.state = self._instance
        return settled(self._instance.reset(prompt, context))

    def step(self, action: Message, context: EpisodeContext) -> Step:
        """As ToolEnvironment's."""
        return self._played.step(action, context)

    def close(self) -> None:
        """The object's own, where it has one."""
        close = getattr(self._instance, "close", None)
        if callable(close):
            settled(close())


class TrlEnvironment:
    """A TRL environment class: public methods are tools, `reset` begins, `get_reward` is the score.

    One object per episode, made with `kwargs`; its `reset` is given the row, and what it returns is added to the
    prompt's last message. Without `get_reward` the recipe's rewards alone judge.
    """

    keeps_checkpoints = True
    score: Callable[[EpisodeContext], Any]

    def __init__(self, kind: type, kwargs: Mapping[str, Any]) -> None:
        if not isinstance(kind, type) or not callable(getattr(kind, "reset", None)):
            raise ConfigError(
                f"{kind!r} is no class with a method `reset`: expected reset(prompt, context) with step(action, "
                "context), or with methods that are tools; or reset() as in TRL."
            )
        self._kind = kind
        self._kwargs = dict(kwargs)
        self._instance: Any = None
        self._played: ToolEnvironment | None = None
        if hasattr(kind, "get_reward"):
            self.score = lambda _: self._instance.get_reward()

    @property
    def tools(self) -> tuple[Tool, ...]:
        """After `reset`."""
        return () if self._played is None else self._played.tools

    def reset(self, prompt: Prompt, context: EpisodeContext) -> Sequence[Message]:
        """The prompt's messages and what the object says to them."""
        self._instance = context.state = self._kind(**self._kwargs)
        tools = tools_of(self._instance, leave_out={"reset", "get_reward", "close"})
        self._played = ToolEnvironment(tools, score=None)
        row = {**prompt.columns, "reference": prompt.reference, "prompt": _row_prompt(prompt)}
        observation = settled(self._instance.reset(**_accepted(self._instance.reset, row)))
        *before, last = self._played.reset(prompt, context)
        return (*before, replace(last, content=last.content + _text(observation)))

    def step(self, action: Message, context: EpisodeContext) -> Step:
        """As ToolEnvironment's."""
        assert self._played is not None
        return self._played.step(action, context)

    def close(self) -> None:
        """The object's own, where it has one."""
        close = getattr(self._instance, "close", None)
        if callable(close):
            settled(close())


def trl_environment(cls: type | str, **kwargs: Any) -> TrlEnvironment:
    """For recipes: `cls` may be the class's `module:attribute`; `kwargs` are its own."""
    return TrlEnvironment(
        load_object(cls, key="task.environment.kwargs.cls") if isinstance(cls, str) else cls, kwargs
    )


def environment_of(kind: type, kwargs: Mapping[str, Any]) -> "ClassEnvironment | TrlEnvironment":
    """The environment of a class without `step`: TRL's, unless its `reset` asks for a context.

    ConfigError for a class without `reset`.
    """
    reset = getattr(kind, "reset", None)
    if callable(reset) and "context" in inspect.signature(reset).parameters:
        return ClassEnvironment(kind, kwargs)
    return TrlEnvironment(kind, kwargs)


def call_with_context(function: Callable[..., Any], context: EpisodeContext) -> Any:
    """Call with what the parameters ask for. ConfigError for a name that is neither known nor a column of the row."""
    given: dict[str, Any] = {}
    for name, parameter in _wanted(function).items():
        if name in _ASKED:
            given[name] = _ASKED[name](context)
        elif name in context.prompt.columns:
            given[name] = context.prompt.columns[name]
        elif parameter.default is parameter.empty:
            raise ConfigError(
                f"{_name(function)}: parameter {name!r} is neither one of {', '.join(_ASKED)} nor a column of "
                f"prompt {context.prompt.id}, which has {', '.join(context.prompt.columns) or 'none'}."
            )
    return function(**given)


def with_system(messages: Sequence[Message], system: str | None) -> tuple[Message, ...]:
    """The messages after the system's, where they have none of their own."""
    if system is None or messages[0].role == "system":
        return tuple(messages)
    return (Message(role="system", content=system), *messages)


def _tools(source: ToolSource) -> tuple[Tool, ...]:
    if isinstance(source, Tool):
        return (source,)
    if inspect.isroutine(source) or isinstance(source, functools.partial):
        return (Tool.from_function(source),)
    return tools_of(source)


def _wanted(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    found = inspect.signature(function).parameters
    for parameter in found.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(
                f"{_name(function)}: parameter `{parameter}` is {parameter.kind.description}; parameters are given "
                f"by name. Name what is needed of {', '.join(_ASKED)} or the row's columns."
            )
    return found


def _accepted(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    found = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in found.values()):
        return dict(given)
    return {name: value for name, value in given.items() if name in found}


def _row_prompt(prompt: Prompt) -> Any:
    if not prompt.is_chat:
        return prompt.messages[-1].content
    return [{"role": message.role, "content": message.content} for message in prompt.messages]


def _text(observation: Any) -> str:
    """What TRL's `reset` may return: nothing, a text, or a list of parts."""
    if observation is None:
        return ""
    if isinstance(observation, str):
        return observation
    if isinstance(observation, list) and all(
        isinstance(p, dict) and p.get("type") == "text" for p in observation
    ):
        return "".join(part["text"] for part in observation)
    raise ConfigError(f"reset of a TRL environment returned {observation!r:.100}, expected a text or None.")


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))
