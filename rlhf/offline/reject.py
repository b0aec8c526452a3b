"""Rejection sampling: draw many samples of every prompt, keep the best of the right ones as rows to learn from."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from rlhf.cluster.launch import ray_session
from rlhf.config.pipeline import near
from rlhf.config.reject import CollectConfig, SelectConfig
from rlhf.config.schema import Recipe
from rlhf.config.services import with_no_addresses
from rlhf.content_hashes import ContentHashes
from rlhf.data.prompt_stream import SourcePrompts
from rlhf.data.selection import Rules
from rlhf.errors import ConfigError
from rlhf.materials import Materials, gather_materials, worker_settings
from rlhf.offline.collect import CollectPlan, OnProgress, Progress, collect, is_collected, take_over
from rlhf.offline.rules import rules_of
from rlhf.offline.selected import write_selected
from rlhf.processes import open_drawing
from rlhf.rollout.reward_totals import check_columns
from rlhf.rollout.scoring import RewardPool
from rlhf.run_folder import RunFolder
from rlhf.stages.model_folder import prepare_model_folder
from rlhf.telemetry.live import LiveView
from rlhf.types import Prompt, Sampling

KEY = "task.train"
_AT_ONCE = 1024


async def reject(  # noqa: PLR0913 -- each is a part of what a stage is given
    recipe: Recipe,
    collect_config: CollectConfig,
    select_config: SelectConfig,
    folder: Path,
    *,
    code_dir: Path,
    view: LiveView,
    before: Path | None = None,
) -> dict[str, float]:
    """Collect samples of `recipe.task.train` and select from them; returns the `reject/` metrics.

    What was collected in the folder `before` with these settings is taken from there: only the selection differed.

    `folder` then holds `collected/`, `rows.jsonl` (or .parquet), `pairs.jsonl` if asked for, `prompts.jsonl` and
    `summary.json`, which is written last. After a kill the same call goes on, and makes the same files.
    """
    source = recipe.task.train
    if source is None:
        raise ConfigError(
            "task.train is missing: rejection sampling draws from one source, not from scenarios."
        )
    rules = rules_of(recipe, select_config)
    folder.mkdir(parents=True, exist_ok=True)
    view.phase("preparing the model")
    start = prepare_model_folder(recipe.model, str(folder / "start"), seed=recipe.seed)
    rewards = (*recipe.task.rewards, *(one.reward for one in select_config.filters))
    recipe = recipe.model_copy(update={"task": recipe.task.model_copy(update={"rewards": rewards})})
    materials = gather_materials(recipe, RunFolder(folder), start, has_prompts=False)
    prompts = SourcePrompts(source=source, key=KEY, require_reference=recipe.task.needs_reference)
    plan = _plan(materials, collect_config, prompts, rules)
    collected = folder / "collected"
    if before is not None:
        take_over(plan, before / "collected", collected)
    if not is_collected(plan, collected):
        await check_prompts(materials, prompts, select_config, code_dir=code_dir)
        with ray_session(recipe.placement, code_dir=code_dir):
            async with open_drawing(materials, code_dir=code_dir) as drawing:
                plan = replace(plan, forget=drawing.engine.forget_prefixes)
                await collect(drawing.rollout, drawing.reward, plan, collected, progress=_shown(view))
    view.phase("selecting")
    return write_selected(collected, rules, folder)


def _plan(materials: Materials, config: CollectConfig, prompts: SourcePrompts, rules: Rules) -> CollectPlan:
    recipe, sampling = materials.recipe, materials.recipe.sampling
    return CollectPlan(
        prompts=prompts,
        sampling=Sampling(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            stop_token_ids=materials.renderer.stop_token_ids,
            banned=materials.banned,
            image_codes=materials.image_codes,
        ),
        samples_per_prompt=config.samples_per_prompt,
        seed=recipe.seed,
        prompts_per_chunk=config.prompts_per_chunk,
        chunks_in_flight=config.in_flight(materials.device),
        filters=frozenset(rules.filters),
        identity=_identity(materials),
    )


def _identity(materials: Materials) -> dict[str, Any]:
    """What decides samples and grades beside the plan: neither where things lie nor how fast it goes."""
    recipe = materials.recipe
    place = {"path", "config", "tokenizer", "chat_template"}
    aside = {"train", "heldout", "curriculum", "reward_workers", "reward_memory_mb", "max_ungradable"}
    return {
        "weights": ContentHashes(materials.folder.path).of_model(materials.model_folder),
        "model": recipe.model.model_dump(mode="json", exclude=place),
        "task": recipe.task.model_dump(mode="json", exclude=aside),
    }


async def check_prompts(
    materials: Materials, prompts: SourcePrompts, select: SelectConfig, *, code_dir: Path
) -> None:
    """Refuse, before engines start, rows that cannot be rolled out or graded, and columns that none of them has.

    Holds a portion of them at a time.
    """
    recipe = materials.recipe
    rewards = with_no_addresses(recipe.task, recipe.services).rewards
    pool = RewardPool(rewards, num_workers=1, code_dir=str(code_dir), settings=worker_settings(recipe))
    try:
        await pool.start()
        required = pool.required_columns
    finally:
        await pool.close()
    prompts.check_ids()
    rest: Iterator[Prompt] = iter(prompts)
    columns: set[str] = set()
    while some := list(islice(rest, _AT_ONCE)):
        limit = recipe.sampling.max_prompt_tokens
        materials.renderer.check_prompts(some, max_prompt_tokens=limit, key=KEY)
        check_columns(rewards, required, some, key=KEY)
        columns.update(*(prompt.columns for prompt in some))
    for name in select.keep_columns:
        if name not in columns:
            raise ConfigError(
                f"select.keep_columns: no row of {KEY} has a column {name!r}.{near(name, sorted(columns))}"
            )


def _shown(view: LiveView) -> OnProgress:
    def show(now: Progress) -> None:
        text = f"collecting · {now.correct_share:.0%} right · {now.samples_per_s:.1f} samples/s"
        view.phase(text, now.prompts_done, now.num_prompts)

    return show
