"""The DPO stage's own process: `python -m rlhf.stages.dpo_process job.json DESCRIPTOR`."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TextIO

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from rlhf.data.preference_pairs import accuracy_metrics
from rlhf.stages import training
from rlhf.stages.pair_scores import ScoreBatch, Scores, answer_logprobs, gaps, heldout_metrics, score_pairs
from rlhf.stages.seen_batches import seeing

Score = Callable[[Dataset, ScoreBatch], Scores]
START_TOLERANCE = 0.02
"""Furthest the first loss may be from that of a policy equal to its reference: bfloat16 passes of other shapes differ
by less."""


class PairTrainer(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer on pairs that are ids already, with reference log-probabilities in their columns.

    The SFT term is a mean over the tokens of an answer, then over pairs. TRL's own is a mean over the tokens of a
    micro-batch: it would depend on how the batch is split.
    """

    sft_coef: float = 0.0

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss plus `sft_coef` times the SFT term, from the same forward pass."""
        if not self.sft_coef:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        seen: list[Any] = []

        def recorded(**arguments: Any) -> Any:
            seen.append(model(**arguments))
            return seen[-1]

        loss = super().compute_loss(recorded, inputs, return_outputs, num_items_in_batch)
        counts = inputs["completion_mask"][:, 1:].sum(dim=1)
        means = seen[0].log_probs.float().sum(dim=1) / counts
        return loss - self.sft_coef * means.chunk(2)[0].mean()


def train(job: training.Job, channel: TextIO) -> None:
    """Train and save; `channel` receives the progress lines."""
    rows = training.all_rows(job)
    losses = _losses(job)
    arguments = DPOConfig(
        **training.trainer_arguments(job),
        loss_type=list(losses),
        loss_weights=list(losses.values()),
        beta=job["beta"],
        label_smoothing=job["label_smoothing"],
        precompute_ref_log_probs=True,
        max_length=None,
    )
    trainer = PairTrainer(
        training.language_model(job["model"]).from_pretrained(job["model"], **training.model_arguments(job)),
        ref_model=_named_reference(job),
        args=arguments,
        train_dataset=rows,
        processing_class=training.tokenizer(job),
        peft_config=training.adapter(job, task="CAUSAL_LM"),
    )
    trainer.sft_coef = job["sft_coef"]
    trainer.data_collator = seeing(trainer.data_collator, job["model"], repeats=2)
    training.freeze(trainer.model, job)
    heldout = training.all_rows(job, "heldout") if job["has_heldout"] else None
    score = partial(
        score_pairs, trainer, batch_size=job["microbatch_size"], on_pass=partial(training.say, channel)
    )
    start = training.from_before(job, lambda: _scores_at_start(trainer, job, rows, heldout, score))
    trainer.ref_model = None
    trainer.train_dataset = training.ordered(job, _with_columns(rows, start["reference"]))
    metrics = training.train_to_end(trainer, job, channel, accuracy="rewards/accuracies")
    if heldout is not None:
        metrics |= _heldout(heldout, start, score(heldout, partial(answer_logprobs, trainer.model_wrapped)))
    training.write_found(job, metrics, _start_warnings(job, metrics["trainer/loss_at_start"]))


def _losses(job: training.Job) -> dict[str, float]:
    return job["loss"] if isinstance(job["loss"], dict) else {job["loss"]: 1.0}


def _named_reference(job: training.Job) -> Any:
    if job["reference"] in ("start", "none"):
        return None
    return training.language_model(job["reference"]).from_pretrained(
        job["reference"], dtype=torch.float32, trust_remote_code=job["trust_remote_code"]
    )


def _scores_at_start(
    trainer: PairTrainer, job: training.Job, rows: Dataset, heldout: Dataset | None, score: Score
) -> Mapping[str, Scores]:
    """Log-probabilities of the reference and the model before training."""
    # Sharded weights come with a copy of the model, as the model itself is not sharded before it trains.
    policy = partial(answer_logprobs, trainer.model)
    reference = policy if trainer.ref_model is None else partial(answer_logprobs, trainer.ref_model)
    if trainer.is_fsdp_enabled and job["reference"] == "start":
        policy = reference
    scores: dict[str, Scores] = {}
    is_uniform = job["reference"] == "none"
    zeros = [(0.0, 0.0)]
    scores["reference"] = zeros * len(rows) if is_uniform else score(rows, reference)
    if heldout is not None:
        scores["before"] = score(heldout, policy)
        scores["heldout_reference"] = zeros * len(heldout) if is_uniform else score(heldout, reference)
    return scores


def _with_columns(rows: Dataset, reference: Scores) -> Dataset:
    with_chosen = rows.add_column("ref_chosen_logps", [chosen for chosen, _ in reference])
    return with_chosen.add_column("ref_rejected_logps", [rejected for _, rejected in reference])


def _heldout(heldout: Dataset, start: Mapping[str, Scores], after: Scores) -> dict[str, float]:
    """Accuracy by log-probability before and after, and by the implicit reward after."""
    lengths = [(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in heldout]
    ahead = gaps(after)
    rewards = [now - then for now, then in zip(ahead, gaps(start["heldout_reference"]), strict=True)]
    return heldout_metrics(lengths, gaps(start["before"]), ahead) | accuracy_metrics(rewards, when="reward")


def _start_warnings(job: training.Job, loss: float) -> list[str]:
    """A policy that equals its reference has a loss that is known beforehand."""
    if job["reference"] != "start" or job["sft_coef"]:
        return []
    smoothing = job["label_smoothing"] or 0.5
    at_start = {
        "sigmoid": math.log(2),
        "bco_pair": 2 * math.log(2),
        "robust": math.log(2),
        "hinge": 1.0,
        "apo_zero": 1.0,
        "apo_down": 1.0,
        "ipo": 1 / (4 * job["beta"] ** 2),
        "exo_pair": math.log(0.5) - 0.5 * math.log(smoothing * (1 - smoothing)),
    }
    expected = sum(weight * at_start[name] for name, weight in _losses(job).items())
    if abs(loss - expected) <= START_TOLERANCE * max(1.0, expected):
        return []
    return [
        f"the loss of the first step is {loss:.4f}, but {expected:.4f} is that of a policy equal to its reference: the "
        "reference's log-probabilities are not those of the starting model."
    ]


if __name__ == "__main__":
    training.main(train)
