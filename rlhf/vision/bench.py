"""`rlhf vision bench`: every way to align a retriever, tuned over as many settings, chosen on validation, judged once.

Order: pre-train, make the lists of every seed, tune on validation queries, choose, write down choices and gates, and
only then open the test split. Every run is a file in the run folder: what was done is not done again.
"""

import itertools
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rlhf.config.alignment import AlignmentRecipe
from rlhf.config.alignment_bench import BenchRecipe, GridConfig
from rlhf.content_hashes import ContentHashes
from rlhf.errors import ConfigError
from rlhf.machine import usable_cores
from rlhf.run_folder import replace_file
from rlhf.vision.bench_runs import Bench, Done, Job, embed_with, run_job
from rlhf.vision.gallery import GalleryIndex
from rlhf.vision.materials import load_captions, load_judges, load_plugin, load_queries, load_rephraser
from rlhf.vision.model_folder import prepare_dual_encoder
from rlhf.vision.orders import fingerprint_of, write_orders
from rlhf.vision.pretrain import pretrain
from rlhf.vision.teaching import Constant, ListMaker, Panel, Reference, visits_of

Progress = Callable[[str, int, int], None]
"""(what, done, of how many)."""
_EXACT = 1e-6
"""Means of the same numbers of hits differ by less."""
TEACHERS = {
    "both": (True, True), "judge_only": (True, False), "rephraser_only": (False, True), "no_teacher": (False, False),
}  # fmt: skip
"""Whether judges and rephraser teach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The settings of a trained row, and how it did on validation."""

    loss: dict[str, object]
    lr: float
    queries_per_step: int
    used: float = math.nan
    """Largest share of what `retention` allows that it lost there."""
    keeps: bool = False
    """Whether that is within `validation_share`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What all runs share."""

    bench: Bench
    lists: Mapping[tuple[str, int], str]
    """(teachers, seed) -> file of lists."""


def prepare(config: BenchRecipe, folder: Path, progress: Progress) -> Prepared:
    """The pre-trained model and every list."""
    torch.set_num_threads(usable_cores())
    bench = bench_of(config, base_model(config.alignment, folder, progress), folder)
    recipe = bench.recipe
    gallery = load_plugin(recipe.data.gallery, key="data.gallery")
    queries = load_queries(recipe.data.queries, key="data.queries")
    rephraser = load_rephraser(recipe)
    plain = [query.text for query in queries]
    rephrased = plain if rephraser is None else list(rephraser.rephrase(plain))
    ids = list(gallery.ids())
    texts, images, scale = embed_with(recipe, gallery, [*plain, *rephrased], ids)
    index = GalleryIndex(ids=tuple(ids), matrix=images, version=0)
    judges = load_judges(recipe)
    judge_weights = {name: judge.weight for name, judge in recipe.judges.items()}
    panel = Panel(judges=judges, weights=judge_weights, gallery=gallery)
    blind = Panel(judges={"constant": Constant()}, weights={"constant": 1.0}, gallery=gallery)
    most = max(
        recipe.schedule.queries_per_step, *(grid.queries_per_step or 0 for grid in config.rows.values())
    )
    lists = {}
    wanted = [("both", seed) for seed in range(config.seeds)]
    wanted += [(name, seed) for name in config.controls if name in TEACHERS for seed in range(config.seeds)]
    for done, (teachers, seed) in enumerate(wanted):
        progress("making lists", done, len(wanted))
        sees, speaks = TEACHERS[teachers]
        reference = Reference(
            index=index,
            queries=texts[: len(plain)],
            rephrased=texts[len(plain) :] if speaks else texts[: len(plain)],
            scale=scale,
        )
        visits = visits_of(len(queries), most * recipe.schedule.num_steps, seed=seed)
        visits = visits[: max(len(queries) * 8, most)]
        fingerprint = fingerprint_of(
            model=bench.weights, gallery=gallery.version, teachers=teachers, seed=seed,
            orders=recipe.orders.model_dump(),
            judges={name: [judge.version, judge_weights[name]] for name, judge in judges.items()},
            rephraser="" if rephraser is None else rephraser.version,
            queries={query.id: query.text for query in queries}, visits=len(visits),
        )  # fmt: skip
        file = folder / "lists" / f"{teachers}-{seed}-{fingerprint}.jsonl"
        lists[teachers, seed] = str(file)
        if not file.is_file():
            maker = ListMaker(
                queries=queries,
                reference=reference,
                panel=panel if sees else blind,
                config=recipe.orders,
                fingerprint=fingerprint,
            )
            orders = maker.make(visits, seed=seed)
            write_orders(file, orders)
    progress("making lists", len(wanted), len(wanted))
    return Prepared(bench=bench, lists=lists)


