"""The reward model's own process: `python -m rlhf.stages.reward_model_process job.json DESCRIPTOR`."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TextIO

import torch
from datasets import Dataset
from torch import Tensor
from transformers import set_seed
from trl import RewardConfig, RewardTrainer

from rlhf.data.dual_inputs import DualInputs
from rlhf.data.scoring_models import is_dual, scoring_class
from rlhf.stages import training
from rlhf.stages.pair_scores import Scores, gaps, heldout_metrics, score_pairs
from rlhf.stages.preference_rows import pair_lengths
from rlhf.stages.seen_batches import seeing
from rlhf.stages.trained_rows import IMAGES

_READ = ("chosen_ids", "rejected_ids", "margin", "text_ids", IMAGES)


class ScoreTrainer(RewardTrainer):  # type: ignore[misc]
    """TRL's trainer on pairs that are ids (and images) already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


def train(job: training.Job, channel: TextIO) -> None:
    """Train and save; `channel` receives the progress lines."""
    rows = training.all_rows(job)
    used = [name for name in _READ if name in rows.column_names]
    set_seed(job["seed"])  # the head is new
    config = training.read_config(job["model"])
    model = scoring_class(config).from_pretrained(job["model"], num_labels=1, **training.model_arguments(job))
    trainer = ScoreTrainer(
        model,
        args=RewardConfig(
            **training.trainer_arguments(job),
            center_rewards_coefficient=job["center_coef"] or None,
            pad_token=job["pad_token"],
            max_length=None,
        ),
        train_dataset=training.ordered(job, rows.select_columns(used)),
        processing_class=training.tokenizer(job),
        peft_config=training.adapter(job, task=None if is_dual(config) else "SEQ_CLS"),
    )
    trainer.data_collator = (
        partial(picture_batch, DualInputs(job["model"]))
        if is_dual(config)
        else seeing(trainer.data_collator, job["model"], repeats=2)
    )
    training.freeze(trainer.model, job)
    heldout = training.all_rows(job, "heldout") if job["has_heldout"] else None
    score = partial(
        score_pairs, trainer, batch_size=job["microbatch_size"], on_pass=partial(training.say, channel)
    )
    before: Scores = []
    if heldout is not None:
        before = training.from_before(
            job, lambda: _before(trainer, lambda: score(heldout, partial(rewards, trainer.model)))
        )
    metrics = training.train_to_end(trainer, job, channel, accuracy="accuracy")
    if heldout is not None:
        after = score(heldout, partial(rewards, trainer.model_wrapped))
        metrics |= heldout_metrics(pair_lengths(heldout), gaps(before), gaps(after))
    training.write_found(job, metrics, [])


def picture_batch(inputs: DualInputs, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Texts once each, the chosen pictures and behind them the rejected ones."""
    pictures = [row[IMAGES][side] for side in (0, 1) for row in rows]
    return {**inputs.texts([row["text_ids"] for row in rows]), "pixel_values": inputs.pictures(pictures)}


def rewards(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """The score at the end of every row, or of every picture."""
    given = {name: values for name, values in batch.items() if name != "margin"}
    logits: Tensor = model(**given, use_cache=False).logits
    return logits.squeeze(-1)


def _before(trainer: RewardTrainer, score: Callable[[], Scores]) -> Scores:
    """Scores of the untrained head, which no trainer has put on its device yet."""
    trainer.model.to(trainer.accelerator.device)
    scores = score()
    if trainer.is_fsdp_enabled:
        trainer.model.to(torch.device("cpu"))
    return scores


if __name__ == "__main__":
    training.main(train)
