"""Tools in episodes' own processes, with a scripted model: hangs end the call and nothing else."""

import asyncio
import functools
import json
import re
import sys
import time
from pathlib import Path

import pytest

from rlhf.config.environment import EnvironmentConfig, EpisodeLimits
from rlhf.episodes.chat import ChatRenderer
from rlhf.episodes.conversation import Dialect
from rlhf.episodes.host import EnvironmentHost
from rlhf.episodes.parsing import parse
from rlhf.episodes.render import Renderer
from rlhf.episodes.runner import EpisodeRunner
from rlhf.episodes.zygote import LoadEnvironment
from rlhf.types import Completion, Message, Prompt, Sampling
from tests.chat_tokenizers import FAMILIES, save_tokenizer
from tests.processes import leaves_none

SAMPLING = Sampling(max_tokens=1000)
SERVER = Path(__file__).with_name("mcp_server.py")
MODULE = f"""
import asyncio, signal, subprocess, threading, time
from rlhf.episodes.mcp import MCP
from rlhf.episodes.tool_environment import ToolEnvironment
from rlhf.episodes.tools import Tool

class Box:
    def __init__(self):
        self.items = []
    def put(self, item: str) -> str:
        self.items.append(item)
        return " ".join(self.items)
    def put_and_sleep(self, item: str) -> str:
        self.items.append(item)
        time.sleep(600)
        return ""
    def spins(self) -> str:
        while True:
            pass
    def locks(self) -> str:
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
        return ""
    def swallows(self) -> str:
        while True:
            try:
                time.sleep(600)
            except BaseException:
                pass
    def ignores(self) -> str:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(600)
        return ""
    def waits_for_a_program(self) -> str:
        return str(subprocess.run(["sleep", "600"]))
    async def dozes(self) -> str:
        await asyncio.sleep(600)
        return ""
    async def blocks(self) -> str:
        time.sleep(600)
        return ""

def look(seconds: float) -> str:
    time.sleep(seconds)
    return "seen"

def tools():
    return ToolEnvironment(
        [Box, Tool.from_function(look, read_only=True)], score=lambda context: float(len(context.messages))
    )

server = MCP([{sys.executable!r}, {str(SERVER)!r}])
with_server = ToolEnvironment([server, Box], score=lambda: 1.0)
"""


class ScriptedEngine:
    """Writes what the script of the asked prompt (`q0`, `q1`, ...) has for this turn."""

    def __init__(self, chat, scripts):
        self._chat = chat
        self._scripts = scripts

    async def generate(self, request):
        text = self._chat.text(request.prompt_token_ids)
        script = self._scripts[int(re.search(r"user\nq(\d+)", text)[1])]
        said = script[text.count("<|im_start|>assistant") - 1]
        ids = (*self._chat.tokenizer.encode(said, add_special_tokens=False), self._chat.stop_token_ids[0])
        return [
            Completion(
                token_ids=ids, logprobs=(0.0,) * len(ids), versions=(0,) * len(ids), finish_reason="stop"
            )
            for _ in request.seeds
        ]


def asks(*calls):
    return "\n".join(f'<tool_call>\n{{"name": "{n}", "arguments": {a}}}\n</tool_call>' for n, a in calls)


@pytest.fixture
def chat(tmp_path):
    return ChatRenderer(Renderer(model_folder=str(save_tokenizer(tmp_path / "model", FAMILIES["qwen2.5"]))))


