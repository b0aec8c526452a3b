"""The order of a check: data, model, rewards, every row's gold and probes, then what all rewards promise."""

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jinja2 import TemplateError
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from rlhf.check.contract import NUM_ROWS, check_contract
from rlhf.check.environment import check_environment
from rlhf.check.figures import say_golds, say_rewards, say_time
from rlhf.check.grading import GradedRow, GradingRun, fitting_template
from rlhf.check.judging import CONTRACT, UNGRADABLE, Tally, doubt_of, with_doubt
from rlhf.check.probes import GOLD_COLUMN, ProbeSet
from rlhf.check.report import Finding, Report, num_of
from rlhf.check.rows import repeated_rows, shared_rows
from rlhf.config.schema import Recipe
from rlhf.config.task import SourceConfig
from rlhf.data.prompts import load_prompts, of_scenario
from rlhf.errors import ConfigError, DataError, LoadError, RewardError
from rlhf.materials import renderer_for, worker_settings
from rlhf.plan import derive_plan
from rlhf.processes import local_services
from rlhf.rollout.reward_totals import applies
from rlhf.rollout.scoring import RewardPool
from rlhf.telemetry.logs import TERMINAL
from rlhf.types import Prompt

_SEED = 0
_NUM_TEMPLATE_ROWS = 8
_LEAK = "it left memory, processes or files behind, and its worker was replaced"


async def check(
    recipe: Recipe, *, code_dir: Path, num_rows: int | None = None, json_file: Path | None = None
) -> int:
    """Say what was found; 0 when the task is sound, 1 when not.

    `num_rows` limits the rows that are graded (drawn alike every time); the data are checked whole. `json_file`
    gets all of it for programs.
    """
    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise ConfigError(f"--json: there is no folder {str(json_file.parent)!r}.")
    async with local_services(recipe) as served:
        report, prompts = await _checked(served, code_dir=code_dir, num_rows=num_rows)
    order = {prompt.id: index for index, prompt in enumerate(prompts)}
    # Rows are graded side by side: what was found is put back into the order of the data.
    report.findings.sort(key=lambda finding: order.get(finding.row, -1))
    code = report.conclude()
    if json_file is not None:
        report.save(json_file)
    return code


async def _checked(recipe: Recipe, *, code_dir: Path, num_rows: int | None) -> tuple[Report, list[Prompt]]:
    report = Report(recipe=recipe.name)
    derive_plan(recipe)
    report.say("recipe", "valid; the plan can be derived")
    prompts: list[Prompt] = []
    for scenario in recipe.task.scenarios or [""]:
        alone = recipe.model_copy(update={"task": recipe.task.alone(scenario)})
        prompts += await _check_task(alone, scenario, report, code_dir=code_dir, num_rows=num_rows)
    if recipe.sft is not None:
        for key, source in recipe.sft.sources.items():
            rows = _read(source, key, report)
            report.say(key, f"{len(rows)} demonstrations", rows=len(rows))
    return report, prompts


async def _check_task(
    recipe: Recipe, scenario: str, report: Report, *, code_dir: Path, num_rows: int | None
) -> list[Prompt]:
    """All of a plain task, which is a scenario of the recipe that is checked, or its task; returns its prompts."""
    if scenario:
        report.say("scenario", scenario)
    prompts = _check_data(recipe, scenario, report)
    _check_rendering(recipe, prompts, report)
    if recipe.task.environment is not None:
        await check_environment(recipe, prompts, report, code_dir=code_dir, num_rows=num_rows)
    if recipe.task.rewards:
        await _check_rewards(recipe, prompts, report, code_dir=code_dir, num_rows=num_rows)
    return prompts


def _check_data(recipe: Recipe, scenario: str, report: Report) -> list[Prompt]:
    """Every readable row of training and held-out data, with ids that tell them apart."""
    assert recipe.task.train is not None
    at = f"task.scenarios.{scenario}" if scenario else "task"
    train = of_scenario(_read(recipe.task.train, f"{at}.train", report), scenario)
    repeated = repeated_rows(train)
    report.say(f"{at}.train", f"{len(train)} prompts, {_repeats(repeated)}", rows=len(train))
    heldout: list[Prompt] = []
    if recipe.task.heldout is not None:
        heldout = of_scenario(_read(recipe.task.heldout, f"{at}.heldout", report), scenario)
        known = {prompt.id for prompt in train}
        heldout = [replace(p, id=f"{p.id} of {at}.heldout") if p.id in known else p for p in heldout]
        again, shared = repeated_rows(heldout), shared_rows(train, heldout)
        text = f"{len(heldout)} prompts, {len(shared)} of them also in {at}.train, {_repeats(again)}"
        report.say(f"{at}.heldout", text, rows=len(heldout), also_in_train=len(shared))
        repeated += again + shared
    # In an environment a prompt is not all of a task: what is hidden may differ, or be drawn anew.
    if recipe.task.environment is None:
        report.findings += repeated
    return [*train, *heldout]


