"""The processes that sample and grade, with a learner beside them (rlhf/build.py) or without one."""

import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.cluster.engines import EngineClient
from rlhf.cluster.launch import device_for
from rlhf.cluster.placement import Cluster, reserve, seat_engines
from rlhf.cluster.services import open_services
from rlhf.cluster.transfer import choose_sync
from rlhf.config.schema import Recipe
from rlhf.config.services import with_addresses
from rlhf.engines.choice import choose_engine
from rlhf.engines.settings import EngineSettings
from rlhf.engines.vllm import VllmEngine, engine_environment
from rlhf.episodes.host import EnvironmentHost
from rlhf.episodes.runner import EpisodeRunner, SingleTurn
from rlhf.interfaces import RolloutFunction
from rlhf.materials import Materials, load_environment, serviced, worker_settings
from rlhf.rollout.scoring import RewardPool
from rlhf.services.process import ServiceProcess
from rlhf.weight_sync.files import read_weights

if TYPE_CHECKING:
    from rlhf.engines.hf import HfEngine

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Graders:
    """The reward workers of a recipe, and the process of its environment if it has one."""

    reward: RewardPool
    host: EnvironmentHost | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What samples from a model that stays as it is, and what grades the samples."""

    rollout: RolloutFunction
    reward: RewardPool
    engine: EngineClient


@contextlib.asynccontextmanager
async def open_graders(recipe: Recipe, *, code_dir: Path) -> AsyncIterator[Graders]:
    """Start services, reward workers and environment, inside Ray where there are services; they end with the block.

    LoadError for what cannot be imported, ServiceError for a service that does not start.
    """
    async with contextlib.AsyncExitStack() as stack:
        recipe = await stack.enter_async_context(_with_services(recipe))
        reward = RewardPool(
            recipe.task.rewards,
            num_workers=recipe.task.reward_workers,
            code_dir=str(code_dir),
            max_ungradable=recipe.task.max_ungradable,
            settings=worker_settings(recipe),
        )
        stack.push_async_callback(reward.close)
        await reward.start()
        host = None
        if recipe.task.environment is not None:
            host = EnvironmentHost(load_environment(recipe, code_dir))
            stack.push_async_callback(host.close)
            await host.start()
        yield Graders(reward=reward, host=host)


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
async def local_services(recipe: Recipe) -> AsyncIterator[Recipe]:
    """As a run has them, but children of this process: without Ray, hence without a share of the GPUs of their own."""
    async with contextlib.AsyncExitStack() as stack:
        addresses = {}
        for settings in serviced(recipe, device_for(recipe.placement)) if recipe.services else ():
            service = await ServiceProcess.start(settings, limit_s=recipe.timeouts.start_s)
            stack.push_async_callback(service.close)
            addresses[settings.name] = await service.address()
        yield recipe.model_copy(update={"task": with_addresses(recipe.task, addresses)})


@contextlib.asynccontextmanager
async def open_drawing(materials: Materials, *, code_dir: Path) -> AsyncIterator[Drawing]:
    """Engines, reward workers and environment without a learner, inside Ray; they end with the block."""
    recipe = materials.recipe
    async with contextlib.AsyncExitStack() as stack:
        graders = await stack.enter_async_context(open_graders(recipe, code_dir=code_dir))
        seating = seat_engines(recipe, materials.device)
        group = reserve(seating, limit_s=recipe.timeouts.start_s)
        cluster = Cluster(recipe=recipe, device=materials.device, seating=seating, group=group)
        stack.callback(cluster.close)
        engine = await start_engines(cluster, materials)
        stack.push_async_callback(engine.close)
        rollout = make_rollout(materials, engine, graders.host)
        if isinstance(rollout, EpisodeRunner):
            stack.push_async_callback(rollout.close)
        yield Drawing(rollout=rollout, reward=graders.reward, engine=engine)


def make_rollout(
    materials: Materials, engine: EngineClient, host: EnvironmentHost | None
) -> EpisodeRunner | SingleTurn:
    """What turns a prompt into trajectories: one answer, or an episode of the recipe's environment."""
    environment = materials.recipe.task.environment
    if environment is None or host is None or materials.dialect is None:
        return SingleTurn(engine, renderer=materials.renderer)
    if environment.lockstep is None:
        is_repeatable = materials.device == "cpu" and materials.recipe.schedule.max_staleness == 0
        environment = environment.model_copy(update={"lockstep": is_repeatable})
    return EpisodeRunner(engine, host, dialect=materials.dialect, config=environment)


async def start_engines(cluster: Cluster, materials: Materials) -> EngineClient:
    """Every engine of the recipe, holding the weights of `materials.model_folder` as version 0."""
    recipe = materials.recipe
    logger.info("engine: %s, %s", materials.engine_kind, choose_engine(recipe.engine.kind)[1])
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
