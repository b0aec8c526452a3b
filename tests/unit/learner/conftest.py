"""Two learner ranks for the session, and a place for one rank in the test's own process."""

from collections.abc import Iterator

import pytest
import torch.distributed as dist

from rlhf.learner.fsdp import RankPlace
from rlhf.machine import free_port
from tests.unit.learner.ranks import Ranks


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Ranks]:
    ranks = Ranks(2)
    yield ranks
    ranks.close()


@pytest.fixture
def place() -> Iterator[RankPlace]:
    yield RankPlace(port=free_port())
    if dist.is_initialized():
        dist.destroy_process_group()
