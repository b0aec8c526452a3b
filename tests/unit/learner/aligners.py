"""Ranks of retrieval alignment on the squares: what they are made of, and what the tests ask of them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.algorithms.alignment import AlignmentSettings
from rlhf.config.algorithm import LoraConfig
from rlhf.config.alignment import AlignmentRecipe, ImagesConfig
from rlhf.config.schema import LearnerConfig, ModelConfig
from rlhf.config.vision import FreezeConfig
from rlhf.data.pixels import Pixels
from rlhf.errors import LearnerError
from rlhf.learner.aligner import Aligner, AlignerPlan, RankPlace
from rlhf.learner.model import whole
from rlhf.retrieval import PartialOrder
from rlhf.vision.batches import Batch, Replay, step_batches
from tests.retrievers import Squares
from tests.unit.vision.recipes import TEXTS, captions, orders, recipe

IMAGES = tuple(Squares().ids())[:12]


def plan(
    folder: str | Path,
    what: AlignmentRecipe | None = None,
    *,
    lora: LoraConfig | None = None,
    freeze: FreezeConfig | None = None,
    smoothing: float = 0.0,
    per_pass: int = 512,
    **learner: Any,
) -> AlignerPlan:
    """For the model in `folder`, with the loss of the recipe."""
    loss = (what or recipe()).loss
    return AlignerPlan(
        model=ModelConfig(path=str(folder), dtype="float32", lora=lora, freeze=freeze or FreezeConfig()),
        learner=LearnerConfig(**({"lr": 1e-3, "betas": (0.9, 0.98), "weight_decay": 0.1} | learner)),
        images=ImagesConfig(per_pass=per_pass),
        settings=AlignmentSettings(
            loss=loss.name, beta=loss.beta, label_smoothing=loss.label_smoothing, kl_coef=loss.kl_coef
        ),
        gallery=Squares(),
        total_steps=20,
        seed=3,
        replay_label_smoothing=smoothing,
    )


def shares(
    what: AlignmentRecipe, step: int, *, ranks: int, most: int, lists: Sequence[PartialOrder] | None = None
) -> list[list[Batch]]:
    """[rank][micro-batch] of one step, lists and replay drawn by its number."""
    sized = what.model_copy(
        update={
            "learner": what.learner.model_copy(update={"num_ranks": ranks}),
            "images": what.images.model_copy(update={"per_pass": most}),
        }
    )
    replay = Replay(captions(), per_step=what.schedule.replay_per_step, seed=1).at(step)
    made = orders(what.schedule.queries_per_step, seed=step) if lists is None else lists
    return step_batches(made, replay, sized)


def train(
    place: RankPlace,
    plan: AlignerPlan,
    what: AlignmentRecipe,
    steps: Sequence[int],
    *,
    most: int = 512,
    load: str | None = None,
    save: str | None = None,
    lists: Sequence[Sequence[PartialOrder]] | None = None,
) -> dict[str, Any]:
    """Load, one update per step, save; what is there afterwards."""
    aligner = Aligner(plan, place)
    if load is not None:
        aligner.load(load)
    metrics = []
    for i, step in enumerate(steps):
        own = shares(
            what, step, ranks=place.world_size, most=most, lists=None if lists is None else lists[i]
        )[place.rank]
        metrics.append(dict(aligner.update([own]).values))
    if save is not None:
        aligner.save(save)
    texts, images = aligner.embed(TEXTS, IMAGES)
    result = {
        "metrics": metrics,
        "step": aligner.policy.step,
        "weights": {name: w.clone() for name, w in aligner.weights()},
        "state": {name: whole(t).clone() for name, t in aligner.policy.state().items()},
        "scale": aligner.scale,
        "texts": texts,
        "images": images,
    }
    aligner.close()
    return result


def run_two(
    place: RankPlace, plan: AlignerPlan, what: AlignmentRecipe, keywords: dict[str, Any]
) -> dict[str, Any]:
    """`train` with keywords, for `Ranks.run`."""
    return train(place, plan, what, keywords.pop("steps"), **keywords)


def gradients(
    place: RankPlace,
    plan: AlignerPlan,
    what: AlignmentRecipe,
    most: int,
    lists: Sequence[PartialOrder] | None = None,
) -> dict[str, Any]:
    """The summed gradient of step 0, and the sums of its metrics on this rank."""
    aligner = Aligner(plan, place)
    sums: dict[str, Tensor] = {}
    own = shares(what, 0, ranks=place.world_size, most=most, lists=lists)[place.rank]
    aligner.policy.accumulate(own, aligner._loss, sums)
    found = {n: whole(p.grad).clone() for n, p in aligner.policy.parameters.items() if p.grad is not None}
    result = {"gradients": found, "batches": len(own), "sums": sums}
    aligner.close()
    return result


def broken_pixels() -> Pixels:
    """Of images that are no numbers."""

    def prepare(images: Sequence[Any], *, return_tensors: str) -> dict[str, Tensor]:
        return {"pixel_values": torch.full((len(images), 3, 16, 16), math.nan)}

    return Pixels(Squares(), prepare, limit_mb=1)


def break_last_rank(place: RankPlace, plan: AlignerPlan, what: AlignmentRecipe) -> tuple[str, bool]:
    """The error of a step in which the last rank alone sees NaN, and whether the weights stayed."""
    aligner = Aligner(plan, place)
    before = {name: w.clone() for name, w in aligner.weights()}
    if place.rank == place.world_size - 1:
        aligner.pixels = broken_pixels()
    message = ""
    try:
        aligner.update([shares(what, 0, ranks=place.world_size, most=512)[place.rank]])
    except LearnerError as error:
        message = str(error)
    is_unchanged = all(torch.equal(w, before[name]) for name, w in aligner.weights())
    aligner.close()
    return message, is_unchanged


def slow_embeddings(
    folder: str | Path, texts: Sequence[str], images: Sequence[str]
) -> tuple[Tensor, Tensor, float]:
    """Embeddings by transformers alone, one text and one image at a time, and exp(logit_scale)."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prepare = AutoImageProcessor.from_pretrained(folder, backend="pil")
    padding = (
        {"padding": "max_length", "max_length": model.config.text_config.max_position_embeddings}
        if model.config.model_type == "siglip"
        else {}
    )
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer(text, return_tensors="pt", **padding)["input_ids"]
            found[0].append(model.get_text_features(input_ids=ids).pooler_output[0])
        for picture in Squares().load(images):
            pixels = prepare([picture], return_tensors="pt")["pixel_values"]
            found[1].append(model.get_image_features(pixel_values=pixels).pooler_output[0])
    texts_found, images_found = (torch.stack([v / v.norm() for v in side]) for side in found)
    return texts_found, images_found, float(model.logit_scale.detach().exp())
