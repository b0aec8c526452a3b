"""Environments that break what can be broken: each ends as its row says, and beside them nobody notices."""

import asyncio
import functools
import os
import signal
from pathlib import Path

import psutil
import pytest

from rlhf.config.environment import EnvironmentConfig, EpisodeLimits
from rlhf.episodes.conversation import Dialect
from rlhf.episodes.host import EnvironmentHost
from rlhf.episodes.ledger import check_record
from rlhf.episodes.parsing import parse
from rlhf.episodes.runner import EpisodeRunner
from rlhf.episodes.zygote import LoadEnvironment
from rlhf.errors import LoadError
from rlhf.types import Completion, Message, Prompt, Sampling
from tests.processes import leaves_none

SLEEP = f"4243.{os.getpid()}"
"""Seconds, by which the processes of this run are known."""
MODULE = """
import os, shutil, signal, socket, subprocess, sys, threading, time
from rlhf.types import Message, Step

def line():
    return next(n for n in range(3, 64) if os.path.exists(f"/proc/self/fd/{n}")
                and os.readlink(f"/proc/self/fd/{n}").startswith("socket"))

def children(setsid):
    for _ in range(3):
        if os.fork() == 0:
            setsid and os.setsid()
            os.fork()
            os.execvp("sleep", ["sleep", "4243"])

def for_ever(do):
    kept = []
    while True:
        kept.append(do())

def handlers():
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)

def threads():
    for _ in range(20):
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()

def elsewhere(context):
    os.chdir("/")
    shutil.rmtree(context.folder)

def no_file_any_more(context):
    os.unlink(f"{context.folder}.output")
    os.mkdir(f"{context.folder}.output")

def says(content):
    return lambda context: [Message(role="user", content=content)]

def writes(data):
    return lambda context: os.write(line(), data)

def asks(data):
    return writes(b'{"do": "sample", "thread": 0, ' + data + b'}\\n')

WAYS = {
    "nothing": lambda context: None,
    "hangs": lambda context: time.sleep(600),
    "memory": lambda context: for_ever(lambda: bytearray(1 << 24)),
    "output": lambda context: for_ever(lambda: print("x" * 65536)),
    "files": lambda context: for_ever(lambda: open("/dev/null")),
    "threads": lambda context: threads(),
    "threads without end": lambda context: for_ever(
        lambda: threading.Thread(target=time.sleep, args=(600,), daemon=True).start()),
    "children": lambda context: children(False),
    "children of their own": lambda context: children(True),
    "exit": lambda context: os._exit(0),
    "abort": lambda context: os.abort(),
    "recursion": lambda context: WAYS["recursion"](context),
    "closes its output": lambda context: os.closerange(0, 3),
    "closes everything": lambda context: os.closerange(0, 4096),
    "handlers": lambda context: handlers(),
    "elsewhere": elsewhere,
    "its output is a folder": no_file_any_more,
    "junk": writes(b"junk\\n"),
    "half a message": writes(b'{"do":'),
    "a number": writes(b"5\\n"),
    "brackets": writes(b"[" * 100_000 + b"\\n"),
    "half a request": writes(b'{"do": "sample"}\\n'),
    "a score of its own": writes(b'{"do": "done", "stop": "stop", "score": {"score": "x"}, "scalars": {}}\\n'),
    "a score beyond all": writes(b'{"do": "done", "stop": "stop", "score": {"score": 1e999}, "scalars": {}}\\n'),
    "a reward of nan": writes(b'{"do": "reward", "value": NaN}\\n'),
    "no tokens": asks(b'"messages": [], "max_tokens": 0'),
    "tokens as text": asks(b'"messages": [], "max_tokens": "100"'),
    "seconds of nothing": asks(b'"messages": [], "seconds": [0.1]'),
    "seconds as text": lambda context: Step(messages=says("a")(context), seconds=("0.1",)),
    "too few seconds": lambda context: Step(messages=says("a")(context) * 2, seconds=(0.1,)),
    "tools that are none": asks(b'"messages": [], "tools": 5'),
    "tools without a name": asks(b'"messages": [], "tools": [{"function": {}}]'),
    "another history while it is asked": asks(
        b'"messages": []}\\n{"do": "rewrite", "id": 1, "thread": 0, "messages": []'),
    "a process that cannot be": writes(b'{"do": "restored", "pid": 1000000000000000000000}\\n'),
    "no such request": writes(b'{"do": ["x"]}\\n'),
    "no such conversation": writes(b'{"do": "fork", "id": 0, "thread": 7}\\n'),
    "a number as message": says(5),
    "surrogates": says("\\ud800"),
    "a long message": says("x" * 4_000_000),
    "a huge message": says("x" * 20_000_000),
}

class Acts:
    def reset(self, prompt, context):
        self.way, self.turns = prompt.columns["way"], 0
    def step(self, action, context):
        self.turns += 1
        if self.turns == 3:
            return Step(terminated=True)
        found = WAYS[self.way](context) if self.turns == 2 else None
        if isinstance(found, Step):
            return found
        return Step(messages=found if isinstance(found, list) else [Message(role="user", content="more")])
    def score(self, context):
        return 1.0

class KillsParent(Acts):
    def step(self, action, context):
        mark = f"{context.prompt.columns['marks']}/killed"
        if not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)
        return super().step(action, context)
"""
FINE, FAILED = ("env_done", 1.0), ("env_error", None)
WAYS = {
    "nothing": FINE,
    "memory": FAILED,
    "output": FAILED,
    "files": FAILED,
    "threads": FINE,
    "threads without end": FAILED,
    "children": FINE,
    "children of their own": FINE,
    "exit": FAILED,
    "abort": FAILED,
    "recursion": FAILED,
    "closes its output": FINE,
    "closes everything": FAILED,
    "handlers": FINE,
    "elsewhere": FINE,
    "its output is a folder": FINE,
    "junk": FAILED,
    "half a message": FAILED,
    "a number": FAILED,
    "brackets": FAILED,
    "half a request": FAILED,
    "a score of its own": FAILED,
    "a score beyond all": FAILED,
    "a reward of nan": FAILED,
    "no tokens": FAILED,
    "tokens as text": FAILED,
    "seconds of nothing": FAILED,
    "seconds as text": FAILED,
    "too few seconds": FAILED,
    "tools that are none": FAILED,
    "tools without a name": FAILED,
    "another history while it is asked": FAILED,
    "a process that cannot be": FAILED,
    "no such request": FAILED,
    "no such conversation": FAILED,
    "a number as message": FAILED,
    "surrogates": FINE,
    "a long message": ("max_tokens", 1.0),
    "a huge message": FAILED,
}
LIMITS = EpisodeLimits(step_s=120, episode_s=400, memory_mb=256, disk_mb=1, max_tokens=2000)


