"""One `rlhf train`: folder, cold start, Ray, loop, report; and what the user reads at the end."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from rlhf.build import Materials, gather_materials, header, local_model, open_run, renderer_for
from rlhf.cluster.launch import ray_session
from rlhf.config.schema import Recipe
from rlhf.run_folder import RunFolder
from rlhf.stages.model_folder import prepare_model_folder
from rlhf.stages.sft import run_sft
from rlhf.telemetry.live import LiveView
from rlhf.telemetry.logs import log_to_folder
from rlhf.telemetry.report import write_report
from rlhf.telemetry.sinks import read_metrics
from rlhf.train import train

logger = logging.getLogger(__name__)


async def execute(recipe: Recipe, *, code_dir: Path, fresh: bool) -> int:
    """Train `recipe` in its run folder, resuming from its last checkpoint; returns the exit code."""
    folder = RunFolder.open(recipe, fresh=fresh)
    attached = log_to_folder(folder.path)
    try:
        if _finished(folder, recipe):
            logger.info("%s is finished: nothing to do (start anew with --fresh)", folder.path)
        else:
            await _train(recipe, folder, code_dir)
        report = write_report(folder.path)
    finally:
        logging.getLogger().removeHandler(attached)
        attached.close()
    sys.stdout.write(f"{summary(folder.path)}\nreport: {report}\n")
    return 0


async def _train(recipe: Recipe, folder: RunFolder, code_dir: Path) -> None:
    with LiveView({"run": recipe.name}, enabled=recipe.telemetry.live) as view:
        materials = prepare(recipe, folder, view)
        view.describe(header(materials))
        with ray_session(recipe.placement, code_dir=code_dir):
            async with open_run(materials, view, code_dir=code_dir) as run:
                await train(run)
                if recipe.checkpoint.export:
                    await run.learner.export(str((folder.path / "model").resolve()))


def prepare(recipe: Recipe, folder: RunFolder, view: LiveView) -> Materials:
    """The model folder (made or found, after the cold start if the recipe has one) and all checked inputs."""
    view.phase("preparing the model")
    start = prepare_model_folder(recipe.model, str(folder.path / "start"), seed=recipe.seed)
    if recipe.sft is None:
        return gather_materials(recipe, folder, start)
    gather_materials(recipe, folder, start)  # mistakes in the RL part show before minutes of fine-tuning

    def progress(line: Mapping[str, float]) -> None:
        loss = f"{line['loss']:.3f}" if "loss" in line else "?"
        view.phase(f"supervised cold start · loss {loss}", line["step"], line["num_steps"])

    tuned = run_sft(
        recipe.sft,
        renderer=renderer_for(recipe, start),
        out_folder=folder.path / "sft",
        seed=recipe.seed,
        on_progress=progress,
    )
    return gather_materials(recipe.model_copy(update={"model": local_model(recipe, tuned)}), folder, tuned)


def summary(run_dir: Path) -> str:
    """Held-out accuracy before and after, steps and time: the last lines a user reads."""
    lines = read_metrics(run_dir)
    evaluated = [line for line in lines if line.get("eval/accuracy") is not None]
    steps = [line for line in lines if line["step"] > 0]
    seconds = sum(line.get("time/step_s") or 0.0 for line in steps)
    parts = [f"{len(steps)} steps of RL in {seconds:.0f} s"]
    if evaluated:
        first, last = evaluated[0], evaluated[-1]
        parts.append(f"held-out accuracy {_share(first)} before RL (step {first['step']})")
        parts.append(f"{_share(last)} after (step {last['step']})")
    return "; ".join(parts)


def _share(line: Mapping[str, float]) -> str:
    return f"{line['eval/accuracy']:.3f} [{line['eval/accuracy_low']:.3f}, {line['eval/accuracy_high']:.3f}]"


def _finished(folder: RunFolder, recipe: Recipe) -> bool:
    checkpoints = folder.checkpoints()
    done = bool(checkpoints) and int(checkpoints[-1].name.removeprefix("step-")) >= recipe.schedule.num_steps
    return done and (not recipe.checkpoint.export or (folder.path / "model" / "config.json").is_file())
