"""The processes that sample and grade, with a learner beside them (rlhf/build.py) or without one."""

import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.cluster.engines import EngineClient
from rlhf.cluster.launch import device_for
from rlhf.cluster.placement import Cluster, reserve, seat_engines
from rlhf.cluster.services import open_services
from rlhf.cluster.transfer import choose_sync
from rlhf.config.schema import Recipe
from rlhf.config.services import named_services, with_addresses
from rlhf.engines.choice import choose_engine
from rlhf.engines.precision import check_precision
from rlhf.engines.settings import EngineSettings
from rlhf.engines.vllm import VllmEngine, engine_environment
from rlhf.episodes.host import EnvironmentHost
from rlhf.episodes.lockstep import Lockstep
from rlhf.episodes.runner import EpisodeRunner, ScenarioRollout, SingleTurn
from rlhf.interfaces import RolloutFunction
from rlhf.materials import Materials, load_environment, serviced, worker_settings
from rlhf.rollout.scoring import RewardPool
from rlhf.services.process import ServiceProcess
from rlhf.stages.model_folder import tokenizer_path
from rlhf.weight_sync.files import read_weights

if TYPE_CHECKING:
    from rlhf.engines.hf import HfEngine

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Graders:
    """The reward workers of a recipe, and the processes of its environments, by scenario ('' without scenarios)."""

    reward: RewardPool
    hosts: Mapping[str, EnvironmentHost]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What samples from a model that stays as it is, and what grades the samples."""

    rollout: RolloutFunction
    reward: RewardPool
    engine: EngineClient


@contextlib.asynccontextmanager
async def open_graders(recipe: Recipe, *, code_dir: Path) -> AsyncIterator[Graders]:
    """Start services, reward workers and environments, inside Ray where there are services; they end with the block.

    LoadError for what cannot be imported, ServiceError for a service that does not start.
    """
    async with contextlib.AsyncExitStack() as stack:
        recipe = await stack.enter_async_context(_with_services(recipe))
        reward = RewardPool(
            recipe.task.all_rewards,
            num_workers=recipe.task.reward_workers,
            code_dir=str(code_dir),
            max_ungradable=recipe.task.max_ungradable,
            settings=worker_settings(recipe),
        )
        stack.push_async_callback(reward.close)
        await reward.start()
        hosts: dict[str, EnvironmentHost] = {}
        for scenario in recipe.task.environments:
            hosts[scenario] = EnvironmentHost(load_environment(recipe, code_dir, scenario))
            stack.push_async_callback(hosts[scenario].close)
            await hosts[scenario].start()
        yield Graders(reward=reward, hosts=hosts)


@contextlib.asynccontextmanager
async def _with_services(recipe: Recipe) -> AsyncIterator[Recipe]:
    """The recipe with the addresses of its services, which run until the block ends."""
    services = serviced(recipe, device_for(recipe.placement)) if recipe.services else []
    if not services:
        yield recipe
        return
    is_local = recipe.placement.address is None
    async with open_services(services, is_local=is_local, limit_s=recipe.timeouts.start_s) as addresses:
        yield recipe.model_copy(update={"task": with_addresses(recipe.task, addresses)})


@contextlib.asynccontextmanager
async def local_services(recipe: Recipe, names: Sequence[str] | None = None) -> AsyncIterator[Recipe]:
    """As a run has them, but children of this process: without Ray, hence without a share of the GPUs of their own.

    With `names`, only these; the rewards then still name the others as `service://NAME`.
    """
    wanted = named_services(recipe.task) if names is None else names
    async with contextlib.AsyncExitStack() as stack:
        addresses = {}
        for settings in serviced(recipe, device_for(recipe.placement), wanted) if wanted else ():
            service = await ServiceProcess.start(settings, limit_s=recipe.timeouts.start_s)
            stack.push_async_callback(service.close)
            addresses[settings.name] = await service.address()
        yield recipe.model_copy(update={"task": with_addresses(recipe.task, addresses)})


@contextlib.asynccontextmanager
async def open_engines(materials: Materials) -> AsyncIterator[EngineClient]:
    """Engines alone, inside Ray; they end with the block."""
    recipe = materials.recipe
    async with contextlib.AsyncExitStack() as stack:
        seating = seat_engines(recipe, materials.device)
        group = reserve(seating, limit_s=recipe.timeouts.start_s)
        cluster = Cluster(recipe=recipe, device=materials.device, seating=seating, group=group)
        stack.callback(cluster.close)
        engine = await start_engines(cluster, materials)
        stack.push_async_callback(engine.close)
        yield engine


@contextlib.asynccontextmanager
async def open_drawing(
    materials: Materials, *, code_dir: Path, engine: EngineClient | None = None
) -> AsyncIterator[Drawing]:
    """Engines, reward workers and environment without a learner, inside Ray; they end with the block.

    A given `engine` is used instead of new ones, and stays.
    """
    async with contextlib.AsyncExitStack() as stack:
        graders = await stack.enter_async_context(open_graders(materials.recipe, code_dir=code_dir))
        if engine is None:
            engine = await stack.enter_async_context(open_engines(materials))
        rollout = make_rollout(materials, engine, graders.hosts)
        stack.push_async_callback(rollout.close)
        yield Drawing(rollout=rollout, reward=graders.reward, engine=engine)


def make_rollout(
    materials: Materials, engine: EngineClient, hosts: Mapping[str, EnvironmentHost]
) -> ScenarioRollout:
    """What turns a prompt into trajectories: one answer, or an episode of its scenario's environment."""
    environments = materials.recipe.task.environments
    is_repeatable = materials.device == "cpu" and materials.recipe.schedule.max_staleness == 0
    in_rounds = {
        name: is_repeatable if config.lockstep is None else config.lockstep
        for name, config in environments.items()
    }
    # One for all: what an engine decodes together must not depend on how fast an environment is.
    rounds = Lockstep(engine) if any(in_rounds.values()) else engine
    runners = {
        name: EpisodeRunner(
            rounds if in_rounds[name] else engine,
            hosts[name],
            dialect=materials.dialects[name],
            config=config.model_copy(update={"lockstep": in_rounds[name]}),
        )
        for name, config in environments.items()
    }
    answers = SingleTurn(rounds, renderer=materials.renderer)
    return ScenarioRollout(runners, otherwise=answers)