class SaysOk:
    def __init__(self, chat):
        self._ids = (*chat.tokenizer.encode("ok", add_special_tokens=False), chat.stop_token_ids[0])

    async def generate(self, request):
        # What is said meanwhile is heard before the answer.
        await asyncio.sleep(0.02)
        count = len(self._ids)
        return [
            Completion(
                token_ids=self._ids, logprobs=(-1.0,) * count, versions=(0,) * count, finish_reason="stop"
            )
        ] * len(request.seeds)


@pytest.fixture
def stage(chat_of, tmp_path):
    """name -> a host of MODULE's environment, and a function that plays it."""
    (tmp_path / "hostile.py").write_text(MODULE.replace("4243", SLEEP))
    chat = chat_of("qwen3")

    def make(name, retries=0):
        host = EnvironmentHost(LoadEnvironment(use=f"hostile:{name}", code_dir=str(tmp_path)))
        config = EnvironmentConfig(use="hostile", limits=LIMITS, retries=retries)
        dialect = Dialect(chat=chat, parse=functools.partial(parse, syntax="hermes"))
        runner = EpisodeRunner(SaysOk(chat), host, dialect=dialect, config=config)

        async def play(way, samples=1):
            columns = {"way": way, "marks": str(tmp_path)}
            prompt = Prompt(id=way, messages=(Message(role="user", content="q"),), columns=columns)
            return await runner(prompt, seeds=range(samples), sampling=Sampling(max_tokens=50))

        return host, play

    return make


