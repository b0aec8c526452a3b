import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from rewards.code_feedback import export, feedback_rows
from rewards.code_tests import CompilerFeedback
from rlhf.errors import DataError, LoadError, RewardError
from tests.unit.rewards.code_cases import FUNCTION, RIGHT, fenced, prompt, sandbox

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


class _Endpoint(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        last = body["messages"][-1]
        score = (
            {"score": 0.75} if last["role"] == "assistant" and "return 0" in last["content"] else {"mark": 1}
        )
        reply = json.dumps(score).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_):
        pass


def test_scorer_may_be_an_endpoint_and_its_failure_is_an_error(sandbox):
    server = HTTPServer(("127.0.0.1", 0), _Endpoint)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        reward = CompilerFeedback(sandbox=sandbox, scorer=f"http://127.0.0.1:{server.server_port}/score")
        assert reward(completion=fenced(ZERO), tests=FUNCTION, prompt=prompt()).value == 0.75
        with pytest.raises(RewardError, match="gave no score"):
            reward(completion=fenced(ADD), tests=FUNCTION, prompt=prompt())
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    with pytest.raises(RewardError, match="gave no score"):
        reward(completion=fenced(ZERO), tests=FUNCTION, prompt=prompt())


@pytest.mark.parametrize(
    "kwargs",
    [
        {"scorer": "no_such_module:f"},
        {"scorer": "json:nothing"},
        {"scorer": "json:__name__"},
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
