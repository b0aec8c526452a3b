import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from rlhf.config.environment import EpisodeLimits
from rlhf.episodes.mcp import MCP
from rlhf.episodes.tool_environment import ToolEnvironment
from rlhf.errors import ConfigError, EpisodeError
from tests.unit.episodes.episode_contexts import call, context_of, turn

SERVER = str(Path(__file__).with_name("mcp_server.py"))
COMMAND = [sys.executable, SERVER]


def servers():
    """Processes of the server, whoever has started them."""
    return [
        process.info["pid"]
        for process in psutil.process_iter(["pid", "cmdline", "status"])
        if SERVER in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def until(condition):
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


@contextlib.contextmanager
def playing(mcp, **limits):
    """An environment of a server that has started; `ask(name, ...)` is the message that answers one call."""
    environment = ToolEnvironment([mcp], score=None)
    context = context_of(**limits)
    environment.reset(context.prompt, context)

    def ask(*calls):
        numbered = [call(name, arguments, number=i) for i, (name, arguments) in enumerate(calls)]
        messages = environment.step(turn(*numbered), context).messages
        return messages[0] if len(messages) == 1 else messages

    try:
        yield environment, ask
    finally:
        environment.close()
        until(lambda: not servers())


def test_a_servers_tools_are_listed_called_and_end_with_the_episode():
    with playing(MCP(COMMAND, environment={"COLOUR": "blue"})) as (environment, ask):
        assert environment.tools[0].schema == {
            "type": "function",
            "function": {
                "name": "add",
                "description": "Add two numbers.",
                "parameters": {
                    "type": "object",
                    "properties": {"a": {"type": "integer"}, "b": {"type": "integer", "default": 2}},
                    "required": ["a"],
                },
            },
        }
        assert ask(("add", {"a": 1})).content == "3"
        assert ask(("add", {"a": "1", "b": 5})).content == "6"
        assert "'c': there is no such field" in ask(("add", {"a": 1, "c": 1})).content
        assert "'a' is a required property" in ask(("add", {})).content
        assert "'a': 'one' is not of type 'integer'" in ask(("add", {"a": "one"})).content
        assert [ask(("environment", {"name": name})).content for name in ("COLOUR", "PYTHONPATH")] == [
            "blue",
            "none",
        ]
        failed = ask(("raises", {}))
        assert (failed.failure, failed.content) == ("raised", "ToolError: Error executing tool raises")
        cut = ask(("large", {"size": 200_000})).content
        assert len(cut) <= 32_768
        assert cut.startswith("first")
        assert "bytes left out" in cut
        assert [m.content for m in ask(*[("meets", {"number": 8})] * 8)] == ["met"] * 8
        assert len(servers()) == 1


def remembers(ask, *, first_number):
    """What a server that is being started remembers when it first answers: each try may be given up."""
    for number in range(first_number, first_number + 30):
        if not (answer := ask(("remember", {"number": number}))).is_error:
            return set(json.loads(answer.content.partition(" ")[2]))
    raise AssertionError(answer)


@pytest.mark.slow
def test_a_hang_and_an_end_are_answers_and_the_server_is_started_again():
    with playing(MCP(COMMAND, allow=["sleeps", "remember", "ends", "naps"]), tool_s=3.0) as (
        environment,
        ask,
    ):
        assert [tool.name for tool in environment.tools] == ["sleeps", "remember", "ends", "naps"]
        first = ask(("remember", {"number": 1})).content
        assert first.endswith("[1]")
        assert ask(("remember", {"number": 2})).content.endswith("[1, 2]")
        began = time.perf_counter()
        hung, slow = ask(("sleeps", {}), ("naps", {"seconds": 0.2}))
        assert 2.9 < time.perf_counter() - began < 60
        assert (hung.failure, slow.content) == ("timeout", "rested")
        until(lambda: int(first.split()[0]) not in servers())
        remembered = remembers(ask, first_number=3)
        assert not remembered & {1, 2}
        assert "has forgotten what it knew" in ask(("ends", {})).content
        assert not remembers(ask, first_number=50) & (remembered | {1, 2})
        assert len(servers()) == 1


def test_a_call_given_up_while_the_server_starts_does_not_start_it_once_more():
    with playing(MCP(COMMAND), tool_s=30.0) as (environment, ask):
        ask(("ends", {}))
        context = context_of(tool_s=0.01)
        early = environment.step(turn(call("remember", {"number": 1})), context).messages[0]
        until(lambda: len(servers()) == 1)
        (first,) = servers()
        for number in range(20):
            if not (answer := ask(("remember", {"number": number}))).is_error:
                break
        assert early.failure == "timeout"
        assert answer.content.startswith(f"{first} ")


def test_servers_end_when_an_episode_is_killed_and_live_while_a_copy_of_it_does():
    """The process that started the server is killed, a fork of it goes on, as a checkpoint does."""
    read, write = os.pipe()
    go, wait = os.pipe()
    started = os.fork()
    if not started:
        os.close(read)
        environment = ToolEnvironment([MCP(COMMAND)], score=None)
        context = context_of()
        environment.reset(context.prompt, context)
        if os.fork():
            os.write(write, b"%d " % environment.step(turn(call("add", {"a": 1})), context).is_invalid)
            time.sleep(600)
        os.setpgid(0, 0)
        os.read(go, 1)
        answer = environment.step(turn(call("remember", {"number": 1})), context).messages[0].content
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    assert os.read(read, 10) == b"0 "
    os.kill(started, 9)
    os.waitpid(started, 0)
    (server,) = servers()
    os.write(wait, b"1")
    assert os.read(read, 100).decode() == f"{server} [1]"
    until(lambda: not servers())
    for descriptor in (read, go, wait):
        os.close(descriptor)


@pytest.fixture
def url():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*COMMAND, str(port)], stderr=subprocess.DEVNULL)

    def answers():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(answers)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        process.wait()