def leftovers():
    left = [p for p in psutil.process_iter(["cmdline"]) if SLEEP in (p.info["cmdline"] or ())]
    return [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(autouse=True)
def _left_behind():
    with leaves_none():
        yield


def test_every_way_ends_as_its_row_says_and_neighbours_do_not_notice(stage):
    host, play = stage("Acts")

    async def episodes():
        await host.start()
        try:
            rows = asyncio.gather(*(play(way) for way in WAYS))
            return await asyncio.gather(rows, play("nothing", samples=20))
        finally:
            await host.close()

    rows, neighbours = asyncio.run(episodes())
    for (way, row), (trajectory,) in zip(WAYS.items(), rows, strict=True):
        check_record(trajectory)
        assert (trajectory.stop, trajectory.reward.value) == row, (way, trajectory.error)
        assert (trajectory.error != "") == (row == FAILED), way
    assert {(t.stop, t.reward.value) for t in neighbours} == {FINE}
    assert not leftovers()


def test_neighbours_end_while_others_hang_and_those_that_nobody_waits_for_end_at_once(stage):
    host, play = stage("Acts")

    async def episodes():
        await host.start()
        try:
            hanging = asyncio.create_task(play("hangs", samples=8))
            await asyncio.sleep(0.3)
            neighbours = await play("nothing", samples=24)
            assert not hanging.done()
            before = asyncio.all_tasks()
            hanging.cancel()
            await asyncio.wait([hanging])
            assert hanging.cancelled()
            assert not before & asyncio.all_tasks() - {asyncio.current_task()}
            return neighbours
        finally:
            await host.close()

    assert {(t.stop, t.reward.value) for t in asyncio.run(episodes())} == {FINE}
    assert not leftovers()


def test_an_episode_that_is_never_begun_ends_alone(stage):
    host, play = stage("Acts")

    async def episodes():
        await host.start()
        try:
            others = asyncio.create_task(play("nothing", samples=8))
            for _ in range(3):
                process = await host.open()
                # Its process wakes to a socket that nobody holds.
                process._writer.close()
                await asyncio.sleep(0.02)
            return await others, await play("nothing", samples=8)
        finally:
            await host.close()

    for group in asyncio.run(episodes()):
        assert {(t.stop, t.reward.value) for t in group} == {FINE}
    assert not leftovers()


@pytest.mark.parametrize("who", ["environment", "keeper"])
def test_episodes_go_on_in_a_new_process_when_their_environments_is_killed(stage, who, caplog):
    host, play = stage("KillsParent" if who == "environment" else "Acts", retries=2)

    async def episodes():
        await host.start()
        folder = Path(host._folder)
        try:
            if who == "keeper":
                os.kill(host._process.pid, signal.SIGKILL)
            found = await play("children of their own", samples=4)
        finally:
            await host.close()
        # With its keeper killed, nobody waits for the other one's end.
        for _ in range(6000):
            if not folder.exists():
                return found
            await asyncio.sleep(0.01)
        raise AssertionError(f"{folder} is left")

    found = asyncio.run(episodes())
    assert {(t.stop, t.reward.value) for t in found} == {FINE}, [t.error for t in found]
    if who == "environment":
        assert "ended by SIGKILL" in caplog.text
        assert "is started anew" in caplog.text
    assert not leftovers()


def test_a_start_that_hangs_ends_at_its_deadline_by_name(tmp_path):
    (tmp_path / "slow.py").write_text("import time\nprint('so slow', flush=True)\ntime.sleep(600)")
    host = EnvironmentHost(LoadEnvironment(use="slow:Env", code_dir=str(tmp_path), start_s=5.0))
    with pytest.raises(LoadError, match=r"'slow:Env' was still loading it after .* = 5 s: so slow"):
        asyncio.run(host.start())
    assert not leftovers()


def test_a_module_that_ends_its_process_leaves_nothing(tmp_path):
    (tmp_path / "ends.py").write_text(
        f"import os, subprocess\nsubprocess.Popen(['sleep', '{SLEEP}'], start_new_session=True)\nos._exit(3)"
    )
    (temp_dir := tmp_path / "temporary").mkdir()
    host = EnvironmentHost(LoadEnvironment(use="ends:Env", code_dir=str(tmp_path)), temp_dir=str(temp_dir))
    with pytest.raises(LoadError, match="'ends:Env' ended while it was loaded"):
        asyncio.run(host.start())
    assert not leftovers()
    assert not list(temp_dir.iterdir())
