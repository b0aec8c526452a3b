"""Several frozen teachers beside a student: each row has its own teacher's log-probabilities."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlhf.batch import Batch
from rlhf.config.algorithm import LoraConfig
from rlhf.config.schema import ModelConfig
from rlhf.data.packing import plan_microbatches
from rlhf.learner.fsdp import FsdpLearner, LearnerPlan, RankPlace
from tests.tiny import save_tiny, tiny_config
from tests.unit.learner.ranks import Ranks, example_batch, plan, policy_gradient, share

TEACHER_OF = torch.tensor([0, 0, 0, 1, 1, 1, 0, 0, 0])
"""Of the rows of `example_batch`."""


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("teachers")
    return {
        "larger": str(save_tiny(folder / "larger", 5, num_hidden_layers=3)),
        "other": str(save_tiny(folder / "other", 6)),
    }


def student(teachers: Mapping[str, str], lora: LoraConfig | None = None) -> LearnerPlan:
    models = {name: ModelConfig(path=path, dtype="float32") for name, path in teachers.items()}
    return replace(plan(ModelConfig(config=tiny_config(), dtype="float32", lora=lora)), teachers=models)


def scored(
    place: RankPlace, what: LearnerPlan, batch: Batch, budget: int
) -> list[tuple[str, Tensor, Tensor]]:
    """(teacher, rows, their log-probabilities) of each micro-batch of this rank, after an update of the student."""
    learner = FsdpLearner(what, place)
    learner.update([share(batch, place.world_size, 60)[place.rank]], policy_gradient)
    found = []
    for index, name in enumerate(what.teachers):
        rows = torch.nonzero(index == TEACHER_OF).flatten()
        own = batch.select_rows(rows)
        micro = plan_microbatches(own, ranks=place.world_size, budget_tokens=budget)[place.rank]
        parts = learner.logprobs([own.select_rows(places) for places in micro], teacher=name)
        found += [(name, rows[places], part) for places, part in zip(micro, parts, strict=True)]
    learner.close()
    return found


def alone(place: RankPlace, path: str, batch: Batch) -> Tensor:
    """A teacher as the policy of a learner of its own."""
    learner = FsdpLearner(plan(ModelConfig(path=path, dtype="float32")), place)
    (found,) = learner.logprobs([batch])
    learner.close()
    return found


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)], ids=["full", "lora"])
def test_each_row_has_the_log_probabilities_of_its_teacher_alone(
    place: RankPlace, two_ranks: Ranks, teachers: dict[str, str], lora: LoraConfig | None
) -> None:
    batch = example_batch()
    expected = {name: alone(place, path, batch) for name, path in teachers.items()}
    assert not torch.allclose(expected["larger"], expected["other"], atol=0.1)
    what = student(teachers, lora)
    runs = [scored(place, what, batch, budget) for budget in (10_000, 40)]
    runs.append([part for rank in two_ranks.run(scored, what, batch, 40) for part in rank])
    for run in runs:
        assert sorted(torch.cat([rows for _, rows, _ in run]).tolist()) == list(range(batch.num_rows))
        for name, rows, part in run:
            torch.testing.assert_close(part, expected[name][batch.token_index(rows)], atol=1e-6, rtol=1e-6)
