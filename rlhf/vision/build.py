"""AlignmentRecipe -> AlignmentRun: every process of a run of retrieval alignment, inside Ray."""

import asyncio
import contextlib
import functools
import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf.algorithms.alignment import AlignmentSettings
from rlhf.cluster.learners import LearnerClient
from rlhf.cluster.placement import Cluster, Colocated, Split, reserve, seat
from rlhf.cluster.pools import JudgeClient, PoolClient
from rlhf.cluster.transfer import Ends, choose_sync, open_sync
from rlhf.config.alignment import AlignmentRecipe
from rlhf.config.schema import ModelConfig
from rlhf.content_hashes import ContentHashes
from rlhf.data.dual_encoder import read_retrieval_config, texts_of
from rlhf.data.prompts import PromptStream
from rlhf.engines.choice import choose_engine
from rlhf.engines.pooling import HfPool, VllmPool
from rlhf.engines.settings import EngineSettings
from rlhf.engines.vllm import engine_environment
from rlhf.interfaces import WeightSync
from rlhf.learner.aligner import Aligner, AlignerPlan
from rlhf.learner.plan import RankPlace
from rlhf.retrieval import Gallery, Judge, Rephraser
from rlhf.rollout.buffer import GroupBuffer
from rlhf.rollout.group import GroupWork, Producer
from rlhf.run import RunState, load_state
from rlhf.run_folder import RunFolder
from rlhf.telemetry.live import LiveView
from rlhf.telemetry.sinks import open_sinks
from rlhf.types import Message, Prompt
from rlhf.vision.batches import Replay
from rlhf.vision.gallery import GalleryIndex
from rlhf.vision.materials import AlignmentData, load_judges
from rlhf.vision.orders import fingerprint_of, read_orders, refuse_stale
from rlhf.vision.pictures import Pictures
from rlhf.vision.rollout import Indexes, OrderGroup, OrderWork, Panels, StoredWork
from rlhf.vision.run import INDEX, AlignmentRun, HeldOut
from rlhf.weight_sync.files import read_weights
from rlhf.weight_sync.probe import Probe

_PROBE_TEXTS, _PROBE_IMAGES = 3, 3
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignmentMaterials:
    """All inputs of a run, loaded and checked."""

    recipe: AlignmentRecipe
    folder: RunFolder
    model: str
    """The model folder, pre-trained where the recipe asks for it."""
    data: AlignmentData
    judges: Mapping[str, Judge]
    rephraser: Rephraser | None
    rephrased: Mapping[str, str]
    """By the query's id."""
    device: str

    @property
    def fingerprint(self) -> str:
        """Of all that makes a list what it is."""
        recipe = self.recipe
        return fingerprint_of(
            model=ContentHashes(self.folder.path).of_model(self.model),
            gallery=self.data.gallery.version,
            judges={name: [judge.version, recipe.judges[name].weight] for name, judge in self.judges.items()},
            rephraser="" if self.rephraser is None else self.rephraser.version,
            orders=recipe.orders.model_dump(mode="json", exclude={"path", "refresh_every"}),
        )


@contextlib.asynccontextmanager
async def open_alignment(materials: AlignmentMaterials, view: LiveView) -> AsyncIterator[AlignmentRun]:
    """Start every process; all of them end with the block."""
    recipe = materials.recipe
    async with contextlib.AsyncExitStack() as stack:
        seating = seat(recipe, materials.device)
        cluster = Cluster(
            recipe=recipe, device=materials.device, seating=seating,
            group=reserve(seating, limit_s=recipe.timeouts.start_s),
        )  # fmt: skip
        stack.callback(cluster.close)
        view.phase("starting learner, engines and judges")
        learner, pool, judges = await asyncio.gather(
            _start_learner(cluster, materials),
            _start_pool(cluster, materials),
            _start_judges(cluster, materials),
        )
        stack.push_async_callback(judges.close)
        stack.push_async_callback(learner.close)
        stack.push_async_callback(pool.engines.close)
        checkpoints = materials.folder.checkpoints()
        if checkpoints:
            await learner.load(str(checkpoints[-1].resolve() / "learner"))
        weights = asyncio.Lock()
        sync = await _open_sync(materials, learner, pool, weights)
        run = _assemble(materials, view, _Parts(learner, pool, judges, sync, weights))
        for sink in run.sinks:
            stack.callback(sink.close)
        yield run


@dataclass(frozen=True, slots=True)
class _Parts:
    learner: LearnerClient
    pool: PoolClient
    judges: JudgeClient
    sync: WeightSync
    weights: asyncio.Lock


@dataclass(frozen=True, slots=True)
class _LockedSync:
    """Publishes only while no gallery is being embedded: an index is of one version."""

    sync: WeightSync
    weights: asyncio.Lock

    async def publish(self, version: int) -> Mapping[str, float]:
        """See interfaces.WeightSync."""
        async with self.weights:
            return await self.sync.publish(version)


