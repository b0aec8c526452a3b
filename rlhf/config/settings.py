"""Settings that a recipe gives to a function by name, checked against the function's signature before anything runs."""

import inspect
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from rlhf.errors import ConfigError

_FINITE = ConfigDict(allow_inf_nan=False)


def checked_settings(key: str, function: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` as the types that `function` declares; every parameter but its first is one.

    Raises ConfigError, with `key`, for a name that it does not take, one that is missing and a value of another type.
    """
    parameters = list(inspect.signature(function).parameters.values())[1:]
    takes = {p.name: p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    name = getattr(function, "__name__", repr(function))
    is_open = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if unknown := sorted(set(settings) - set(takes)) if not is_open else []:
        listed = ", ".join(takes) or "no settings"
        raise ConfigError(f"{key}: found {', '.join(unknown)}; {name} takes {listed}.")
    if missing := [n for n, p in takes.items() if p.default is p.empty and n not in settings]:
        raise ConfigError(f"{key}: {name} needs {', '.join(missing)}, which has no default.")
    types = _types(function)
    return {n: _checked(f"{key}.{n}", types.get(n, Any), value) for n, value in settings.items()}


def _types(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):  # names of a user's file that only a type checker sees
        return {}


def _checked(key: str, kind: Any, value: Any) -> Any:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(kind, config=_FINITE)
    except PydanticUserError:  # a type of the user's own
        return value
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        expected = dict.fromkeys(d["msg"].removeprefix("Input should be ") for d in error.errors())
        raise ConfigError(f"{key}: found {reprlib.repr(value)}, expected {' or '.join(expected)}") from None
