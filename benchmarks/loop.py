"""The loop against its floor, and against TRL: `make bench`, or `python benchmarks/loop.py --against trl`.

The loop is `rlhf train`'s own code on a recipe. Between any two of its steps the others do the same work, so that
noise on the machine meets both: raw vLLM samples the step's tokens again and the bare model runs forward and
backward over its packed rows (floor.py), or TRL's trainer takes a step of its own (trl_side.py).
docs/benchmarks.md says what is equal and what is not.
"""

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.child import REPOSITORY, Child, ChildError
from benchmarks.floor import BareLearner
from benchmarks.recorded import Step, recorded
from benchmarks.tables import floor_table, shorten, trl_table
from rlhf.build import open_run
from rlhf.cluster.launch import ray_session, thread_environment
from rlhf.config.loading import load_recipe
from rlhf.config.schema import Recipe
from rlhf.data.prompts import PromptStream
from rlhf.engines.settings import EngineSettings
from rlhf.engines.vllm import engine_environment
from rlhf.errors import ConfigError, RlhfError
from rlhf.execute import prepare
from rlhf.machine import usable_cores
from rlhf.materials import Materials, local_model, renderer_for
from rlhf.run_folder import RunFolder, environment
from rlhf.telemetry.live import LiveView
from rlhf.telemetry.logs import TERMINAL, configure_logging
from rlhf.train import train

logger = logging.getLogger("benchmarks")

FROZEN = ("learner.lr=1.0e-30", "learner.warmup_steps=0", "eval.every=0", "telemetry.live=false")
"""A rate at which no float32 weight moves: every system samples from one model at every step."""
OFFLINE = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
INSTRUCTION = (
    "A user asks a question and the assistant solves it. It first thinks about the reasoning, "
    "then gives the answer. {prompt}"
)
"""Prompts of the length that R1-style runs have; the quickstart's own are nine tokens long."""
Mix = tuple[str, list[int]]