def _assemble(materials: AlignmentMaterials, view: LiveView, parts: _Parts) -> AlignmentRun:
    recipe, schedule, data = materials.recipe, materials.recipe.schedule, materials.data
    state, saved = _restored(materials.folder)
    indexes, work, prompts = _work(materials, view, parts)
    if saved:
        prompts.load_state_dict(saved["prompts"])
    newest = materials.folder.checkpoints()[-1:]
    if indexes is not None and newest and (newest[0] / INDEX).is_file():
        indexes.current = GalleryIndex.load(newest[0] / INDEX, ids=data.gallery.ids())
    buffer: GroupBuffer[OrderGroup] = GroupBuffer(
        schedule.queries_per_step, schedule.max_staleness, max_discarded=schedule.max_discarded
    )
    heldout, pictures = None, Pictures(materials.folder.path / "pictures")
    if data.heldout is not None:
        heldout = HeldOut(
            heldout=data.heldout,
            pool=parts.pool,
            judges=parts.judges,
            weights={name: config.weight for name, config in recipe.judges.items()},
            top_k=recipe.eval.top_k,
            folder=materials.folder.path / "evaluations",
            reference=materials.folder.path / "reference" / "heldout.safetensors",
            pictures=pictures,
            history=list(saved.get("evaluations", ())),
        )
    return AlignmentRun(
        recipe=recipe,
        folder=materials.folder,
        learner=parts.learner,
        sync=parts.sync,
        placement=Colocated(engine=parts.pool.engines, learner=parts.learner)
        if recipe.placement.kind == "colocated"
        else Split(),
        prompts=prompts,
        buffer=buffer,
        producer=Producer(buffer=buffer, prompts=prompts, work=work, version=lambda: state.step),
        replay=Replay(data.replay, per_step=schedule.replay_per_step, seed=recipe.seed),
        indexes=indexes,
        heldout=heldout,
        fingerprint=materials.fingerprint,
        gallery=data.gallery,
        pictures=pictures,
        sinks=open_sinks(recipe, materials.folder.path, first_step=state.step + 1 if state.step else 0),
        view=view,
        state=state,
    )


def _work(
    materials: AlignmentMaterials, view: LiveView, parts: _Parts
) -> tuple[Indexes | None, GroupWork[OrderGroup], PromptStream]:
    recipe, data = materials.recipe, materials.data
    if recipe.orders.path is not None:
        orders = read_orders(Path(recipe.orders.path))
        refuse_stale(orders, fingerprint=materials.fingerprint)
        stored = {f"{order.query_id}#{place}": order for place, order in enumerate(orders)}
        prompts = PromptStream(
            [_prompt(name, order.query) for name, order in stored.items()], seed=recipe.seed
        )
        return None, StoredWork(orders=stored), prompts
    rephrased = materials.rephrased
    indexes = Indexes(
        pool=parts.pool,
        gallery=data.gallery,
        texts={"plain": [q.text for q in data.queries], "rephrased": [rephrased[q.id] for q in data.queries]},
        file=materials.folder.path / "reference" / "gallery.safetensors",
        refresh_every=recipe.orders.refresh_every,
        progress=view.phase,
        weights=parts.weights,
    )
    config = read_retrieval_config(ModelConfig(path=materials.model))
    work = OrderWork(
        queries={query.id: query for query in data.queries},
        places={query.id: place for place, query in enumerate(data.queries)},
        rephrased=rephrased,
        pool=parts.pool,
        judges=parts.judges,
        weights={name: judge.weight for name, judge in recipe.judges.items()},
        indexes=indexes,
        config=recipe.orders,
        scale=_scale(materials.model, config),
        seed=recipe.seed,
        fingerprint=materials.fingerprint,
    )
    return indexes, work, PromptStream([_prompt(q.id, q.text) for q in data.queries], seed=recipe.seed)


