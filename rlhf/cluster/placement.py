"""Who runs where: one placement group for learner ranks and engines, split or colocated."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlhf.cluster.actors import AsyncHost, SyncHost, named
from rlhf.cluster.engines import EngineClient
from rlhf.cluster.launch import thread_environment
from rlhf.cluster.learners import LearnerClient
from rlhf.cluster.pools import JudgeClient
from rlhf.cluster.watchdog import Named, answer
from rlhf.config.alignment import AnyRecipe
from rlhf.errors import DeadlineError, PlacementError


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """What one actor takes of its node."""

    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Seating:
    """Bundles of the placement group, and which bundle each actor sits in."""

    bundles: tuple[Mapping[str, float], ...]
    learner: Seat
    engine: Seat
    learner_bundle: tuple[int, ...]
    engine_bundle: tuple[int, ...]


def seat(recipe: AnyRecipe, device: str) -> Seating:
    """Derive the placement group.

    split: a bundle per rank and per engine. colocated: engine i shares its bundle with the ranks whose devices
    (or cores) it takes turns on.
    """
    learner, engine = recipe.learner, recipe.engine
    on_gpu = device == "cuda"
    if recipe.placement.kind == "split":
        rank = {"CPU": float(learner.threads), **({"GPU": 1.0} if on_gpu else {})}
        engines = seat_engines(recipe, device)
        return replace(
            engines,
            bundles=(*[rank] * learner.num_ranks, *engines.bundles),
            learner=Seat(cpus=learner.threads, gpus=float(on_gpu)),
            learner_bundle=tuple(range(learner.num_ranks)),
            engine_bundle=tuple(learner.num_ranks + place for place in engines.engine_bundle),
        )
    if on_gpu and (learner.num_ranks != engine.num_engines or engine.tensor_parallel > 1):
        raise PlacementError(
            f"placement.kind is colocated on GPUs with learner.num_ranks {learner.num_ranks}, engine.num_engines "
            f"{engine.num_engines}, engine.tensor_parallel {engine.tensor_parallel}: expected one rank and one engine "
            "on each GPU. Set num_engines to num_ranks and tensor_parallel to 1, or use placement.kind: split."
        )
    count = engine.num_engines
    ranks_each = -(-learner.num_ranks // count)
    cores = float(max(learner.threads * ranks_each, engine.threads))
    bundle = {"CPU": cores, **({"GPU": float(ranks_each)} if on_gpu else {})}
    return Seating(
        bundles=(bundle,) * count,
        learner=Seat(cpus=cores / 2 / ranks_each, gpus=0.5 * on_gpu),
        engine=Seat(cpus=cores / 2, gpus=0.5 * ranks_each * on_gpu),
        learner_bundle=tuple(rank // ranks_each for rank in range(learner.num_ranks)),
        engine_bundle=tuple(range(count)),
    )


def seat_engines(recipe: AnyRecipe, device: str) -> Seating:
    """The placement group of engines without a learner: a bundle each."""
    engine, on_gpu = recipe.engine, device == "cuda"
    gpus = engine.tensor_parallel * float(on_gpu)
    bundle = {"CPU": float(engine.threads), **({"GPU": gpus} if on_gpu else {})}
    return Seating(
        bundles=(bundle,) * engine.num_engines,
        learner=Seat(cpus=0.0, gpus=0.0),
        engine=Seat(cpus=engine.threads, gpus=gpus),
        learner_bundle=(),
        engine_bundle=tuple(range(engine.num_engines)),
    )


def reserve(seating: Seating, *, limit_s: float) -> PlacementGroup:
    """Reserve every bundle at once, or raise PlacementError that says what is missing."""
    wanted = {k: sum(b.get(k, 0.0) for b in seating.bundles) for k in ("CPU", "GPU")}
    present = ray.cluster_resources()
    for kind, unit in (("CPU", "cores"), ("GPU", "GPUs")):
        if wanted[kind] > present.get(kind, 0.0) + 1e-9:
            keys, lower = "engine.num_engines, engine.threads, engine.tensor_parallel", "Lower them, "
            if seating.learner_bundle:
                keys = f"learner.num_ranks, learner.threads, {keys}, placement.kind"
                lower += "use placement.kind=colocated so that learner and engines take turns, "
            raise PlacementError(
                f"this needs {wanted[kind]:g} {unit} ({keys}) but there are {present.get(kind, 0.0):g}. "
                f"{lower}or join a larger cluster with placement.address."
            )
    group = placement_group([dict(b) for b in seating.bundles], strategy="PACK")
    try:
        ray.get(group.ready(), timeout=limit_s)
    except ray.exceptions.GetTimeoutError:
        remove_placement_group(group)
        raise PlacementError(
            f"bundles {list(map(dict, seating.bundles))} were not free within {limit_s:g} s: the cluster is busy "
            "(services hold cores and GPUs, too), or no single node has room for one of them."
        ) from None
    return group


@dataclass(slots=True, kw_only=True)
class Cluster:
    """Starts the actors of a run in a reserved placement group."""

    recipe: AnyRecipe
    device: str
    seating: Seating
    group: PlacementGroup

    async def learner(self, factory: Callable[..., Any], kwargs: Mapping[str, Any]) -> LearnerClient:
        """Start every rank; `factory` also gets rank, world_size and rendezvous (address, port)."""
        config, limit = self.recipe.learner, self.recipe.timeouts.start_s
        handles = [
            SyncHost.options(  # type: ignore[attr-defined]
                **self._options(self.seating.learner, bundle, thread_environment(config.threads))
            ).remote(factory, dict(kwargs))
            for bundle in self.seating.learner_bundle
        ]
        ranks = [await _named(h, f"learner rank {i}", "learner", limit) for i, h in enumerate(handles)]
        address, port = await answer(
            handles[0].address.remote(), actor=ranks[0], call="address", limit_s=limit
        )
        if len({rank.node_id for rank in ranks}) == 1:
            address = "127.0.0.1"
        starts = [
            answer(
                rank.handle.start.remote(
                    {"rank": i, "world_size": len(ranks), "rendezvous": (address, port)}
                ),
                actor=rank, call="start", limit_s=limit,
            )
            for i, rank in enumerate(ranks)
        ]  # fmt: skip
        await asyncio.gather(*starts)
        return LearnerClient(
            ranks=ranks, microbatch_tokens=config.microbatch_tokens, timeouts=self.recipe.timeouts
        )

    async def engines(
        self, factory: Callable[..., Any], kwargs: Mapping[str, Any], environment: Mapping[str, str]
    ) -> EngineClient:
        """Start every engine in a process with `environment`; `factory` also gets its index."""
        limit = self.recipe.timeouts.start_s
        handles = [
            AsyncHost.options(  # type: ignore[attr-defined]
                max_concurrency=10_000, **self._options(self.seating.engine, bundle, environment)
            ).remote(factory, {"index": index, **kwargs})
            for index, bundle in enumerate(self.seating.engine_bundle)
        ]
        engines = [await _named(h, f"engine {i}", "engine", limit) for i, h in enumerate(handles)]
        starts = [answer(e.handle.start.remote(), actor=e, call="start", limit_s=limit) for e in engines]
        await asyncio.gather(*starts)
        return EngineClient(engines=engines, timeouts=self.recipe.timeouts)

    async def judges(self, factory: Callable[..., Any], kwargs: Mapping[str, Any]) -> JudgeClient:
        """Start the judges of images, outside the placement group: they wait while learner and engines work."""
        limit = self.recipe.timeouts.start_s
        handle = SyncHost.options(num_cpus=0).remote(factory, dict(kwargs))  # type: ignore[attr-defined]
        actor = await _named(handle, "judges", "judge", limit)
        await answer(handle.start.remote({}), actor=actor, call="start", limit_s=limit)
        return JudgeClient(actor=actor, timeouts=self.recipe.timeouts)

    def close(self) -> None:
        """Give the placement group back (its actors end with it)."""
        remove_placement_group(self.group)

    def _options(self, taken: Seat, bundle: int, environment: Mapping[str, str]) -> dict[str, Any]:
        strategy = PlacementGroupSchedulingStrategy(
            placement_group=self.group, placement_group_bundle_index=bundle
        )
        return {
            "num_cpus": taken.cpus,
            "num_gpus": taken.gpus,
            "scheduling_strategy": strategy,
            "runtime_env": {"env_vars": dict(environment)},
        }


@dataclass(slots=True, kw_only=True)
class Split:
    """Learner and engines have devices of their own."""

    @contextlib.asynccontextmanager
    async def training(self) -> AsyncIterator[None]:
        """Nothing to do."""
        yield


@dataclass(slots=True, kw_only=True)
class Colocated:
    """Learner and engines take turns: the engine sleeps while the learner works, and wakes with the next sync."""

    engine: EngineClient
    learner: LearnerClient

    @contextlib.asynccontextmanager
    async def training(self) -> AsyncIterator[None]:
        """The device is the learner's inside, and until the sync that follows has sent its weights."""
        await self.engine.sleep()
        await self.learner.reload()
        yield


async def _named(handle: Any, name: str, kind: str, limit_s: float) -> Named:
    try:
        return await asyncio.wait_for(named(handle, name=name, kind=kind), limit_s)
    except TimeoutError:
        raise DeadlineError(
            f"{name}: its process did not start within {limit_s:g} s (timeouts.start_s)."
        ) from None
