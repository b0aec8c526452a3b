"""A pipeline file: models, what all stages share, and the stages."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import Field

from rlhf.config.loading import checked_section, nearest_key, read_with_overrides, schema_keys
from rlhf.config.presets import lay_over
from rlhf.config.schema import ModelConfig
from rlhf.config.section import Section
from rlhf.config.stage_kinds import KINDS, StageKind
from rlhf.errors import ConfigError

Values = dict[str, Any]
BASE = "recipe"
"""The key of a stage that names a recipe file below it."""
_OUTSIDE_SHARED = ("kind", "model", "models", "seed", "name", "run_dir", BASE)


class PipelineConfig(Section):
    """Stages, each of which starts from what others leave."""

    name: str
    seed: int = 0
    """Of every stage that names none, and of the random models."""
    run_dir: str | None = None
    """Default: runs/<name>."""
    models: dict[str, ModelConfig] = Field(default_factory=dict)
    """Models that stages start from, by name."""
    shared: dict[str, Any] = Field(default_factory=dict)
    """Sections laid under those of every stage that knows them."""
    stages: dict[str, dict[str, Any]] = Field(min_length=1)
    """By name: `kind`, `model` and the sections of the kind (rlhf/config/stage_kinds.py)."""

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return Path(self.run_dir or f"runs/{self.name}")


def load_pipeline(path: str | Path, overrides: Sequence[str] = ()) -> PipelineConfig:
    """The pipeline in a file, its stages with `shared` and their recipes laid under them.

    Raises ConfigError naming the key that is wrong. References between stages are not looked at here.
    """
    path = Path(path)
    _refuse_new_stages(path, overrides)
    values = read_with_overrides(path, overrides)
    config = checked_section(PipelineConfig, values, where=path)
    for name in config.stages:
        if not name.replace("_", "").replace("-", "").isalnum() or name in config.models:
            problem = "is also the name of a model" if name in config.models else "is not a plain name"
            raise ConfigError(f"{path}: stages.{name}: {problem}. Letters, digits, _ and -, each name once.")
    kinds = {name: _kind(path, name, stage) for name, stage in config.stages.items()}
    _refuse_unknown_shared(path, config.shared, [kind.section for kind in kinds.values()])
    laid = {
        name: _laid(path, config.shared, stage, kind=kinds[name], name=name)
        for name, stage in config.stages.items()
    }
    return config.model_copy(update={"stages": laid, "shared": {}})


def _refuse_new_stages(path: Path, overrides: Sequence[str]) -> None:
    """An override that names no stage would make one."""
    stages = read_with_overrides(path).get("stages")
    for override in overrides:
        parts = override.partition("=")[0].split(".")
        if len(parts) > 2 and parts[0] == "stages" and isinstance(stages, dict) and parts[1] not in stages:
            raise ConfigError(
                f"override {override!r}: there is no stage {parts[1]!r}.{near(parts[1], stages)}"
            )


def near(name: str, known: Mapping[str, object] | Sequence[str]) -> str:
    """The sentence that names what `name` may have meant, and else all that is known."""
    found = get_close_matches(name, list(known), n=1)
    if found:
        return f" Did you mean {found[0]!r}?"
    return f" There are: {', '.join(known)}." if known else " There are none."


def _kind(path: Path, name: str, stage: Mapping[str, Any]) -> StageKind:
    kind = stage.get("kind")
    if kind is None:
        raise ConfigError(f"{path}: stages.{name}: missing key 'kind': one of {', '.join(KINDS)}.")
    if kind not in KINDS:
        raise ConfigError(f"{path}: stages.{name}.kind: found {kind!r}.{near(str(kind), KINDS)}")
    return KINDS[kind]


def _laid(path: Path, shared: Values, stage: Values, *, kind: StageKind, name: str) -> Values:
    """The stage over its recipe file, if it names one, over what of `shared` its kind knows."""
    values = dict(stage)
    below = _known(shared, kind.section, kind.unread | kind.unshared)
    if BASE in values and "schedule" in kind.section.model_fields:
        file = path.parent / str(values.pop(BASE))
        recipe = {key: value for key, value in read_with_overrides(file).items() if key not in kind.own}
        if "model" in values:
            recipe.pop("model", None)  # a model is taken as a whole: a path over a config would be two
        below = lay_over(below, recipe)
    for key in sorted(kind.own & values.keys()):
        raise ConfigError(
            f"{path}: stages.{name}: {key!r} is the pipeline's to say, take it out of the stage."
        )
    laid = lay_over(below, values)
    for dotted in sorted(kind.unread):
        if _says(values, dotted) and _at(values, dotted) is not None:
            raise ConfigError(
                f"{path}: stages.{name}: {dotted} is set, but a stage of kind {values['kind']} does not read it."
            )
    return laid


def _says(values: Any, dotted: str) -> bool:
    for key in dotted.split("."):
        if not isinstance(values, Mapping) or key not in values:
            return False
        values = values[key]
    return True


def _at(values: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        values = values[key]
    return values


def _known(
    shared: Mapping[str, Any], section: type[Section], unread: frozenset[str], prefix: str = ""
) -> Values:
    """The keys of `shared` that `section` has and reads."""
    known: Values = {}
    for key, value in shared.items():
        if key not in section.model_fields or prefix + key in unread:
            continue
        inner = section_of(section.model_fields[key].annotation)
        if inner is not None and isinstance(value, Mapping):
            if fitting := _known(value, inner, unread, f"{prefix}{key}."):
                known[key] = fitting
        else:
            known[key] = value
    return known


def section_of(annotation: Any) -> type[Section] | None:
    """The section that a field holds, if it holds one: not a mapping or a tuple of sections."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if get_origin(annotation) in (Union, UnionType):
        return next((s for arg in get_args(annotation) if (s := section_of(arg)) is not None), None)
    return None


def _refuse_unknown_shared(path: Path, shared: Values, sections: Sequence[type[Section]]) -> None:
    for key in _OUTSIDE_SHARED:
        if key in shared:
            say = "at the top of the file" if key in ("seed", "name", "run_dir") else "in the stages"
            raise ConfigError(f"{path}: shared.{key}: not a section that stages share; say it {say}.")
    everywhere = list(dict.fromkeys(key for section in sections for key, _ in schema_keys(section)))
    for leaf in _leaves(shared, sections):
        if not any(_says(_known(shared, section, frozenset()), leaf) for section in sections):
            close = nearest_key(leaf, everywhere)
            hint = f": did you mean {close!r}?" if close else "."
            raise ConfigError(f"{path}: shared: no stage of this pipeline knows the key {leaf!r}{hint}")


def _leaves(shared: Any, sections: Sequence[type[Section]], prefix: str = "") -> Iterator[str]:
    """Dotted keys of `shared`, down to where some stage's schema holds something else than a section."""
    for key, value in shared.items():
        inner = [
            below
            for section in sections
            if key in section.model_fields
            and (below := section_of(section.model_fields[key].annotation)) is not None
        ]
        if inner and isinstance(value, Mapping) and value:
            yield from _leaves(value, inner, f"{prefix}{key}.")
        else:
            yield prefix + key
