"""A real server, named by keyword arguments alone, played by the runner."""

import sys
from pathlib import Path

import pytest

from rlhf.errors import RlhfError
from tests.endpoints import CALLS
from tests.unit.envs.adapters.episodes import play

pytest.importorskip("mcp", reason="the extra `content` is not installed")

SERVER = str(Path(__file__).parents[2] / "episodes" / "mcp_server.py")
USE = "envs.adapters.mcp:mcp_tools"
ROW = {"prompt": "What is 40 + 2?", "reference": "42"}


def adds(context):
    return "42" if "<tool_response>\n42" in context else CALLS["hermes"]


@pytest.mark.parametrize(("told", "value"), [({}, 1.0), ({"score": None}, 0.0)])
def test_servers_tools_are_called_and_the_answer_graded(tmp_path, told, value):
    kwargs = {"command": [sys.executable, SERVER], "allow": ["add"], "system": "Add.", **told}
    (found,) = play(USE, ROW, tmp_path, kwargs=kwargs, write=adds)
    assert (found.stop, found.reward.value, found.error) == ("stop", value, "")
    roles = [turn.message.role for turn in found.turns]
    assert roles == ["assistant", "tool", "assistant"]


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [({"command": []}, "expected one of them"), ({"url": "x", "score": "no:grade"}, "no:grade")],
)
def test_what_is_wrong_in_the_recipe_is_named(tmp_path, kwargs, says):
    with pytest.raises(RlhfError, match=says):
        play(USE, ROW, tmp_path, kwargs=kwargs, write=adds)