def test_a_server_that_runs_elsewhere_is_asked_by_its_url(url):
    environment = ToolEnvironment([MCP(url=url)], score=None)
    context = context_of(tool_s=3.0)
    environment.reset(context.prompt, context)
    names = ["add", "naps", "add"]
    arguments = [{"a": 1}, {"seconds": 600}, {"a": 2}]
    calls = [call(n, a, number=i) for i, (n, a) in enumerate(zip(names, arguments, strict=True))]
    messages = environment.step(turn(*calls), context).messages
    assert [(m.content, m.failure) for m in (messages[0], messages[2])] == [("3", None), ("4", None)]
    assert messages[1].failure == "timeout"
    assert environment.step(turn(call("add", {"a": 5})), context).messages[0].content == "7"
    environment.close()
    assert len(servers()) == 1


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: MCP(), ConfigError, "expected one of them"),
        (lambda: MCP(COMMAND, url="http://x"), ConfigError, "expected one of them"),
        (lambda: MCP("python server.py"), ConfigError, "a list such as"),
        (lambda: MCP(["no-such-program"]), ConfigError, "there is no program 'no-such-program'"),
        (
            lambda: MCP(COMMAND, allow=["add", "nope"]),
            ConfigError,
            r"allow names \['nope'\], but the tools of .* \['add'",
        ),
        (lambda: MCP([sys.executable, "-c", "exit(1)"]), EpisodeError, "cannot be reached: "),
        (lambda: MCP([sys.executable, "-c", "import time; time.sleep(600)"]), EpisodeError, "setup_s"),
        (lambda: MCP(url="http://127.0.0.1:1/mcp"), EpisodeError, "cannot be reached: "),
    ],
)
def test_a_server_that_cannot_be_had_is_named(make, error, says):
    setup_s = 1.0 if says == "setup_s" else 120.0
    with pytest.raises(error, match=says), playing(make(), setup_s=setup_s):
        pass


def test_a_bridge_that_dies_with_a_request_unread_is_said_to_have_ended(monkeypatch):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def die():
        connection = socket.socket(fileno=socket.recv_fds(theirs, 1, 1)[1][0])
        connection.recv(1, socket.MSG_PEEK)
        connection.close()

    monkeypatch.setattr("rlhf.episodes.mcp.start_bridge", lambda *_, **__: ours)
    bridge = threading.Thread(target=die)
    bridge.start()
    with theirs, pytest.raises(EpisodeError, match="has ended"):
        MCP(COMMAND).start(EpisodeLimits())
    bridge.join()
