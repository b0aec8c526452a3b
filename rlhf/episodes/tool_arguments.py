"""A model's arguments, read by a function's hints or by a JSON schema; what cannot be read is explained."""

import inspect
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Protocol

import pydantic
import pydantic_core

from rlhf.episodes.strict_json import read_json
from rlhf.errors import ConfigError

_LOG = logging.getLogger(__name__)
_NUM_PROBLEMS = 5
_LAX = pydantic.ConfigDict(coerce_numbers_to_str=True, allow_inf_nan=False)
_JSON_TYPES = {"string", "number", "integer", "boolean", "null", "array", "object"}


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


class HintedArguments:
    """Arguments by a function's parameters and their hints: what fits laxly is taken, and counted."""

    def __init__(
        self, parameters: Mapping[str, inspect.Parameter], hints: Mapping[str, Any], *, where: str
    ) -> None:
        self._parameters = parameters
        self._where = where
        self._adapters = {
            key: _adapter(hint, where=f"{where}: parameter {key!r}") for key, hint in hints.items()
        }

    def __call__(self, given: Mapping[str, Any], *, is_text: bool = False) -> Arguments:
        """As ReadArguments."""
        known = list(self._parameters)
        problems = [unknown_field(key, known) for key in given if key not in self._parameters]
        problems += [
            f"{key!r}: this field is missing"
            for key, parameter in self._parameters.items()
            if key not in given and parameter.default is parameter.empty
        ]
        values: dict[str, Any] = {}
        num_coerced = 0
        for key in (key for key in self._parameters if key in given):
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
        whole = plain_schema({"type": "object", "properties": properties, "$defs": definitions})
        properties = whole["properties"]
        for key, parameter in self._parameters.items():
            properties[key] |= _default(parameter)
            if key in descriptions:
                properties[key]["description"] = descriptions[key]
        required = [
            key for key, parameter in self._parameters.items() if parameter.default is parameter.empty
        ]
        return {**whole, "required": required}


class SchemaArguments:
    """Arguments by a JSON schema that a server gave."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        from jsonschema.validators import validator_for

        self._schema = schema
        self._properties: Mapping[str, Any] = schema.get("properties") or {}
        self._validator = validator_for(schema)(schema)

    def __call__(self, given: Mapping[str, Any], *, is_text: bool = False) -> Arguments:
        """As ReadArguments."""
        read = {key: _typed(value, self._types(key), is_text=is_text) for key, value in given.items()}
        values = {key: value for key, (value, _) in read.items()}
        known = list(self._properties)
        problems: list[str] = []
        if "additionalProperties" not in self._schema and "patternProperties" not in self._schema:
            problems += [unknown_field(key, known) for key in given if key not in self._properties]
        try:
            found = sorted(self._validator.iter_errors(values), key=lambda error: list(map(str, error.path)))
            problems += [_violated(error) for error in found]
        except Exception:  # noqa: BLE001
            # Either the schema is none or the values are too deep: the server itself will judge.
            _LOG.debug("arguments could not be checked", exc_info=True)
        return Arguments(
            values=values,
            num_coerced=sum(was_coerced for _, was_coerced in read.values()),
            problems=tuple(problems[:_NUM_PROBLEMS]),
        )

    def _types(self, key: str) -> set[str]:
        schema = self._properties.get(key, {})
        return _types(schema) if isinstance(schema, dict) else set()


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
        read_json(text)
    except ValueError:
        return False
    return True


def _explained(key: str, error: pydantic.ValidationError) -> list[str]:
    found = error.errors(include_url=False, include_context=False)
    return [
        f"{'.'.join([key, *map(str, one['loc'])])!r}: {one['msg']}, found {shortened(one['input'])}"
        for one in found
    ]


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


def plain_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Without titles and, unless a type contains itself, with what references name in their place."""
    definitions = schema.get("$defs", {})
    rest = {key: value for key, value in schema.items() if key != "$defs"}
    try:
        return dict(_plain(rest, definitions))
    except (RecursionError, KeyError):
        return dict(schema) if definitions else rest


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
        if key in ("properties", "patternProperties") and isinstance(value, dict):
            plain[key] = {name: _plain(part, definitions, within) for name, part in value.items()}
        elif key in ("default", "enum", "const", "examples"):
            plain[key] = value
        elif key not in ("title", "discriminator"):
            plain[key] = _plain(value, definitions, within)
    return plain


def _types(schema: Mapping[str, Any]) -> set[str]:
    """The JSON types that a schema takes; none: not known."""
    own = schema.get("type") or []
    found = {own} if isinstance(own, str) else set(own)
    for part in [*(schema.get("anyOf") or []), *(schema.get("oneOf") or [])]:
        # `true` is a schema, too.
        found |= _types(part) if isinstance(part, Mapping) else set()
    return found & _JSON_TYPES


def _typed(value: Any, types: set[str], *, is_text: bool) -> tuple[Any, bool]:
    """The value as one of these types, and whether it had to be coerced: as for functions."""
    if isinstance(value, str):
        try:
            inner = read_json(value)
        except ValueError:
            return value, False
        if (is_text and inner is None and "null" in types) or (types and "string" not in types):
            return inner, not is_text
        return (inner if is_text and not types else value), False
    if isinstance(value, int | float) and not isinstance(value, bool) and types == {"string"}:
        return json.dumps(value), True
    return value, False


def _violated(error: Any) -> str:
    where = ".".join(map(str, error.path))
    text = error.message if len(error.message) <= 200 else f"{error.message[:197]}..."
    return f"{where!r}: {text}" if where else str(text)
