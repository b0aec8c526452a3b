"""The order of a check: data, model, rewards, every row's gold and probes, then what all rewards promise."""

from pathlib import Path

from rlhf.check.report import Checking, Report
from rlhf.check.task import check_task
from rlhf.check.trained import Shown, check_demonstrations
from rlhf.config.schema import Recipe
from rlhf.config.services import named_services
from rlhf.errors import ConfigError
from rlhf.plan import derive_plan
from rlhf.processes import local_services
from rlhf.stages.model_folder import is_at_hand


async def check(
    recipe: Recipe, *, code_dir: Path, num_rows: int | None = None, json_file: Path | None = None
) -> int:
    """Say what was found; 0 when the task is sound, 1 when not.

    `num_rows` limits the rows that are graded (drawn alike every time); the data are checked whole. `json_file`
    gets all of it for programs.
    """
    refuse_lost_json(json_file)
    checking = Checking(report=Report(), code_dir=code_dir, num_rows=num_rows)
    await check_recipe(recipe, checking)
    return concluded(checking.report, json_file)


def refuse_lost_json(json_file: Path | None) -> None:
    """ConfigError where the JSON file could not be written in the end."""
    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise ConfigError(f"--json: there is no folder {str(json_file.parent)!r}.")


def concluded(report: Report, json_file: Path | None) -> int:
    """List what was found, also in `json_file` if there is one; the exit code."""
    code = report.conclude()
    if json_file is not None:
        report.save(json_file)
    return code


async def check_recipe(recipe: Recipe, checking: Checking) -> None:
    """All that a recipe trains on: its task, every scenario of it, and its demonstrations."""
    checking.report.recipe = checking.report.recipe or recipe.name
    derive_plan(recipe)
    checking.report.say("recipe", "valid; the plan can be derived")
    await check_tasks(recipe, checking)
    if recipe.sft is not None:
        check_demonstrations(recipe.sft, Shown(model=recipe.model, task=recipe.task), checking)


async def check_tasks(recipe: Recipe, checking: Checking, *, at: str = "", train: str = "train") -> None:
    """The task of a recipe, or all its scenarios, with those of its services whose models are on this machine.

    `at` is the key of the task (default: as in a recipe), `train` that of its prompts below it.
    """
    here = [name for name in named_services(recipe.task) if is_at_hand(recipe.services[name].model)]
    async with local_services(recipe, here) as served:
        for scenario in served.task.scenarios or [""]:
            alone = served.model_copy(update={"task": served.task.alone(scenario)})
            key = at or served.task.key_of(scenario)
            await check_task(alone, checking, at=key, train=train, scenario=scenario)
