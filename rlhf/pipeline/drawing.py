"""A pipeline drawn before it runs: what each stage starts from, how much it does, and whether it is done."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from rlhf.config.pipeline import PipelineConfig
from rlhf.config.references import only_reference
from rlhf.config.schema import ModelConfig, Recipe
from rlhf.pipeline.graph import Stage, models_of
from rlhf.pipeline.opened import Standing

_COLOURS = {"done": "green", "resumes": "yellow", "to do": "cyan", "waits": "dim"}


def draw(config: PipelineConfig, standings: Sequence[Standing]) -> Table:
    """One row per stage in running order; a stage that needs others hangs below the last of them."""
    table = Table(title=f"pipeline {config.name}, in {config.folder}", show_lines=True, title_justify="left")
    for column in ("stage", "model and data", "size", "state"):
        table.add_column(column, overflow="fold")
    depths = depth_of([standing.stage for standing in standings])
    for number, standing in enumerate(standings, 1):
        stage, verdict = standing.stage, standing.verdict
        branch = "  " * (depths[stage.name] - 1) + "└ " if depths[stage.name] else ""
        inset = "  " * depths[stage.name]
        needs = f"\n{inset}needs {', '.join(stage.stages_needed)}" if stage.needs else ""
        name = Text.assemble(
            (f"{branch}{number}. {stage.name}", "bold"), f"\n{inset}{stage.kind}", (needs, "dim")
        )
        state = Text.assemble(
            (verdict.state, _COLOURS[verdict.state]), f"\n{verdict.why}" if verdict.why else ""
        )
        size = "\n".join(size_of(stage, standings))
        table.add_row(name, "\n".join([*_models(stage), *_data(stage.said)]), size, state)
    return table


def depth_of(stages: Sequence[Stage]) -> dict[str, int]:
    """How many stages lie one after the other before each; `stages` are in running order."""
    depths: dict[str, int] = {}
    for stage in stages:
        depths[stage.name] = max((depths[name] + 1 for name in stage.stages_needed), default=0)
    return depths


def size_of(stage: Stage, standings: Sequence[Standing] = ()) -> list[str]:
    """How much a stage does, in lines."""
    section = stage.section
    if isinstance(section, Recipe):
        return _of_rl(section, _root(section.model, standings))
    settings = stage.settings
    lines = []
    for key in ("sft", "dpo", "reward_model"):
        if (trainer := settings.get(key)) is not None:
            what = "rows" if key == "sft" else "pairs"
            steps, size = trainer["num_steps"], trainer["batch_size"]
            times = f"{trainer['num_epochs']:g} passes" if steps is None else f"{steps} steps"
            total = "" if steps is None else f" = {steps * size:,}"
            lines.append(f"{times} x {size} {what}{total}")
    if "collect" in settings:
        lines += _of_reject(settings)
    elif "select" in settings:
        lines.append(_of_select(settings["select"]))
    if "sets" in settings:
        samples, prompts = (
            settings["eval"]["num_samples"],
            [_rows(s["source"]) for s in settings["sets"].values()],
        )
        known = f" of {sum(filter(None, prompts)):,} prompts" if None not in prompts else " of every prompt"
        lines.append(f"{len(list(models_of(section)))} models x {samples} samples{known}")
    return lines


def _of_rl(recipe: Recipe, model: ModelConfig) -> list[str]:
    from rlhf.plan import derive_plan

    schedule = recipe.schedule
    sequences = schedule.prompts_per_step * schedule.samples_per_prompt
    total = schedule.num_steps * sequences
    lines = [f"{schedule.num_steps} steps x {sequences} sequences = {total:,}"]
    plan = dict(derive_plan(recipe.model_copy(update={"model": model})))
    memory = [what for what in ("memory per learner rank", "memory per engine") if what in plan]
    lines += [f"{what.removeprefix('memory ')}: {plan[what].split(' (')[0]}" for what in memory]
    return [*lines, plan["devices"]]


def _of_reject(settings: Mapping[str, Any]) -> list[str]:
    samples, prompts = settings["collect"]["samples_per_prompt"], _rows(settings["task"]["train"])
    kept = settings["select"]["per_prompt"]
    at_most = (
        "all" if kept is None else f"at most {kept if prompts is None else format(kept * prompts, ',')} rows"
    )
    asked = f"{samples} samples of every prompt"
    if prompts is not None:
        asked = f"{prompts:,} prompts x {samples} samples = {prompts * samples:,}"
    return [asked, f"kept: {at_most}{' per prompt' if prompts is None and kept is not None else ''}"]


def _of_select(select: Mapping[str, Any]) -> str:
    kept, limit = select["per_prompt"], select["limit"]
    each = "all" if kept is None else f"at most {kept} per prompt"
    return f"kept: {each}" + ("" if limit is None else f", {limit:,} rows at most")


def _root(model: ModelConfig, standings: Sequence[Standing]) -> ModelConfig:
    """The model that training began with, whose size is that of all that came of it; adapters are this one's."""
    reference = only_reference(model.path)
    while reference is not None:
        stage = next((s.stage for s in standings if s.stage.name == reference.stage), None)
        found = next((m for _, m in models_of(stage.section)), None) if stage is not None else None
        if found is None:
            return model
        model = found.model_copy(update={"lora": model.lora, "dtype": model.dtype})
        reference = only_reference(model.path)
    return model


def _models(stage: Stage) -> list[str]:
    return [f"{key.removeprefix('models.')}: {name_of(model)}" for key, model in models_of(stage.section)]


def name_of(model: ModelConfig) -> str:
    """A model in a few words."""
    adapters = "" if model.lora is None else f" + adapters of rank {model.lora.rank}"
    if model.path is not None:
        return f"{model.path}{adapters}"
    return f"{(model.config or {}).get('model_type', '?')}, random{adapters}"


def _data(values: Any, key: str = "") -> list[str]:
    """Every source that a stage reads, by its key."""
    if isinstance(values, list):
        return [line for inner in values for line in _data(inner, key)]
    if not isinstance(values, dict):
        return []
    name = next(
        (values[kind] for kind in ("file", "dataset", "generator") if isinstance(values.get(kind), str)), None
    )
    if name is not None and "use" not in values:
        rows = _rows(values)
        name = name.rpartition(":")[2] if "generator" in values else name
        return [f"{key}: {name}" + (f", {rows:,} rows" if rows is not None else "")]
    return [
        line for inner, value in values.items() for line in _data(value, inner if inner != "source" else key)
    ]


def _rows(source: Mapping[str, Any]) -> int | None:
    """The number of rows of a source, where its keys tell."""
    size, limit = (source.get("kwargs") or {}).get("size"), source.get("limit")
    known = [n for n in (size, limit) if isinstance(n, int)]
    return min(known) if known else None
