"""From a YAML file, at most one `extends:` hop and dotted overrides to a checked Recipe."""

import re
import reprlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rlhf.config.schema import Recipe
from rlhf.config.section import Section
from rlhf.errors import ConfigError

EXTENDS = "extends"
S = TypeVar("S", bound=Section)
_KINDS = {
    "stages": ("PipelineConfig", "rlhf pipeline"),
    "alignment": ("BenchRecipe", "rlhf vision bench"),
    "sets": ("EvaluationFile", "rlhf eval"),
    "judges": ("AlignmentRecipe", "rlhf vision train"),
    "task": ("Recipe", "rlhf train"),
}
"""Top-level key that tells a kind of file -> its section, the command that reads it."""


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, lay it over the one it extends, apply `key.sub=value` overrides, check it.

    Raises ConfigError with one line per problem: the key, what was found, what was expected.
    """
    path = Path(path)
    return checked_section(Recipe, read_with_overrides(path, overrides), where=path)


def read_with_overrides(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What a file says, laid over the file it extends, with the overrides applied; unchecked."""
    values = _read_with_base(path)
    apply_overrides(values, overrides)
    return values


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Lay `key.sub=value` overrides over what a file says."""
    for override in overrides:
        _apply_override(values, override)


def checked_section(section: type[S], values: Mapping[str, Any], *, where: str | Path, under: str = "") -> S:
    """`values` as a `section`. ConfigError names `where` and every bad key, which lie below the key `under`."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        other = "" if under else _other_kind(section, values)
        raise ConfigError(f"{where}: {other}" if other else _explain(where, error, section, under)) from None


def _other_kind(section: type[Section], values: Mapping[str, Any]) -> str:
    """What to say of a file that another command reads."""
    for key, (name, command) in _KINDS.items():
        if key in values and key not in section.model_fields:
            return f"its key {key!r} makes it a file for `{command}`." if name != section.__name__ else ""
    return ""


def resolved_yaml(recipe: Recipe) -> str:
    """The whole recipe, every default written out; loads back to the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differences(recipe: Recipe) -> dict[str, Any]:
    """What the recipe says beyond the defaults, as a nested mapping."""
    return recipe.model_dump(mode="json", exclude_defaults=True)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that one YAML file holds, unchecked. Raises ConfigError when it holds anything else."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"recipe {str(path)!r} does not exist (looked from {str(Path.cwd())!r})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {str(path)!r} cannot be read: {error}") from None
    values = _parse(text, str(path))
    if not isinstance(values, dict):
        found = "an empty file" if values is None else f"a {type(values).__name__}"
        raise ConfigError(
            f"recipe {str(path)!r}: found {found}, expected a mapping of keys such as 'model' and 'task'"
        )
    return values


def _read_with_base(path: Path) -> dict[str, Any]:
    values = read_mapping(path)
    base = values.pop(EXTENDS, None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(
            f"{path}: {EXTENDS} is {base!r}, expected the path of one recipe, relative to this file"
        )
    base_path = path.parent / base
    base_values = read_mapping(base_path)
    if EXTENDS in base_values:
        raise ConfigError(
            f"{path}: {EXTENDS} {base!r}, which itself extends {base_values[EXTENDS]!r}: one hop is allowed. "
            "Extend the last of them, or copy the keys you need."
        )
    return _merge(base_values, values)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"override {override!r}: expected key.sub=value, for example schedule.num_steps=10")
    for depth, part in enumerate(parts[:-1], start=1):
        below = values.get(part)
        if below is not None and not isinstance(below, dict):
            above = ".".join(parts[:depth])
            raise ConfigError(
                f"override {override!r}: {above!r} is {reprlib.repr(below)}, not a section with keys"
            )
        # A copy: mappings may be shared through YAML anchors.
        values[part] = dict(below or {})
        values = values[part]
    values[parts[-1]] = _parse(text, f"override {override!r}")


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars (1e-5 is a number, `no` is a word); a key written twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            first = seen.setdefault(str(key.value), key)
            if first is not key:
                problem = f"key {key.value!r} was already given in line {first.start_mark.line + 1}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep)


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_BOOL, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{source}:{where}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: {' '.join(str(error).split())}") from None


def _explain(where: str | Path, error: ValidationError, section: type[Section], under: str) -> str:
    known = dict(schema_keys(section))
    problems: dict[str, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        problems.setdefault(_dotted(detail["loc"], known), []).append(detail)
    lines = [_below(under, _explain_key(key, details, known)) for key, details in problems.items()]
    if len(lines) == 1:
        return f"{where}: {lines[0]}"
    return f"{where}: {len(lines)} problems" + "".join(f"\n  {line}" for line in lines)


def _below(under: str, line: str) -> str:
    return f"{under}: {line}" if under else line


def _explain_key(key: str, details: Sequence[ErrorDetails], known: Mapping[str, bool]) -> str:
    first = details[0]
    if first["type"] == "extra_forbidden":
        near = nearest_key(key, list(known))
        return f"unknown key {key!r}" + (
            f": did you mean {near!r}?" if near else "; see rlhf/config/schema.py"
        )
    if first["type"] == "missing":
        return f"missing key {key!r}: it has no default"
    if first["type"] == "model_type":
        return (
            f"{key}: found {reprlib.repr(first['input'])}, expected a section of keys, {key}.<key>: <value>"
        )
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        return message if not key or message.startswith(key) else f"{key}: {message}"
    # A union reports one error per member: what each of them expects, once.
    expected = list(dict.fromkeys(d["msg"].removeprefix("Input should be ") for d in details))
    return f"{key}: found {reprlib.repr(first['input'])}, expected {' or '.join(expected)}"


def _dotted(location: Sequence[int | str], known: Mapping[str, bool]) -> str:
    """The key as a user writes it, without the name of a union's member that pydantic appends."""
    key = ""
    for part in location:
        below_leaf = known.get(_without_indices(key)) is False
        if below_leaf and isinstance(part, str):
            break
        key = f"{key}.{part}".lstrip(".")
    return key


def _without_indices(key: str) -> str:
    return ".".join(part for part in key.split(".") if not part.isdigit())


def schema_keys(section: type[Section], prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Every dotted key below `section`, and whether it is itself a section; list indices are left out."""
    for name, field in section.model_fields.items():
        inner = _section_in(field.annotation)
        yield prefix + name, inner is not None
        if inner is not None:
            yield from schema_keys(inner, f"{prefix}{name}.")


def _section_in(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((inner for arg in get_args(annotation) if (inner := _section_in(arg)) is not None), None)


def nearest_key(key: str, known: Sequence[str]) -> str | None:
    """A sibling spelt nearly the same, else the same name in another section, else the most alike sibling."""
    bare = _without_indices(key)
    parent, _, leaf = bare.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == parent}
    close = get_close_matches(leaf, siblings, n=1, cutoff=0.8)
    elsewhere = [k for k in known if k.rpartition(".")[2] == leaf]
    if not close and elsewhere:
        return min(elsewhere, key=lambda known_key: known_key.count("."))
    close = close or get_close_matches(leaf, siblings, n=1)
    return siblings[close[0]] if close else None
