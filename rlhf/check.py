"""`rlhf check`: load everything a recipe names and grade every gold answer, before a minute is spent on training."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress

from rlhf.config.schema import Recipe
from rlhf.data.prompts import load_prompts
from rlhf.errors import DataError
from rlhf.materials import renderer_for
from rlhf.plan import derive_plan
from rlhf.rollout.gold import GoldFinding, GoldReport, check_gold
from rlhf.rollout.scoring import RewardPool
from rlhf.telemetry.logs import TERMINAL
from rlhf.types import Prompt

_SHOWN = 20


async def check(recipe: Recipe, *, code_dir: Path) -> int:
    """Print what was found; 0 when the task is sound, 1 when a gold is not graded right or a probe is rewarded."""
    derive_plan(recipe)
    _say("recipe", "valid; the plan can be derived")
    prompts = load_prompts(recipe.task.train, key="task.train", require_reference=False)
    _say("task.train", f"{len(prompts)} prompts")
    if recipe.task.heldout is not None:
        heldout = load_prompts(recipe.task.heldout, key="task.heldout", require_reference=False)
        shared = {p.messages for p in prompts} & {p.messages for p in heldout}
        _say("task.heldout", f"{len(heldout)} prompts, {len(shared)} of them also in task.train")
        prompts = [*prompts, *heldout]
    if recipe.sft is not None:
        rows = load_prompts(recipe.sft.source, key="sft.source", require_reference=False)
        _say("sft.source", f"{len(rows)} demonstrations")
    _check_rendering(recipe, prompts)
    pool = RewardPool(
        recipe.task.rewards,
        num_workers=recipe.task.reward_workers,
        code_dir=str(code_dir),
        max_ungradable=1.0,
    )
    try:
        await pool.start()
        _check_columns(pool, prompts)
        with Progress(console=TERMINAL) as bar:
            task = bar.add_task("grading golds", total=len(prompts))
            report = await check_gold(prompts, pool, progress=lambda done: bar.update(task, completed=done))
    finally:
        await pool.close()
    return _print_golds(report)


def _check_rendering(recipe: Recipe, prompts: Sequence[Prompt]) -> None:
    """Render every prompt, where the tokenizer is on this machine."""
    path = recipe.model.path
    if path is None or not Path(path).is_dir():
        what = (
            "initialised at random"
            if path is None
            else f"{path} is not a folder here (a hub name is fetched by train)"
        )
        _say("model", f"{what}: prompts were not rendered")
        return
    longest = renderer_for(recipe, path).check_prompts(
        prompts, max_prompt_tokens=recipe.sampling.max_prompt_tokens, key="task.train or task.heldout"
    )
    _say("model", f"{path}: prompts render, the longest has {longest} tokens")


def _check_columns(pool: RewardPool, prompts: Sequence[Prompt]) -> None:
    for name, columns in pool.required_columns.items():
        for prompt in prompts:
            missing = [c for c in columns if c != "reference" and c not in prompt.columns]
            if missing:
                raise DataError(
                    f"reward {name!r} needs the columns {list(columns)}, but row {prompt.id} has no {missing}; "
                    f"it has {sorted(prompt.columns)}. Rename columns in the source, or drop the parameter."
                )
        _say("reward", f"{name} loads; it needs {list(columns) or 'no columns'}")


def _print_golds(report: GoldReport) -> int:
    right = report.num_prompts - len(report.wrong)
    _say("golds", f"{right} of {report.num_prompts} graded right in {report.seconds:.1f} s")
    _list("gold not graded right", report.wrong)
    _list("gold in doubt (its own row speaks against it)", report.doubtful)
    for name, findings in report.rewarded_probes.items():
        _list(f"rewarded without an answer ({name})", findings)
    _say("check", "passed" if report.is_sound else "FAILED")
    return 0 if report.is_sound else 1


def _list(title: str, findings: Sequence[GoldFinding]) -> None:
    for finding in findings[:_SHOWN]:
        _say(title, f"row {finding.prompt_id}: {finding.reason}")
    if len(findings) > _SHOWN:
        _say(title, f"and {len(findings) - _SHOWN} more")


def _say(what: str, text: str) -> None:
    sys.stdout.write(f"{what}: {text}\n")