def main() -> int:
    arguments = parser().parse_args()
    configure_logging()
    try:
        results = asyncio.run(measure(arguments))
    except (RlhfError, ChildError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 2
    results["settings"] = {**vars(arguments), "cores": usable_cores(), "environment": environment()}
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1, default=str))
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description="The loop's step time against its floor, and against TRL.")
    made.add_argument("--recipe", default=str(REPOSITORY / "recipes/cpu/quickstart.yaml"))
    made.add_argument("--model", help="a model folder; default: the recipe's, after its cold start (kept)")
    made.add_argument("--against", choices=["trl"], help="also compare tokens/s with TRL's GRPOTrainer")
    made.add_argument("--steps", type=int, default=8, help="measured steps")
    made.add_argument("--warmup", type=int, default=2, help="steps before them, left out")
    made.add_argument("--threads", type=int, help="threads of each engine and rank; default: the recipe's")
    made.add_argument(
        "--peer-threads",
        type=int,
        help="threads of each peer; default: as many as all engines (or ranks) have",
    )
    made.add_argument("--length", type=int, default=32, help="tokens of a short sample (long: ten times)")
    made.add_argument("--template", default=INSTRUCTION, help="prompts of the comparison with TRL")
    made.add_argument(
        "--mix", choices=["equal", "skewed"], help="one of the two comparisons with TRL, not both"
    )
    made.add_argument("--trl-rows", type=int, default=128, help="samples in one of TRL's forward passes")
    made.add_argument("--skip-floor", action="store_true", help="only the comparison with TRL")
    made.add_argument("--run-dir", default="runs/benchmark")
    made.add_argument("--json", help="write every step's figures to this file")
    made.add_argument("overrides", nargs="*", metavar="key=value", help="recipe overrides")
    return made


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run every comparison that was asked for; print its table; return all figures."""
    recipe = benchmark_recipe(arguments)
    results: dict[str, Any] = {}
    with LiveView({}, enabled=False) as view:
        materials = prepare(recipe, RunFolder.open(recipe, fresh=False), view)
    refuse(materials)
    peers = replace(materials, recipe=in_one_process(materials.recipe, threads=arguments.peer_threads))
    with ray_session(recipe.placement, code_dir=REPOSITORY):
        if not arguments.skip_floor:
            results["floor"] = await against_floor(materials, peers, warmup=arguments.warmup)
            TERMINAL.print(floor_table(results["floor"], recipe))
        for mix in mixes(recipe, arguments) if arguments.against == "trl" else []:
            results[mix[0]] = await against_trl(materials, peers, mix, arguments)
            TERMINAL.print(trl_table(results[mix[0]], mix))
    return results


def benchmark_recipe(arguments: argparse.Namespace) -> Recipe:
    """The recipe with frozen weights, the wished threads and model, and no evaluation."""
    overrides = [*arguments.overrides, *FROZEN, f"run_dir={arguments.run_dir}"]
    overrides.append(f"schedule.num_steps={arguments.warmup + arguments.steps}")
    if arguments.threads:
        overrides += [f"learner.threads={arguments.threads}", f"engine.threads={arguments.threads}"]
    if arguments.model:
        overrides += [f"model.path={arguments.model}", "model.config=null", "sft=null"]
    return load_recipe(arguments.recipe, overrides)


def in_one_process(recipe: Recipe, *, threads: int | None) -> Recipe:
    """The recipe of the peers: one engine and one rank with the threads and sequences of all of them."""
    engine, learner = recipe.engine, recipe.learner
    found = {
        "num_engines": 1,
        "threads": threads or engine.threads * engine.num_engines,
        "max_sequences": engine.max_sequences * engine.num_engines,
    }
    ranks = {"num_ranks": 1, "threads": threads or learner.threads * learner.num_ranks}
    sections = {"engine": engine.model_copy(update=found), "learner": learner.model_copy(update=ranks)}
    return recipe.model_copy(update=sections)


def refuse(materials: Materials) -> None:
    """Only what can be compared side by side on a CPU."""
    recipe = materials.recipe
    if materials.engine_kind != "vllm" or materials.device != "cpu":
        raise ConfigError(
            f"the benchmark compares with raw vLLM on a CPU; found engine {materials.engine_kind} on "
            f"{materials.device}. Install the extra `cpu` and use placement.device=cpu."
        )
    if recipe.schedule.max_staleness > 0:
        raise ConfigError(
            f"schedule.max_staleness is {recipe.schedule.max_staleness}, but the benchmark pauses between steps, "
            "when nothing may run: set it to 0."
        )


def mixes(recipe: Recipe, arguments: argparse.Namespace) -> list[Mix]:
    """Token limits of a prompt's samples: all equal, and one in eight ten times longer."""
    samples, length = recipe.schedule.samples_per_prompt, arguments.length
    skewed = [length * (10 if i % 8 == 7 else 1) for i in range(samples)]
    found = {
        "equal": ("equal lengths", [length] * samples),
        "skewed": ("one in eight ten times longer", skewed),
    }
    return [mix for name, mix in found.items() if arguments.mix in (None, name)]


async def against_floor(materials: Materials, peers: Materials, *, warmup: int) -> list[dict[str, float]]:
    """Per measured step: the loop's seconds by part, and the floor's for the same tokens."""
    recipe, folder = peers.recipe, materials.folder.path
    figures: list[dict[str, float]] = []
    with ExitStack() as stack:
        vllm = stack.enter_context(
            Child(
                ["floor.py", "vllm"], engine_environment(recipe.engine, "cpu"), log=folder / "floor-vllm.log"
            )
        )
        learner = stack.enter_context(
            Child(
                ["floor.py", "learner"],
                thread_environment(recipe.learner.threads),
                log=folder / "floor-learner.log",
            )
        )
        await asyncio.to_thread(vllm.ask, engine_settings(peers))
        model = local_model(recipe, materials.model_folder)
        await asyncio.to_thread(learner.ask, BareLearner(model=model, learner=recipe.learner))

        async def between(step: Step) -> None:
            vllm_s, tokens = await asyncio.to_thread(vllm.ask, step.requests)
            bare_s, adamw_s = await asyncio.to_thread(learner.ask, step.batch)
            same = sum(a == b for a, b in zip(tokens, step.completions, strict=True)) / len(tokens)
            found = {
                **step.parts,
                "vllm": vllm_s,
                "bare": bare_s,
                "adamw": adamw_s,
                "ratio": (vllm_s + bare_s) / step.parts["step"],
                "same_tokens": same,
                "sampled": step.sampled,
                "packed": step.batch.num_tokens,
            }
            record(figures, step, found, warmup=warmup)

        await run_loop(materials, between, limits=None)
    return figures


