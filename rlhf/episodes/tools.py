"""Python functions as tools: their schema from hints and docstring, and arguments of a model read by it."""

import functools
import inspect
import json
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Protocol, Union, get_args, get_origin, get_type_hints

import pydantic
import pydantic_core

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
_NUM_PROBLEMS = 5
_LAX = pydantic.ConfigDict(coerce_numbers_to_str=True, allow_inf_nan=False)


class ToolError(Exception):
    """A call that failed, as the model is to read it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """A call's arguments as a tool takes them."""

    values: Mapping[str, Any]
    num_coerced: int = 0
    """Of another type than asked for, such as "3" for 3."""
    problems: tuple[str, ...] = ()
    """What is wrong, each with the field's name; none: the call can be run."""


class ReadArguments(Protocol):
    """Checks a call's arguments. Nothing that a model can write raises."""

    def __call__(self, given: Mapping[str, Any], *, is_text: bool = False) -> Arguments:
        """As the tool takes them. `is_text`: each is a text as written, without a type."""


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
        reader = _Reader(
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


def unknown_field(name: str, known: Sequence[str]) -> str:
    """What is wrong with an argument that no parameter has."""
    near = get_close_matches(name[:64], known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; the fields are: {', '.join(known) or 'none'}"
    return f"{shortened(name)!r}: there is no such field{hint}"


def shortened(value: object) -> str:
    """At most 60 characters of a text or of a value as JSON."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


class _Reader:
    """Arguments by a function's parameters, pydantic's way: lax, but told what was not as asked."""

    def __init__(
        self, parameters: Mapping[str, inspect.Parameter], hints: Mapping[str, Any], *, where: str
    ) -> None:
        self._parameters = parameters
        self._where = where
        self._adapters = {
            key: _adapter(hint, where=f"{where}: parameter {key!r}") for key, hint in hints.items()
        }

    def __call__(self, given: Mapping[str, Any], *, is_text: bool = False) -> Arguments:
        known = list(self._parameters)
        problems = [unknown_field(key, known) for key in given if key not in self._parameters]
        problems += [
            f"{key!r}: this field is missing"
            for key, parameter in self._parameters.items()
            if key not in given and parameter.default is parameter.empty
        ]
        values: dict[str, Any] = {}
        num_coerced = 0
        for key in self._parameters.keys() & given.keys():
            try:
                values[key], was_coerced = _read(self._adapters[key], given[key], is_text=is_text)
                num_coerced += was_coerced
            except pydantic.ValidationError as error:
                problems += _explained(key, error)
            except Exception as error:  # noqa: BLE001
                # A validator of the user's hints, or a value nested too deeply to be walked through.
                problems.append(f"{key!r}: cannot be read ({type(error).__name__})")
        return Arguments(values=values, num_coerced=num_coerced, problems=tuple(problems[:_NUM_PROBLEMS]))

    def json_schema(self, descriptions: Mapping[str, str]) -> dict[str, Any]:
        """Of all parameters as one object."""
        inputs = [(key, "validation", adapter) for key, adapter in self._adapters.items()]
        try:
            schemas, shared = pydantic.TypeAdapter.json_schemas(inputs)  # type: ignore[arg-type]
        except pydantic.PydanticUserError as error:
            raise _no_schema(self._where, error) from error
        definitions = shared.get("$defs", {})
        properties = {key: dict(schemas[(key, "validation")]) for key in self._adapters}
        try:
            properties = {key: _plain(schema, definitions) for key, schema in properties.items()}
            definitions = {}
        except RecursionError:
            pass  # A type that contains itself: its references stay.
        for key, parameter in self._parameters.items():
            properties[key] |= _default(parameter)
            if key in descriptions:
                properties[key]["description"] = descriptions[key]
        required = [
            key for key, parameter in self._parameters.items() if parameter.default is parameter.empty
        ]
        whole: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
        return whole | ({"$defs": definitions} if definitions else {})


def _read(adapter: "pydantic.TypeAdapter[Any]", value: Any, *, is_text: bool) -> tuple[Any, bool]:
    """The value, and whether it had to be coerced. Of several readings the first that fits strictly, then laxly.

    A value without a type is the text itself where a text is asked for, otherwise what it reads as in JSON; a
    typed text may be read as JSON, too, but that counts as coerced.
    """
    written = json.dumps(value)
    inner = value if isinstance(value, str) and _is_json(value) else None
    readings = [reading for reading in (written, inner if is_text else None) if reading is not None]
    if inner == "null":
        readings.reverse()
    for reading in readings:
        try:
            return adapter.validate_json(reading, strict=True), False
        except pydantic.ValidationError:
            continue
    try:
        return adapter.validate_json(written), True
    except pydantic.ValidationError:
        if inner is None:
            raise
    return adapter.validate_json(inner), True


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _explained(key: str, error: pydantic.ValidationError) -> list[str]:
    found = error.errors(include_url=False, include_context=False)
    return [
        f"{'.'.join([key, *map(str, one['loc'])])!r}: {one['msg']}, found {shortened(one['input'])}"
        for one in found
    ]


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


def _adapter(hint: Any, *, where: str) -> "pydantic.TypeAdapter[Any]":
    try:
        try:
            return pydantic.TypeAdapter(hint, config=_LAX)
        except pydantic.PydanticUserError as error:
            if error.code != "type-adapter-config-unused":
                raise
            # A dataclass, TypedDict or model: it brings its own configuration and takes none beside it.
            return pydantic.TypeAdapter(hint)
    except (pydantic.PydanticUserError, TypeError) as error:
        raise _no_schema(where, error) from error


def _no_schema(where: str, error: Exception) -> ConfigError:
    return ConfigError(f"{where}: no schema can be made of its type hint: {str(error).splitlines()[0]}")


def _default(parameter: inspect.Parameter) -> dict[str, Any]:
    if parameter.default is parameter.empty:
        return {}
    try:
        return {"default": pydantic_core.to_jsonable_python(parameter.default)}
    except (ValueError, TypeError):
        return {}


def _plain(schema: Any, definitions: Mapping[str, Any], within: tuple[str, ...] = ()) -> Any:
    """Without titles, and with each reference replaced by what it names. RecursionError where one names itself."""
    if isinstance(schema, list):
        return [_plain(part, definitions, within) for part in schema]
    if not isinstance(schema, dict):
        return schema
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    if name:
        if name in within:
            raise RecursionError(name)
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        return _plain({**definitions[name], **rest}, definitions, (*within, name))
    plain: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "patternProperties"):
            plain[key] = {name: _plain(part, definitions, within) for name, part in value.items()}
        elif key in ("default", "enum", "const", "examples"):
            plain[key] = value
        elif key not in ("title", "discriminator"):
            plain[key] = _plain(value, definitions, within)
    return plain


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
