"""The package itself, in its own interpreter, asking a scripted model through the endpoint."""

import os
from pathlib import Path

import psutil
import pytest

from envs.adapters.verifiers import Verifiers, rows
from rlhf.errors import ConfigError, DataError
from tests.endpoints import CALLS
from tests.unit.envs.adapters.episodes import play

PYTHON = os.environ.get("RLHF_VERIFIERS_PYTHON", "")
HERE = Path(__file__).parent
SUMS = {"id": "verifiers_sums", "path": os.path.relpath(HERE), "python": PYTHON}
USE = "envs.adapters.verifiers:verifiers_environment"
needs_package = pytest.mark.skipif(
    not PYTHON, reason="RLHF_VERIFIERS_PYTHON names no interpreter that has verifiers==0.1.14"
)


def adds(context):
    return "It is 42." if "<tool_response>\n42" in context else f"Hm. {CALLS['hermes']}"


@pytest.fixture(scope="module")
def task():
    (row,) = [row for row in rows(size=10, **SUMS) if row["reference"] == "42"]
    return row


@needs_package
@pytest.mark.slow
def test_tool_environment_is_played_recorded_and_scored_by_the_package(tmp_path, task):
    assert [m["role"] for m in task["prompt"]] == ["system", "user"]
    (right,) = play(USE, task, tmp_path, kwargs=SUMS, write=adds)
    assert (right.stop, right.status, right.error) == ("stop", "ok", "")
    assert right.reward.value == 1.0
    assert right.reward.parts["verifiers_add_calls"] == 1.0
    roles = [turn.message.role for turn in right.turns]
    assert roles == ["assistant", "tool", "assistant"]
    assert len(right.segments) == 1
    (wrong,) = play(USE, task, tmp_path / "2", kwargs=SUMS, write=lambda _: "It is 7.")
    assert (wrong.stop, wrong.reward.value) == ("stop", 0.0)


@needs_package
@pytest.mark.slow
def test_single_turn_environment_is_played(tmp_path, task):
    kwargs = SUMS | {"args": {"with_tool": False}}
    found = play(USE, task, tmp_path, kwargs=kwargs, write=lambda _: "42", samples=3)
    assert [(t.stop, t.reward.value, t.num_sampled > 0) for t in found] == [("stop", 1.0, True)] * 3


@needs_package
@pytest.mark.slow
def test_limit_of_ours_is_no_fault_of_the_package(tmp_path, task):
    (found,) = play(USE, task, tmp_path, kwargs=SUMS, write=lambda _: CALLS["hermes"], max_turns=2)
    assert found.error == ""
    assert (found.stop, found.status, found.reward.value) == ("max_turns", "truncated", 0.0)


@needs_package
@pytest.mark.slow
def test_what_fails_in_the_package_is_an_error_and_nothing_is_left(tmp_path, task):
    (found,) = play(USE, task, tmp_path, kwargs=SUMS | {"args": {"nothing": 1}}, write=adds)
    assert (found.stop, found.reward.value) == ("env_error", None)
    assert "nothing" in found.error
    broken = SUMS | {"args": {"fails": True}}
    (found,) = play(USE, task, tmp_path / "1", kwargs=broken, write=adds)
    assert (found.stop, found.reward.value) == ("env_error", None)
    assert "the rubric is broken" in found.error
    (found,) = play(USE, task, tmp_path / "0", kwargs=broken | {"forgives": True}, write=adds)
    assert (found.stop, found.reward.value) == ("stop", 0.0)
    (late,) = play(USE, task, tmp_path / "2", kwargs=SUMS, write=adds, episode_s=1.2)
    assert (late.status, late.num_sampled) == ("truncated", 0)
    with pytest.raises(DataError, match="no_such_environment"):
        rows(**SUMS | {"id": "no_such_environment"})
    assert not [p for p in psutil.process_iter(["exe"]) if p.info["exe"] == PYTHON]


def test_interpreter_that_is_none_is_named():
    with pytest.raises(ConfigError, match=r"kwargs\.python: 'no/python' is no program"):
        Verifiers(id="x", python="no/python")