def _read(source: SourceConfig, key: str, report: Report) -> list[Prompt]:
    bad: list[tuple[str, DataError]] = []
    prompts = load_prompts(source, key=key, require_reference=False, bad_rows=bad)
    report.findings += [Finding(kind="row cannot be read", row=row, reason=str(error)) for row, error in bad]
    return prompts


def _repeats(findings: Sequence[Finding]) -> str:
    kinds = Counter(finding.kind for finding in findings)
    return "; ".join(f"{kind} ({num_of(count, 'row')})" for kind, count in kinds.items()) or "no prompt twice"


def _check_rendering(recipe: Recipe, prompts: Sequence[Prompt], report: Report) -> None:
    """Render every prompt, where the tokenizer is on this machine."""
    path = recipe.model.path
    if path is None or not Path(path).is_dir():
        what = (
            "initialised at random"
            if path is None
            else f"{path} is not a folder here (a hub name is fetched by train)"
        )
        report.say("model", f"{what}: prompts were not rendered")
        return
    try:
        longest = renderer_for(recipe, path).check_prompts(
            prompts, max_prompt_tokens=recipe.sampling.max_prompt_tokens, key="task.train or task.heldout"
        )
    except (DataError, TemplateError) as error:
        report.findings.append(Finding(kind="prompts cannot be rendered", row="", reason=str(error)))
        return
    report.say("model", f"{path}: prompts render, the longest has {longest} tokens", longest=longest)


async def _check_rewards(
    recipe: Recipe, prompts: Sequence[Prompt], report: Report, *, code_dir: Path, num_rows: int | None
) -> None:
    pool = _pool(recipe, code_dir)
    try:
        try:
            await pool.start()
        except (LoadError, RewardError):
            report.findings += await _not_loading(recipe, code_dir)
            return
        if num_rows is not None and num_rows < len(prompts):
            chosen = sorted(random.Random(_SEED).sample(range(len(prompts)), num_rows))
            report.say("sample", f"{num_rows} of {len(prompts)} rows are graded (--rows)", rows=num_rows)
            prompts = [prompts[index] for index in chosen]
        report.findings += _doubts(prompts)
        await _grade(recipe, _gradable(recipe, prompts, pool, report), pool, report)
    finally:
        await pool.close()


def _pool(recipe: Recipe, code_dir: Path) -> RewardPool:
    task = recipe.task
    # Whenever they count in a run: each is tried here.
    always = {"first_step": None, "last_step": None}
    return RewardPool(
        [reward.model_copy(update=always) for reward in task.rewards],
        num_workers=task.reward_workers,
        code_dir=str(code_dir),
        max_ungradable=1.0,
        # An environment's own score is not a reward's: `check_environment` judges it.
        settings=replace(worker_settings(recipe), environments=()),
    )


async def _not_loading(recipe: Recipe, code_dir: Path) -> list[Finding]:
    """Each reward that does not load by itself."""
    found: list[Finding] = []
    for index, reward in enumerate(recipe.task.rewards):
        task = recipe.task.model_copy(update={"rewards": (reward.model_copy(update={"gate": False}),)})
        alone = _pool(recipe.model_copy(update={"task": task}), code_dir)
        try:
            await alone.start()
        except (LoadError, RewardError) as error:
            reason = str(error).replace("task.rewards[0]", f"task.rewards[{index}]")
            found.append(Finding(kind="reward does not load", row="", reason=reason))
        finally:
            await alone.close()
    return found or [
        Finding(kind="reward does not load", row="", reason="each reward loads alone, together they do not")
    ]


def _doubts(prompts: Sequence[Prompt]) -> list[Finding]:
    kind = "gold in doubt (its own row speaks against it)"
    return [
        Finding(kind=kind, row=p.id, reason=doubt, is_fatal=False) for p in prompts if (doubt := doubt_of(p))
    ]


