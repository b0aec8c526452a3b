"""Programs beside an episode: answered, late, dead, and gone at the end."""

import os
import sys

import psutil
import pytest

from envs.adapters.process import AdapterProcess
from rlhf.errors import EpisodeError

ECHO = """
import json, os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
for line in sys.stdin:
    asked = json.loads(line)
    if asked.get("then") == "die":
        os._exit(3)
    if asked.get("then") == "hang":
        time.sleep(600)
    if asked.get("then") == "prattle":
        print("not JSON", flush=True)
    print(json.dumps({"id": 0, "late": "answer to another"}))
    print(json.dumps({"id": asked["id"], "group": os.getpgid(0), "said": asked.get("say")}), flush=True)
"""


@pytest.fixture
def program(tmp_path):
    opened = AdapterProcess([sys.executable, "-c", ECHO], folder=str(tmp_path))
    group = opened.ask({}, timeout_s=120)["group"]
    yield opened
    opened.close()
    assert not [p for p in psutil.pids() if psutil.pid_exists(p) and _group(p) == group]


def _group(pid):
    try:
        dead = psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        return None if dead else os.getpgid(pid)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None


def test_answers_belong_to_their_questions(program):
    for text in ("a", "x" * 500_000, "\n\x00"):
        assert program.ask({"say": text}, timeout_s=120)["said"] == text


@pytest.mark.parametrize(
    ("then", "says"), [("die", "gave no answer"), ("hang", "within 0.5 s"), ("prattle", "gave no answer")]
)
def test_program_without_an_answer_is_ended(program, then, says):
    with pytest.raises(EpisodeError, match=says):
        program.ask({"then": then}, timeout_s=0.5 if then == "hang" else 60)
    with pytest.raises(EpisodeError, match="gave no answer"):
        program.ask({}, timeout_s=60)


def test_program_that_is_none_is_named(tmp_path):
    with pytest.raises(EpisodeError, match="cannot be started"):
        AdapterProcess(["no-such-program"], folder=str(tmp_path))
