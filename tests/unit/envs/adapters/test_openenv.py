"""A real server of the package in its own interpreter, and a scripted model."""

import os
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from envs.adapters.openenv import OpenEnv
from rlhf.errors import ConfigError, EpisodeError
from tests.unit.envs.adapters.episodes import play
from tests.unit.envs.playing import Episode

PYTHON = os.environ.get("RLHF_OPENENV_PYTHON", "")
USE = "envs.adapters.openenv:OpenEnv"
ROW = {"prompt": "Go.", "seed": 7}
needs_package = pytest.mark.skipif(
    not PYTHON, reason="RLHF_OPENENV_PYTHON names no interpreter that has openenv"
)


def served(capacity):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PYTHON, str(Path(__file__).with_name("openenv_counter.py")), str(port), str(capacity)]
    process = subprocess.Popen(command)
    try:
        ends = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None
            assert time.monotonic() < ends
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def url():
    yield from served(8)


def turns(*texts, pause_s=0.0):
    left = iter(texts)

    def write(_):
        time.sleep(pause_s)
        return next(left)

    return write


def played(url, folder, write, **options):
    kwargs = {"url": url, "action": "number", "observation": "text"}
    (found,) = play(USE, ROW, folder, kwargs=kwargs, write=write, **options)
    assert not [p for p in psutil.process_iter(["cmdline"]) if url in (p.info["cmdline"] or ())]
    return found


@needs_package
@pytest.mark.slow
def test_session_is_played_and_its_rewards_reach_the_turns(url, tmp_path):
    found = played(url, tmp_path, turns("1", "one", "2", "9", "3"))
    assert (found.stop, found.reward.value, found.error) == ("env_done", 3.0, "")
    assert [turn.reward for turn in found.turns if turn.finish] == [1, 0, 1, 0, 1]
    told = [turn.message.content for turn in found.turns if turn.message.role == "user"]
    assert told[0] == "at 1"
    assert told[1].startswith("that is no action: ")


@needs_package
@pytest.mark.slow
def test_session_outlives_a_model_that_thinks_longer_than_the_servers_pings(url, tmp_path):
    found = played(url, tmp_path, turns("1", "2", "3", pause_s=2.0))
    assert (found.stop, found.reward.value, found.error) == ("env_done", 3.0, "")


@needs_package
@pytest.mark.slow
def test_what_fails_in_the_server_is_an_error_and_a_hanging_step_ends(url, tmp_path):
    raised = played(url, tmp_path / "1", turns("1", "13"))
    assert (raised.stop, raised.reward.value) == ("env_error", None)
    assert "unlucky" in raised.error or "EXECUTION_ERROR" in raised.error
    hung = played(url, tmp_path / "2", turns("1", "60"), step_s=3.0)
    assert (hung.stop, hung.reward.value) == ("tool_timeout", 1.0)


@needs_package
@pytest.mark.slow
def test_full_server_and_none_are_named(tmp_path):
    for url in served(1):
        with (
            Episode(OpenEnv(url=url), ROW, tmp_path),
            pytest.raises(EpisodeError, match="CAPACITY_REACHED"),
            Episode(OpenEnv(url=url), ROW, tmp_path),
        ):
            pass
    gone = played("http://127.0.0.1:9", tmp_path / "2", turns("1"))
    assert gone.stop == "env_error"
    assert "Cannot connect" in gone.error


def test_url_that_is_none_is_named():
    with pytest.raises(ConfigError, match=r"kwargs\.url"):
        OpenEnv(url="localhost:8000")
