"""The reward model's own process: `python -m rlhf.stages.reward_model_process job.json DESCRIPTOR`."""

from collections.abc import Callable
from functools import partial
from typing import Any, TextIO

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, set_seed
from trl import RewardConfig, RewardTrainer

from rlhf.stages import training
from rlhf.stages.pair_scores import Scores, gaps, heldout_metrics, score_pairs


def train(job: training.Job, channel: TextIO) -> None:
    """Train and save; `channel` receives the progress lines."""
    rows = training.all_rows(job)
    used = [name for name in ("chosen_ids", "rejected_ids", "margin") if name in rows.column_names]
    set_seed(job["seed"])  # the head is new
    model = AutoModelForSequenceClassification.from_pretrained(
        job["model"], num_labels=1, **training.model_arguments(job)
    )
    trainer = RewardTrainer(
        model,
        args=RewardConfig(
            **training.trainer_arguments(job),
            center_rewards_coefficient=job["center_coef"] or None,
            pad_token=job["pad_token"],
            max_length=None,
        ),
        train_dataset=training.ordered(job, rows.select_columns(used)),
        processing_class=training.tokenizer(job),
        peft_config=training.adapter(job, task="SEQ_CLS"),
    )
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
        lengths = [(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in heldout]
        metrics |= heldout_metrics(lengths, gaps(before), gaps(after))
    training.write_found(job, metrics, [])


def rewards(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The score at the end of every row."""
    logits: Tensor = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).logits
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
