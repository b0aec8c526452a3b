"""The rewards of a task: each is loaded, and grades every row's gold and probes, unless it needs what is not here."""

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from rlhf.check.contract import NUM_ROWS, check_contract
from rlhf.check.figures import say_golds, say_rewards, say_time
from rlhf.check.grading import GradedRow, GradingRun, fitting_template
from rlhf.check.judging import CONTRACT, UNGRADABLE, Tally, doubt_of, with_doubt
from rlhf.check.probes import GOLD_COLUMN, ProbeSet
from rlhf.check.report import Checking, Finding, Report, num_of
from rlhf.config.rewards import RewardConfig
from rlhf.config.schema import Recipe
from rlhf.config.services import named_services, with_no_addresses
from rlhf.errors import LoadError, RewardError
from rlhf.materials import worker_settings
from rlhf.rollout.reward_totals import applies
from rlhf.rollout.scoring import RewardPool
from rlhf.telemetry.logs import TERMINAL
from rlhf.types import Prompt

_SEED = 0
_NUM_TEMPLATE_ROWS = 8
_LEAK = "it left memory, processes or files behind, and its worker was replaced"


async def check_rewards(recipe: Recipe, prompts: Sequence[Prompt], checking: Checking) -> None:
    """Load all rewards of a plain task, and grade with those whose services are here.

    A reward that still names a service as `service://NAME` has none: it is loaded, not asked.
    """
    silent = [reward for reward in recipe.task.rewards if named_services(reward)]
    asked = [reward for reward in recipe.task.rewards if reward not in silent]
    if silent:
        await _load_silent(_with_rewards(recipe, silent), checking)
    if asked:
        await _ask(_with_rewards(recipe, asked), prompts, checking, is_whole=not silent)


def _with_rewards(recipe: Recipe, rewards: Sequence[RewardConfig]) -> Recipe:
    if all(reward.gate for reward in rewards):
        rewards = [reward.model_copy(update={"gate": False}) for reward in rewards]
    task = recipe.task.model_copy(update={"rewards": tuple(rewards)})
    return recipe.model_copy(update={"task": task})


async def _load_silent(recipe: Recipe, checking: Checking) -> None:
    for reward in recipe.task.rewards:
        models = "; ".join(
            f"service {name!r} is not started, its model {recipe.services[name].model} is not on this machine"
            for name in named_services(reward)
        )
        checking.report.say(f"reward {reward.use}", f"loaded, not asked: {models}")
    task = with_no_addresses(recipe.task, recipe.services)
    addressed = recipe.model_copy(update={"task": task.model_copy(update={"reward_workers": 1})})
    checking.report.findings += await _loading(addressed, checking.code_dir)


async def _loading(recipe: Recipe, code_dir: Path) -> list[Finding]:
    """What is wrong with loading the rewards."""
    pool = _pool(recipe, code_dir)
    try:
        await pool.start()
    except (LoadError, RewardError):
        return await _not_loading(recipe, code_dir)
    finally:
        await pool.close()
    return []


async def _ask(recipe: Recipe, prompts: Sequence[Prompt], checking: Checking, *, is_whole: bool) -> None:
    """Grade the rows; unless these are the `whole` rewards of the task, none of them has to know the gold."""
    report = checking.report
    if not prompts:
        report.say("rewards", "loaded; there are no rows to grade")
        report.findings += await _loading(recipe, checking.code_dir)
        return
    pool = _pool(recipe, checking.code_dir)
    try:
        try:
            await pool.start()
        except (LoadError, RewardError):
            report.findings += await _not_loading(recipe, checking.code_dir)
            return
        prompts = _chosen(prompts, checking)
        report.findings += _doubts(prompts)
        rows = _gradable(recipe, prompts, pool, report)
        # Beside an environment no reward has to know the gold.
        needs_reference = is_whole and recipe.task.needs_reference and recipe.task.environment is None
        await _grade(recipe, rows, pool, report, needs_reference=needs_reference)
    finally:
        await pool.close()


def _chosen(prompts: Sequence[Prompt], checking: Checking) -> Sequence[Prompt]:
    """The rows that are graded."""
    num_rows = checking.num_rows
    if num_rows is None or num_rows >= len(prompts):
        return prompts
    chosen = sorted(random.Random(_SEED).sample(range(len(prompts)), num_rows))
    checking.report.say("sample", f"{num_rows} of {len(prompts)} rows are graded (--rows)", rows=num_rows)
    return [prompts[index] for index in chosen]


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


async def _grade(
    recipe: Recipe, rows: Sequence[Prompt], pool: RewardPool, report: Report, *, needs_reference: bool
) -> None:
    probes = ProbeSet.from_prompts(rows, template=recipe.task.gold_template)
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
