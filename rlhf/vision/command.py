"""`rlhf vision train | build-orders | eval | bench`: the commands of retrieval alignment."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import torch
import yaml

from rlhf.cluster.launch import ray_session
from rlhf.config.alignment import AlignmentRecipe, VisionEvalConfig
from rlhf.config.alignment_bench import BenchRecipe
from rlhf.config.loading import apply_overrides, checked_section, read_with_overrides
from rlhf.config.section import Section
from rlhf.errors import ConfigError
from rlhf.run_folder import RunFolder
from rlhf.telemetry.live import LiveView
from rlhf.telemetry.logs import logged_to
from rlhf.telemetry.sinks import read_metrics
from rlhf.train import train
from rlhf.vision.bench_view import show_bench
from rlhf.vision.build import open_alignment
from rlhf.vision.orders import read_orders, write_orders
from rlhf.vision.prepare import gather
from rlhf.vision.run import AlignmentRun, collect
from rlhf.vision.run_report import write_alignment_report


def load_alignment(path: Path, overrides: Sequence[str]) -> AlignmentRecipe:
    """The checked recipe."""
    return checked_section(AlignmentRecipe, read_with_overrides(path, overrides), where=path)


def load_bench(path: Path, overrides: Sequence[str]) -> BenchRecipe:
    """The checked bench; `alignment` may be the path of a recipe, relative to the file."""
    values = read_with_overrides(path)
    if isinstance(values.get("alignment"), str):
        values["alignment"] = read_with_overrides(path.parent / values["alignment"])
    apply_overrides(values, overrides)
    return checked_section(BenchRecipe, values, where=path)


def resolved(recipe: Section) -> str:
    """The whole recipe, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def train_command(path: Path, overrides: Sequence[str], *, code_dir: Path, fresh: bool) -> int:
    """Align a retriever in its run folder, resuming from its last checkpoint; returns the exit code."""

    async def whole(run: AlignmentRun, view: LiveView) -> None:
        if run.recipe.loss.replay_coef == 0:
            view.note(
                "loss.replay_coef is 0: nothing holds what the model could do before. Watch its retention."
            )
        await train(run)
        if run.recipe.checkpoint.export:
            await run.learner.export(str((run.folder.path / "model").resolve()))

    recipe = load_alignment(path, overrides)
    folder = RunFolder.open(recipe, fresh=fresh)
    _with_run(recipe, folder, code_dir, whole)
    sys.stdout.write(f"{summary(folder.path)}\nreport: {write_alignment_report(folder.path)}\n")
    return 0


def orders_command(path: Path, overrides: Sequence[str], *, code_dir: Path, out: Path) -> int:
    """Make as many lists as the recipe's run would train on, and write them to `out`."""

    async def make(run: AlignmentRun, view: LiveView) -> None:
        orders = await collect(run, lambda done, total: view.phase("making lists", done, total))
        write_orders(out, orders)

    recipe = load_alignment(path, overrides).model_copy(update={"eval": VisionEvalConfig(every=0)})
    _with_run(recipe, RunFolder.open(recipe, fresh=False), code_dir, make)
    sys.stdout.write(f"{len(read_orders(out))} lists: {out}\n")
    return 0


def eval_command(path: Path, overrides: Sequence[str], *, code_dir: Path) -> int:
    """Measure the recipe's model, trained as far as its run folder has a checkpoint."""
    found: dict[str, float] = {}

    async def look(run: AlignmentRun, view: LiveView) -> None:
        assert run.heldout is not None, "refused above"
        await run.sync.publish(run.state.step)
        progress = lambda done, total: view.phase("evaluating", done, total)  # noqa: E731
        found.update(await run.heldout.measured(run.state.step, progress))

    recipe = load_alignment(path, overrides)
    if recipe.eval.gallery is None or recipe.eval.every == 0:
        raise ConfigError("eval.gallery is missing or eval.every is 0: there is nothing to measure on.")
    _with_run(recipe, RunFolder.open(recipe, fresh=False), code_dir, look)
    for name, value in found.items():
        sys.stdout.write(f"{name} {value:.4f}\n")
    return 0


def _with_run(
    recipe: AlignmentRecipe,
    folder: RunFolder,
    code_dir: Path,
    work: Callable[[AlignmentRun, LiveView], Awaitable[None]],
) -> None:
    """Do `work` with every process of the recipe, inside Ray; they end with it."""
    with logged_to(folder.path), LiveView({"run": recipe.name}, enabled=recipe.telemetry.live) as view:
        # Outside of any event loop: a rephraser may need one of its own.
        materials = gather(recipe, folder, view)
        torch.set_num_threads(1)
        view.describe(
            {
                "run": recipe.name,
                "model": Path(materials.model).name,
                "loss": recipe.loss.name,
                "staleness": str(recipe.schedule.max_staleness),
            }
        )

        async def whole() -> None:
            async with open_alignment(materials, view) as run:
                await work(run, view)

        with ray_session(recipe.placement, code_dir=code_dir):
            asyncio.run(whole())


def summary(run_dir: Path) -> str:
    """Taste and retention before and after: the last line that a user reads."""
    evaluated = [line for line in read_metrics(run_dir) if line.get("eval/judge_score") is not None]
    if not evaluated:
        return f"{run_dir}: no evaluation (eval.gallery and eval.queries)"
    first, last = evaluated[0], evaluated[-1]
    names = ("taste", "precision", "zero_shot", "recall_10", "judge_score")
    parts = [
        f"{name} {first[f'eval/{name}']:.3f} -> {last[f'eval/{name}']:.3f}"
        for name in names
        if first.get(f"eval/{name}") is not None
    ]
    return f"step {first['step']} to {last['step']}: " + ", ".join(parts)


def bench_command(path: Path, overrides: Sequence[str]) -> int:
    """Run the bench; exit code 1 where a gate was missed."""
    config = load_bench(path, overrides)
    folder = Path(config.run_dir or f"runs/{config.name}").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return show_bench(config, folder)
