"""The interpreter keeps its state, is bounded in all it does, and grades the answer."""

import pytest

from envs.python_tool import PythonTool
from rlhf.errors import EpisodeError, SandboxError
from rlhf.sandbox.execution import Execution
from tests.unit.envs.playing import Episode

ROW = {"prompt": "What is 12!?", "reference": "479001600"}


@pytest.fixture
def episode(tmp_path):
    with Episode(PythonTool(), ROW, tmp_path, tool_s=2.5) as found:
        yield found


def test_variables_and_files_live_through_the_episode(episode):
    assert (
        episode.call("python", code="import math\nx = math.factorial(12)\nopen('f', 'w').write('kept')")
        == "4"
    )
    assert episode.call("python", code="x") == "479001600"
    assert episode.call("python", code="print(open('f').read())") == "kept"
    assert episode.call("python", code="y = 1") == "(no output)"
    episode.say("The answer is \\boxed{479001600}.")
    assert episode.score() == 1
    assert episode.context.scalars == {"python_calls": 4}


@pytest.mark.parametrize("answer", ["", "\\boxed{1}", "I do not know", "\x00" * 100])
def test_wrong_or_no_answer_scores_nothing(episode, answer):
    episode.say(answer)
    assert episode.score() == 0


def test_row_without_a_reference_is_no_score(tmp_path):
    with Episode(PythonTool(), {"prompt": "?"}, tmp_path) as episode:
        episode.say("\\boxed{1}")
        with pytest.raises(EpisodeError, match="graded"):
            episode.score()


def test_hang_is_interrupted_and_the_variables_stay(episode):
    episode.call("python", code="x = 41")
    assert "limit" in episode.call("python", code="while True: pass")
    assert episode.call("python", code="x + 1") == "42"


def test_hang_that_does_not_stop_costs_the_variables_and_says_so(episode):
    stubborn = (
        "import time\nx = 1\nwhile True:\n    try:\n        time.sleep(9)\n    except BaseException: pass"
    )
    assert "its variables are gone" in episode.call("python", code=stubborn)
    assert "NameError" in episode.call("python", code="x")


def test_ten_megabytes_are_cut_visibly(episode):
    for code in ("print('a' * 10**7)", "'b' * 10**7", "import sys\nsys.stderr.write('c' * 10**7)"):
        found = episode.call("python", code=code)
        assert len(found) < 35_000
        assert "left out" in found
        assert "(output cut)" in found
    assert episode.call("python", code="1 + 1") == "2"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("1/0", "ZeroDivisionError"),
        ("def f(:", "SyntaxError"),
        ("\x00", "Error"),
        ("raise SystemExit(3)", "(exit code 3)"),
        ("import os; os._exit(0)", "its variables are gone"),
        ("b'x' * (1 << 34)", "MemoryError"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 22), 1)", "Error"),
        ("open('/etc/shadow').read()", "Error"),
        ("'\\ud800'.encode()", "UnicodeEncodeError"),
    ],
)
def test_fault_is_text_for_the_model(episode, code, expected):
    assert expected in episode.call("python", code=code)
    assert episode.call("python", code="1 + 1") == "2"


def test_broken_sandbox_is_no_result():
    from envs.sessions import shown

    with pytest.raises(SandboxError, match="gone"):
        shown(Execution(status="broken", tier="namespaces", detail="gone"), max_bytes=10)


def test_interpreter_ends_with_the_episode(tmp_path):
    with Episode(PythonTool(), ROW, tmp_path) as episode:
        code = "import subprocess\np = subprocess.Popen(['sleep', '1000'])\np.pid > 0"
        assert episode.call("python", code=code) == "True"
    with Episode(PythonTool(), ROW, tmp_path) as episode:
        assert episode.call("python", code="import os\nos.path.exists('f')") == "False"
