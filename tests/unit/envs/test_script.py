"""A plain script as an environment: its own score, and who is to blame when there is none."""

import json

import pytest

from envs.script import read_score
from rlhf.episodes.program import Finished
from rlhf.errors import EpisodeError
from tests.unit.envs.adapters.episodes import play

pytest.importorskip("openai")
USE = "envs.script:script_environment"
GAME = {"script": "recipes/cpu/agent_script.py", "columns": ["reference"]}
ROW = {"prompt": "1-9", "reference": "7", "low": 1, "high": 9}


def bisects(context):
    """Five, then what the answers leave."""
    return "7" if "higher" in context else "5"


@pytest.mark.slow
def test_recipes_script_is_scored_by_itself_and_recorded_as_the_native_game(tmp_path):
    (served,) = play(USE, ROW, tmp_path / "served", kwargs=GAME, write=bisects)
    (native,) = play("envs.guess_number:GuessNumber", ROW, tmp_path / "native", write=bisects)
    assert (served.stop, served.error, served.reward.value) == ("stop", "", 0.875)
    assert served.reward.parts == {"turns": 0.0, "score": 0.875, "guesses": 2.0, "found": 1.0}
    assert served.segments == native.segments
    assert [t.message for t in served.turns] == [t.message for t in native.turns]
    assert served.seal == native.seal
    assert served.reward.value == native.reward.value


@pytest.mark.slow
def test_script_that_a_limit_ends_is_truncated_and_one_that_fails_is_no_score(tmp_path):
    (cut,) = play(USE, ROW, tmp_path / "cut", kwargs=GAME, write=lambda _: "5", max_turns=2)
    assert (cut.stop, cut.status, cut.reward.value) == ("max_turns", "truncated", 0.0)
    failing = tmp_path / "failing.py"
    failing.write_text("import json\nfrom openai import OpenAI\nOpenAI().models.list()\njson.loads('no')\n")
    (failed,) = play(USE, ROW, tmp_path / "failed", kwargs={"script": str(failing)}, write=bisects)
    assert (failed.stop, failed.reward.value) == ("env_error", None)
    assert "JSONDecodeError" in failed.error


def test_score_is_what_was_written(tmp_path):
    class Context:
        folder = str(tmp_path)
        state = Finished(exit_code=0)

    for written in (0.5, {"score": 1, "steps": 3}):
        (tmp_path / "score.json").write_text(json.dumps(written))
        assert read_score(Context()) == written


def test_score_beside_a_failure_counts_only_where_a_limit_caused_it(tmp_path):
    class Context:
        folder = str(tmp_path)

    (tmp_path / "score.json").write_text("0.25")
    Context.state = Finished(exit_code=1, stderr="KeyError: 'x'")
    with pytest.raises(EpisodeError, match="ended with code 1: KeyError"):
        read_score(Context())
    for finished in (Finished(exit_code=1, ended="max_turns"), Finished(exit_code=None)):
        Context.state = finished
        assert read_score(Context()) == 0.25
    (tmp_path / "score.json").unlink()
    for finished in (Finished(exit_code=1, ended="max_turns"), Finished(exit_code=0, ended="max_tokens")):
        Context.state = finished
        assert read_score(Context()) == 0.0


@pytest.mark.slow
def test_script_that_catches_the_refusal_at_a_limit_is_truncated(tmp_path):
    patient = tmp_path / "patient.py"
    patient.write_text(
        "import sys\nfrom openai import BadRequestError, OpenAI\nask = OpenAI().chat.completions.create\n"
        "try:\n    while True:\n"
        "        ask(model='policy', messages=[{'role': 'user', 'content': 'on'}])\n"
        "except BadRequestError:\n    sys.exit(1)\n"
    )
    (cut,) = play(
        USE, ROW, tmp_path / "cut", kwargs={"script": str(patient)}, write=lambda _: "5", max_turns=2
    )
    assert (cut.stop, cut.reward.value, cut.error) == ("max_turns", 0.0, "")
