"""What each kind of stage runs. Imports are late: a pipeline's own process needs none of this."""

import asyncio
import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.config.evaluation import EvaluationFile
from rlhf.config.reject import SelectConfig
from rlhf.config.schema import ModelConfig, Recipe
from rlhf.config.stage_kinds import (
    DpoStage,
    MergeStage,
    RejectStage,
    RewardModelStage,
    SelectStage,
    SftStage,
)
from rlhf.pipeline.child import Outcome
from rlhf.pipeline.job import Job
from rlhf.telemetry.live import LiveView
from rlhf.telemetry.logs import logged_to
from rlhf.telemetry.sinks import read_metrics

if TYPE_CHECKING:
    from rlhf.episodes.render import Renderer
    from rlhf.stages.trainer_stage import Kind, TrainerConfig

Trained = SftStage | DpoStage | RewardModelStage


def execute_stage(job: Job, code_dir: Path) -> Outcome:
    """Run the stage to its end, from where an earlier process left off."""
    if isinstance(job.section, Recipe):
        return _rl(job, job.section, code_dir)
    with _view(job) as view:
        match job.section:
            case SftStage() | DpoStage() | RewardModelStage() as section:
                return _train(job, section, view)
            case MergeStage() as section:
                return _merge(job, section, view)
            case RejectStage() as section:
                return _reject(job, section, code_dir, view)
            case SelectStage() as section:
                return _select(job, section, view)
            case EvaluationFile() as section:
                return _evaluate(job, section, code_dir, view)
    raise AssertionError(f"stage {job.stage}: no executor for {type(job.section).__name__}")


def _rl(job: Job, recipe: Recipe, code_dir: Path) -> Outcome:
    from rlhf.execute import execute

    # An export is complete only when the stage is: what a killed process left is made again.
    shutil.rmtree(job.folder / "model", ignore_errors=True)
    found = {"name": job.name, "run_dir": str(job.folder), "model": _at_hand(job, recipe.model)}
    asyncio.run(execute(recipe.model_copy(update=found), code_dir=code_dir, fresh=False))
    lines = read_metrics(job.folder)
    evaluated = [line for line in lines if line.get("eval/accuracy") is not None]
    metrics = {name: value for name, value in lines[-1].items() if "/" in name and value is not None}
    for name, line in (("before", evaluated[:1]), ("after", evaluated[-1:])):
        metrics |= {
            f"{name}/{key}": value
            for one in line
            for key, value in one.items()
            if key.startswith("eval/") and value is not None
        }
    return Outcome(metrics=metrics)


def _train(job: Job, section: Trained, view: LiveView) -> Outcome:
    """A stage that trains through TRL, in a process that loads it while this one loads the rest."""
    from rlhf.stages.trainer_stage import early_child

    kind, what, config = _trainer(section)
    out, shown = job.folder / "model", _progress(view, what)
    with early_child(kind, config, out) as child:
        from rlhf.stages.dpo import run_dpo
        from rlhf.stages.reward_model import run_reward_model
        from rlhf.stages.sft import run_sft

        match section:
            case SftStage():
                run = partial(run_sft, section.sft)
            case DpoStage():
                run = partial(run_dpo, section.dpo)
            case RewardModelStage():
                run = partial(run_reward_model, section.reward_model)
        model, renderer = _start(job, section)
        run(
            renderer=renderer,
            out_folder=out,
            seed=section.seed,
            on_progress=shown,
            model=model,
            child=child,
        )
    return Outcome(metrics=_trained(out, kind))


def _trainer(section: Trained) -> "tuple[Kind, str, TrainerConfig]":
    match section:
        case SftStage():
            return "sft", "supervised fine-tuning", section.sft
        case DpoStage():
            return "dpo", "preference optimization", section.dpo
        case RewardModelStage():
            return "reward_model", "reward model", section.reward_model


def _merge(job: Job, section: MergeStage, view: LiveView) -> Outcome:
    from rlhf.stages.merge import run_merge

    view.phase("merging")
    out = Path(run_merge(section.merge, job.folder / "model"))
    metrics: Mapping[str, Any] = json.loads((out / "merge.json").read_text(encoding="utf-8"))["metrics"]
    return Outcome(metrics={f"merge/{key}": float(value) for key, value in metrics.items()})


