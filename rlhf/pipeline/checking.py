"""`rlhf check` of any file: a recipe, an evaluation, or every stage of a pipeline with what it has by now."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from rlhf.check.command import check_recipe, check_tasks, concluded, refuse_lost_json
from rlhf.check.report import Checking, Finding, Report
from rlhf.check.task import read_source
from rlhf.check.trained import Shown, check_demonstrations, check_pairs
from rlhf.config.evaluation import EvaluationFile, recipe_of_set
from rlhf.config.loading import checked_section, load_recipe, read_with_overrides
from rlhf.config.pipeline import load_pipeline
from rlhf.config.references import Reference, only_reference, replaced
from rlhf.config.reject import SelectConfig
from rlhf.config.schema import Recipe
from rlhf.config.section import Section
from rlhf.config.stage_kinds import KINDS, DpoStage, RejectStage, RewardModelStage, SelectStage, SftStage
from rlhf.errors import RlhfError
from rlhf.pipeline.graph import Stage
from rlhf.pipeline.opened import Pipeline, Standing
from rlhf.pipeline.result import read_result


async def check_file(
    path: Path,
    overrides: Sequence[str],
    *,
    code_dir: Path,
    num_rows: int | None = None,
    json_file: Path | None = None,
) -> int:
    """Say what was found in the file's data and rewards; 0 when all is sound, 1 when not.

    `num_rows` and `json_file` as for `check`.
    """
    refuse_lost_json(json_file)
    checking = Checking(report=Report(), code_dir=code_dir, num_rows=num_rows)
    await look_into(path, overrides, checking)
    return concluded(checking.report, json_file)


async def look_into(path: Path, overrides: Sequence[str], checking: Checking) -> None:
    """Check the file, whatever it holds, into the report of `checking`."""
    values = read_with_overrides(path, overrides)
    if "stages" in values:
        opened = Pipeline.of(load_pipeline(path, overrides), code_dir=checking.code_dir)
        checking.report.recipe = opened.config.name
        await _check_stages(opened, checking)
    elif "sets" in values:
        file = checked_section(EvaluationFile, values, where=path)
        checking.report.recipe = file.name
        await _check_sets(file, checking)
    elif "alignment" in values or ("data" in values and "task" not in values):
        await asyncio.to_thread(_check_alignment, path, overrides, checking)
    else:
        await check_recipe(load_recipe(path, overrides), checking)


def _check_alignment(path: Path, overrides: Sequence[str], checking: Checking) -> None:
    """A recipe of retrieval alignment, or a bench of them. It needs torch, which no other check does."""
    from rlhf.pipeline.alignment_check import check_alignment, check_bench
    from rlhf.vision.command import load_alignment, load_bench

    if "alignment" in read_with_overrides(path, overrides):
        check_bench(load_bench(path, overrides), checking)
    else:
        check_alignment(load_alignment(path, overrides), checking)


async def _check_stages(opened: Pipeline, checking: Checking) -> None:
    report = checking.report
    for stage, section in _sections(opened):
        needs = f", needs {', '.join(stage.stages_needed)}" if stage.needs else ""
        with report.part(f"stages.{stage.name}", f"{stage.kind}{needs}"):
            try:
                await _check_stage(section, checking)
            except RlhfError as error:
                # The other stages may be sound, and a pipeline is long: one report names all that is wrong.
                report.findings.append(Finding(kind="stage cannot be checked", row="", reason=str(error)))


def _sections(opened: Pipeline) -> Iterator[tuple[Stage, Section]]:
    """Every stage with its references to what is done replaced by paths; the others stay."""
    made: dict[Reference, str] = {}
    for standing in opened.survey():
        stage = standing.stage
        kind = KINDS[stage.kind]
        settings = replaced(stage.settings, partial(_path_or_itself, stage, made))
        settings |= {key: stage.name for key in kind.own if key == "name"}
        where = f"pipeline {opened.config.name}"
        yield stage, checked_section(kind.section, settings, where=where, under=f"stages.{stage.name}")
        made.update(_artefacts(standing, opened.config.folder))


def _path_or_itself(stage: Stage, made: Mapping[Reference, str], reference: Reference) -> str:
    return made.get(stage.written[reference], str(reference))


def _artefacts(standing: Standing, folder: Path) -> dict[Reference, str]:
    """Where the artefacts of a stage that is done lie."""
    if standing.verdict.state != "done" or standing.identity is None:
        return {}
    name = standing.stage.name
    place = folder / standing.identity.folder(name)
    result = read_result(place)
    assert result is not None
    return {Reference(name, artefact): str(place / path) for artefact, path in result.artefacts.items()}


async def _check_stage(section: Section, checking: Checking) -> None:
    match section:
        case Recipe():
            await check_recipe(section, checking)
        case RejectStage():
            await _check_rejection(section, checking)
        case SelectStage():
            _check_selection(section, checking)
        case EvaluationFile():
            await _check_sets(section, checking)
        case SftStage():
            check_demonstrations(section.sft, Shown(model=section.model, task=section.task), checking)
        case DpoStage():
            check_pairs(section.dpo, Shown(model=section.model, task=section.task), checking, kind="dpo")
        case RewardModelStage():
            shown = Shown(model=section.model, task=section.task)
            check_pairs(section.reward_model, shown, checking, kind="reward_model")
        case _:
            checking.report.say("data", "it reads none")


async def _check_rejection(stage: RejectStage, checking: Checking) -> None:
    """The task with its filters, which grade beside its rewards, and the test sets to keep apart from."""
    from rlhf.offline.rules import rules_of

    recipe = stage.recipe("reject")
    rules_of(recipe, stage.select)
    rewards = (*recipe.task.rewards, *(one.reward for one in stage.select.filters))
    task = recipe.task.model_copy(update={"rewards": rewards})
    await check_tasks(recipe.model_copy(update={"task": task}), checking)
    _check_benchmarks(stage.select, checking)


def _check_selection(stage: SelectStage, checking: Checking) -> None:
    """The rules against the samples, if they are drawn, and the test sets to keep apart from."""
    from rlhf.offline.rules import graded_rules

    if only_reference(stage.samples) is not None:
        checking.report.say("samples", f"{stage.samples} is not there yet")
    else:
        graded_rules(Path(stage.samples), stage.select)
        checking.report.say("samples", stage.samples)
    _check_benchmarks(stage.select, checking)


def _check_benchmarks(config: SelectConfig, checking: Checking) -> None:
    if config.decontaminate is not None:
        for name, source in config.decontaminate.against.items():
            key = f"select.decontaminate.against.{name}"
            rows = read_source(source, key, checking)
            checking.report.say(key, f"{len(rows)} prompts", rows=len(rows))


async def _check_sets(file: EvaluationFile, checking: Checking) -> None:
    """Every set of an evaluation, judged as it will be."""
    recipe = file.recipe(next(iter(file.all_models.values())))
    for name, one in file.judged_sets.items():
        judged = recipe_of_set(recipe, one, file.eval)
        await check_tasks(judged, checking, at=f"sets.{name}", train="source")
