"""The cold start of a random dual encoder: matching pictures and captions, nothing else."""

import json
from collections.abc import Callable
from pathlib import Path

from rlhf.algorithms.alignment import AlignmentSettings
from rlhf.config.alignment import AlignmentRecipe, PretrainConfig
from rlhf.config.schema import LearnerConfig, ModelConfig
from rlhf.learner.aligner import Aligner, AlignerPlan
from rlhf.learner.plan import RankPlace
from rlhf.retrieval import Gallery
from rlhf.vision.batches import Replay, caption_pairs
from rlhf.vision.materials import load_captions, load_plugin

Progress = Callable[[int, int, float], None]
"""(steps done, of how many, loss)."""
_DONE = "pretrained.json"


def pretrain(recipe: AlignmentRecipe, start: str, folder: Path, on_step: Progress) -> str:
    """Train `start` on the captions in this process and write the model to `folder`; a finished one is kept.

    The same recipe gives the same weights, whatever the alignment after it will be.
    """
    config = recipe.pretrain
    assert config is not None
    captions = load_captions(config.captions, key="pretrain.captions")
    gallery: Gallery = load_plugin(recipe.data.gallery, key="data.gallery")
    asked = json.dumps(
        [config.model_dump(mode="json"), recipe.model.model_dump(mode="json"), recipe.seed, gallery.version]
    )
    if (folder / _DONE).is_file() and (folder / _DONE).read_text() == asked:
        return str(folder.resolve())
    plan = AlignerPlan(
        model=ModelConfig(path=start, dtype="float32"),
        learner=_learner(config, recipe.learner),
        images=recipe.images,
        settings=AlignmentSettings(loss="none"),
        gallery=gallery,
        total_steps=config.num_steps,
        seed=recipe.seed,
    )
    aligner = Aligner(plan, RankPlace())
    try:
        replay = Replay(captions, per_step=config.batch_size, seed=recipe.seed)
        for step in range(config.num_steps):
            batches = caption_pairs(replay.at(step), 1, coef=1.0, is_replay=True)
            metrics = aligner.update([batches])
            on_step(step + 1, config.num_steps, metrics.values["update/replay_loss"])
        aligner.export(str(folder.resolve()))
    finally:
        aligner.close()
    (folder / _DONE).write_text(asked)
    return str(folder.resolve())


def _learner(config: PretrainConfig, of: LearnerConfig) -> LearnerConfig:
    return LearnerConfig(
        lr=config.lr,
        warmup_steps=config.warmup_steps,
        lr_schedule="cosine",
        weight_decay=config.weight_decay,
        threads=of.threads,
    )