async def start_engines(cluster: Cluster, materials: Materials) -> EngineClient:
    """Every engine of the recipe, holding the weights of `materials.model_folder` as version 0."""
    recipe = materials.recipe
    logger.info("engine: %s, %s", materials.engine_kind, choose_engine(recipe.engine.kind)[1])
    note = check_precision(
        recipe.engine, kind=materials.engine_kind, device=materials.device, dtype=recipe.model.dtype
    )
    if note is not None:
        logger.info("engine: %s", note)
    settings = EngineSettings(
        model=materials.model_folder,
        config=recipe.engine,
        device="cuda" if materials.device == "cuda" else "cpu",
        dtype=recipe.model.dtype,
        max_model_len=recipe.longest_context,
        seed=recipe.seed,
        transfer=choose_sync(recipe, materials.device),
        trust_remote_code=recipe.model.trust_remote_code,
        record_routing=materials.keeps_routing,
        kept_limit=kept_limit(recipe),
        max_images=materials.max_images,
        tokenizer=tokenizer_path(recipe.model),
    )
    environment = engine_environment(recipe.engine, materials.device, record_routing=materials.keeps_routing)
    return await cluster.engines(
        make_engine, {"kind": materials.engine_kind, "settings": settings}, environment
    )


def kept_limit(recipe: Recipe) -> int:
    """`Sampling.kept_limit` of a recipe: 0 where it keeps no sampling mask."""
    return recipe.sampling.kept_limit if recipe.sampling.keep_sampling_mask else 0


async def make_engine(*, index: int, kind: str, settings: EngineSettings) -> "VllmEngine | HfEngine":
    """One engine, inside its actor."""
    settings = replace(settings, index=index)
    match kind:
        case "vllm":
            return await VllmEngine.start(settings)
        case "hf":
            from rlhf.engines.hf import HfEngine

            return HfEngine(settings, read=read_weights)
        case _:
            raise AssertionError(f"choose_engine gave {kind!r}")
