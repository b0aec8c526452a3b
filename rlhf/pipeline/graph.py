"""From a pipeline's file to its stages in an order in which they can run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf.config.loading import checked_section
from rlhf.config.pipeline import PipelineConfig, Values, near
from rlhf.config.presets import lay_over
from rlhf.config.references import Reference, only_reference, references_in
from rlhf.config.schema import ModelConfig, Recipe
from rlhf.config.section import Section
from rlhf.config.stage_kinds import KINDS, RejectStage, SelectStage, StageKind
from rlhf.errors import ConfigError

_INHERITED = ("dtype", "trust_remote_code", "chat_template")
"""Keys of a model that hold for what a stage makes of it, unless the stage that uses it says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage, checked; its strings may still hold references."""

    name: str
    kind: str
    section: Section
    written: Mapping[Reference, Reference]
    """What it names of other stages, as it stands there -> with the artefact written out."""
    model_seed: int | None = None
    """Of the models that it initialises at random, where that is another than its own seed."""

    @property
    def needs(self) -> tuple[Reference, ...]:
        """What it reads of other stages, each once."""
        return tuple(dict.fromkeys(self.written.values()))

    @property
    def settings(self) -> Values:
        """All keys, defaults written out."""
        own = KINDS[self.kind].own
        return {key: value for key, value in self.section.model_dump(mode="json").items() if key not in own}

    @property
    def said(self) -> Values:
        """The keys that differ from their defaults: a later version's new key leaves them as they are."""
        own = KINDS[self.kind].own
        said = self.section.model_dump(mode="json", exclude_defaults=True)
        return {key: value for key, value in said.items() if key not in own}

    @property
    def stages_needed(self) -> tuple[str, ...]:
        """The stages that must be done before."""
        return tuple(dict.fromkeys(need.stage for need in self.needs))


def resolve(config: PipelineConfig) -> list[Stage]:
    """The stages in running order: each after those it names, otherwise as in the file.

    Raises ConfigError for a reference to what does not exist, a cycle, or a key that its kind does not have.
    """
    written = {name: _written(name, values, config.stages) for name, values in config.stages.items()}
    order = running_order({name: [need.stage for need in found] for name, found in written.items()})
    lineage: dict[str, Values] = {}
    stages = []
    for name in order:
        values = _with_models(name, config, lineage)
        lineage[name] = _first_model(values, [lineage[need.stage] for need in written[name]])
        section = _checked(name, values, config)
        stages.append(
            Stage(
                name=name,
                kind=values["kind"],
                section=section,
                written=written[name],
                model_seed=_other_seed(section, config.seed),
            )
        )
    _refuse_absent(stages)
    return stages


def _refuse_absent(stages: list[Stage]) -> None:
    """What a stage leaves only when it is asked to."""
    without_pairs = {
        stage.name
        for stage in stages
        if isinstance(stage.section, RejectStage | SelectStage) and stage.section.select.pairs is None
    }
    for stage in stages:
        for need in stage.needs:
            if need.artefact == "pairs" and need.stage in without_pairs:
                raise ConfigError(
                    f"stages.{stage.name}: found {str(need)!r}, but stages.{need.stage}.select.pairs is not set, so no "
                    "pairs are kept. Set it, for example select: {pairs: {per_prompt: 1}}."
                )


def running_order(needs: Mapping[str, list[str]]) -> list[str]:
    """The names, each after all that it needs, otherwise in their order. ConfigError for a cycle, which it names."""
    order: list[str] = []
    waiting = dict(needs)
    while waiting:
        ready = next((name for name, found in waiting.items() if not set(found) & waiting.keys()), None)
        if ready is None:
            raise ConfigError(
                f"stages: {' -> '.join(_cycle(waiting))}: each of these waits for the next, so none can start. "
                "Take one of the references out."
            )
        order.append(ready)
        del waiting[ready]
    return order


def needed_by(stage: str, stages: list[Stage]) -> list[Stage]:
    """`stage` and all that it needs, directly or not, in running order."""
    wanted = {stage}
    for one in reversed(stages):
        if one.name in wanted:
            wanted.update(one.stages_needed)
    return [one for one in stages if one.name in wanted]


def _cycle(waiting: Mapping[str, list[str]]) -> list[str]:
    path = [next(iter(waiting))]
    while True:
        following = next(name for name in waiting[path[-1]] if name in waiting)
        if following in path:
            return [*path[path.index(following) :], following]
        path.append(following)


