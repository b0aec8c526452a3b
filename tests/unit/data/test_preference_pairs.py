import math
import random

import numpy
import pytest

from rewards.reasoning_preferences import pairs
from rlhf.data.preference_pairs import (
    accuracy_by_length,
    accuracy_metrics,
    both_ways_correlation,
    length_bias,
)
from rlhf.telemetry.metrics import find, wilson


def lengths_of(rows):
    return [(len(row["chosen"]), len(row["rejected"])) for row in rows]


def test_set_whose_chosen_is_usually_longer_is_called_biased():
    bias = length_bias(lengths_of(pairs(size=300, longer_chosen=0.8)), margin=0.05)
    assert 0.7 < bias.longer_wins < 0.9
    assert bias.is_biased
    assert bias.correlation > 0.4
    assert "length-biased" in str(bias.warning())


def test_balanced_set_is_not():
    bias = length_bias(lengths_of(pairs(size=300, longer_chosen=0.5)), margin=0.05)
    assert not bias.is_biased
    assert abs(bias.correlation) < 0.15
    assert bias.warning() is None


def test_bias_must_exceed_the_margin_with_its_whole_interval():
    lengths = [(2, 1)] * 60 + [(1, 2)] * 40
    assert wilson(60, 100)[0] > 0.5
    assert length_bias(lengths, margin=0.0).is_biased
    assert not length_bias(lengths, margin=0.05).is_biased


def test_equal_lengths_count_half_and_have_no_correlation():
    bias = length_bias([(3, 3)] * 10, margin=0.05)
    assert (bias.longer_wins, bias.correlation, bias.is_biased) == (0.5, 0.0, False)
    assert bias.metrics()["length/chosen_longer_share"] == 0


def test_correlation_is_that_of_both_orders_of_every_pair():
    drawn = random.Random(0)
    left = [drawn.gauss(1, 2) for _ in range(50)]
    right = [x + drawn.gauss(0, 3) for x in left]
    slow = numpy.corrcoef(left + [-x for x in left], right + [-y for y in right])[0, 1]
    assert both_ways_correlation(left, right) == pytest.approx(slow)


def test_accuracy_by_length_is_that_of_a_loop():
    drawn = random.Random(1)
    lengths = [(drawn.randrange(5), drawn.randrange(5)) for _ in range(200)]
    gaps = [chosen - rejected + drawn.gauss(0, 3) for chosen, rejected in lengths]
    found = accuracy_by_length(lengths, gaps)
    right = {"shorter": [], "longer": []}
    for (chosen, rejected), gap in zip(lengths, gaps, strict=True):
        if chosen > rejected:
            right["longer"].append(gap > 0)
        elif chosen < rejected:
            right["shorter"].append(gap > 0)
    means = {side: sum(those) / len(those) for side, those in right.items()}
    assert found["preference/accuracy_chosen_shorter"] == means["shorter"]
    assert found["preference/accuracy_chosen_longer"] == means["longer"]
    assert found["preference/accuracy_balanced"] == pytest.approx(sum(means.values()) / 2)
    assert means["longer"] > means["shorter"] + 0.2


def test_side_without_pairs_is_left_out():
    found = accuracy_by_length([(2, 1)], [1.0])
    assert not any("shorter" in name or "balanced" in name for name in found)


def test_tie_is_not_ahead():
    assert accuracy_metrics([0.0, 1.0], when="after")["preference/accuracy_after"] == 0.5


def test_every_metric_is_declared():
    lengths = [(2, 1), (1, 2)]
    names = {**length_bias(lengths, margin=0).metrics(), **accuracy_by_length(lengths, [1, 1])}
    assert all(find(name) for name in names)
    assert not math.isnan(sum(names.values()))
