"""Does each algorithm learn? A recipe with one setting after another, several seeds each, as one table.

`python benchmarks/learning.py presets` runs every preset, `python benchmarks/learning.py off_policy` the stress:
staleness 8 and four passes over every batch, with and without corrections. `guess_number` and `two_tools` are those
environments, synchronously, asynchronously, and with scores by chance, which must teach nothing. Every run is
`rlhf train`, from the cold start of its seed, which is made once. Finished runs in `--folder` are read, not repeated.
"""

import argparse
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from rlhf.config.presets import PRESETS
from rlhf.telemetry.sinks import read_metrics

ROOT = Path(__file__).parents[1]
QUICKSTART = "recipes/cpu/quickstart.yaml"
STALE = (
    "placement.kind=split", "learner.num_ranks=1", "engine.num_engines=1", "engine.max_sequences=512",
    "schedule.max_staleness=8", "schedule.inner_epochs=4",
)  # fmt: skip
SHORT_VAPO = ("critic.pretrain_steps=5", "algorithm.advantage_kwargs.length_alpha=1")
"""30 steps leave no 50 for the critic alone, and at 0.05 the lambda of answers of up to 20 tokens is 0."""
Variants = Mapping[str, tuple[str, ...]]
TABLES: Mapping[str, Variants] = {
    "presets": {
        name: (
            f"algorithm.name={name}",
            *(("critic.lr=1e-3",) if name in ("ppo", "vapo") else ()),
            *(SHORT_VAPO if name == "vapo" else ()),
        )
        for name in PRESETS
    },
    "off_policy": {
        "PPO, no correction": (*STALE, "algorithm.correction=none"),
        "PPO around the sampler (old_from: rollout)": (
            *STALE, "algorithm.correction=none", "algorithm.old_from=rollout",
        ),
        "decoupled PPO (token_is)": (*STALE, "algorithm.correction=token_is"),
        "TIS (token_tis, cap 2)": (*STALE, "algorithm.correction=token_tis"),
        "V3.2 sequence mask (opsm_delta 0.1)": (
            *STALE, "algorithm.correction=none", "algorithm.opsm_delta=0.1",
        ),
    },
}  # fmt: skip
ASYNC = ("placement.kind=split", "learner.num_ranks=1", "engine.num_engines=1", "schedule.max_staleness=3")
EPISODES: Mapping[str, Variants] = {
    recipe: {
        "synchronous": (),
        "asynchronous (staleness up to 3)": ASYNC,
        "control: scores by chance": (f"task.environment.use=benchmarks.by_chance:{name}ByChance",),
    }
    for recipe, name in (("guess_number", "GuessNumber"), ("two_tools", "TwoTools"))
}
_T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""97.5 % quantile of Student's t by degrees of freedom."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run: what it is called, its seed, where it writes, and what it changes."""

    variant: str
    seed: int
    recipe: str
    folder: Path
    overrides: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What one run learned."""

    before: float
    after: float
    curve: tuple[float, ...]
    """Held-out accuracy at every evaluation after the start."""
    ess: float
    masked: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=[*TABLES, *EPISODES])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/learning"))
    parser.add_argument("--cores", nargs="+", default=[""], help="one run at a time on each, as for taskset")
    parser.add_argument("--only", nargs="+", help="variants to run and show")
    parser.add_argument("--set", nargs="+", default=[], help="further overrides of every run")
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    is_played = options.table in EPISODES
    recipe = f"recipes/cpu/{options.table}.yaml" if is_played else QUICKSTART
    start = f"{options.table}-start" if is_played else "start"
    every = (EPISODES if is_played else TABLES)[options.table]
    variants = {n: v for n, v in every.items() if options.only is None or n in options.only}
    starts = [
        Job(variant="cold start", seed=seed, recipe=recipe, folder=folder / f"{start}-{seed}", overrides=(
            "schedule.num_steps=1", "eval.every=0", "checkpoint.export=false",
        ))
        for seed in options.seeds
        if not (folder / f"{start}-{seed}" / "sft" / "sft.json").is_file()
    ]  # fmt: skip
    runs = [
        Job(
            variant=name,
            seed=seed,
            recipe=recipe,
            folder=folder / f"{options.table}-{list(every).index(name)}-{seed}",
            overrides=(*_from_cold_start(folder / f"{start}-{seed}" / "sft"), *overrides, *options.set),
        )
        for name, overrides in variants.items()
        for seed in options.seeds
    ]
    with Progress() as progress:
        task = progress.add_task("runs", total=len(starts) + len(runs))
        for stage in (starts, runs):
            _run_all(stage, options.cores, lambda: progress.advance(task))
    jobs = {name: [job for job in runs if job.variant == name] for name in variants}
    if is_played:
        sys.stdout.write(played_table({name: [_scores(job) for job in jobs[name]] for name in variants}))
    else:
        sys.stdout.write(table({name: [_curve(job) for job in jobs[name]] for name in variants}))


def _from_cold_start(folder: Path) -> tuple[str, ...]:
    path = folder.resolve()
    return ("sft=null", "model.config=null", f"model.path={path}", f"model.tokenizer={path}")


def _run_all(jobs: Sequence[Job], cores: Sequence[str], done: object) -> None:
    free = list(cores)

    def run(job: Job) -> None:
        mine = free.pop()
        try:
            _run(job, mine)
        finally:
            free.append(mine)
            done()  # type: ignore[operator]

    with ThreadPoolExecutor(len(cores)) as pool:
        list(pool.map(run, jobs))


def _run(job: Job, cores: str) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    pin = ("taskset", "-c", cores) if cores else ()
    settings = (f"run_dir={job.folder}", f"seed={job.seed}", "telemetry.live=false", *job.overrides)
    with (job.folder.parent / f"{job.folder.name}.log").open("w") as log:
        ended = subprocess.run(
            [*pin, sys.executable, "-m", "rlhf.cli", "train", job.recipe, *settings],
            cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False, env={**os.environ, "NO_COLOR": "1"},
        )  # fmt: skip
    if ended.returncode:
        raise SystemExit(f"{job.variant}, seed {job.seed}: exit {ended.returncode}; see {log.name}")


def _curve(job: Job) -> Curve:
    lines = read_metrics(job.folder)
    shares = [line["eval/accuracy"] for line in lines if line.get("eval/accuracy") is not None]
    ess = [line["mismatch/ess"] for line in lines if line.get("mismatch/ess") is not None]
    masked = [line.get("mismatch/masked_share") or 0.0 for line in lines]
    return Curve(
        before=shares[0],
        after=shares[-1],
        curve=tuple(shares[1:]),
        ess=min(ess, default=math.nan),
        masked=max(masked),
    )


def _scores(job: Job) -> list[float]:
    """The mean score of every step's episodes; where the reward is by chance, the right score."""
    lines = [line for line in read_metrics(job.folder) if line["step"] > 0]
    return [line.get("env/log/score", line["reward/environment/score/mean"]) for line in lines]


