"""One `rlhf eval`: a file of models and sets, or a recipe, measured in its folder; the table that a user reads."""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rlhf.config.evaluation import EvalSet, EvaluateConfig, EvaluationFile
from rlhf.config.loading import checked_section, read_with_overrides
from rlhf.config.schema import Recipe
from rlhf.config.section import Section
from rlhf.errors import ConfigError
from rlhf.run_folder import replace_file
from rlhf.telemetry.live import LiveView
from rlhf.telemetry.logs import TERMINAL, logged_to

if TYPE_CHECKING:
    from rich.table import Table

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What one command measures, and where."""

    models: Mapping[str, Recipe]
    sets: Mapping[str, EvalSet]
    config: EvaluateConfig
    folder: Path
    said: Section
    """What was read, for the record."""


async def evaluate_file(path: Path, overrides: Sequence[str], *, code_dir: Path) -> int:
    """Measure what the file at `path` names, print the table and write the report; returns the exit code."""
    asked = read_evaluation(path, overrides)
    _record(asked)
    # Late: what it loads takes seconds, and most mistakes are found without it.
    from rlhf.offline.evaluate import evaluate_models

    name = next(iter(asked.models.values())).name
    with logged_to(asked.folder), LiveView({"evaluation": name}) as view:
        await evaluate_models(
            asked.models, asked.sets, asked.config, asked.folder, code_dir=code_dir, view=view
        )
    TERMINAL.print(table_of(json.loads((asked.folder / "eval.json").read_text(encoding="utf-8"))))
    sys.stdout.write(f"report: {asked.folder / 'report.html'}\n")
    return 0


def read_evaluation(path: Path, overrides: Sequence[str] = ()) -> Evaluation:
    """What a file with `sets`, or a recipe, asks for. ConfigError as `load_recipe`."""
    values = read_with_overrides(path, overrides)
    return _of_file(values, path) if "sets" in values else _of_recipe(values, path)


def _record(asked: Evaluation) -> None:
    """Make the folder, with all that was asked in it."""
    resolved = yaml.safe_dump(asked.said.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    try:
        asked.folder.mkdir(parents=True, exist_ok=True)
        replace_file(asked.folder / "evaluation.yaml", resolved)
    except OSError as error:
        raise ConfigError(
            f"run_dir: cannot write to {str(asked.folder)!r} ({error.strerror}). "
            "Name another folder with run_dir=..., or mend its permissions."
        ) from error


def _of_file(values: Mapping[str, Any], path: Path) -> Evaluation:
    file = checked_section(EvaluationFile, values, where=path)
    return Evaluation(
        models={name: file.recipe(model) for name, model in file.all_models.items()},
        sets=file.judged_sets,
        config=file.eval,
        folder=Path(file.run_dir or f"runs/{file.name}").resolve(),
        said=file,
    )


def _of_recipe(values: Mapping[str, Any], path: Path) -> Evaluation:
    """The recipe's model, or what its run has made of it, on its held-out prompts."""
    recipe = checked_section(Recipe, values, where=path)
    sets = _heldout_sets(recipe)
    if not sets:
        raise ConfigError(
            f"{path} has no sets and no task.heldout, nor one in a scenario: nothing to measure on. Give either, for "
            "example sets: {gsm8k: {source: {dataset: ...}}}."
        )
    wanted = {name: recipe.eval.model_dump()[name] for name in ("num_samples", "temperature", "max_tokens")}
    run_dir = Path(recipe.run_dir or f"runs/{recipe.name}").resolve()
    models = {"model": recipe}
    if (run_dir / "model" / "config.json").is_file():
        from rlhf.materials import local_model

        made = local_model(recipe, str(run_dir / "model"))
        models = {"trained": recipe.model_copy(update={"model": made})}
        logger.info("the model is what the run has made: %s", made.path)
    return Evaluation(
        models=models,
        sets=sets,
        config=checked_section(EvaluateConfig, wanted, where=path, under="eval"),
        folder=run_dir / "eval",
        said=recipe,
    )


def _heldout_sets(recipe: Recipe) -> dict[str, EvalSet]:
    """What the recipe holds out: one set, or one for each scenario that holds something out."""
    found = {}
    for scenario in recipe.task.scenarios or [""]:
        task = recipe.task.alone(scenario)
        if task.heldout is not None:
            limit = min(recipe.eval.num_prompts, task.heldout.limit or recipe.eval.num_prompts)
            found[scenario or "heldout"] = EvalSet(
                source=task.heldout.model_copy(update={"limit": limit}),
                rewards=task.rewards,
                environment=task.environment,
                needs_reference=task.needs_reference,
            )
    return found


def table_of(found: Mapping[str, Any]) -> "Table":
    """The main figures of an eval.json with their intervals, a column a model, and how they were sampled."""
    from rich.table import Table

    models = found["models"]
    table = Table(title=f"{found['name']}: means over problems [95 % interval]")
    for heading in ("set", "figure", *models):
        table.add_column(heading)
    for name in dict.fromkeys(name for measured in models.values() for name in measured["sets"]):
        scores = [measured["sets"].get(name) for measured in models.values()]
        table.add_row(name, "sampled", *map(_sampled, scores))
        for figure in _main_figures([one for one in scores if one is not None]):
            cells = [_cell(figure, None if one is None else one["figures"].get(figure)) for one in scores]
            table.add_row("", figure, *cells)
        table.add_section()
    return table


def _sampled(scores: Mapping[str, Any] | None) -> str:
    if scores is None:
        return "-"
    drawn = scores["sampling"]
    kind = f"T={drawn['temperature']:g} top_p={drawn['top_p']:g}" if drawn["temperature"] else "greedy"
    return f"{scores['counts']['prompts']} prompts x {drawn['num_samples']}, {kind}"


def _main_figures(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    """Accuracy, what the largest k gives, and what else a reader must know."""
    present = {name for one in scores for name in one["figures"]}
    most = max((int(name[5:]) for name in present if name.startswith("pass@")), default=1)
    of_most = [f"{kind}{most}" for kind in ("pass@", "pass^", "maj@", "best@") if most > 1]
    parts = sorted(name for name in present if name.startswith("reward/"))
    names = ("accuracy", *of_most, "format", *parts, "truncated", "ungradable", "tokens")
    return [name for name in names if name in present]


def _cell(name: str, figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "-"
    if name == "tokens":
        return f"{figure['value']:.0f} [{figure['low']:.0f}, {figure['high']:.0f}]"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