async def against_trl(
    materials: Materials, peers: Materials, mix: Mix, arguments: argparse.Namespace
) -> list[dict[str, float]]:
    """Per measured step: seconds and sampled tokens of both."""
    name, limits = mix
    folder = RunFolder(materials.folder.path / name.replace(" ", "-"))
    materials = with_shape(replace(materials, folder=folder), arguments.template, max_tokens=max(limits))
    figures: list[dict[str, float]] = []
    settings = trl_settings(materials, limits)
    settings |= {"rows": arguments.trl_rows, "threads": peers.recipe.learner.threads}
    threads = thread_environment(peers.recipe.learner.threads)
    with Child(["trl_side.py"], {**threads, **OFFLINE}, log=folder.path / "trl.log") as trl:
        await asyncio.to_thread(trl.ask, settings)

        async def between(step: Step) -> None:
            trl_s, trl_tokens = await asyncio.to_thread(trl.ask, "step")
            ours, theirs = step.sampled / step.parts["step"], trl_tokens / trl_s
            found = {
                **step.parts,
                "sampled": step.sampled,
                "tokens_per_s": ours,
                "trl_step": trl_s,
                "trl_sampled": trl_tokens,
                "trl_tokens_per_s": theirs,
                "ratio": ours / theirs,
            }
            record(figures, step, found, warmup=arguments.warmup)

        await run_loop(materials, between, limits=limits)
    return figures


def with_shape(materials: Materials, template: str, *, max_tokens: int) -> Materials:
    """The same run with prompts in `template`, and room for them and for samples of `max_tokens`."""
    recipe = materials.recipe
    recipe = recipe.model_copy(update={"task": recipe.task.model_copy(update={"template": template})})
    renderer = renderer_for(recipe, materials.model_folder)
    longest = max(len(renderer.encode_prompt(prompt)) for prompt in materials.train)
    room = recipe.sampling.model_copy(update={"max_tokens": max_tokens, "max_prompt_tokens": longest})
    return replace(materials, recipe=recipe.model_copy(update={"sampling": room}), renderer=renderer)


async def run_loop(materials: Materials, between: Any, *, limits: Sequence[int] | None) -> None:
    """`rlhf train` on prepared materials, with `between` after every step."""
    with LiveView({}, enabled=False) as view:
        async with open_run(materials, view, code_dir=REPOSITORY) as run:
            await train(recorded(run, between, limits=limits))


def record(figures: list[dict[str, float]], step: Step, found: dict[str, float], *, warmup: int) -> None:
    """Keep a step that is past the warm-up, and say what was found."""
    logger.info("%s %d: %s", "step" if step.number > warmup else "warm-up", step.number, shorten(found))
    if step.number > warmup:
        figures.append({"number": step.number, **found})


def engine_settings(materials: Materials) -> EngineSettings:
    """As build.py makes them."""
    recipe = materials.recipe
    return EngineSettings(
        model=materials.model_folder,
        config=recipe.engine,
        device="cpu",
        dtype=recipe.model.dtype,
        max_model_len=recipe.sampling.max_prompt_tokens + recipe.sampling.max_tokens,
        seed=recipe.seed,
    )


def trl_settings(materials: Materials, limits: Sequence[int]) -> dict[str, Any]:
    """TrlSettings' fields, without importing TRL here."""
    recipe, renderer = materials.recipe, materials.renderer
    if len(recipe.task.rewards) != 1:
        raise ConfigError("--against trl needs a recipe with exactly one reward")
    stream = PromptStream(materials.train, seed=recipe.seed)
    schedule = recipe.schedule
    prompts = [stream.next()[1] for _ in range(schedule.num_steps * schedule.prompts_per_step)]
    ids = [renderer.encode_prompt(prompt) for prompt in prompts]
    return {
        "model": os.path.abspath(materials.model_folder),
        "prompts": prompts,
        "texts": [renderer.tokenizer.decode(row, skip_special_tokens=False) for row in ids],
        "ids": ids,
        "prompts_per_step": schedule.prompts_per_step,
        "limits": list(limits),
        "reward": recipe.task.rewards[0],
        "temperature": recipe.sampling.temperature,
        "scratch": str(materials.folder.path / "trl"),
    }


if __name__ == "__main__":
    sys.exit(main())
