"""A plain task: its data, whether prompts render, its environment, its rewards."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from rlhf.check.environment import check_environment
from rlhf.check.report import Checking, Finding, num_of
from rlhf.check.rewards import check_rewards
from rlhf.check.rows import repeated_rows, shared_rows
from rlhf.config.references import references_in
from rlhf.config.schema import ModelConfig, Recipe
from rlhf.config.services import named_services
from rlhf.config.task import SourceConfig
from rlhf.data.prompts import load_prompts, of_scenario
from rlhf.errors import DataError
from rlhf.materials import renderer_for
from rlhf.types import Prompt

_WHENEVER = ("first_step", "last_step")


async def check_task(
    recipe: Recipe, checking: Checking, *, at: str = "task", train: str = "train", scenario: str = ""
) -> None:
    """Check the plain task of a recipe, the scenario of that name if there is one, unless it was checked before.

    `at` is its key and `train` that of its prompts below it.
    """
    report = checking.report
    if scenario:
        report.say("scenario", scenario)
    if place := checking.seen_at(_identity(recipe), at):
        report.say(at, f"the same data, judged alike, as in {place}: not checked again")
        return
    first = len(report.findings)
    prompts = _check_data(recipe, checking, at=at, train=train, scenario=scenario)
    if prompts:
        _check_rendering(recipe, prompts, checking)
    if recipe.task.environment is not None:
        await _check_environment(recipe, prompts, checking)
    if recipe.task.rewards:
        await check_rewards(recipe, prompts, checking)
    order = {prompt.id: index for index, prompt in enumerate(prompts)}
    # Rows are graded side by side: what was found is put back into the order of the data.
    report.findings[first:] = sorted(report.findings[first:], key=lambda found: order.get(found.row, -1))


def _identity(recipe: Recipe) -> Mapping[str, Any]:
    """All that decides what a check of a plain task finds."""
    keys = {"train", "heldout", "environment", "rewards", "needs_reference", "gold_template"}
    task = recipe.task.model_dump(mode="json", include=keys)
    task["rewards"] = [
        {key: value for key, value in reward.items() if key not in _WHENEVER} for reward in task["rewards"]
    ]
    shown = {"template": recipe.task.template, "system_prompt": recipe.task.system_prompt}
    return {
        "task": task,
        "sandbox": recipe.sandbox.model_dump(mode="json"),
        "services": [recipe.services[name].model for name in named_services(recipe.task)],
        "rendering": [rendering_of(recipe.model), shown, recipe.sampling.max_prompt_tokens]
        if recipe.model.path and Path(recipe.model.path).is_dir()
        else None,
    }


def rendering_of(model: ModelConfig) -> list[str | None]:
    """What of a model in a folder decides how prompts are rendered: stages hand their tokenizer on."""
    files = sorted(
        file
        for file in Path(str(model.path)).iterdir()
        if file.name.startswith(("tokenizer", "chat_template"))
    )
    digest = sha256(b"".join(file.read_bytes() for file in files if file.is_file())).hexdigest()
    return [digest, model.tokenizer, model.chat_template]


def _check_data(recipe: Recipe, checking: Checking, *, at: str, train: str, scenario: str) -> list[Prompt]:
    """Every readable row of training and held-out data, with ids that tell them apart."""
    assert recipe.task.train is not None
    report, key = checking.report, f"{at}.{train}"
    rows = of_scenario(read_source(recipe.task.train, key, checking), scenario)
    repeated = repeated_rows(rows)
    if rows:
        report.say(key, f"{len(rows)} prompts, {_repeats(repeated)}", rows=len(rows))
    heldout: list[Prompt] = []
    if recipe.task.heldout is not None:
        heldout = of_scenario(read_source(recipe.task.heldout, f"{at}.heldout", checking), scenario)
        known = {prompt.id for prompt in rows}
        heldout = [replace(p, id=f"{p.id} of {at}.heldout") if p.id in known else p for p in heldout]
        again, shared = repeated_rows(heldout), shared_rows(rows, heldout)
        if heldout:
            text = f"{len(heldout)} prompts, {len(shared)} of them also in {key}, {_repeats(again)}"
            report.say(f"{at}.heldout", text, rows=len(heldout), also_in_train=len(shared))
        repeated += again + shared
    # In an environment a prompt is not all of a task: what is hidden may differ, or be drawn anew.
    if recipe.task.environment is None:
        report.findings += repeated
    return [*rows, *heldout]


def read_source(source: SourceConfig, key: str, checking: Checking) -> list[Prompt]:
    """The readable rows of a source, the others are findings; none where a stage has yet to make them."""
    waiting = [str(reference) for _, reference in references_in(source.file)]
    if waiting:
        checking.report.say(key, f"{waiting[0]} is not there yet: not looked at")
        return []
    bad: list[tuple[str, DataError]] = []
    prompts = load_prompts(source, key=key, require_reference=False, bad_rows=bad)
    checking.report.findings += [
        Finding(kind="row cannot be read", row=row, reason=str(error)) for row, error in bad
    ]
    return prompts


def _repeats(findings: Sequence[Finding]) -> str:
    kinds = Counter(finding.kind for finding in findings)
    return "; ".join(f"{kind} ({num_of(count, 'row')})" for kind, count in kinds.items()) or "no prompt twice"


def _check_rendering(recipe: Recipe, prompts: Sequence[Prompt], checking: Checking) -> None:
    """Render every prompt, where the tokenizer is on this machine."""
    path, report = recipe.model.path, checking.report
    if path is None or not Path(path).is_dir():
        report.say("model", f"{_not_here(path)}: prompts were not rendered")
        return
    try:
        longest = renderer_for(recipe, path).check_prompts(
            prompts, max_prompt_tokens=recipe.sampling.max_prompt_tokens, key="task.train or task.heldout"
        )
    except (DataError, TemplateError) as error:
        report.findings.append(Finding(kind="prompts cannot be rendered", row="", reason=str(error)))
        return
    report.say("model", f"{path}: prompts render, the longest has {longest} tokens", longest=longest)


def _not_here(path: str | None) -> str:
    if path is None:
        return "initialised at random"
    if any(references_in(path)):
        return f"{path} is not there yet"
    return f"{path} is not a folder here (a hub name is fetched by train)"


async def _check_environment(recipe: Recipe, prompts: Sequence[Prompt], checking: Checking) -> None:
    environment = recipe.task.environment
    assert environment is not None
    missing = named_services(environment)
    if missing or not prompts:
        why = f"its service {missing[0]!r} is not started" if missing else "there are no rows"
        checking.report.say("episodes", f"none is played: {why}")
        return
    await check_environment(
        recipe, prompts, checking.report, code_dir=checking.code_dir, num_rows=checking.num_rows
    )
