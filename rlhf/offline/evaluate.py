"""Models measured on sets: sampled and graded chunk by chunk, then made into figures, so that a kill costs a chunk."""

import contextlib
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf.cluster.engines import EngineClient
from rlhf.config.evaluation import EvalSet, EvaluateConfig
from rlhf.config.schema import Recipe
from rlhf.config.services import with_no_addresses
from rlhf.offline.answers import votes_by_reward, votes_by_text
from rlhf.offline.asked import Asked, check_names, prepare
from rlhf.offline.collect import Progress, collect, read_collected, take_over
from rlhf.offline.figures import Problem, measure, problem_of
from rlhf.offline.kept import kept_samples
from rlhf.offline.shared_engines import SharedEngines
from rlhf.processes import open_drawing, open_graders
from rlhf.rollout.reward_totals import check_columns
from rlhf.run_folder import environment, replace_file
from rlhf.telemetry.eval_report import write_eval_report
from rlhf.telemetry.live import LiveView


async def evaluate_models(  # noqa: PLR0913  # what, on what, how, and where to
    models: Mapping[str, Recipe],
    sets: Mapping[str, EvalSet],
    config: EvaluateConfig,
    folder: Path,
    *,
    code_dir: Path,
    view: LiveView,
    before: Path | None = None,
) -> dict[str, float]:
    """Measure models, one after the other, on every set; returns `<set>/<figure>`, of several `<model>/<set>/<figure>`.

    A model is its recipe's, which also says how it is placed and how the sets are judged that do not say so. Writes
    `collected/<model>/<set>/`, from which a later call goes on, `eval.json` and `samples.jsonl`, which follow from what
    was collected alone, and `report.html`. What the folder `before` has collected with these settings is taken over.
    """
    check_names(models, "models")
    check_names(sets, "sets")
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "environment.json", json.dumps(environment(), indent=1))
    found: dict[str, Any] = {}
    samples: list[dict[str, Any]] = []
    # All of them, before hours are spent on the first.
    prepared = {model: prepare(recipe, sets, config, folder, model=model) for model, recipe in models.items()}
    if before is not None:
        for one in (one for asked in prepared.values() for one in asked):
            take_over(one.plan, before / one.folder.relative_to(folder), one.folder)
    view.phase("trying the rewards")
    await _try_rewards(prepared, code_dir=code_dir)
    async with SharedEngines(code_dir) as shared:
        for model, asked in prepared.items():
            await _collect_all(asked, model, shared, code_dir=code_dir, view=view)
            measured = {}
            for one in asked:
                view.phase(f"{model}: figures of {one.name}")
                measured[one.name] = await _measure(one, shared, code_dir=code_dir)
                chosen = kept_samples(
                    read_collected(one.folder), config.samples_kept, num_prompts=len(one.materials.train)
                )
                samples += [{"model": model, "set": one.name, **sample} for sample in chosen]
            found[model] = {
                "model": _called(models[model], folder),
                "seed": models[model].seed,
                "sets": measured,
            }
    lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    replace_file(folder / "samples.jsonl", lines)
    name = next(iter(models.values())).name
    replace_file(folder / "eval.json", json.dumps({"name": name, "models": found}, indent=1))
    write_eval_report(folder)
    return metrics_of(found)


def metrics_of(models: Mapping[str, Any]) -> dict[str, float]:
    """`<set>/<figure>`, of several models `<model>/<set>/<figure>`, from the models of an eval.json."""
    return {
        f"{set_name}/{figure}" if len(models) == 1 else f"{model}/{set_name}/{figure}": values["value"]
        for model, found in models.items()
        for set_name, scores in found["sets"].items()
        for figure, values in scores["figures"].items()
    }


async def _collect_all(
    asked: Sequence[Asked], model: str, shared: SharedEngines, *, code_dir: Path, view: LiveView
) -> None:
    """Sample and grade what is not there yet, with the same engines for all sets."""
    pending = [one for one in asked if not one.is_collected]
    if not pending:
        return
    # Around the graders, too: their services are actors.
    await shared.open_ray(pending[0].recipe.placement)
    # With room for the longest context of all sets.
    longest = max(asked, key=lambda one: one.recipe.longest_context)
    view.phase(f"{model}: engines")
    engine = await shared.of(longest.materials)
    for one in pending:
        await _collect(one, engine, model, code_dir=code_dir, view=view)


async def _try_rewards(prepared: Mapping[str, Sequence[Asked]], *, code_dir: Path) -> None:
    """Load the rewards of every set, without the services that they ask, before anything is started."""
    pending = {one.name: one for asked in prepared.values() for one in asked if not one.is_collected}
    for one in pending.values():
        alone = with_no_addresses(one.recipe, one.recipe.services)
        async with open_graders(alone, code_dir=code_dir) as graders:
            required = graders.reward.required_columns
            key = f"sets.{one.name}.source"
            check_columns(one.recipe.task.rewards, required, one.materials.train, key=key)


async def _collect(one: Asked, engine: EngineClient, model: str, *, code_dir: Path, view: LiveView) -> None:
    def progress(at: Progress) -> None:
        text = f"{model} on {one.name} · right {at.correct_share:.3f} · {at.samples_per_s:.1f} samples/s"
        view.phase(text, at.prompts_done, at.num_prompts)

    async with open_drawing(one.materials, code_dir=code_dir, engine=engine) as drawing:
        plan = replace(one.plan, forget=engine.forget_prefixes)
        await collect(drawing.rollout, drawing.reward, plan, one.folder, progress=progress)


async def _measure(one: Asked, shared: SharedEngines, *, code_dir: Path) -> dict[str, Any]:
    """The figures of what was collected, and what was asked."""
    best_of = one.config.best_of
    problems: list[Problem] = []
    async with contextlib.AsyncExitStack() as stack:
        reward = None
        if one.one.votes == "reward":
            if one.recipe.services:
                await shared.open_ray(one.recipe.placement)
            reward = (await stack.enter_async_context(open_graders(one.recipe, code_dir=code_dir))).reward
        for found in read_collected(one.folder):
            votes: list[Hashable | None] = votes_by_text(found)
            if reward is not None:
                template = one.recipe.task.gold_template
                votes = await votes_by_reward(found, reward, gold_template=template)
            problems.append(problem_of(found, votes, best_of=best_of))
    scores = measure(problems, sizes=one.config.sizes, best_of=best_of is not None)
    return one.described() | scores.as_json()


def _called(recipe: Recipe, folder: Path) -> str:
    """The model as the recipe names it; within the folder relative to it, wherever that lies."""
    if recipe.model.path is None:
        return f"{(recipe.model.config or {}).get('model_type')}, random initialisation"
    if Path(recipe.model.path).is_relative_to(folder):
        return str(Path(recipe.model.path).relative_to(folder))
    return recipe.model.path
