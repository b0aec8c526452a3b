"""What the training processes share, without one: scores of pairs, and what is measured once."""

import io
import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from rlhf.errors import LearnerError
from rlhf.stages import training
from rlhf.stages.pair_scores import score_pairs

JOB = {
    "scratch": "x", "num_steps": 9, "microbatch_size": 1, "batch_size": 2, "num_ranks": 1, "lr": 0.1, "warmup_steps": 0,
    "weight_decay": 0.0, "max_grad_norm": 1.0, "seed": 0, "checkpoint_every": 2, "lr_schedule": "constant",
    "min_lr_ratio": 0.0,
}  # fmt: skip


def trainer():
    """As much of a trainer as scoring takes; rows are numbers."""
    return SimpleNamespace(
        accelerator=SimpleNamespace(
            process_index=0, num_processes=1, device=torch.device("cpu"), autocast=nullcontext
        ),
        model=torch.nn.Linear(1, 1),
        data_collator=lambda rows: {
            "ids": torch.tensor([row["chosen"] for row in rows] + [row["rejected"] for row in rows])
        },
    )


def test_pairs_are_scored_in_order_with_a_sign_of_life_after_every_batch():
    rows = [{"chosen": float(i), "rejected": -float(i)} for i in range(7)]
    channel = io.StringIO()
    found = score_pairs(
        trainer(), rows, lambda batch: 2 * batch["ids"], batch_size=3, on_pass=lambda: training.say(channel)
    )
    assert found == [(2.0 * i, -2.0 * i) for i in range(7)]
    assert channel.getvalue() == "\n" * 3


def test_only_the_first_rank_speaks(monkeypatch):
    channel = io.StringIO()
    monkeypatch.setenv("RANK", "1")
    training.say(channel, "{}")
    assert channel.getvalue() == ""


def test_what_is_measured_before_training_is_measured_once(tmp_path):
    job = {"scratch": str(tmp_path)}
    assert training.from_before(job, lambda: [[1.0, 2.0]]) == [[1.0, 2.0]]
    assert training.from_before(job, lambda: pytest.fail("measured again")) == [[1.0, 2.0]]


def test_a_rank_measures_with_the_others_although_one_of_them_was_faster(tmp_path, monkeypatch):
    def another_rank_writes():
        (tmp_path / "start.json").write_text(json.dumps("of another rank"))

    monkeypatch.setattr(training, "wait_for_all", another_rank_writes)
    monkeypatch.setenv("RANK", "1")
    assert training.from_before({"scratch": str(tmp_path)}, lambda: "own") == "own"


def report(tmp_path, *, resumed_at=0):
    job = {"kind": "dpo", "checkpoint_every": 2, "metrics": str(tmp_path / "dpo_metrics.jsonl")}
    return training.Report(job, io.StringIO(), accuracy="mean_accuracy", resumed_at=resumed_at)


def log(one, step, **changes):
    state = SimpleNamespace(global_step=step, max_steps=9)
    one.on_log(None, state, None, logs={"loss": 0.5, "mean_accuracy": 1.0, "learning_rate": 0.1} | changes)


@pytest.mark.parametrize("name", ["loss", "grad_norm", "train_loss"])
def test_a_number_that_is_none_ends_the_training(tmp_path, name):
    assert not training.trainer_arguments(JOB)["logging_nan_inf_filter"]
    one = report(tmp_path)
    log(one, 1)
    with pytest.raises(LearnerError, match=rf"dpo: {name} is nan at step 2, .*Lower dpo\.lr"):
        log(one, 2, **{name: float("nan")})
    assert [line["step"] for line in one.lines] == [1]


def test_curve_goes_on_at_the_checkpoint_whatever_was_written_behind_it(tmp_path):
    first = report(tmp_path)
    for step in (1, 2, 3):
        log(first, step)
    file = tmp_path / "dpo_metrics.jsonl"
    file.write_text(file.read_text() + '{"step": 4, "lo')
    second = report(tmp_path, resumed_at=2)
    log(second, 3)
    assert [line["step"] for line in second.lines] == [1, 2, 3]
    assert [json.loads(line) for line in file.read_text().splitlines()] == second.lines