def _reject(job: Job, section: RejectStage, code_dir: Path, view: LiveView) -> Outcome:
    from rlhf.offline.reject import reject

    recipe = section.recipe(job.name)
    recipe = recipe.model_copy(update={"model": _at_hand(job, section.model)})
    metrics = asyncio.run(
        reject(
            recipe,
            section.collect,
            section.select,
            job.folder,
            code_dir=code_dir,
            view=view,
            before=job.before,
        )
    )
    return Outcome(metrics=metrics, artefacts={**_selected(section.select), "samples": "collected"})


def _select(job: Job, section: SelectStage, view: LiveView) -> Outcome:
    from rlhf.offline.rules import graded_rules
    from rlhf.offline.selected import write_selected

    view.phase("selecting")
    samples = Path(section.samples)
    metrics = write_selected(samples, graded_rules(samples, section.select), job.folder)
    return Outcome(metrics=metrics, artefacts=_selected(section.select))


def _selected(config: SelectConfig) -> dict[str, str]:
    """What a selection leaves."""
    artefacts = {"rows": f"rows.{config.format}", "prompts": "prompts.jsonl"}
    return artefacts if config.pairs is None else {**artefacts, "pairs": "pairs.jsonl"}


def _evaluate(job: Job, section: EvaluationFile, code_dir: Path, view: LiveView) -> Outcome:
    from rlhf.offline.evaluate import evaluate_models

    named = section.model_copy(update={"name": job.name})
    models = {name: named.recipe(_at_hand(job, model, name)) for name, model in section.all_models.items()}
    metrics = asyncio.run(
        evaluate_models(
            models,
            section.judged_sets,
            section.eval,
            job.folder,
            code_dir=code_dir,
            view=view,
            before=job.before,
        )
    )
    return Outcome(metrics=metrics)


def _start(job: Job, section: Trained) -> "tuple[ModelConfig, Renderer]":
    """The model at hand and what renders for it."""
    from rlhf.episodes.render import Renderer
    from rlhf.stages.model_folder import prepare_model_folder, tokenizer_path

    model = _at_hand(job, section.model)
    renderer = Renderer(
        model_folder=prepare_model_folder(model, job.folder / "start", seed=job.model_seed),
        tokenizer_path=tokenizer_path(model),
        template=section.task.template,
        system_prompt=section.task.system_prompt,
        chat_template=model.chat_template,
        trust_remote_code=model.trust_remote_code,
    )
    return model, renderer


def _at_hand(job: Job, model: ModelConfig, name: str = "") -> ModelConfig:
    """The model; one that is initialised at random is written first, with the seed that all stages share."""
    if model.config is None:
        return model
    from rlhf.stages.model_folder import prepare_model_folder, tokenizer_path

    folder = prepare_model_folder(model, job.folder / "start" / name, seed=job.model_seed)
    found = {"path": folder, "config": None, "tokenizer": tokenizer_path(model)}
    return model.model_copy(update=found)


def _trained(folder: Path, kind: str) -> dict[str, float]:
    """The summary that a trainer left, with the last line of its curve."""
    curve = [json.loads(line) for line in (folder / f"{kind}_metrics.jsonl").read_text().splitlines() if line]
    last = {f"{kind}/{key}": value for key, value in (curve[-1] if curve else {}).items() if key != "seconds"}
    summary: Mapping[str, Any] = json.loads((folder / f"{kind}.json").read_text(encoding="utf-8"))["metrics"]
    return {key: float(value) for key, value in {**last, **summary}.items() if _is_number(value)}


def _progress(view: LiveView, what: str) -> Callable[[Mapping[str, float]], None]:
    def show(line: Mapping[str, float]) -> None:
        loss = f"{line['loss']:.3f}" if "loss" in line else "?"
        view.phase(f"{what} · loss {loss}", line["step"], line["num_steps"])

    return show


@contextlib.contextmanager
def _view(job: Job) -> Iterator[LiveView]:
    """A live view of the stage; what is logged also goes to run.log in its folder."""
    with logged_to(job.folder), LiveView({"stage": job.stage, "kind": job.kind}) as view:
        yield view


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