@pytest.fixture
def play(chat, tmp_path):
    """Play scripts at the same time in an environment of MODULE: of each the trajectory and its tools' messages."""
    (tmp_path / "boxes.py").write_text(MODULE)

    def run(name, *scripts, stop="stop", **limits):
        async def episodes():
            config = EnvironmentConfig(
                use=f"{tmp_path}/boxes.py:{name}", limits=EpisodeLimits(**limits), retries=0
            )
            host = EnvironmentHost(LoadEnvironment(use=config.use))
            await host.start()
            try:
                dialect = Dialect(chat=chat, parse=functools.partial(parse, syntax="hermes"))
                runner = EpisodeRunner(ScriptedEngine(chat, scripts), host, dialect=dialect, config=config)
                return await asyncio.gather(
                    *(runner(question(n), seeds=[1], sampling=SAMPLING) for n in range(len(scripts)))
                )
            finally:
                await host.close()

        with leaves_none():
            found = [trajectory for (trajectory,) in asyncio.run(episodes())]
        assert [t.stop for t in found] == [stop] * len(scripts), [t.error for t in found]
        assert all(t.reward.value > 0 for t in found)
        return [[turn.message for turn in t.turns if turn.message.role == "tool"] for t in found]

    return run


def question(number):
    return Prompt(id=f"p{number}", messages=(Message(role="user", content=f"q{number}"),))


HANGS = ["put_and_sleep", "spins", "locks", "swallows", "ignores", "waits_for_a_program", "dozes"]


def test_tools_that_hang_are_told_and_episodes_go_on_from_before(play):
    scripts = [
        [
            asks(("put", '{"item": "a"}')),
            asks((hang, '{"item": "b"}' if hang == "put_and_sleep" else "{}"), ("look", '{"seconds": 0.01}')),
            asks(("put", '{"item": "c"}')),
            "done",
        ]
        for hang in HANGS
    ]
    began = time.perf_counter()
    found = play("tools", *scripts, tool_s=4.0)
    assert time.perf_counter() - began < 200
    assert [[m.content for m in messages] for messages in found] == [
        ["a", f"TimeoutError: {hang} was stopped, it had not answered within 4 s", "seen", "a c"]
        for hang in HANGS
    ]


def test_second_call_of_a_turn_that_hangs_ends_the_episode_with_the_score_of_before(play):
    script = [
        asks(("put", '{"item": "a"}')),
        asks(("spins", "{}"), ("swallows", "{}"), ("look", '{"seconds": 0}')),
    ]
    (told,) = play("tools", script, stop="tool_timeout", tool_s=2.5)
    assert [m.content for m in told] == ["a"]


def test_some_of_several_at_once_hang_and_the_others_answer(play):
    quick = [("look", '{"seconds": 0}')] * 3
    threads = [asks(*quick), asks(("look", '{"seconds": 600}'), *quick), "done"]
    # It blocks the loop of its step: the process is killed, though async tools are otherwise given up without.
    loop = [asks(("put", '{"item": "a"}')), asks(("blocks", "{}")), asks(("put", '{"item": "b"}')), "done"]
    of_threads, of_loop = play("tools", threads, loop, tool_s=3.0)
    assert [m.failure for m in of_threads] == [None, None, None, "timeout", None, None, None]
    assert [(m.tool_call_id, m.failure) for m in of_loop] == [
        ("call00001", None),
        ("call00002", "timeout"),
        ("call00003", None),
    ]
    assert of_loop[2].content == "a b"


@pytest.mark.slow
def test_a_server_outlives_a_call_that_was_killed(play):
    script = [
        asks(("remember", '{"number": 1}')),
        asks(("put_and_sleep", '{"item": "b"}'), ("remember", '{"number": 2}')),
        asks(("sleeps", "{}")),
        # It is being started anew: the first ones may come too soon.
        *(asks(("remember", f'{{"number": {number}}}')) for number in range(3, 9)),
        "done",
    ]
    (messages,) = play("with_server", script, tool_s=4.0)
    assert [m.failure for m in messages[:4]] == [None, "timeout", None, "timeout"]
    assert [messages[i].content.partition(" ")[2] for i in (0, 2)] == ["[1]", "[1, 2]"]
    assert messages[-1].failure is None
    assert set(json.loads(messages[-1].content.partition(" ")[2])) <= set(range(3, 9))
