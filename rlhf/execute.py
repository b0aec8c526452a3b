"""One `rlhf train`: folder, cold start, Ray, loop, report; and what the user reads at the end.

Imports are late here: what loads transformers takes seconds, and most mistakes are found without it.
"""

import contextlib
import importlib.util
import logging
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.config.algorithm import frozen_models
from rlhf.config.schema import ModelConfig, Recipe
from rlhf.config.services import with_no_addresses
from rlhf.config.trainer import SftConfig
from rlhf.errors import PlacementError
from rlhf.machine import usable_cores
from rlhf.run_folder import RunFolder
from rlhf.stages.following import Child
from rlhf.stages.model_folder import prepare_model_folder
from rlhf.stages.trainer_stage import early_child
from rlhf.telemetry.live import LiveView
from rlhf.telemetry.logs import logged_to
from rlhf.telemetry.report import write_report
from rlhf.telemetry.sinks import missing_package, read_metrics

if TYPE_CHECKING:
    from rlhf.materials import Materials

logger = logging.getLogger(__name__)


async def execute(recipe: Recipe, *, code_dir: Path, fresh: bool) -> int:
    """Train `recipe` in its run folder, resuming from its last checkpoint; returns the exit code."""
    folder = RunFolder.open(recipe, fresh=fresh)
    with logged_to(folder.path):
        if _finished(folder, recipe):
            logger.info("%s is finished: nothing to do (start anew with --fresh)", folder.path)
        else:
            await _train(recipe, folder, code_dir)
        report = write_report(folder.path)
    sys.stdout.write(f"{summary(folder.path)}\nreport: {report}\n")
    return 0


async def _train(recipe: Recipe, folder: RunFolder, code_dir: Path) -> None:
    shutil.rmtree(folder.path / "model", ignore_errors=True)  # an export of an earlier, shorter run
    with LiveView({"run": recipe.name}, enabled=recipe.telemetry.live) as view:
        needed = await preflight(recipe, code_dir=code_dir)
        import torch

        from rlhf.build import header, open_run
        from rlhf.cluster.launch import ray_session
        from rlhf.train import train

        # The driver only packs: threads of its own would spin on the cores of learner and engine.
        torch.set_num_threads(1)
        with _interruptible():
            materials = prepare(recipe, folder, view, reward_columns=needed)
        view.describe(header(materials))
        with ray_session(recipe.placement, code_dir=code_dir):
            async with open_run(materials, view, code_dir=code_dir) as run:
                await train(run)
                if recipe.checkpoint.export:
                    await run.learner.export(str((folder.path / "model").resolve()))


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends a long call at once: asyncio would only cancel its task, which notices at the next await."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


async def preflight(recipe: Recipe, *, code_dir: Path) -> Mapping[str, Sequence[str]]:
    """Refuse what would otherwise fail inside an actor, or after minutes of cold start.

    Raises the error of the first mistake: model, algorithm, device, sync, cores or GPUs, rewards. Returns the
    columns that each reward requires of the data.
    """
    if recipe.model.config is None:
        prepare_model_folder(recipe.model, "", seed=recipe.seed)
    for key, path in frozen_models(recipe.algorithm).items():
        prepare_model_folder(ModelConfig(path=path), "", seed=recipe.seed, key=key)
    from rlhf.algorithms.catalogue import resolve
    from rlhf.cluster.launch import device_for
    from rlhf.cluster.transfer import choose_sync
    from rlhf.materials import serviced, worker_settings
    from rlhf.rollout.scoring import RewardPool

    resolve(recipe)
    for package in recipe.telemetry.sinks:
        if importlib.util.find_spec(package) is None:
            raise missing_package(package)
    device = device_for(recipe.placement)
    choose_sync(recipe, device)
    serviced(recipe, device)
    _check_room(recipe, device)
    settings = worker_settings(recipe)
    # Nobody is asked yet: any address will do to see whether rewards can be loaded.
    task = with_no_addresses(recipe.task, recipe.services)
    pool = RewardPool(task.all_rewards, num_workers=1, code_dir=str(code_dir), settings=settings)
    try:
        await pool.start()
        for scenario in task.environments:
            await _try_environment(recipe.model_copy(update={"task": task}), code_dir, scenario)
        return pool.required_columns
    finally:
        await pool.close()


