"""What the ranks answer comes back in the order of the batch."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.batch import Batch
from rlhf.cluster.learners import LearnerClient
from rlhf.cluster.watchdog import Named
from rlhf.config.schema import TimeoutConfig
from rlhf.interfaces import LossOutput, UpdateMetrics
from tests.unit.learner.ranks import example_batch


@dataclass
class SeenRank:
    """A rank that values a token by its id and a row by the sum of its ids, and notes what it was asked."""

    calls: list[tuple[str, Any]] = field(default_factory=list)

    @property
    def call(self) -> SimpleNamespace:
        return SimpleNamespace(remote=self._call)

    async def _call(self, method: str, *args: Any) -> Any:
        self.calls.append((method, args))
        return getattr(self, method)(*args)

    def values(self, microbatches: Sequence[Batch]) -> list[tuple[Tensor, Tensor]]:
        return [(batch.tokens.float(), row_sums(batch)) for batch in microbatches]

    def update_critic(self, *_: Any) -> UpdateMetrics:
        return UpdateMetrics(values={"critic/lr": 0.1})

    def reset_reference(self) -> None:
        pass


def row_sums(batch: Batch) -> Tensor:
    return torch.zeros(batch.num_rows).index_add_(0, batch.segment_ids, batch.tokens.float())


def client(world_size: int) -> tuple[LearnerClient, list[SeenRank]]:
    ranks = [SeenRank() for _ in range(world_size)]
    named = [Named(handle=rank, name=f"learner {i}", kind="learner") for i, rank in enumerate(ranks)]
    return LearnerClient(ranks=named, microbatch_tokens=40, timeouts=TimeoutConfig()), ranks


def no_loss(values: Tensor, entropy: Tensor | None, batch: Batch) -> LossOutput:
    return LossOutput(loss=values.sum())


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_values_come_back_in_batch_order(world_size: int) -> None:
    batch = example_batch()
    learner, _ = client(world_size)
    values, last_values = asyncio.run(learner.values(batch))
    assert torch.equal(values, batch.tokens.float())
    assert torch.equal(last_values, row_sums(batch))


def test_critic_update_gives_every_rank_its_rows_and_answers_once() -> None:
    learner, ranks = client(2)
    minibatches = [example_batch(seed=seed) for seed in (0, 1)]
    metrics = asyncio.run(learner.update_critic(minibatches, no_loss))
    assert metrics.values == {"critic/lr": 0.1}
    for index, minibatch in enumerate(minibatches):
        shares = [rank.calls[0][1][0][index] for rank in ranks]
        assert [rank.calls[0][0] for rank in ranks] == ["update_critic"] * 2
        tokens = torch.cat([batch.tokens for share in shares for batch in share])
        assert torch.equal(tokens.sort().values, minibatch.tokens.sort().values)


def test_every_rank_resets_its_reference() -> None:
    learner, ranks = client(2)
    asyncio.run(learner.reset_reference())
    assert [rank.calls for rank in ranks] == [[("reset_reference", ())]] * 2