def bench_of(config: BenchRecipe, model: str, folder: Path) -> Bench:
    """What every run shares. `model` is the folder of the pre-trained one."""
    recipe = config.alignment
    hashes = ContentHashes(folder)
    weights = hashes.of_model(model)
    hashes.save()
    return Bench(
        recipe=recipe.model_copy(
            update={
                "model": recipe.model.model_copy(update={"path": model, "config": None, "tokenizer": None}),
                "pretrain": None,
                # A run is one process, whatever the recipe's own runs are.
                "learner": recipe.learner.model_copy(update={"num_ranks": 1}),
            }
        ),
        sets={"validation": config.validation, "test": config.test},
        folder=folder,
        weights=weights,
    )


def base_model(recipe: AlignmentRecipe, folder: Path, progress: Progress) -> str:
    """The folder of the pre-trained model."""
    captions = load_captions(recipe.data.replay, key="data.replay")
    if recipe.pretrain is not None:
        captions = load_captions(recipe.pretrain.captions, key="pretrain.captions")
    rephraser = load_rephraser(recipe)
    texts = [query.text for query in load_queries(recipe.data.queries, key="data.queries")]
    texts += [] if rephraser is None else rephraser.rephrase(texts)
    start = prepare_dual_encoder(
        recipe.model, folder / "start", texts=[*texts, *(text for _, text in captions)], seed=recipe.seed
    )
    if recipe.pretrain is None:
        return start
    return pretrain(
        recipe.model_copy(update={"learner": recipe.learner.model_copy(update={"threads": usable_cores()})}),
        start,
        folder / "pretrained",
        lambda done, total, loss: progress(f"pre-training · loss {loss:.2f}", done, total),
    )


def tune(config: BenchRecipe, prepared: Prepared, progress: Progress) -> dict[str, list[tuple[Choice, Done]]]:
    """Every setting of every row on the validation queries, with seed 0."""
    jobs = {
        (row, place): _job(row, choice, prepared.lists["both", 0], seed=0, on="validation")
        for row, grid in config.rows.items()
        for place, choice in enumerate(grid_of(config.alignment, row, grid))
    }
    done = run_all(prepared.bench, list(jobs.values()), config, "tuning", progress)
    found: dict[str, list[tuple[Choice, Done]]] = {row: [] for row in config.rows}
    base = pretrained(prepared, on="validation")
    for (row, place), job in jobs.items():
        choice = grid_of(config.alignment, row, config.rows[row])[place]
        result = done[job.key]
        found[row].append((with_verdict(choice, config, base, result), result))
    return found


def grid_of(recipe: AlignmentRecipe, row: str, grid: GridConfig) -> list[Choice]:
    """All settings of a row."""
    size = grid.queries_per_step or recipe.schedule.queries_per_step
    return [
        Choice(
            loss={
                "name": row,
                "replay_coef": replay_coef,
                "replay_label_smoothing": recipe.loss.replay_label_smoothing,
                **({"kl_coef": kl_coef} if row == "grpo" else {}),
                **({} if row in ("grpo", "sft", "sft_list") else {"beta": beta}),
                **({"label_smoothing": recipe.loss.label_smoothing} if row in ("rp_dpo", "dpo") else {}),
                **({"closure": recipe.loss.closure} if row == "rp_dpo" else {}),
            },
            lr=lr,
            queries_per_step=size,
        )
        for beta, kl_coef, lr, replay_coef in itertools.product(
            grid.beta, grid.kl_coef, grid.lr, grid.replay_coef
        )
    ]


def with_verdict(choice: Choice, config: BenchRecipe, base: Done, result: Done) -> Choice:
    """The same, and how it held retention."""
    share = used(config, base, result)
    return replace(choice, used=share, keeps=share <= config.validation_share)


