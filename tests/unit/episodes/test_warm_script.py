"""A script in a fork is the program that it would be by itself."""

import asyncio
import json
import os
import signal
import sys
import time

import psutil
import pytest

from rlhf.episodes.program import clean_environment, run_program
from rlhf.episodes.warm_script import WarmScript
from rlhf.errors import ConfigError, EpisodeError


def run(folder, code, *, limit_s=120.0, **options):
    path = folder / "agent.py"
    path.write_text(code)
    folder = folder / "episode"
    folder.mkdir()
    environment = clean_environment(str(folder)) | {"GIVEN": "1"}
    work = run_program(
        WarmScript(path, **options), folder=str(folder), environment=environment, limit_s=limit_s
    )
    return asyncio.run(work)


SEEN = """
import asyncio, json, os, sys, threading
import beside

class Plain:
    pass

async def main():
    await asyncio.sleep(0)
    return "looped"

def after_all():
    threading.main_thread().join()
    print("and a thread's")

threading.Thread(target=after_all).start()
print(json.dumps([__name__, sys.argv, dict(os.environ), os.getcwd(), asyncio.run(main()), beside.VALUE,
                  Plain.__module__, len(os.listdir("/proc/self/fd")), os.getpgid(0) == os.getpid(),
                  sys.stdin.read()]))
"""


def test_script_sees_what_it_would_see_as_a_command(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_RUN", "x")
    (tmp_path / "beside.py").write_text("VALUE = 7")
    before = list(sys.path), list(sys.argv), os.getcwd()
    finished = run(tmp_path, SEEN, imports=("fractions",), arguments=["--fast"])
    assert (finished.exit_code, finished.stderr) == (0, "")
    seen, late = finished.stdout.splitlines()
    name, argv, environment, folder, looped, value, module, num_files, is_group, typed = json.loads(seen)
    assert (name, module, looped, value, is_group, typed) == ("__main__", "__main__", "looped", 7, True, "")
    assert argv == [str(tmp_path / "agent.py"), "--fast"]
    assert set(environment) == {"PATH", "HOME", "TMPDIR", "LANG", "GIVEN"}
    assert folder == str(tmp_path / "episode")
    # The three streams, and the folder that is being listed.
    assert num_files == 4
    assert late == "and a thread's"
    assert (sys.path, sys.argv, os.getcwd()) == before
    assert "beside" not in sys.modules


@pytest.mark.parametrize(
    ("code", "exit_code", "told"),
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('why')", 1, "why\n"),
        ("raise ValueError('boom')", 1, "ValueError: boom\n"),
        ("import os; os.abort()", -signal.SIGABRT, ""),
        ("import os; os._exit(7)", 7, ""),
    ],
)
def test_exit_code_and_traceback_are_those_of_a_command(tmp_path, code, exit_code, told):
    finished = run(tmp_path, code)
    assert finished.exit_code == exit_code
    assert finished.stderr.endswith(told)


def test_script_is_killed_with_its_children_at_the_deadline(tmp_path):
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(os.getpid(), child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    finished = run(tmp_path, code, limit_s=3.0)
    assert finished.exit_code is None
    left, ends = [int(pid) for pid in finished.stdout.split()], time.monotonic() + 60
    assert len(left) == 2
    while any(map(_is_alive, left)) and time.monotonic() < ends:
        time.sleep(0.02)
    assert not any(map(_is_alive, left))


def test_script_that_cannot_be_forked_fails_its_episode(tmp_path):
    class Unforkable(WarmScript):
        def start(self, *_):
            raise BlockingIOError("no more processes")

    path = tmp_path / "agent.py"
    path.write_text("")
    with pytest.raises(EpisodeError, match=r"agent\.py.*cannot be started.*no more processes"):
        asyncio.run(run_program(Unforkable(path), folder=str(tmp_path), environment={}, limit_s=1.0))


def _is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_script_or_import_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"script: .*no\.py"):
        WarmScript(tmp_path / "no.py")
    with pytest.raises(ConfigError, match="imports: 'no_such_module'"):
        WarmScript(tmp_path.joinpath(__file__), imports=("no_such_module",))
