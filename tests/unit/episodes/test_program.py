"""Programs as environments: a real script with the real client, and programs that end badly."""

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from rlhf.config.environment import EpisodeLimits
from rlhf.episodes.context import EpisodeContext, Start
from rlhf.episodes.conversation import Conversation
from rlhf.episodes.endpoint import RolloutServer
from rlhf.episodes.ledger import TokenLedger
from rlhf.episodes.program import (
    Endpoint,
    Finished,
    ProgramEnvironment,
    clean_environment,
    run_program,
    task_of,
)
from rlhf.errors import ConfigError, EpisodeError
from rlhf.types import Message, Prompt
from tests.endpoints import CALLS, TextEngine, make_dialect, make_policy, timeless

AGENT = Path(__file__).parents[2] / "openai_agent.py"
NOWHERE = Endpoint(base_url="http://127.0.0.1:9/v1", api_key="k")
PROMPT = Prompt(
    id="row 7",
    messages=(Message(role="user", content="What is 40 + 2?"),),
    reference="42",
    columns={"level": 3, "answer": "42"},
)


class NoLink:
    """Nobody keeps the deadlines."""

    def enter(self, phase, name, limit_s): ...

    def leave(self, phase): ...

    def checkpoint(self):
        return frozenset()


def make_context(folder, *, episode_s=120.0):
    start = Start(episode_id="e", prompt=PROMPT, seed=0, limits=EpisodeLimits(episode_s=episode_s))
    return EpisodeContext(start, folder=str(folder), link=NoLink())


def nothing(context):
    return 0.0


def run(code, folder, *, limit_s=120.0, **environment):
    command = [sys.executable, "-c", code]
    told = {**clean_environment(str(folder)), **environment}
    return asyncio.run(run_program(command, folder=str(folder), environment=told, limit_s=limit_s))


def reads_answer(context):
    text = Path(context.folder, "answer.txt").read_text()
    return {"score": float(context.prompt.reference in text), "ended": float(context.state.exit_code == 0)}


def test_plain_openai_script_is_played_as_it_is_and_its_record_is_the_native_one(tmp_path):
    """25 lines that import nothing of ours, run as a program; the same conversation through Conversation."""
    pytest.importorskip("openai")
    dialect = make_dialect(tmp_path / "model", "qwen3")
    engine = TextEngine(
        dialect, lambda prompt: "It is 42." if "42\n</tool_response>" in prompt else f"Hm. {CALLS['hermes']}"
    )
    environment = ProgramEnvironment(
        ["python", "agent.py"], score=reads_answer, files={"agent.py": AGENT}, columns=["level"]
    )
    folder = tmp_path / "episode"
    folder.mkdir()

    async def served():
        context = make_context(folder)
        async with RolloutServer(dialect) as server, server.episode(make_policy(engine, dialect)) as session:
            endpoint = Endpoint(base_url=session.base_url, api_key=session.api_key)
            finished = await environment.play(endpoint, context)
        assert finished.exit_code == 0, finished.stderr
        assert environment.score(context) == {"score": 1.0, "ended": 1.0}
        return session.finish()

    async def native():
        ledger = TokenLedger()
        shown = json.loads(json.dumps(_tool_of_the_script()))
        conversation = Conversation(dialect, make_policy(engine, dialect), ledger, tools=[shown])
        message = await conversation.sample(*PROMPT.messages)
        (call,) = message.tool_calls
        await conversation.sample(Message(role="tool", content="42", tool_call_id=call.id, name="add"))
        return ledger.finish()

    assert timeless(asyncio.run(served())) == timeless(asyncio.run(native()))
    task = json.loads((folder / "task.json").read_text())
    assert task == {
        "id": "row 7",
        "messages": [{"role": "user", "content": "What is 40 + 2?"}],
        "columns": {"level": 3},
    }


def _tool_of_the_script():
    text = AGENT.read_text()
    return eval(text[text.index("TOOL = ") + 7 : text.index("client = ")])


def test_program_sees_nothing_of_our_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_RUN", "x")
    finished = run("import os, json; print(json.dumps([dict(os.environ), os.getcwd()]))", tmp_path, GIVEN="1")
    environment, folder = json.loads(finished.stdout)
    assert set(environment) - {"LC_CTYPE"} == {"PATH", "HOME", "TMPDIR", "LANG", "GIVEN"}
    assert Path(folder) == tmp_path


