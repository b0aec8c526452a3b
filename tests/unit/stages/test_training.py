"""What the training processes share, without one: scores of pairs, and what is measured once."""

import io
import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from rlhf.stages import training
from rlhf.stages.pair_scores import score_pairs


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
