import math
import random

import pytest

from rlhf.rollout.intervals import mean_interval, share_interval, student
from rlhf.telemetry.metrics import wilson


def slow_student(degrees):
    """By Simpson's rule on the density, and bisection."""
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)

    def below(t, parts=2000):
        def density(x):
            return scale * (1 + x * x / degrees) ** (-(degrees + 1) / 2)

        h = t / parts
        inner = sum((4 if i % 2 else 2) * density(i * h) for i in range(1, parts))
        return 0.5 + h / 3 * (density(0) + inner + density(t))

    low, high = 0.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < 0.975 else (low, middle)
    return low


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 8, 29, 200, 201, 1000])
def test_student_is_the_point_of_the_density(degrees):
    assert student(degrees) == pytest.approx(slow_student(degrees), rel=1e-6)


def test_student_falls_to_the_normal_point():
    points = [student(n) for n in range(1, 400)]
    assert points == sorted(points, reverse=True)
    assert student(10**9) == pytest.approx(1.959963985, abs=1e-8)


def test_share_interval_is_wilsons_for_zeros_and_ones_and_students_for_others():
    assert share_interval([1.0, 0.0, 1.0, 1.0]) == wilson(3, 4)
    low, high = share_interval([0.5, 0.25, 0.75])
    half = student(2) * 0.25 / math.sqrt(3)
    assert (low, high) == pytest.approx((max(0, 0.5 - half), min(1, 0.5 + half)))
    assert share_interval([0.4]) == (0.0, 1.0)
    assert mean_interval([3.0]) == (3.0, 3.0)


def test_student_intervals_hold_the_mean_about_as_often_as_they_say():
    chance = random.Random(0)
    held = 0
    for _ in range(2000):
        low, high = share_interval([(chance.random() + chance.random()) / 2 for _ in range(12)])
        held += low <= 0.5 <= high
    assert 0.935 <= held / 2000 <= 0.965
