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


@pytest.mark.parametrize(
    ("value", "expected"),
    [(10**400, "returned 1000"), ({"score": "1"}, "str '1'"), ({"score": None}, "outcome")],
)
def test_other_lies_are_errors_with_a_reason(value, expected):
    result = as_result(value, seconds=0.0)
    assert (result.value, result.outcome) == (None, "error")
    assert expected in result.detail["error"]


@pytest.mark.parametrize("outcome", ["not_applicable", "timeout", "error"])
def test_failure_with_a_value_and_success_without_one_are_errors(outcome):
    assert as_result(RewardResult(value=0.0, outcome=outcome), seconds=0.0).outcome == "error"
    assert as_result(RewardResult(value=None, outcome=outcome), seconds=0.0).outcome == outcome
    assert as_result(RewardResult(value=None), seconds=0.0).outcome == "error"


def test_dict_keeps_numbers_as_parts_and_texts_as_detail():
    result = as_result({"score": True, "acc": np.bool_(False), "pred": "7", "tree": [1]}, seconds=0.0)
    assert (result.value, result.parts, result.detail) == (1.0, {"acc": 0.0}, {"pred": "7"})


def test_batch_may_be_a_list_an_array_or_a_dict_of_them():
    assert [r.value for r in as_results((0, True), size=2, seconds=0.0)] == [0.0, 1.0]
    assert [r.value for r in as_results(np.array([0.5, 1]), size=2, seconds=0.0)] == [0.5, 1.0]
    found = as_results({"rewards": torch.tensor([1.0, 2.0]), "extra_logs": {"mean": 3}}, size=2, seconds=4.0)
    assert [(r.value, r.parts, r.seconds) for r in found] == [
        (1.0, {"mean": 3.0}, 2.0),
        (2.0, {"mean": 3.0}, 2.0),
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "1 values for 2 samples"),
        ("ab", "expected a list of 2"),
        (1.0, "expected a list of 2"),
        (torch.tensor(1.0), "expected a list of 2"),
        (None, "expected a list of 2"),
        ({"scores": [1, 2]}, "without 'rewards'"),
        ({"rewards": [1.0]}, "1 'rewards' for 2"),
        ({"rewards": [1.0, 2.0], "extra_logs": {"x": [1]}}, "1 'x' for 2"),
    ],
)
def test_batch_of_another_length_is_an_error(values, message):
    with pytest.raises(ValueError, match=message):
        as_results(values, size=2, seconds=0.0)


def test_batch_keeps_good_values_beside_bad_ones():
    found = as_results([1.0, float("nan"), "1", None], size=4, seconds=0.0)
    assert [r.outcome for r in found] == ["ok", "error", "error", "not_applicable"]
    found = as_results({"rewards": [1.0, float("inf")], "extra_logs": {"x": 1}}, size=2, seconds=0.0)
    assert [r.outcome for r in found] == ["ok", "error"]


def test_detail_keeps_its_size_and_is_finite():
    kept = small({"a": "x" * 3000, "b": "y", "c": float("nan"), "d": 10**400, "e": 2})
    assert (len(str(kept["a"])), kept["b"], kept["c"], kept["d"], kept["e"]) == (2048, "", "", "", 2.0)
    assert small({"c": float("nan")}) == {"c": "nan"}
