from collections import Counter

import pytest

from rlhf.data.row_order import rows_of_a_pass, training_order


def test_every_pass_has_every_row_once_in_an_order_of_its_own():
    order = training_order(rows_of_a_pass([10], [1.0], seed=0), num_rows=25, seed=0).tolist()
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]
    assert len(order) == 25


def test_order_is_that_of_the_seed():
    orders = [
        tuple(training_order(rows_of_a_pass([30], [1.0], seed=s), num_rows=30, seed=s)) for s in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("times", [0.5, 1.0, 2.5])
def test_source_is_repeated_as_often_as_asked(times):
    counts = Counter(rows_of_a_pass([4, 10], [1.0, times], seed=0).tolist())
    assert {counts[row] for row in range(4)} == {1}
    of_second = [counts[row] for row in range(4, 14)]
    assert sum(of_second) == 10 * times
    assert max(of_second) - min(of_second) <= 1
