"""Whose row is whose, and how far the student is from each teacher: against slow loops over tokens."""

import asyncio
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.teachers import teacher_metrics, with_teachers
from rlhf.batch import Batch
from tests.unit.learner.ranks import example_batch

NAMES = ("larger", "other", "idle")
TEACHER_OF = torch.tensor([0, 0, 0, 1, 1, 1, 0, 0, 0])
"""Of the rows of `example_batch`."""
VALUES = {"larger": -1.0, "other": -3.0}


def taught() -> tuple[Batch, list[tuple[str, int]]]:
    """The batch with a log-probability of each token that names teacher and token, and who was asked for how much."""
    asked = []

    async def score(rows: Batch, name: str) -> Tensor:
        asked.append((name, rows.num_rows))
        return VALUES[name] - rows.tokens / 1000

    batch = replace(example_batch(), teacher_ids=TEACHER_OF)
    return asyncio.run(with_teachers(batch, NAMES, score)), asked


def slow_gap(batch: Batch, student: Tensor, teachers: tuple[int, ...]) -> float:
    assert batch.teacher_logprobs is not None
    gaps = [
        float(student[t]) - float(batch.teacher_logprobs[t])
        for t in range(batch.num_tokens)
        if batch.loss_mask[t]
        and batch.positions[t] > 0
        and int(TEACHER_OF[int(batch.segment_ids[t])]) in teachers
    ]
    return sum(gaps) / len(gaps)


def test_rows_are_put_together_again() -> None:
    found, asked = taught()
    assert asked == [("larger", 6), ("other", 3)]
    expected = torch.tensor([-1.0, -3.0])[TEACHER_OF][found.segment_ids] - found.tokens / 1000
    assert torch.equal(found.teacher_logprobs, expected)


@pytest.mark.parametrize("has_old", [False, True])
def test_gap_is_measured_by_teacher_over_trained_tokens(has_old: bool) -> None:
    found, _ = taught()
    # Also where nobody trains a first token: one that were must not count, as it has no log-probability.
    found = replace(found, loss_mask=found.loss_mask | (found.positions == 0))
    found = replace(found, rollout_logprobs=torch.linspace(-2, 0, found.num_tokens))
    student = found.rollout_logprobs
    if has_old:
        student = torch.linspace(0, -1, found.num_tokens)
        found = replace(found, old_logprobs=student)
    assert not found.loss_mask.all()
    assert teacher_metrics(found, NAMES) == pytest.approx(
        {
            "update/teacher_kl": slow_gap(found, student, (0, 1)),
            "update/teacher_kl/larger": slow_gap(found, student, (0,)),
            "update/teacher_kl/other": slow_gap(found, student, (1,)),
        }
    )


def test_one_teacher_is_measured_without_names_and_none_not_at_all() -> None:
    found, _ = taught()
    alone = replace(found, teacher_ids=None)
    assert list(teacher_metrics(alone, ())) == ["update/teacher_kl"]
    assert teacher_metrics(replace(found, teacher_logprobs=None), NAMES) == {}


def test_rows_keep_their_teacher_when_they_are_selected() -> None:
    batch = replace(example_batch(), teacher_ids=TEACHER_OF)
    assert batch.select_rows(torch.tensor([3, 0])).teacher_ids.tolist() == [1, 0]