def played_table(scores: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Markdown: the mean score of the first and the last three steps, each seed, and the curve in tenths of a run."""
    lines = ["| | first | last | each seed | on the way (mean) |", "|---|---|---|---|---|"]
    for name, runs in scores.items():
        ends = [f"{_mean(run[:3]):.3f} -> {_mean(run[-3:]):.3f}" for run in runs]
        tenth = max(len(runs[0]) // 10, 1)
        way = [
            _mean([score for run in runs for score in run[at : at + tenth]])
            for at in range(0, len(runs[0]), tenth)
        ]
        first, last = (_mean([_mean(run[part]) for run in runs]) for part in (slice(3), slice(-3, None)))
        curve = ", ".join(f"{at:.2f}" for at in way)
        lines.append(f"| {name} | {first:.3f} | {last:.3f} | {', '.join(ends)} | {curve} |")
    return "\n".join(lines) + "\n"


def table(curves: Mapping[str, Sequence[Curve]]) -> str:
    """Markdown: accuracy after RL as mean and 95 % interval over seeds, each seed, the curve, and what masks did."""
    lines = [
        "| algorithm | before | after [95 % interval] | each seed | on the way (mean) | lowest ESS | most masked |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in curves.items():
        way = ", ".join(f"{_mean(at):.2f}" for at in zip(*(c.curve for c in found), strict=True))
        low, mean, high = interval([curve.after for curve in found])
        lines.append(
            f"| {name} | {_mean([c.before for c in found]):.3f} | {mean:.3f} [{low:.3f}, {high:.3f}] "
            f"| {', '.join(f'{c.after:.3f}' for c in found)} | {way} "
            f"| {min(c.ess for c in found):.2f} | {max(c.masked for c in found):.1%} |"
        )
    return "\n".join(lines) + "\n"


def interval(shares: Sequence[float]) -> tuple[float, float, float]:
    """(low, mean, high): Student's 95 % interval of the mean of a few runs, kept within [0, 1]."""
    mean = _mean(shares)
    if len(shares) < 2:
        return 0.0, mean, 1.0
    variance = sum((share - mean) ** 2 for share in shares) / (len(shares) - 1)
    half = _T_95.get(len(shares) - 1, 2.0) * math.sqrt(variance / len(shares))
    return max(mean - half, 0.0), mean, min(mean + half, 1.0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
