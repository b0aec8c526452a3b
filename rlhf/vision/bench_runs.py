"""One training run of the bench, inside a worker process: lists that are given, no engines, the learner itself."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.algorithms.alignment import AlignmentSettings
from rlhf.config.alignment import AlignmentRecipe, LossConfig, VisionEvalConfig
from rlhf.data.dual_encoder import preparation_of
from rlhf.data.pixels import Pixels
from rlhf.learner.aligner import Aligner, AlignerPlan
from rlhf.learner.plan import RankPlace
from rlhf.retrieval import Gallery
from rlhf.vision.batches import Replay, step_batches
from rlhf.vision.evaluate import Embeddings, Facts, embedded, known, measure
from rlhf.vision.materials import AlignmentData, EvalSet, load_captions, load_eval, load_plugin, load_queries
from rlhf.vision.orders import fingerprint_of, read_orders, refuse_stale

_PIXELS_MB = 1024
_SHARED = {"model", "data", "schedule", "learner", "images"}
"""Sections that decide a run beside its own settings and its lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run: plain values, so that its name is a hash of what it does."""

    row: str
    loss: Mapping[str, Any]
    """Of LossConfig."""
    lr: float
    queries_per_step: int
    seed: int
    orders: str
    """File of the lists, made by the teachers of this row; empty: no training."""
    on: str
    """`validation` or `test`."""

    @property
    def key(self) -> str:
        """What stands for it in the run folder."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return f"{self.row}-{self.on}-{self.seed}-{fingerprint_of(**values)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a run measured."""

    measures: dict[str, list[float]]
    """One number per query, caption or picture."""
    places: list[list[int]]
    """[q][k] in the gallery."""
    cpu_s: float
    """Of training."""

    def tensor(self, name: str) -> Tensor:
        """[n] of one measure."""
        return torch.tensor(self.measures[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What every worker knows."""

    recipe: AlignmentRecipe
    """With model.path: the pre-trained model."""
    sets: Mapping[str, VisionEvalConfig]
    folder: Path
    weights: str
    """Hash of the pre-trained model: another one in the same folder is another bench."""

    def file_of(self, job: Job) -> Path:
        """Where a run is written down: its name stands for all that decides it."""
        shared = self.recipe.model_dump(mode="json", include=_SHARED)
        shared["on"] = self.sets[job.on].model_dump(mode="json")
        return self.folder / "jobs" / f"{job.key}-{fingerprint_of(weights=self.weights, shared=shared)}.json"


def run_job(bench: Bench, job: Job) -> Done:
    """Train, measure, write it down. What was done before is read."""
    file = bench.file_of(job)
    if file.is_file():
        return Done(**json.loads(file.read_text()))
    torch.set_num_threads(1)
    data = _data(bench.recipe.model_dump_json())
    recipe = bench.recipe.model_copy(
        update={
            "loss": LossConfig.model_validate(job.loss),
            "learner": bench.recipe.learner.model_copy(update={"lr": job.lr}),
            "schedule": bench.recipe.schedule.model_copy(update={"queries_per_step": job.queries_per_step}),
        }
    )
    facts = _facts(
        bench.sets[job.on].model_dump_json(), str(recipe.model.path), bench.recipe.model_dump_json()
    )
    aligner = _aligner(recipe, data.gallery, job.seed)
    try:
        started = time.process_time()
        if job.orders:
            _train(aligner, recipe, data, job)
        cpu_s = time.process_time() - started
        found = _embedded(aligner, facts)
    finally:
        aligner.close()
    top_k = bench.sets[job.on].top_k
    measures = {name: values.tolist() for name, values in measure(facts, found, top_k=top_k).items()}
    places = (found.queries @ found.gallery.T).topk(top_k, dim=1).indices.tolist()
    done = Done(measures=measures, places=places, cpu_s=cpu_s)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps({"measures": measures, "places": places, "cpu_s": cpu_s}))
    draft.rename(file)
    return done


def _train(aligner: Aligner, recipe: AlignmentRecipe, data: AlignmentData, job: Job) -> None:
    orders = read_orders(Path(job.orders))
    refuse_stale(orders, fingerprint=orders[0].fingerprint)
    replay = Replay(data.replay, per_step=recipe.schedule.replay_per_step, seed=job.seed)
    size = recipe.schedule.queries_per_step
    for step in range(recipe.schedule.num_steps):
        lists = [orders[i % len(orders)] for i in range(step * size, (step + 1) * size)]
        aligner.update([step_batches(lists, replay.at(step), recipe)[0]])


def _aligner(recipe: AlignmentRecipe, gallery: Gallery, seed: int) -> Aligner:
    loss = recipe.loss
    plan = AlignerPlan(
        model=recipe.model,
        learner=recipe.learner,
        images=recipe.images,
        settings=AlignmentSettings(
            loss=loss.name,
            beta=loss.beta,
            label_smoothing=loss.label_smoothing,
            closure=loss.closure,
            kl_coef=loss.kl_coef,
        ),
        gallery=gallery,
        total_steps=recipe.schedule.num_steps,
        seed=seed,
        replay_label_smoothing=loss.replay_label_smoothing,
    )
    return Aligner(plan, RankPlace(), pixels=_pixels(str(recipe.model.path), gallery))


def embed_with(
    recipe: AlignmentRecipe, gallery: Gallery, texts: Sequence[str], images: Sequence[str]
) -> tuple[Tensor, Tensor, float]:
    """Embeddings by the pre-trained model, and its exp(logit_scale)."""
    aligner = _aligner(recipe, gallery, 0)
    try:
        found_texts, found_images = aligner.embed(texts, images)
        return found_texts, found_images, aligner.scale
    finally:
        aligner.close()


def _embedded(aligner: Aligner, facts: Facts) -> Embeddings:
    wanted = facts.wanted
    texts, images = aligner.embed(wanted.texts, wanted.images)
    return embedded(facts, texts, images)


_prepared: dict[tuple[str, str], Pixels] = {}
"""Images that this process has prepared, by model and gallery."""


def _pixels(model: str, gallery: Gallery) -> Pixels:
    key = (model, gallery.version)
    if key not in _prepared:
        _prepared[key] = Pixels(gallery, preparation_of(model), limit_mb=_PIXELS_MB)
    return _prepared[key]


@lru_cache(maxsize=1)
def _data(recipe: str) -> AlignmentData:
    found = AlignmentRecipe.model_validate_json(recipe)
    return AlignmentData(
        gallery=load_plugin(found.data.gallery, key="data.gallery"),
        queries=load_queries(found.data.queries, key="data.queries"),
        replay=load_captions(found.data.replay, key="data.replay"),
        heldout=None,
    )


@lru_cache(maxsize=2)
def _facts(config: str, model: str, recipe: str) -> Facts:
    heldout = load_eval(VisionEvalConfig.model_validate_json(config))
    assert heldout is not None, "the bench demands gallery and queries"
    found = AlignmentRecipe.model_validate_json(recipe).model_copy(update={"loss": LossConfig(name="none")})
    del model
    return facts_of(found, heldout)


def facts_of(recipe: AlignmentRecipe, heldout: EvalSet) -> Facts:
    """A held-out set with the pre-trained model's embeddings of its gallery."""
    _, reference, _ = embed_with(recipe, heldout.gallery, [], list(heldout.gallery.ids()))
    return known(heldout, reference)