def _gradable(recipe: Recipe, prompts: Sequence[Prompt], pool: RewardPool, report: Report) -> list[Prompt]:
    """Rows that have what the rewards need; the others are findings."""
    rows: list[Prompt] = []
    for prompt in prompts:
        reason = _lacking(recipe, prompt, pool)
        if reason:
            reason = with_doubt(prompt, reason)
            report.findings.append(Finding(kind=UNGRADABLE, row=prompt.id, reason=reason))
        else:
            rows.append(prompt)
    return rows


def _lacking(recipe: Recipe, prompt: Prompt, pool: RewardPool) -> str:
    if recipe.task.needs_reference and prompt.reference is None and GOLD_COLUMN not in prompt.columns:
        return "no reference answer"
    for reward, (name, columns) in zip(recipe.task.rewards, pool.required_columns.items(), strict=True):
        missing = [c for c in columns if c != "reference" and c not in prompt.columns]
        if missing and applies(reward, prompt.columns):
            return f"{name} needs the columns {list(columns)}, it has no {missing}; it has {sorted(prompt.columns)}"
    return ""


async def _grade(recipe: Recipe, rows: Sequence[Prompt], pool: RewardPool, report: Report) -> None:
    probes = ProbeSet.from_prompts(rows, template=recipe.task.gold_template)
    # Beside an environment no reward has to know the gold.
    needs_reference = recipe.task.needs_reference and recipe.task.environment is None
    tally = Tally(pool.names, needs_reference=needs_reference)
    start = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=TERMINAL) as bar:
        task = bar.add_task("grading golds and probes", total=len(rows))

        def see(row: GradedRow) -> None:
            tally.add(row)
            bar.advance(task)

        run = GradingRun(pool=pool, probes=probes, on_row=see, width=4 * recipe.task.reward_workers)
        stuck = await run.grade(rows)
    seconds = time.perf_counter() - start
    report.findings += tally.findings()
    say_rewards(tally, report)
    say_golds(tally, report)
    say_time(tally, report, seconds)
    if stuck:
        report.findings += _stuck(stuck, run, len(rows) - tally.num_rows)
        return
    await _hint(tally, rows, pool, report)
    await _say_contract(tally, run, report)


def _stuck(rows: Sequence[Prompt], run: GradingRun, num_left: int) -> list[Finding]:
    reason = f"in flight when grading was stopped: {run.num_kills} reward workers had to be killed"
    kind = f"grading stopped, {num_left} rows were not graded"
    return [Finding(kind=kind, row=prompt.id, reason=reason) for prompt in rows]


async def _hint(tally: Tally, rows: Sequence[Prompt], pool: RewardPool, report: Report) -> None:
    """Where no gold is paid, perhaps right completions look otherwise: try the usual formats on a few rows."""
    plain = [row for row in rows if row.reference and GOLD_COLUMN not in row.columns]
    if tally.num_right or not plain:
        return
    template = await fitting_template(plain[:_NUM_TEMPLATE_ROWS], pool)
    if template is not None:
        text = f"with task.gold_template: {template!r} the first golds are graded right"
        report.say("hint", text, template=template)


async def _say_contract(tally: Tally, run: GradingRun, report: Report) -> None:
    pool = run.pool
    chosen = _some_of_each(tally)
    if not chosen:
        return
    findings = await check_contract(chosen, pool, run.probes)
    run.count()
    findings += [
        Finding(kind=CONTRACT, row="", reason=f"{name}: {_LEAK} ({num_of(count, 'time')})", is_fatal=False)
        for name, count in run.leaks.items()
        if count
    ]
    named = {finding.reason.partition(":")[0] for finding in findings}
    per_sample = [name for name, shape in zip(pool.names, pool.shapes, strict=True) if shape.is_per_sample]
    findings += tally.unsteady([name for name in per_sample if name not in named])
    report.findings += findings
    text = f"{num_of(len(chosen), 'row')} graded again, in reverse order and one by one: "
    text += num_of(len(findings), "finding") if findings else "same values, nothing left behind"
    report.say("contract", text, rows=len(chosen))


def _some_of_each(tally: Tally) -> list[Prompt]:
    """NUM_ROWS sound rows for each reward, one set for all where that will do."""
    chosen: dict[int, Prompt] = {}
    for name in tally.rewards:
        fitting = [index for index, (_, names) in sorted(tally.sound.items()) if name in names]
        chosen |= {index: tally.sound[index][0] for index in fitting[:NUM_ROWS]}
    return [chosen[index] for index in sorted(chosen)]