def _written(name: str, values: Values, stages: Mapping[str, Values]) -> dict[Reference, Reference]:
    found = {}
    for key, reference in references_in(values):
        where = f"stages.{name}.{key}: found {str(reference)!r}"
        if reference.stage not in stages:
            raise ConfigError(
                f"{where}, but there is no stage {reference.stage!r}.{near(reference.stage, stages)}"
            )
        found[reference] = _named(reference, stages, where=where)
    return found


def _named(reference: Reference, stages: Mapping[str, Values], *, where: str) -> Reference:
    """The reference with its artefact written out."""
    kind = stages[reference.stage]["kind"]
    artefacts = KINDS[kind].artefacts
    artefact = reference.artefact or next(iter(artefacts))
    if artefact not in artefacts:
        raise ConfigError(
            f"{where}, but a stage of kind {kind} leaves no {artefact!r}.{near(artefact, artefacts)}"
        )
    return Reference(reference.stage, artefact)


def _with_models(name: str, config: PipelineConfig, lineage: Mapping[str, Values]) -> Values:
    """The stage's values with `model` and `models` as sections of their own."""
    values = dict(config.stages[name])
    if "model" in values:
        values["model"] = _model(f"stages.{name}.model", values["model"], config, lineage)
    if isinstance(values.get("models"), dict):
        values["models"] = {
            title: _model(f"stages.{name}.models.{title}", model, config, lineage)
            for title, model in values["models"].items()
        }
    return values


def _model(key: str, value: Any, config: PipelineConfig, lineage: Mapping[str, Values]) -> Any:
    if isinstance(value, str):
        if only_reference(value) is None:
            return _model_named(key, value, config)
        value = {"path": value}
    if not isinstance(value, dict):
        return value
    reference = only_reference(value.get("path"))
    if reference is None:
        return value
    kind = KINDS[config.stages[reference.stage]["kind"]]
    if not kind.makes_model and reference.artefact != "model":
        raise ConfigError(
            f"{key}: {str(reference)!r} is what a stage of kind {config.stages[reference.stage]['kind']} leaves, "
            f"{', '.join(kind.artefacts)}: no model."
        )
    return lay_over(lineage[reference.stage], value)


def _model_named(key: str, name: str, config: PipelineConfig) -> Values:
    if name in config.models:
        return config.models[name].model_dump(mode="json", exclude_defaults=True)
    if name in config.stages:
        raise ConfigError(f"{key}: {name!r} is a stage, not a name under `models`. Write '${{{name}}}'.")
    raise ConfigError(f"{key}: found {name!r}, which is no name under `models`.{near(name, config.models)}")


def _first_model(values: Values, of_needs: list[Values]) -> Values:
    """What a model that this stage makes has from the one it started from; a merge starts from what it names."""
    if "model" not in values and "models" not in values:
        return of_needs[0] if of_needs else {}
    models = [values.get("model"), *(values.get("models") or {}).values()]
    first = next((model for model in models if isinstance(model, dict)), {})
    return {key: first[key] for key in _INHERITED if key in first}


def _checked(name: str, values: Values, config: PipelineConfig) -> Section:
    kind = KINDS[values["kind"]]
    keys = {key: value for key, value in values.items() if key != "kind"}
    for below, preset in kind.preset.items():
        for key, value in preset.items():
            if (keys.get(below) or {}).get(key, value) != value:
                raise ConfigError(
                    f"stages.{name}.{below}.{key}: found {keys[below][key]!r}, but kind {values['kind']} "
                    f"is {value!r}. Leave it out, or use another kind."
                )
    keys = lay_over(kind.preset, {"seed": config.seed} | keys)
    keys |= {key: name for key in kind.own if key == "name"}
    section = checked_section(kind.section, keys, where=f"pipeline {config.name}", under=f"stages.{name}")
    _refuse(name, section, kind)
    return section


def _refuse(name: str, section: Section, kind: StageKind) -> None:
    """What a recipe may say, but a stage may not."""
    if isinstance(section, Recipe) and not section.checkpoint.export:
        raise ConfigError(
            f"stages.{name}.checkpoint.export is false: the stage would leave no {next(iter(kind.artefacts))}."
        )


def _other_seed(section: Section, model_seed: int) -> int | None:
    is_random = any(model.config is not None for _, model in models_of(section))
    return model_seed if is_random and dict(section)["seed"] != model_seed else None


def models_of(section: Section) -> Iterator[tuple[str, ModelConfig]]:
    """(dotted key, model) for the models that a stage starts from."""
    for key in ("model", "models"):
        if key not in type(section).model_fields:
            continue
        value = dict(section)[key]
        if isinstance(value, ModelConfig):
            yield key, value
        elif isinstance(value, dict):
            yield from ((f"{key}.{name}", model) for name, model in value.items())