def _scale(model: str, config: Any) -> float:
    from math import exp

    from safetensors import safe_open

    for file in sorted(Path(model).glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            if "logit_scale" in opened.keys():  # noqa: SIM118 -- it is no mapping
                return exp(float(opened.get_tensor("logit_scale").reshape(())))
    return exp(float(config.logit_scale_init_value))


def _prompt(name: str, text: str) -> Prompt:
    return Prompt(id=name, messages=(Message(role="user", content=text),))


def _restored(folder: RunFolder) -> tuple[RunState, dict[str, Any]]:
    checkpoints = folder.checkpoints()
    if not checkpoints:
        return RunState(), {}
    state, prompts = load_state(checkpoints[-1])
    raw = json.loads((checkpoints[-1] / "state.json").read_text())
    return state, {"prompts": prompts, "evaluations": raw.get("evaluations", [])}


async def _start_learner(cluster: Cluster, materials: AlignmentMaterials) -> LearnerClient:
    recipe = materials.recipe
    plan = AlignerPlan(
        model=recipe.model.model_copy(update={"path": materials.model, "config": None, "tokenizer": None}),
        learner=recipe.learner,
        images=recipe.images,
        settings=settings_of(recipe),
        gallery=materials.data.gallery,
        total_steps=recipe.schedule.num_steps,
        seed=recipe.seed,
        replay_label_smoothing=recipe.loss.replay_label_smoothing,
    )
    return await cluster.learner(make_aligner, {"plan": plan, "device": materials.device})


def settings_of(recipe: AlignmentRecipe) -> AlignmentSettings:
    """The loss, as the learner reads it."""
    loss = recipe.loss
    return AlignmentSettings(
        loss=loss.name,
        beta=loss.beta,
        label_smoothing=loss.label_smoothing,
        closure=loss.closure,
        kl_coef=loss.kl_coef,
    )


def make_aligner(
    *, plan: AlignerPlan, device: str, rank: int, world_size: int, rendezvous: tuple[str, int]
) -> Aligner:
    """One rank, inside its actor."""
    address, port = rendezvous
    place = RankPlace(rank=rank, world_size=world_size, device=device, address=address, port=port)
    return Aligner(plan, place)


async def _start_pool(cluster: Cluster, materials: AlignmentMaterials) -> PoolClient:
    recipe = materials.recipe
    config = read_retrieval_config(ModelConfig(path=materials.model))
    settings = EngineSettings(
        model=materials.model,
        config=recipe.engine,
        device="cuda" if materials.device == "cuda" else "cpu",
        dtype=recipe.model.dtype,
        max_model_len=config.text_config.max_position_embeddings,
        seed=recipe.seed,
        transfer=choose_sync(recipe, materials.device),
    )
    kind = choose_engine(recipe.engine.kind)[0]
    environment = engine_environment(recipe.engine, materials.device)
    galleries = [materials.data.gallery]
    if materials.data.heldout is not None:
        galleries.append(materials.data.heldout.gallery)
    engines = await cluster.engines(
        make_pool, {"kind": kind, "settings": settings, "gallery": _Galleries(galleries)}, environment
    )
    return PoolClient(engines=engines)


class _Galleries:
    """Several galleries as one: an engine embeds the images of all."""

    def __init__(self, galleries: Sequence[Gallery]) -> None:
        self._galleries = galleries
        self._owner: dict[str, int] = {}
        self.version = "+".join(gallery.version for gallery in galleries)

    def ids(self) -> Sequence[str]:
        """Of all."""
        return [name for gallery in self._galleries for name in gallery.ids()]

    def load(self, ids: Sequence[str]) -> list[Any]:
        """By the gallery that has the image; one that none lists is asked of the first, which may make it."""
        if not self._owner:
            self._owner = {
                name: place
                for place, gallery in reversed(list(enumerate(self._galleries)))
                for name in gallery.ids()
            }
        owners = [self._owner.get(name, 0) for name in ids]
        found: dict[str, Any] = {}
        for owner in set(owners):
            own = [name for name, of in zip(ids, owners, strict=True) if of == owner]
            found |= dict(zip(own, self._galleries[owner].load(own), strict=True))
        return [found[name] for name in ids]


async def make_pool(
    *, index: int, kind: str, settings: EngineSettings, gallery: Gallery
) -> VllmPool | HfPool:
    """One engine, inside its actor."""
    settings = replace(settings, index=index)
    match kind:
        case "vllm":
            return await VllmPool.open(settings, gallery)
        case "hf":
            return HfPool(settings, gallery, read=read_weights)
        case _:
            raise AssertionError(f"choose_engine gave {kind!r}")


async def _start_judges(cluster: Cluster, materials: AlignmentMaterials) -> JudgeClient:
    galleries = {"train": materials.data.gallery}
    if materials.data.heldout is not None:
        galleries["heldout"] = materials.data.heldout.gallery
    make = functools.partial(make_panels, recipe=materials.recipe, galleries=galleries)
    return await cluster.judges(make, {})


def make_panels(*, recipe: AlignmentRecipe, galleries: Mapping[str, Gallery]) -> Panels:
    """All judges, inside their actor."""
    return Panels.open(load_judges(recipe), galleries)


async def _open_sync(
    materials: AlignmentMaterials, learner: LearnerClient, pool: PoolClient, weights: asyncio.Lock
) -> WeightSync:
    recipe = materials.recipe
    texts = texts_of(materials.model, read_retrieval_config(ModelConfig(path=materials.model)))
    asked = sorted(
        (query.text for query in materials.data.queries),
        key=lambda text: hashlib.sha256(text.encode()).digest(),
    )
    probe = Probe(
        sequences=texts.ids(asked[:_PROBE_TEXTS]),
        images=[[name] for name in materials.data.gallery.ids()[:_PROBE_IMAGES]],
        tolerance=recipe.sync.tolerance or _TOLERANCE[recipe.model.dtype],
        every=recipe.sync.probe_every,
    )
    ends = Ends(learner=learner, engine=pool.engines, scratch=materials.folder.path / "sync")
    return _LockedSync(await open_sync(choose_sync(recipe, materials.device), recipe, ends, probe), weights)