def test_tails_are_bounded_and_the_exit_code_is_told(tmp_path):
    code = (
        "import sys; [print('x' * 1000) for _ in range(20_000)]; print('end'); print('why', file=sys.stderr); "
        "sys.exit(3)"
    )
    finished = run(code, tmp_path)
    assert finished.exit_code == 3
    assert len(finished.stdout) <= 16_384
    assert finished.stdout.endswith("x\nend\n")
    assert finished.stderr == "why\n"


TREE = """
import os, subprocess, sys, time
for _ in range(3):
    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
print(os.getpgid(0), flush=True)
{then}
"""


@pytest.mark.parametrize(("then", "exit_code"), [("time.sleep(600)", None), ("", 0), ("os._exit(7)", 7)])
def test_whole_group_is_gone_at_the_end_or_the_deadline(tmp_path, then, exit_code):
    began = time.monotonic()
    finished = run(TREE.format(then=then), tmp_path, limit_s=4.0 if exit_code is None else 120.0)
    assert finished.exit_code == exit_code
    assert time.monotonic() - began < 100.0
    group = int(finished.stdout)
    # Killed is not yet dead.
    while (
        left := [p for p in psutil.process_iter() if _is_of(p.pid, group)]
    ) and time.monotonic() < began + 200:
        time.sleep(0.02)
    assert not left
    assert group != os.getpgid(0)


def _is_of(pid, group):
    try:
        return os.getpgid(pid) == group and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def test_one_that_has_left_the_group_does_not_hold_the_end_up(tmp_path):
    code = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], "
        "start_new_session=True); print(p.pid)"
    )
    finished = run(code, tmp_path)
    os.kill(int(finished.stdout), 9)
    assert finished.exit_code == 0
    assert finished.seconds < 100.0


def test_cancelled_program_is_killed(tmp_path):
    async def main():
        command = [
            sys.executable,
            "-c",
            "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)",
        ]
        task = asyncio.create_task(
            run_program(
                command, folder=str(tmp_path), environment=clean_environment(str(tmp_path)), limit_s=60
            )
        )
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_program_that_cannot_be_started_is_the_environments_fault(tmp_path):
    environment = ProgramEnvironment(["no-such-program"], score=nothing)
    with pytest.raises(EpisodeError, match="no-such-program"):
        asyncio.run(environment.play(NOWHERE, make_context(tmp_path)))


def test_reference_is_told_only_where_it_is_named(tmp_path):
    task = task_of(PROMPT, ["reference", "level"])
    assert task["columns"] == {"reference": "42", "level": 3}
    assert "42" not in json.dumps(task_of(PROMPT, ["level"])["columns"])


def test_column_that_the_row_lacks_is_named(tmp_path):
    environment = ProgramEnvironment(["true"], score=nothing, columns=["difficulty"])
    with pytest.raises(EpisodeError, match=r"difficulty.*\['answer', 'level'\]"):
        asyncio.run(environment.play(NOWHERE, make_context(tmp_path)))


@pytest.mark.parametrize(
    "files", [{"../x": ""}, {"/etc/x": ""}, {"x": Path("relative.py")}, {"x": Path("/no/file")}]
)
def test_files_outside_the_folder_or_missing_are_refused(files):
    with pytest.raises(ConfigError, match="files"):
        ProgramEnvironment(["true"], score=nothing, files=files)


async def returns(prompt, endpoint):
    return prompt.id, endpoint.api_key


async def raises(prompt, endpoint):
    raise ValueError("episode_limit")


async def hangs(prompt, endpoint):
    await asyncio.sleep(600)


@pytest.mark.parametrize(
    ("function", "exit_code", "value", "told"),
    [
        (returns, 0, ("row 7", "k"), ""),
        (raises, 1, None, "ValueError: episode_limit\n"),
        (hangs, None, None, ""),
    ],
)
def test_async_function_is_a_program_too(tmp_path, function, exit_code, value, told):
    environment = ProgramEnvironment(function, score=lambda context: float(context.state.exit_code == 0))
    context = make_context(tmp_path, episode_s=1.3 if function is hangs else 120.0)
    finished = asyncio.run(environment.play(NOWHERE, context))
    assert isinstance(finished, Finished)
    assert (finished.exit_code, finished.value) == (exit_code, value)
    assert finished.stderr.endswith(told)
    assert environment.score(context) == float(exit_code == 0)
