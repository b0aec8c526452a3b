"""What each kind of stage runs. Imports are late: a pipeline's own process needs none of this."""

import asyncio
import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.config.schema import ModelConfig, Recipe
from rlhf.config.stage_kinds import DpoStage, RewardModelStage, SftStage
from rlhf.pipeline.child import Outcome
from rlhf.pipeline.job import Job
from rlhf.telemetry.live import LiveView
from rlhf.telemetry.logs import log_to_folder
from rlhf.telemetry.sinks import read_metrics

if TYPE_CHECKING:
    from rlhf.episodes.render import Renderer

Trained = SftStage | DpoStage | RewardModelStage


def execute_stage(job: Job, code_dir: Path) -> Outcome:
    """Run the stage to its end, from where an earlier process left off."""
    match job.section:
        case Recipe() as recipe:
            return _rl(job, recipe, code_dir)
        case SftStage() as section:
            with _view(job) as view:
                return _sft(job, section, view)
    raise AssertionError(f"no executor for {type(job.section).__name__}")


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
            f"{name}/{key}": value for one in line for key, value in one.items() if key.startswith("eval/")
        }
    return Outcome(metrics=metrics)


def _sft(job: Job, section: SftStage, view: LiveView) -> Outcome:
    from rlhf.stages.sft import run_sft

    _, renderer = _start(job, section)
    out = run_sft(
        section.sft,
        renderer=renderer,
        out_folder=job.folder / "model",
        seed=section.seed,
        on_progress=_progress(view, "supervised fine-tuning"),
    )
    return Outcome(metrics=_trained(Path(out), "sft"))


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


def _at_hand(job: Job, model: ModelConfig) -> ModelConfig:
    """The model; one that is initialised at random is written first, with the seed that all stages share."""
    if model.config is None:
        return model
    from rlhf.stages.model_folder import prepare_model_folder, tokenizer_path

    folder = prepare_model_folder(model, job.folder / "start", seed=job.model_seed)
    found = {"path": folder, "config": None, "tokenizer": tokenizer_path(model)}
    return model.model_copy(update=found)


def _trained(folder: Path, kind: str) -> dict[str, float]:
    """The summary that a trainer left, with the last line of its curve."""
    curve = [json.loads(line) for line in (folder / f"{kind}_metrics.jsonl").read_text().splitlines() if line]
    last = {key: value for key, value in (curve[-1] if curve else {}).items() if key != "seconds"}
    summary: Mapping[str, Any] = json.loads((folder / f"{kind}.json").read_text()).get("metrics", {})
    return {f"{kind}/{key}": float(value) for key, value in {**last, **summary}.items() if _is_number(value)}


def _progress(view: LiveView, what: str) -> Callable[[Mapping[str, float]], None]:
    def show(line: Mapping[str, float]) -> None:
        loss = f"{line['loss']:.3f}" if "loss" in line else "?"
        view.phase(f"{what} · loss {loss}", line["step"], line["num_steps"])

    return show


@contextlib.contextmanager
def _view(job: Job) -> Iterator[LiveView]:
    """A live view of the stage; what is logged also goes to run.log in its folder."""
    attached = log_to_folder(job.folder)
    try:
        with LiveView({"stage": job.stage, "kind": job.kind}) as view:
            yield view
    finally:
        logging.getLogger().removeHandler(attached)
        attached.close()


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
