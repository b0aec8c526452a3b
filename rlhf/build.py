"""Config -> Run. The only place that picks implementations: one `match` per kind."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from rlhf.algorithms.catalogue import Algorithm, resolve
from rlhf.algorithms.teachers import with_teachers
from rlhf.batch import Batch
from rlhf.cluster.engines import EngineClient
from rlhf.cluster.learners import LearnerClient
from rlhf.cluster.placement import Cluster, Colocated, Split, reserve, seat
from rlhf.cluster.transfer import Ends, choose_sync, open_sync
from rlhf.config.schema import ModelConfig, Recipe
from rlhf.data.mixture import PromptMixture
from rlhf.data.prompts import PromptStream
from rlhf.episodes.render import Renderer
from rlhf.interfaces import Placement, PromptLedger, RolloutFunction
from rlhf.learner.plan import LearnerPlan, RankPlace
from rlhf.machine import usable_cores
from rlhf.materials import Materials, local_model
from rlhf.processes import kept_limit, make_rollout, open_graders, start_engines
from rlhf.rollout.buffer import GroupBuffer
from rlhf.rollout.evaluate import EvaluationPlan, evaluate
from rlhf.rollout.group import Producer, Sampled
from rlhf.rollout.reward_totals import short_names
from rlhf.rollout.scoring import RewardPool
from rlhf.run import Annotator, Evaluator, Run, RunState, load_state
from rlhf.run_folder import RunFolder
from rlhf.stages.model_folder import prepare_model_folder
from rlhf.telemetry.live import LiveView
from rlhf.telemetry.recording import SampleRecorder
from rlhf.telemetry.sinks import open_sinks
from rlhf.types import Prompt, Sampling, TrajectoryGroup
from rlhf.weight_sync.probe import Probe, probe_sequences
from rlhf.weight_sync.verified import VerifiedSync

if TYPE_CHECKING:
    from rlhf.learner.fsdp import FsdpLearner

logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def open_run(materials: Materials, view: LiveView, *, code_dir: Path) -> AsyncIterator[Run]:
    """Start every process of a run inside Ray; all of them end with the block."""
    recipe = materials.recipe
    algorithm = resolve(recipe)
    async with contextlib.AsyncExitStack() as stack:
        view.phase("starting reward workers")
        graders = await stack.enter_async_context(open_graders(recipe, code_dir=code_dir))
        seating = seat(recipe, materials.device)
        group = reserve(seating, limit_s=recipe.timeouts.start_s)
        cluster = Cluster(recipe=recipe, device=materials.device, seating=seating, group=group)
        stack.callback(cluster.close)
        view.phase("starting learner and engines")
        engine, learner = await _start(cluster, materials, algorithm)
        stack.push_async_callback(learner.close)
        stack.push_async_callback(engine.close)
        checkpoints = materials.folder.checkpoints()
        if checkpoints:
            await learner.load(str(checkpoints[-1].resolve() / "learner"))
        sync = await _open_sync(materials, learner, engine)
        parts = _Parts(learner=learner, engine=engine, sync=sync, reward=graders.reward, algorithm=algorithm)
        rollout = make_rollout(materials, engine, graders.hosts)
        stack.push_async_callback(rollout.close)
        run = _assemble(materials, view, parts, rollout)
        for sink in run.sinks:
            stack.callback(sink.close)
        yield run


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    learner: LearnerClient
    engine: EngineClient
    sync: VerifiedSync
    reward: RewardPool
    algorithm: Algorithm


def _assemble(materials: Materials, view: LiveView, parts: _Parts, rollout: RolloutFunction) -> Run:
    recipe, schedule, inputs = materials.recipe, materials.recipe.schedule, parts.algorithm.inputs
    prompts = _ledger(recipe, materials.train)
    state = _restore(materials.folder, prompts)
    _warn_of_one_epoch(recipe, materials.train)
    buffer: GroupBuffer[TrajectoryGroup] = GroupBuffer(
        schedule.prompts_per_step, schedule.max_staleness, max_discarded=schedule.max_discarded
    )
    sampling = Sampling(
        max_tokens=recipe.sampling.max_tokens,
        temperature=recipe.sampling.temperature,
        top_p=recipe.sampling.top_p,
        top_k=recipe.sampling.top_k,
        stop_token_ids=materials.renderer.stop_token_ids,
        kept_limit=kept_limit(recipe),
        banned=materials.banned,
        image_codes=materials.image_codes,
    )
    work = Sampled(
        rollout=rollout,
        reward=parts.reward,
        sampling=sampling,
        samples_per_prompt=schedule.samples_per_prompt,
        seed=recipe.seed,
        drop_zero_variance=schedule.drop_zero_variance,
        temperature_points=recipe.sampling.temperature_points,
        least_rewards=parts.algorithm.least_rewards,
        least_by_scenario=_least_by_scenario(recipe, parts.algorithm),
    )
    return Run(
        recipe=recipe,
        folder=materials.folder,
        learner=parts.learner,
        engine=parts.engine,
        sync=parts.sync,
        placement=_placement(recipe, parts),
        algorithm=parts.algorithm,
        annotators=_annotators(parts, schedule.minibatches * schedule.inner_epochs),
        reward_parts=short_names(recipe.task.all_rewards) if "reward_parts" in inputs else (),
        vision=materials.renderer.vision,
        decode_steps=materials.renderer.decode if "step_rewards" in inputs else None,
        reward=parts.reward,
        prompts=prompts,
        buffer=buffer,
        producer=Producer(buffer=buffer, prompts=prompts, work=work, version=lambda: state.step),
        evaluator=_evaluator(materials, view, rollout, parts.reward),
        sinks=open_sinks(recipe, materials.folder.path, first_step=state.step + 1 if state.step else 0),
        recorder=SampleRecorder(
            materials.folder.path,
            decode=materials.renderer.pieces,
            samples_per_step=recipe.telemetry.samples_per_step,
            seed=recipe.seed,
            first_step=state.step + 1,
        ),
        view=view,
        state=state,
    )


def _ledger(recipe: Recipe, prompts: Sequence[Prompt]) -> PromptLedger:
    task = recipe.task
    if not task.scenarios:
        return PromptStream(prompts, seed=recipe.seed, curriculum=task.curriculum)
    return PromptMixture(
        prompts,
        task.scenarios,
        prompts_per_step=recipe.schedule.prompts_per_step,
        seed=recipe.seed,
        curriculum=task.curriculum,
    )


def _least_by_scenario(recipe: Recipe, algorithm: Algorithm) -> dict[str, int]:
    size = recipe.schedule.samples_per_prompt
    return {
        name: max(algorithm.least_rewards, environment.least_graded(size))
        for name, environment in recipe.task.environments.items()
    }


def _warn_of_one_epoch(recipe: Recipe, prompts: Sequence[Prompt]) -> None:
    schedule, shares = recipe.schedule, recipe.task.shares(recipe.schedule.num_steps)
    for name, share in shares.items() if recipe.task.curriculum is not None else ():
        wanted = round(schedule.num_steps * schedule.prompts_per_step * share)
        num_prompts = sum(prompt.scenario == name for prompt in prompts)
        if wanted <= num_prompts:
            key = f"{recipe.task.key_of(name)}.train"
            logger.warning(
                "task.curriculum acts from the second epoch on: this run trains on %d of the %d prompts of %s. Unless "
                "dynamic sampling discards many, no prompt comes twice; %s.limit makes epochs shorter.",
                wanted,
                num_prompts,
                key,
                key,
            )


def _restore(folder: RunFolder, prompts: PromptLedger) -> RunState:
    checkpoints = folder.checkpoints()
    if not checkpoints:
        return RunState()
    state, ledger = load_state(checkpoints[-1])
    prompts.load_state_dict(ledger)
    logger.info("resuming at step %d; %d groups were in flight", state.step, len(prompts.in_flight))
    return state


async def _start(
    cluster: Cluster, materials: Materials, algorithm: Algorithm
) -> tuple[EngineClient, LearnerClient]:
    """Start learner and engines: together if they have devices of their own, else the sleeping engine first."""
    recipe = materials.recipe
    if recipe.placement.kind == "split" or materials.device == "cpu":
        learner, engine = await asyncio.gather(
            _start_learner(cluster, materials, algorithm), start_engines(cluster, materials)
        )
    else:
        engine = await start_engines(cluster, materials)
        await engine.sleep()
        learner = await _start_learner(cluster, materials, algorithm)
    return engine, learner


async def _start_learner(cluster: Cluster, materials: Materials, algorithm: Algorithm) -> LearnerClient:
    recipe = materials.recipe
    updates = recipe.schedule.minibatches * recipe.schedule.inner_epochs
    has_critic = algorithm.value_loss is not None
    plan = LearnerPlan(
        model=local_model(recipe, materials.model_folder),
        learner=recipe.learner,
        total_steps=recipe.schedule.num_steps * updates,
        seed=recipe.seed,
        needs_reference=algorithm.needs_reference,
        reference=_reference_model(recipe),
        teachers={
            name: _frozen_model(recipe, path, key=f"algorithm.teachers.{name}")
            for name, path in recipe.algorithm.teachers.items()
        },
        reference_resets=recipe.algorithm.reference_reset_every > 0,
        critic=recipe.critic if has_critic else None,
        critic_alone=recipe.critic.pretrain_steps * updates if has_critic else 0,
        entropy="gradient" if algorithm.needs_entropy else "metric",
        keep_routing=materials.keeps_routing,
    )
    return await cluster.learner(make_learner, {"plan": plan, "device": materials.device})


def _reference_model(recipe: Recipe) -> ModelConfig | None:
    path = recipe.algorithm.reference
    return None if path is None else _frozen_model(recipe, path, key="algorithm.reference")


def _frozen_model(recipe: Recipe, path: str, *, key: str) -> ModelConfig:
    found = ModelConfig(path=path, dtype=recipe.model.dtype)
    path = prepare_model_folder(found, "", seed=0, key=key)
    return found.model_copy(update={"path": path})


def make_learner(
    *, plan: LearnerPlan, device: str, rank: int, world_size: int, rendezvous: tuple[str, int]
) -> "FsdpLearner":
    """One rank, inside its actor."""
    from rlhf.learner.fsdp import FsdpLearner

    address, port = rendezvous
    place = RankPlace(rank=rank, world_size=world_size, device=device, address=address, port=port)
    return FsdpLearner(plan, place)


async def _open_sync(materials: Materials, learner: LearnerClient, engine: EngineClient) -> VerifiedSync:
    recipe = materials.recipe
    random_ids = probe_sequences(
        materials.renderer.vocabulary_size,
        seed=recipe.seed,
        length=min(32, recipe.sampling.max_prompt_tokens),
        avoid=materials.renderer.special_ids,
    )
    tolerance = recipe.sync.tolerance or _probe_tolerance(recipe)
    prompts, room = [*materials.train, *materials.heldout], recipe.longest_context - 1
    sequences, images = with_images(random_ids, materials.renderer, prompts, longest=room)
    probe = Probe(sequences=sequences, images=images, tolerance=tolerance, every=recipe.sync.probe_every)
    ends = Ends(learner=learner, engine=engine, scratch=materials.folder.path / "sync")
    return await open_sync(choose_sync(recipe, materials.device), recipe, ends, probe)


def with_images(
    sequences: Sequence[Sequence[int]], renderer: Renderer, prompts: Sequence[Prompt], *, longest: int
) -> tuple[list[Sequence[int]], list[tuple[str, ...]]]:
    """(sequences, images of each) of a probe: beside the random ones, one of them after the first prompt with images.

    A stale tower shows in nothing but such a one.
    """
    shown = next((prompt for prompt in prompts if prompt.images), None)
    if shown is None:
        return list(sequences), []
    seeing = (*renderer.encode_prompt(shown), *sequences[0])[:longest]
    return [*sequences, seeing], [*[()] * len(sequences), shown.images]


def _probe_tolerance(recipe: Recipe) -> float:
    if recipe.engine.narrow_keys:
        return 1.0  # stale weights are off by several nats, FP8 by a few tenths
    return 1e-3 if recipe.model.dtype == "float32" else 0.3


def _placement(recipe: Recipe, parts: _Parts) -> Placement:
    match recipe.placement.kind:
        case "split":
            return Split()
        case "colocated":
            return Colocated(engine=parts.engine, learner=parts.learner)


def _annotators(parts: _Parts, num_updates: int) -> list[Annotator]:
    async def old(batch: Batch) -> Batch:
        return replace(batch, old_logprobs=await parts.learner.logprobs(batch))

    async def reference(batch: Batch) -> Batch:
        logprobs = await parts.learner.logprobs(batch, reference=True)
        return replace(batch, ref_logprobs=logprobs, teacher_logprobs=logprobs if distils else None)

    async def values(batch: Batch) -> Batch:
        before, last = await parts.learner.values(batch)
        return replace(batch, values=before, last_values=last)

    def by_teacher(batch: Batch, name: str) -> Awaitable[Tensor]:
        return parts.learner.logprobs(batch, teacher=name)

    names = parts.algorithm.teachers
    distils = "teacher_logprobs" in parts.algorithm.inputs and not names
    chosen: list[Annotator] = []
    if parts.algorithm.needs_old_logprobs(num_updates):
        chosen.append(old)
    if parts.algorithm.needs_reference:
        chosen.append(reference)
    if names:
        chosen.append(functools.partial(with_teachers, names=names, score=by_teacher))
    if parts.algorithm.value_loss is not None:
        chosen.append(values)
    return chosen


def _evaluator(
    materials: Materials, view: LiveView, rollout: RolloutFunction, reward: RewardPool
) -> Evaluator | None:
    config, sampling = materials.recipe.eval, materials.recipe.sampling
    if not materials.heldout:
        return None
    plan = EvaluationPlan(
        prompts=materials.heldout,
        sampling=Sampling(
            max_tokens=config.max_tokens or sampling.max_tokens,
            temperature=config.temperature,
            stop_token_ids=materials.renderer.stop_token_ids,
            banned=materials.banned,
            image_codes=materials.image_codes,
        ),
        num_samples=config.num_samples,
        seed=materials.recipe.seed,
    )
    progress = functools.partial(view.phase, "evaluating on held-out prompts")
    return functools.partial(evaluate, rollout, reward, plan, progress=progress)


def header(materials: Materials) -> dict[str, str]:
    """What the live view says of a run."""
    recipe = materials.recipe
    return {
        "run": recipe.name,
        "model": recipe.model.path or str((recipe.model.config or {}).get("model_type", "")),
        "algorithm": recipe.algorithm.name,
        "engine": f"{recipe.engine.num_engines} x {materials.engine_kind}",
        "learner": f"{recipe.learner.num_ranks} x FSDP2",
        "placement": f"{recipe.placement.kind} on {materials.device} ({usable_cores()} cores)",
        "staleness": str(recipe.schedule.max_staleness),
    }
