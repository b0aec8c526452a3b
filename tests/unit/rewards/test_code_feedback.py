import json

import pytest

from rewards.code_feedback import export, feedback_rows
from rewards.code_tests import CompilerFeedback
from rewards.endpoint import EndpointError
from rlhf.errors import DataError, LoadError, RewardError
from tests.unit.rewards.code_cases import FUNCTION, RIGHT, fenced, prompt, sandbox
from tests.unit.rewards.served_models import served

__all__ = ["sandbox"]
ADD, ZERO = RIGHT["function"], "def solve(a, b):\n    return 0"


def length_scorer(asked, completion):
    return len(completion) / 1000 + len(asked.messages)


def nan_scorer(asked, completion):
    return float("nan")


@pytest.mark.parametrize(("code", "value"), [(ADD, 1.0), (ZERO, 0.3), ("def solve(", 0.0)])
def test_raw_feedback_is_dense(sandbox, code, value):
    reward = CompilerFeedback(sandbox=sandbox)
    assert reward(completion=fenced(code), tests=FUNCTION, prompt=prompt()).value == pytest.approx(value)


def test_scorer_gives_the_value_and_the_raw_signal_stays_a_part(sandbox):
    reward = CompilerFeedback(sandbox=sandbox, scorer=f"{__name__}:length_scorer")
    result = reward(completion=fenced(ZERO), tests=FUNCTION, prompt=prompt())
    assert result.value == pytest.approx(len(fenced(ZERO)) / 1000 + 1)
    assert result.parts["raw"] == pytest.approx(0.3)
    assert result.outcome == "wrong"


def test_scorer_may_be_a_served_model_and_its_failure_is_an_error(sandbox):
    with served(lambda body: {"data": [{"probs": [0.75]}]} if "return 0" in str(body) else {}) as server:
        settings = {"endpoint": {"url": server.address, "model": "feedback", "timeout_s": 5.0}}
        reward = CompilerFeedback(sandbox=sandbox, scorer=settings)
        result = reward(completion=fenced(ZERO), tests=FUNCTION, prompt=prompt())
        assert (result.value, result.parts["raw"]) == (0.75, pytest.approx(0.3))
        with pytest.raises(EndpointError, match="no score"):
            reward(completion=fenced(ADD), tests=FUNCTION, prompt=prompt())
    with pytest.raises(ConnectionError):
        reward(completion=fenced(ZERO), tests=FUNCTION, prompt=prompt())


@pytest.mark.parametrize(
    "kwargs",
    [
        {"scorer": "no_such_module:f"},
        {"scorer": "json:nothing"},
        {"scorer": "json:__name__"},
        {"scorer": {"model": "x"}},
        {"credit": "all"},
    ],
)
def test_wrong_kwargs_are_errors_at_load(sandbox, kwargs):
    with pytest.raises(LoadError):
        CompilerFeedback(sandbox=sandbox, **kwargs)


def test_score_that_is_no_finite_number_is_an_error(sandbox):
    reward = CompilerFeedback(sandbox=sandbox, scorer=f"{__name__}:nan_scorer")
    with pytest.raises(RewardError, match="nan"):
        reward(completion=fenced(ADD), tests=FUNCTION, prompt=prompt())


def test_export_writes_rows_to_train_a_reward_model_on(sandbox, tmp_path):
    rows = [{"prompt": "Add.", "completion": fenced(code), "tests": FUNCTION} for code in (ADD, ZERO)]
    rows.append({**rows[0], "prompt": [{"role": "user", "content": "Add."}]})
    source, target = tmp_path / "completions.jsonl", tmp_path / "feedback.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert export(source, target, sandbox=sandbox) == 3
    written = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["feedback"] for row in written] == pytest.approx([1.0, 0.3, 1.0])
    assert written[1]["detail"]["kind"] == "wrong_answer"
    assert set(written[0]) == {"prompt", "completion", "feedback", "outcome", "detail"}
    with pytest.raises(DataError, match="tests"):
        list(feedback_rows([{"prompt": "a", "completion": "b"}], sandbox=sandbox))
