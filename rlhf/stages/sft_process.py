"""The SFT stage's own process: `python -m rlhf.stages.sft_process job.json DESCRIPTOR`."""

from typing import TextIO

import torch
from trl import SFTConfig, SFTTrainer

from rlhf.stages import training
from rlhf.stages.seen_batches import seeing

NOT_LEARNED = -100


def padded_batch(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """input_ids and labels [rows, longest], padded on the right without an attention mask.

    Under causal attention no real token sees the padding to its right, and its labels are ignored: the loss
    is that of a masked batch, whatever id stands there. Without a mask SDPA stays on its fast path on CPU.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    input_ids = torch.zeros((len(rows), longest), dtype=torch.long)
    labels = torch.full((len(rows), longest), NOT_LEARNED)
    for index, row in enumerate(rows):
        input_ids[index, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        labels[index, : len(row["labels"])] = torch.tensor(row["labels"])
    return {"input_ids": input_ids, "labels": labels, "position_ids": torch.arange(longest)[None]}


def packed_batch(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """The rows one behind the other as [1, tokens]; positions that start again keep them apart."""
    return {
        "input_ids": torch.tensor([[token for row in rows for token in row["input_ids"]]]),
        "labels": torch.tensor([[label for row in rows for label in row["labels"]]]),
        "position_ids": torch.cat([torch.arange(len(row["input_ids"])) for row in rows])[None],
    }


def train(job: training.Job, channel: TextIO) -> None:
    """Train and save; `channel` receives the progress lines."""
    arguments = SFTConfig(
        **training.trainer_arguments(job),
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
    )
    trainer = SFTTrainer(
        training.language_model(job["model"]).from_pretrained(job["model"], **training.model_arguments(job)),
        args=arguments,
        train_dataset=training.ordered(job, training.all_rows(job)),
        processing_class=training.tokenizer(job),
        data_collator=seeing(packed_batch if job["packing"] else padded_batch, job["model"]),
        peft_config=training.adapter(job, task="CAUSAL_LM"),
    )
    training.freeze(trainer.model, job)
    metrics = training.train_to_end(trainer, job, channel, accuracy="mean_token_accuracy")
    training.write_found(job, metrics, [])


if __name__ == "__main__":
    training.main(train)
