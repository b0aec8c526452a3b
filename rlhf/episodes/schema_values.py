"""Arguments for a call, made from a tool's JSON schema alone: the least that it allows."""

from collections.abc import Mapping
from typing import Any

_DEPTH = 8


def arguments_for(schema: Mapping[str, Any], *, word: str = "word") -> dict[str, Any]:
    """A value for every parameter of a tool in OpenAI's form that has no default; its texts are `word`."""
    parameters = schema["function"].get("parameters") or {}
    found = _value({**parameters, "type": "object"}, word, _DEPTH)
    return dict(found)


def _value(schema: Any, word: str, depth: int) -> Any:
    if not isinstance(schema, Mapping) or depth == 0:
        return word
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    for key in ("enum", "examples"):
        if schema.get(key):
            return schema[key][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return _value(schema[key][0], word, depth - 1)
    kind = schema.get("type") or "string"
    return _of_kind(kind if isinstance(kind, str) else kind[0], schema, word, depth)


def _of_kind(kind: str, schema: Mapping[str, Any], word: str, depth: int) -> Any:
    match kind:
        case "object":
            return _object(schema, word, depth)
        case "array":
            items = schema.get("prefixItems") or [schema.get("items", {})] * max(1, schema.get("minItems", 1))
            return [_value(item, word, depth - 1) for item in items]
        case "integer" | "number":
            return _number(schema, is_whole=kind == "integer")
        case "boolean":
            return True
        case "null":
            return None
    long = word * -(-schema.get("minLength", 0) // max(1, len(word))) if word else ""
    return (long or word)[: schema.get("maxLength")]


def _object(schema: Mapping[str, Any], word: str, depth: int) -> dict[str, Any]:
    required = schema.get("required") or ()
    return {
        name: _value(found, word, depth - 1)
        for name, found in (schema.get("properties") or {}).items()
        if name in required or not (isinstance(found, Mapping) and "default" in found)
    }


def _number(schema: Mapping[str, Any], *, is_whole: bool) -> float:
    step = 1 if is_whole else 0.5
    low = schema.get(
        "minimum", schema.get("exclusiveMinimum", 0) + step if "exclusiveMinimum" in schema else None
    )
    high = schema.get(
        "maximum", schema.get("exclusiveMaximum", 0) - step if "exclusiveMaximum" in schema else None
    )
    least = 1 if low is None else max(1, low)
    found = least if high is None else min(least, high)
    multiple = schema.get("multipleOf")
    return -(-found // multiple) * multiple if multiple else found