def choose(tuned: Mapping[str, Sequence[tuple[Choice, Done]]]) -> dict[str, Choice]:
    """Of each row the best taste among the settings that hold retention; where none does, that which loses least."""
    chosen = {}
    for row, tried in tuned.items():
        kept = [entry for entry in tried if entry[0].keeps]
        if kept:
            chosen[row] = max(kept, key=lambda entry: mean_of(entry[1], "taste"))[0]
        else:
            chosen[row] = min(tried, key=lambda entry: entry[0].used)[0]
    return chosen


def used(config: BenchRecipe, base: Done, result: Done) -> float:
    """Of the abilities that fell, how far the worst did, as a share of what `retention` allows it; 0 where none did."""
    shares: list[float] = []
    for name, allowed in config.retention.model_dump().items():
        fell = max(0.0, mean_of(base, name) - mean_of(result, name) - _EXACT)
        shares.append(fell / max(allowed, _EXACT))
    return max(shares)


def mean_of(done: Done, name: str) -> float:
    """The mean of one measure; NaN where it was not measured."""
    return float(done.tensor(name).mean()) if name in done.measures else float("nan")


def pretrained(prepared: Prepared, *, on: str) -> Done:
    """The model before alignment."""
    job = Job(
        row="pretrained",
        loss={"name": "none", "replay_coef": 0.0},
        lr=1e-9,
        queries_per_step=0,
        seed=0,
        orders="",
        on=on,
    )
    return run_job(prepared.bench, job)


def final_jobs(config: BenchRecipe, prepared: Prepared, chosen: Mapping[str, Choice]) -> dict[str, list[Job]]:
    """Every row and control with its chosen settings, on the test split, for every seed."""
    seeds = range(config.seeds)
    own = chosen[config.alignment.loss.name]
    jobs = {
        row: [_job(row, choice, prepared.lists["both", s], seed=s, on="test") for s in seeds]
        for row, choice in chosen.items()
    }
    for control in config.controls:
        choice, teachers = own, control if control in TEACHERS else "both"
        if control == "no_replay":
            choice = replace(own, loss={**own.loss, "replay_coef": 0.0})
        jobs[control] = [_job(control, choice, prepared.lists[teachers, s], seed=s, on="test") for s in seeds]
    return jobs


def _job(row: str, choice: Choice, orders: str, *, seed: int, on: str) -> Job:
    return Job(
        row=row,
        loss=choice.loss,
        lr=choice.lr,
        queries_per_step=choice.queries_per_step,
        seed=seed,
        orders=orders,
        on=on,
    )


def run_all(
    bench: Bench, jobs: Sequence[Job], config: BenchRecipe, what: str, progress: Progress
) -> dict[str, Done]:
    """Every job, as many at a time as there are cores. The first error ends all."""
    done: dict[str, Done] = {}
    workers = config.workers or usable_cores()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_quiet) as pool:
        waiting = {pool.submit(run_job, bench, job): job for job in jobs}
        try:
            for number, future in enumerate(as_completed(waiting), start=1):
                done[waiting[future].key] = future.result()
                progress(what, number, len(jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return done


def _quiet() -> None:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    torch.set_num_threads(1)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def freeze(
    prepared: Prepared, config: BenchRecipe, chosen: Mapping[str, Choice], *, on_test: Sequence[Job]
) -> None:
    """Write down choices and gates, before anything of the test split is looked at.

    Raises ConfigError where it was looked at already, and choices or gates were others then.
    """
    choices = {
        row: {
            "loss": c.loss,
            "lr": c.lr,
            "queries_per_step": c.queries_per_step,
            "keeps_on_validation": c.keeps,
            "used_on_validation": c.used,
        }
        for row, c in chosen.items()
    }
    frozen = {
        "choices": choices,
        "gates": config.gates.model_dump(),
        "retention": config.retention.model_dump(),
    }
    file = prepared.bench.folder / "frozen.json"
    said = json.dumps(frozen, indent=1)
    opened = any(prepared.bench.file_of(job).is_file() for job in on_test)
    if opened and file.is_file() and file.read_text() != said:
        raise ConfigError(
            f"{file} holds other choices, gates or retention than this bench, and its test split was opened since. "
            "What was seen is no longer held out: give another run_dir, and test pictures that nobody saw."
        )
    replace_file(file, said)
