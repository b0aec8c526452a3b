import random

import numpy as np
import pytest

from rlhf.engines.kept import check_limit, kept_sets, num_reported
from rlhf.errors import EngineError
from rlhf.types import Sampling


@pytest.mark.parametrize("seed", range(20))
def test_kept_sets_are_the_finite_ids_each_once(seed):
    draw = random.Random(seed)
    rows, width = draw.randint(1, 30), draw.randint(1, 12)
    ids = np.array([[draw.randrange(9) for _ in range(width)] for _ in range(rows)], np.int32)
    logprobs = np.array([[draw.choice([-1.0, -np.inf]) for _ in range(width)] for _ in range(rows)])
    found = kept_sets(ids, logprobs, limit=3)
    expected = [
        sorted({i for i, p in zip(*row, strict=True) if p > -np.inf})
        for row in zip(ids, logprobs, strict=True)
    ]
    assert [kept.tolist() for kept in found] == [kept if len(kept) <= 3 else [] for kept in expected]
    assert all(kept.dtype == np.int32 for kept in found)


def test_one_more_than_the_limit_is_reported_but_no_more_than_there_are():
    truncated = Sampling(max_tokens=1, top_p=0.9, kept_limit=8)
    assert num_reported(truncated, 100) == 9
    assert num_reported(truncated, 5) == 5
    assert num_reported(Sampling(max_tokens=1, kept_limit=8), 100) == 0


def test_limit_beyond_the_engines_is_refused():
    sampling = Sampling(max_tokens=1, top_p=0.9, kept_limit=9)
    check_limit(sampling, most=9)
    with pytest.raises(EngineError, match=r"EngineSettings\.kept_limit 8"):
        check_limit(sampling, most=8)