async def _try_environment(recipe: Recipe, code_dir: Path, scenario: str) -> None:
    from rlhf.episodes.host import EnvironmentHost
    from rlhf.materials import load_environment

    host = EnvironmentHost(load_environment(recipe, code_dir, scenario))
    try:
        await host.start()
    finally:
        await host.close()


def _check_room(recipe: Recipe, device: str) -> None:
    """Whether a Ray that is started here will have the cores and GPUs; a cluster says so itself."""
    import torch

    from rlhf.cluster.placement import seat
    from rlhf.materials import service_bundles

    bundles = [*seat(recipe, device).bundles, *service_bundles(recipe, device)]
    if recipe.placement.address is not None:
        return
    present = {"CPU": recipe.placement.num_cpus or usable_cores(), "GPU": torch.cuda.device_count()}
    for kind, unit in (("CPU", "cores"), ("GPU", "GPUs")):
        wanted = sum(bundle.get(kind, 0.0) for bundle in bundles)
        if wanted > present[kind]:
            is_split = recipe.placement.kind == "split"
            raise PlacementError(
                f"learner.num_ranks ({recipe.learner.num_ranks}) and engine.num_engines "
                f"({recipe.engine.num_engines}) with placement.kind: {recipe.placement.kind} need {wanted:g} {unit}, "
                f"found {present[kind]:g} on this machine. Lower them (or learner.threads, engine.threads, services), "
                f"{'set placement.kind: colocated so that they take turns, ' if is_split else ''}"
                "or name a cluster with placement.address."
            )


def prepare(
    recipe: Recipe,
    folder: RunFolder,
    view: LiveView,
    *,
    reward_columns: Mapping[str, Sequence[str]] | None = None,
) -> "Materials":
    """The model folder (made or found, after the cold start if the recipe has one) and all checked inputs.

    `reward_columns` are those that `preflight` gave, which the data must have.
    """
    if recipe.sft is None:
        return _gathered(recipe, folder, view, reward_columns or {})
    with early_child("sft", recipe.sft, folder.path / "sft") as child:
        materials = _gathered(recipe, folder, view, reward_columns or {})
        return _after_cold_start(recipe.sft, materials, view, child)


def _gathered(
    recipe: Recipe, folder: RunFolder, view: LiveView, reward_columns: Mapping[str, Sequence[str]]
) -> "Materials":
    from rlhf.materials import gather_materials
    from rlhf.rollout.reward_totals import check_columns

    view.phase("preparing the model")
    start = prepare_model_folder(recipe.model, str(folder.path / "start"), seed=recipe.seed)
    materials = gather_materials(recipe, folder, start)
    for source, prompts in (("train", materials.train), ("heldout", materials.heldout)):
        for name in recipe.task.scenarios or [""]:
            own, key = [p for p in prompts if p.scenario == name], f"{recipe.task.key_of(name)}.{source}"
            check_columns(recipe.task.all_rewards, reward_columns, own, key=key)
    return materials


def _after_cold_start(
    config: SftConfig, materials: "Materials", view: LiveView, child: Child | None
) -> "Materials":
    from rlhf.materials import gather_materials, local_model, renderer_for
    from rlhf.stages.sft import run_sft

    def progress(line: Mapping[str, float]) -> None:
        loss = f"{line['loss']:.3f}" if "loss" in line else "?"
        view.phase(f"supervised cold start · loss {loss}", line["step"], line["num_steps"])

    recipe, folder = materials.recipe, materials.folder
    tuned = run_sft(
        config,
        renderer=renderer_for(recipe, materials.model_folder),
        out_folder=folder.path / "sft",
        seed=recipe.seed,
        on_progress=progress,
        model=recipe.model.model_copy(update={"lora": None}),  # adapters are of RL
        child=child,
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
        each = (match for key in last if (match := re.fullmatch(r"eval/([^/]+)/accuracy", key)))
        parts += [f"{m[1]}: {first[m[0]]:.3f} before, {last[m[0]]:.3f} after" for m in each if m[0] in first]
    return "; ".join(parts)


def _share(line: Mapping[str, float]) -> str:
    return f"{line['eval/accuracy']:.3f} [{line['eval/accuracy_low']:.3f}, {line['eval/accuracy_high']:.3f}]"


def _finished(folder: RunFolder, recipe: Recipe) -> bool:
    checkpoints = folder.checkpoints()
    done = bool(checkpoints) and int(checkpoints[-1].name.removeprefix("step-")) >= recipe.schedule.num_steps
    return done and (not recipe.checkpoint.export or (folder.path / "model" / "config.json").is_file())
