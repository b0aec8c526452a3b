"""Direct preference optimization in a process group of its own, through TRL."""

from functools import partial
from pathlib import Path

import numpy

from rlhf.config.schema import ModelConfig
from rlhf.config.trainer import DpoConfig, RewardModelConfig
from rlhf.episodes.render import Renderer
from rlhf.stages.following import Child
from rlhf.stages.model_folder import prepare_model_folder
from rlhf.stages.preference_rows import PairRows, read_pairs
from rlhf.stages.trainer_stage import (
    Progress,
    TrainerStage,
    images_beside,
    model_frozen,
    model_lora,
    run_stage,
)


def run_dpo(  # noqa: PLR0913  # one signature for every trained stage
    config: DpoConfig,
    *,
    renderer: Renderer,
    out_folder: str | Path,
    seed: int,
    on_progress: Progress | None = None,
    model: ModelConfig | None = None,
    child: Child | None = None,
) -> str:
    """Train the model of `renderer.model_folder` on pairs and return the folder of the result, as `run_sft` does.

    dpo.json holds the loss at the start, held-out accuracy before and after, and the finding on lengths.
    """
    train, heldout, findings, warnings = read_stage_pairs(
        config, renderer=renderer, kind="dpo", out=out_folder
    )
    reference = config.reference
    if reference not in ("start", "none"):
        named = ModelConfig(path=reference)
        reference = prepare_model_folder(named, "", seed=seed, key="dpo.reference")
        renderer.check_reference(reference, key="dpo.reference")
    loss = config.loss if isinstance(config.loss, str) else dict(config.losses)
    extra = {"loss": loss, "beta": config.beta, "sft_coef": config.sft_weight, "reference": reference}
    stage = TrainerStage(
        kind="dpo",
        config=config,
        renderer=renderer,
        seed=seed,
        lora=model_lora(model),
        frozen=model_frozen(model),
        rows=train.rows,
        one_pass=numpy.arange(len(train.rows)),
        heldout=heldout.rows,
        extra=extra | {"label_smoothing": config.label_smoothing},
        findings=findings,
        warnings=warnings,
    )
    return run_stage(stage, out_folder=out_folder, on_progress=on_progress, child=child)


def read_stage_pairs(
    config: DpoConfig | RewardModelConfig, *, renderer: Renderer, kind: str, out: str | Path
) -> tuple[PairRows, PairRows, dict[str, float], tuple[str, ...]]:
    """(training pairs, held-out pairs, metrics, warnings) of a stage that learns from preferences."""
    read = partial(read_pairs, config=config, renderer=renderer, images=images_beside(out))
    train = read(config.source, key=f"{kind}.source")
    heldout = PairRows(rows=[], num_dropped=0)
    if config.heldout is not None:
        heldout = read(config.heldout, key=f"{kind}.heldout")
    bias = train.length_bias(config.length_bias_margin)
    metrics = bias.metrics() | {
        "trainer/rows": float(len(train.rows)),
        "trainer/dropped_rows": float(train.num_dropped + heldout.num_dropped),
    }
    warning = bias.warning()
    return train, heldout, metrics, () if warning is None else (warning,)
