"""Scores of both answers of every pair under a model, shared out among the ranks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from rlhf.data.preference_pairs import accuracy_by_length, accuracy_metrics

Scores = list[tuple[float, float]]
"""(chosen, rejected) of every pair, in their order."""
ScoreBatch = Callable[[dict[str, Tensor]], Tensor]
"""A collated batch, chosen before rejected -> a score for each of its rows, float32."""

_NOT_OF_MODEL = ("completion_mask", "ref_chosen_logps", "ref_rejected_logps")


def score_pairs(
    trainer: Any, rows: Dataset, score: ScoreBatch, *, batch_size: int, on_pass: Callable[[], None]
) -> Scores:
    """Scores without gradient and with dropout off; every rank gets all of them.

    Ranks make equally many passes, as sharded weights are gathered in each; `on_pass` is called after each.
    """
    accelerator = trainer.accelerator
    starts = range(accelerator.process_index * batch_size, len(rows), accelerator.num_processes * batch_size)
    num_passes = -(-len(rows) // (accelerator.num_processes * batch_size))
    was_training = trainer.model.training
    trainer.model.eval()
    found: dict[int, tuple[float, float]] = {}
    for index in range(num_passes):
        start = starts[index] if index < len(starts) else 0
        chosen = list(range(start, min(start + batch_size, len(rows))))
        batch = trainer.data_collator([rows[row] for row in chosen])
        batch = {name: values.to(accelerator.device) for name, values in batch.items()}
        with torch.no_grad(), accelerator.autocast():
            first, second = score(batch).float().cpu().chunk(2)
        on_pass()
        found |= dict(zip(chosen, zip(first.tolist(), second.tolist(), strict=True), strict=True))
    trainer.model.train(was_training)
    if accelerator.num_processes > 1:
        parts: list[Any] = [None] * accelerator.num_processes
        torch.distributed.all_gather_object(parts, found)
        found = {row: scores for part in parts for row, scores in part.items()}
    return [found[row] for row in range(len(rows))]


def answer_logprobs(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Log-probability of every whole answer, summed in float32; `model` has TRL's fused head."""
    mask = batch["completion_mask"]
    labels = batch["input_ids"].masked_fill(mask == 0, -100)
    given = {name: values for name, values in batch.items() if name not in _NOT_OF_MODEL}
    outputs = model(**given, labels=labels, fused_lm_head=True, use_cache=False)
    summed: Tensor = outputs.log_probs.float().sum(dim=1)
    return summed


def gaps(scores: Scores) -> list[float]:
    """How far the chosen is ahead."""
    return [chosen - rejected for chosen, rejected in scores]


def heldout_metrics(
    lengths: Sequence[tuple[int, int]], before: Sequence[float], after: Sequence[float]
) -> dict[str, float]:
    """Accuracy before and after, with intervals, and after by length."""
    return {
        "preference/num_heldout": len(lengths),
        **accuracy_metrics(before, when="before"),
        **accuracy_metrics(after, when="after"),
        **accuracy_by_length(lengths, after),
    }
