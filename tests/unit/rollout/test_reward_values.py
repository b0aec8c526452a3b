from typing import Any

import numpy as np
import pytest
import torch

from rlhf.rollout.reward_values import as_result, as_results, small
from rlhf.types import RewardResult


@pytest.mark.parametrize(
    "value", [True, 1, np.bool_(True), np.float32(1), np.array(1), torch.tensor(1.0), torch.tensor(True)]
)
def test_as_result_takes_scalars_of_any_library(value: Any) -> None:
    assert as_result(value, seconds=0.0).value == 1.0
    assert as_result({"score": value, "style": value}, seconds=0.0).parts == {"style": 1.0}


@pytest.mark.parametrize("value", [torch.ones(2), np.ones(1), torch.tensor(float("nan")), "1"])
def test_as_result_refuses_what_is_no_single_finite_number(value: Any) -> None:
    assert as_result(value, seconds=0.0).outcome == "error"


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("ab", "expected a list of"),
        ({1: 2.0}, "expected a list of"),
        ([1, 2], "expected a pair"),
        ([[1, 2, 3]], "expected a pair"),
        ([["a", 1.0]], "expected a number of characters"),
        ([[1.5, 1.0]], "expected a number of characters"),
        ([[1, float("nan")]], "expected a finite number"),
    ],
)
def test_malformed_steps_are_an_error_of_the_reward_with_a_reason(steps, message):
    result = as_result({"score": 1.0, "steps": steps}, seconds=0.0)
    assert (result.value, result.outcome) == (None, "error")
    assert message in result.detail["error"]


def test_steps_that_are_a_number_are_a_part_and_none_are_none():
    counted = as_result({"score": 1.0, "steps": 3}, seconds=0.0)
    assert (counted.value, counted.parts, counted.steps) == (1.0, {"steps": 3.0}, ())
    assert as_result({"score": 1.0, "steps": None}, seconds=0.0).steps == ()
    assert as_result({"score": 1.0, "steps": [[2, 1], (4, 0.5)]}, seconds=0.0).steps == ((2, 1.0), (4, 0.5))
