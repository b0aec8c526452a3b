"""`rlhf play`, typed by a person at a terminal and by a program through a pipe."""

import contextlib
import os
import pty
import select
import sys
import time

import psutil
import pytest

from tests.cli.command import ROOT, rlhf

GUESS = "recipes/cpu/guess_number.yaml"
TOOLS = "recipes/cpu/two_tools.yaml"


@pytest.mark.slow
def test_play_shows_turns_limits_masks_and_the_parts_of_the_reward():
    played = rlhf("play", GUESS, "--row", "1", typed="5ü\nfive\\\n!\n7\n6\n5\n4\n3\n2\n1\n")
    assert played.returncode == 0, played.stderr
    shown = played.stdout
    assert "envs.guess_number:GuessNumber, row 1 (1-1)" in shown
    assert "user: 1-9\nturn 1 of 8, context 6 of 128 tokens, at most 4 in this turn\n> 5ü\n" in shown
    assert "no token for what follows '5'. Type it again." in shown
    assert "> five\\\n. !\ncut after 4 tokens" in shown
    assert "«five»" in shown
    assert "length (a limit: graded as it stands)" in shown
    assert "logged guesses" in shown
    assert "reference" in shown


@pytest.mark.slow
def test_play_shows_tools_how_to_call_them_and_how_a_call_was_read():
    typed = '[get(name="e")]\n[get(name="e")\n9\n'
    played = rlhf("play", TOOLS, typed=typed)
    assert played.returncode == 0, played.stderr
    shown = played.stdout
    assert "tool get(name: string)  The number of a name.\n" in shown
    assert 'a call is written so: [get(name="...")]\n' in shown
    assert "read as a call: get(name='e')\ntool get: 3\nturn 2 of 6, call 1 of 128" in shown
    assert "read as a call: invalid_json in" in shown
    assert 'A«[get(name="e")<eos>»TError' in shown
    assert "stop (the episode came to its end)" in shown
    assert "reward              │ 1 " in shown


@pytest.mark.slow
def test_end_of_the_input_ends_the_episode_and_shows_what_was_played():
    played = rlhf("play", GUESS, typed="5\n")
    assert played.returncode == 0, played.stderr
    assert "cancelled (you ended it)" in played.stdout
    assert "A«5<eos>»U" in played.stdout
    assert "not gradable" in played.stdout


@pytest.mark.slow
def test_question_without_an_environment_can_be_played():
    played = rlhf("play", "recipes/cpu/quickstart.yaml", typed="1")
    assert played.returncode == 0, played.stderr
    assert "at most 40 tokens\n> 1\n" in played.stdout
    assert "«1<eos>»" in played.stdout
    assert "reference" in played.stdout


def test_row_that_is_no_place_is_refused():
    refused = rlhf("play", GUESS, "--row", "-1")
    assert refused.returncode == 2
    assert "'-1' is not a number from 0 on" in refused.stderr


@pytest.mark.slow
def test_interrupt_at_a_terminal_ends_play_at_once_and_leaves_no_process():
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "rlhf.cli", "play", GUESS])
    playing = psutil.Process(pid)
    try:
        read_until(terminal, "> ")
        os.write(terminal, b"5\n")
        shown = read_until(terminal, "turn 2 of 8")
        children = playing.children(recursive=True)
        os.write(terminal, b"\x03")
        shown += read_until(terminal, "interrupted")
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(terminal)
        with contextlib.suppress(psutil.NoSuchProcess):
            playing.kill()
    assert os.waitstatus_to_exitcode(status) == 130
    assert children
    assert not psutil.wait_procs(children, timeout=60)[1]
    assert "Traceback" not in shown
    assert "resumes" not in shown


def read_until(terminal: int, sought: str, *, limit_s: float = 300) -> str:
    """What the terminal shows up to and with a text."""
    shown = b""
    deadline = time.monotonic() + limit_s
    while sought.encode() not in shown:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"{sought!r} was not shown: {shown.decode()}"
        shown += os.read(terminal, 4096)
    return shown.decode()
