"""Tools in episodes' own processes, with a scripted model: hangs end the call and nothing else."""

import asyncio
import functools
import sys
import time
from pathlib import Path

import psutil
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
    """Writes the next text of the script, in any episode the one of its turn."""

    def __init__(self, chat, script):
        self._chat = chat
        self._script = script

    async def generate(self, request):
        text = self._chat.text(request.prompt_token_ids)
        said = self._script[text.count("<|im_start|>assistant") - 1]
        ids = (*self._chat._tokenizer.encode(said, add_special_tokens=False), self._chat.stop_token_ids[0])
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
    """Play a script in an environment of MODULE: the trajectory and its tools' messages."""
    (tmp_path / "boxes.py").write_text(MODULE)

    def run(name, script, **limits):
        async def episode():
            config = EnvironmentConfig(
                use=f"{tmp_path}/boxes.py:{name}", limits=EpisodeLimits(**limits), retries=0
            )
            host = EnvironmentHost(LoadEnvironment(use=config.use))
            await host.start()
            try:
                dialect = Dialect(chat=chat, parse=functools.partial(parse, syntax="hermes"))
                runner = EpisodeRunner(ScriptedEngine(chat, script), host, dialect=dialect, config=config)
                prompt = Prompt(id="p", messages=(Message(role="user", content="q"),))
                (found,) = await runner(prompt, seeds=[1], sampling=Sampling(max_tokens=1000))
                return found
            finally:
                await host.close()

        found = asyncio.run(episode())
        assert not [
            p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE
        ]
        return found, [turn.message for turn in found.turns if turn.message.role == "tool"]

    return run


HANGS = ["put_and_sleep", "spins", "locks", "swallows", "ignores", "waits_for_a_program", "dozes"]


@pytest.mark.parametrize("hang", HANGS)
def test_a_tool_that_hangs_is_told_and_the_episode_goes_on_from_before(play, hang):
    given = '{"item": "b"}' if hang == "put_and_sleep" else "{}"
    script = [
        asks(("put", '{"item": "a"}')),
        asks((hang, given), ("look", '{"seconds": 0.01}')),
        asks(("put", '{"item": "c"}')),
        "done",
    ]
    began = time.perf_counter()
    found, messages = play("tools", script, tool_s=0.5)
    assert time.perf_counter() - began < 20
    assert found.stop == "stop", found.error
    assert [m.content for m in messages] == [
        "a",
        f"TimeoutError: {hang} was stopped, it had not answered within 0.5 s",
        "seen",
        "a c",
    ]


def test_one_of_several_at_once_hangs_and_the_others_answer(play):
    quick = [("look", '{"seconds": 0}')] * 3
    script = [asks(*quick), asks(("look", '{"seconds": 60}'), *quick), "done"]
    found, messages = play("tools", script, tool_s=0.5)
    assert found.stop == "stop", found.error
    assert [m.failure for m in messages] == [None, None, None, "timeout", None, None, None]


def test_a_server_outlives_a_call_that_was_killed(play):
    script = [
        asks(("remember", '{"number": 1}')),
        asks(("put_and_sleep", '{"item": "b"}'), ("remember", '{"number": 2}')),
        asks(("sleeps", "{}")),
        asks(("remember", '{"number": 3}')),
        "done",
    ]
    found, messages = play("with_server", script, tool_s=1.5)
    assert found.stop == "stop", found.error
    assert [m.failure for m in messages] == [None, "timeout", None, "timeout", None]
    assert [m.content.partition(" ")[2] for m in messages if not m.is_error] == ["[1]", "[1, 2]", "[3]"]


def test_an_async_tool_that_blocks_its_loop_is_told_too(play):
    script = [asks(("put", '{"item": "a"}')), asks(("blocks", "{}")), asks(("put", '{"item": "b"}')), "done"]
    found, messages = play("tools", script, tool_s=0.5)
    assert found.stop == "stop", found.error
    assert [m.tool_call_id for m in messages] == ["call00001", "call00002", "call00003"]
    assert [m.failure for m in messages] == [None, "timeout", None]
    assert messages[2].content == "a b"
