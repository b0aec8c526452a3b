"""Python functions as tools, described to a model by their hints and docstring."""

import functools
import inspect
import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from rlhf.episodes.tool_arguments import HintedArguments, ReadArguments
from rlhf.errors import ConfigError
from rlhf.interfaces import Context

NOT_TOOLS = frozenset({"reset", "step", "score", "close", "get_reward"})
"""Public methods that are an environment's own."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SECTION = re.compile(r"^(\w+)( \w+)?:\s*$")
_ARGUMENT = re.compile(r"^\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")
_ARGUMENT_SECTIONS = frozenset({"Args", "Arguments", "Parameters"})
_SECTIONS = _ARGUMENT_SECTIONS | {
    *(
        "Returns",
        "Return",
        "Yields",
        "Raises",
        "Example",
        "Examples",
        "Note",
        "Notes",
        "Warning",
        "Attributes",
    ),
}


class ToolError(Exception):
    """A call that failed, as the model is to read it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """Something that a model can call."""

    name: str
    schema: Mapping[str, Any]
    """{"type": "function", "function": {name, description, parameters}}."""
    run: Callable[..., Any]
    """Called with `read`'s values by name, and the context under the names of `context_parameters`."""
    read: ReadArguments
    context_parameters: tuple[str, ...] = ()
    is_async: bool = False
    read_only: bool = False
    """Changes nothing: may run beside others."""
    timeout_s: float | None = None
    """If shorter than limits.tool_s."""

    @staticmethod
    def from_function(
        function: Callable[..., Any],
        *,
        name: str | None = None,
        read_only: bool = False,
        timeout_s: float | None = None,
    ) -> "Tool":
        """The tool that a function with type hints is; its description and those of its parameters are its docstring's.

        A parameter annotated `Context` is given the episode's and hidden from the model. ConfigError for a function
        of which no schema can be made: without a hint, with *args, **kwargs or positional-only parameters.
        """
        name = getattr(function, "__name__", type(function).__name__) if name is None else name
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"tool {name!r}: expected a name of letters, digits, _ and -. Give it as `name`."
            )
        if timeout_s is not None and timeout_s <= 0:
            raise ConfigError(f"tool {name}: timeout_s is {timeout_s}, expected more than 0.")
        described = _docstring(inspect.getdoc(function) or "")
        parameters = _parameters(function, name)
        reader = HintedArguments(
            {key: parameter for key, (parameter, hint) in parameters.items() if not _is_context(hint)},
            {key: hint for key, (_, hint) in parameters.items() if not _is_context(hint)},
            where=f"tool {name}",
        )
        return Tool(
            name=name,
            schema=schema_of(name, described.text, reader.json_schema(described.arguments)),
            run=function,
            read=reader,
            context_parameters=tuple(key for key, (_, hint) in parameters.items() if _is_context(hint)),
            is_async=_is_async(function),
            read_only=read_only,
            timeout_s=timeout_s,
        )


def schema_of(name: str, description: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A tool in OpenAI's form, as chat templates know it."""
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": dict(parameters)},
    }


def tools_of(
    owner: object, *, read_only: Iterable[str] = (), leave_out: Container[str] = NOT_TOOLS
) -> tuple[Tool, ...]:
    """An object's public methods, in the order in which they are written, without those of `leave_out`.

    `read_only`: names of those that change nothing. ConfigError where there is none, or one that cannot be a tool.
    """
    # Of the class: looking at the object would evaluate its properties.
    found = {
        name: None
        for kind in reversed(type(owner).__mro__)
        for name, member in vars(kind).items()
        if not name.startswith("_")
        and name not in leave_out
        and (inspect.isfunction(member) or isinstance(member, staticmethod | classmethod))
    }
    unknown = set(read_only) - set(found)
    if not found or unknown:
        raise ConfigError(
            f"tools: {type(owner).__name__} has the public methods {list(found)}"
            + (f", expected also the read-only {sorted(unknown)}." if unknown else ", expected at least one.")
        )
    return tuple(Tool.from_function(getattr(owner, name), read_only=name in set(read_only)) for name in found)


def by_name(tools: Iterable[Tool]) -> dict[str, Tool]:
    """Tools by name. ConfigError for two of one name."""
    found: dict[str, Tool] = {}
    for tool in tools:
        if tool.name in found:
            raise ConfigError(
                f"tools: two are named {tool.name!r}. Give one another name: Tool.from_function(function, name=...)."
            )
        found[tool.name] = tool
    return found


def _parameters(function: Callable[..., Any], name: str) -> dict[str, tuple[inspect.Parameter, Any]]:
    """Each parameter with its hint."""
    try:
        signature = inspect.signature(function)
        hints = get_type_hints(_with_hints(function), include_extras=True)
    except (TypeError, ValueError, NameError, AttributeError) as error:
        raise ConfigError(
            f"tool {name}: its signature cannot be read ({error}). Give it type hints whose names the module "
            "imports when it runs, not under TYPE_CHECKING."
        ) from error
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(
                f"tool {name}: parameter `{parameter}` is {parameter.kind.description}; a model gives arguments "
                "by name. Write each as a parameter of its own."
            )
        if parameter.name not in hints:
            raise ConfigError(
                f"tool {name}: parameter {parameter.name!r} has no type hint; the model is told its type by it."
            )
    return {key: (parameter, hints[key]) for key, parameter in signature.parameters.items()}


def _with_hints(function: Callable[..., Any]) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function if inspect.isroutine(function) else type(function).__call__


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _is_context(hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return all(_is_context(part) for part in get_args(hint) if part is not NoneType)
    return hint is Context


@dataclass(frozen=True, slots=True)
class _Docstring:
    text: str
    arguments: Mapping[str, str]


def _docstring(doc: str) -> _Docstring:
    """What a Google-style docstring says before its first section, and of each argument."""
    text: list[str] = []
    arguments: dict[str, str] = {}
    section = last = ""
    first = 0
    for line in doc.splitlines():
        heading = _SECTION.match(line)
        if heading and heading[1] in _SECTIONS:
            section, last = heading[1], ""
        elif not section:
            text.append(line)
        elif section in _ARGUMENT_SECTIONS and line.strip():
            indent = len(line) - len(line.lstrip())
            found = _ARGUMENT.match(line.strip())
            if found and (not last or indent <= first):
                last, first = found[1], indent
                arguments[last] = found[2]
            elif last:
                arguments[last] = f"{arguments[last]} {line.strip()}".strip()
    return _Docstring("\n".join(text).strip(), arguments)
