"""A Bradley-Terry reward model, trained through TRL in a process group of its own."""

from pathlib import Path
from typing import Any

import numpy

from rlhf.config.schema import ModelConfig
from rlhf.config.trainer import RewardModelConfig
from rlhf.data.dual_inputs import is_dual_folder
from rlhf.episodes.render import Renderer
from rlhf.errors import ModelError
from rlhf.run_folder import replace_file
from rlhf.stages.dpo import read_stage_pairs
from rlhf.stages.following import Child
from rlhf.stages.preference_rows import SIDES
from rlhf.stages.scoring_template import FILE, scoring_template
from rlhf.stages.trained_rows import Rows
from rlhf.stages.trainer_stage import Progress, TrainerStage, model_frozen, model_lora, run_stage


def run_reward_model(  # noqa: PLR0913  # one signature for every trained stage
    config: RewardModelConfig,
    *,
    renderer: Renderer,
    out_folder: str | Path,
    seed: int,
    on_progress: Progress | None = None,
    model: ModelConfig | None = None,
    child: Child | None = None,
) -> str:
    """Train a scalar head on the model of `renderer.model_folder` and return the folder of the result.

    It is a Hugging Face sequence classifier with one label; the reward of an answer is its logit for prompt and
    answer, rendered as in RL and ended by the eos token, which its chat template repeats for a server.
    A dual encoder (CLIP, SigLIP) learns from pairs of pictures for a text: its reward is its own logit of the two.
    reward_model.json holds held-out accuracy before and after, and the finding on lengths.
    """
    is_dual = is_dual_folder(renderer.model_folder)
    train, heldout, findings, warnings = read_stage_pairs(
        config, renderer=renderer, kind="reward_model", out=out_folder
    )
    rows = [*train.rows, *heldout.rows] if is_dual else _whole([*train.rows, *heldout.rows])
    stage = TrainerStage(
        kind="reward_model",
        config=config,
        renderer=renderer,
        seed=seed,
        lora=model_lora(model),
        frozen=model_frozen(model),
        rows=rows[: len(train.rows)],
        one_pass=numpy.arange(len(train.rows)),
        heldout=rows[len(train.rows) :],
        extra={
            "center_coef": config.center_coef,
            "pad_token": None if is_dual else padding_token(renderer),
        },
        findings=findings,
        warnings=warnings,
    )
    out = run_stage(stage, out_folder=out_folder, on_progress=on_progress, child=child)
    if not is_dual:
        replace_file(Path(out) / FILE, scoring_template(renderer))
    return out


def _whole(rows: Rows) -> list[dict[str, Any]]:
    """Both sides of every pair from the prompt to the end."""
    return [
        {**row, **{f"{side}_ids": row["prompt_ids"] + row[f"{side}_ids"] for side in SIDES}} for row in rows
    ]


def padding_token(renderer: Renderer) -> str:
    """A token that never ends an answer.

    transformers reads the reward at the last token that is not the padding token: were that eos, the reward would
    stand one token earlier than where vLLM reads it.
    """
    tokenizer = renderer.tokenizer
    special = [tokenizer.pad_token, tokenizer.unk_token, tokenizer.bos_token, *tokenizer.all_special_tokens]
    for token in special:
        if token is not None and tokenizer.convert_tokens_to_ids(token) not in renderer.stop_token_ids:
            return str(token)
    raise ModelError(
        f"model.tokenizer: the tokenizer of {renderer.model_folder!r} has no special token beside those that end an "
        "answer, so a reward model's padding could not be told from an end. Add a padding token to the tokenizer."
    )
