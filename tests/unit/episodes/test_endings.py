"""Every ending has its row: environments that fail in each way, in real processes, with a scripted model."""

import asyncio
import functools
import re
import time
from pathlib import Path

import psutil
import pytest

from rlhf.config.environment import EnvironmentConfig, EpisodeLimits
from rlhf.episodes.chat import ChatRenderer
from rlhf.episodes.conversation import Dialect
from rlhf.episodes.host import EnvironmentHost
from rlhf.episodes.ledger import check_record
from rlhf.episodes.parsing import parse
from rlhf.episodes.render import Renderer
from rlhf.episodes.runner import EpisodeRunner
from rlhf.episodes.zygote import LoadEnvironment
from rlhf.types import Completion, Message, Prompt, Sampling
from tests.chat_tokenizers import FAMILIES, save_tokenizer
from tests.unit.episodes.failing_environments import MODULE, SLEEP

ROOT = Path(__file__).parents[3]
LIMITS = {"max_turns": 4, "step_s": 60, "setup_s": 60, "score_s": 60, "tool_s": 60, "episode_s": 120}
SHORT = {
    "HangsInReset": {"setup_s": 0.5},
    "HangsInStep": {"step_s": 2, "tool_s": 2},
    "HangsInStepWithThreads": {"step_s": 2, "tool_s": 2},
    "HangsInScore": {"score_s": 0.5},
    "ClaimsToScore": {"episode_s": 2.5, "score_s": 1.5},
    "HangsBetween": {"step_s": 2, "tool_s": 2},
    "blocks": {"episode_s": 1.5, "score_s": 0.5},
}
"""The limit that ends an environment which goes on for ever; what it does well before has time for it."""
ENDINGS = {
    "Counts": ("env_done", "ok", 2.0),
    "CutsShort": ("env_truncated", "truncated", 2.0),
    "Talks": ("max_turns", "truncated", 1.0),
    "TalksUngraded": ("max_turns", "truncated", None),
    "HangsInReset": ("env_error", "error", None),
    "HangsInStep": ("tool_timeout", "truncated", 1.5),
    "HangsInStepWithThreads": ("tool_timeout", "truncated", 0.5),
    "HangsInScore": ("env_error", "error", None),
    "ClaimsToScore": ("episode_timeout", "truncated", 1.0),
    "HangsBetween": ("tool_timeout", "truncated", 1.0),
    "Raises": ("env_error", "error", None),
    "RaisesInReset": ("env_error", "error", None),
    "RaisesInScore": ("env_error", "error", None),
    "RaisesOnce": ("env_done", "ok", 2.0),
    "Dies": ("env_error", "error", None),
    "Exits": ("env_error", "error", None),
    "EatsMemory": ("env_error", "error", None),
    "ScoresNan": ("env_error", "error", None),
    "ScoresNothing": ("env_done", "ok", None),
    "SaysNothing": ("env_error", "error", None),
    "SpeaksForTheModel": ("env_error", "error", None),
    "ReturnsNoStep": ("env_error", "error", None),
    "answers": ("stop", "ok", 1.0),
    "OwnsItsLoop": ("stop", "ok", 1.0),
    "asks_for_ever": ("max_turns", "truncated", 0.0),
    "blocks": ("episode_timeout", "truncated", 0.0),
}
"""Environment -> stop, status, reward."""


class SaysOk:
    """Answers `ok`, or what the last message asks it to say."""

    def __init__(self, chat, delay_s=0.0):
        self._chat = chat
        self._delay_s = delay_s

    async def generate(self, request):
        await asyncio.sleep(self._delay_s)
        asked = re.findall(r"say:(\S+)", self._chat.text(request.prompt_token_ids))
        text = asked[-1] if asked else "ok"
        stop = self._chat.stop_token_ids[0]
        ids = (*self._chat.tokenizer.encode(text, add_special_tokens=False), stop)[
            : request.sampling.max_tokens
        ]
        return [
            Completion(
                token_ids=ids,
                logprobs=(-1.0,) * len(ids),
                versions=(0,) * len(ids),
                finish_reason="stop" if ids[-1] == stop else "length",
            )
        ]


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = save_tokenizer(tmp_path_factory.mktemp("qwen3"), FAMILIES["qwen3"])
    return ChatRenderer(Renderer(model_folder=str(folder)))


@pytest.fixture
def play(chat, tmp_path):
    """Play an environment of the module; the trajectories of a few samples."""

    def run(name, *, samples=2, module=MODULE, question="q", engine=None, columns=None, **config):
        (tmp_path / "fails.py").write_text(module.replace("4242", SLEEP))
        limits = EpisodeLimits(**{**LIMITS, **config.pop("limits", {})})
        config = EnvironmentConfig(use=f"fails:{name}", limits=limits, **config)
        dialect = Dialect(chat=chat, parse=functools.partial(parse, syntax="hermes"))
        prompt = Prompt(
            id="p",
            messages=(Message(role="user", content=question),),
            columns={"marks": str(tmp_path), **(columns or {})},
        )

        async def episodes():
            host = EnvironmentHost(LoadEnvironment(use=config.use, code_dir=str(tmp_path)))
            runner = EpisodeRunner(engine or SaysOk(chat), host, dialect=dialect, config=config)
            try:
                await host.start()
                return await runner(prompt, seeds=range(samples), sampling=Sampling(max_tokens=50))
            finally:
                await runner.close()
                await host.close()

        return asyncio.run(episodes())

    return run


@pytest.mark.parametrize("name", ENDINGS)
def test_environment_ends_as_its_row_says(play, name):
    stop, status, reward = ENDINGS[name]
    for trajectory in play(name, retries=1, limits=SHORT.get(name, {})):
        check_record(trajectory)
        assert (trajectory.stop, trajectory.status) == (stop, status), trajectory.error
        assert trajectory.reward.value == reward
        retried = status == "error" or name == "RaisesOnce"
        assert trajectory.attempt == int(retried)
        unscored = name in ("HangsInStepWithThreads", "blocks")
        assert (trajectory.error != "") == (status == "error" or unscored)
        if name.startswith("Hangs") and status == "truncated":
            assert trajectory.num_sampled > 0
    deadline = time.monotonic() + 60
    while left := [p for p in psutil.process_iter(["cmdline"]) if SLEEP in (p.info["cmdline"] or ())]:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def test_what_was_sampled_in_an_attempt_that_failed_is_listed(play):
    (trajectory,) = play("Raises", samples=1, retries=2)
    assert [part.reason for part in trajectory.dropped] == ["env_error", "env_error"]
    assert all(part.num_tokens > 0 for part in trajectory.dropped)


@pytest.mark.parametrize(
    ("limits", "question", "stop"),
    [
        ({"max_turns": 1}, "q", "max_turns"),
        ({"max_tokens": 40}, "q", "max_tokens"),
        ({"max_sampled_tokens": 2}, "q", "max_tokens"),
        ({}, f"say:{'x' * 400}", "length"),
    ],
)
def test_limits_end_an_episode_and_it_is_graded(play, limits, question, stop):
    (trajectory,) = play("Talks", samples=1, limits=limits, question=question)
    assert (trajectory.stop, trajectory.status) == (stop, "truncated")
    assert trajectory.reward.value == 1.0
    assert trajectory.reward.outcome == "limit"
    (unscored,) = play("Talks", samples=1, limits=limits, question=question, score_truncated=False)
    assert unscored.reward.value == 0.0


@pytest.mark.parametrize("name", ["scores_itself", "RunsAProgram"])
def test_a_limit_leaves_other_forms_a_score_of_their_own_if_it_is_wanted(play, name):
    limits = {"max_sampled_tokens": 1, "episode_s": 60, "setup_s": 60, "score_s": 60}
    module = MODULE.replace('raise OSError("cannot be closed")', "pass")
    for wanted in (True, False):
        (trajectory,) = play(name, samples=1, limits=limits, module=module, score_truncated=wanted)
        assert (trajectory.stop, trajectory.status) == ("length", "truncated"), trajectory.error
        assert trajectory.reward.value == float(wanted)


def test_an_environment_that_cuts_short_is_as_a_limit(play):
    (trajectory,) = play("CutsShort", samples=1, score_truncated=False)
    assert (trajectory.reward.value, trajectory.reward.outcome) == (1.0, "limit")


def test_an_environment_that_is_over_is_over_though_nothing_could_be_read(play):
    (trajectory,) = play("EndsUnread", samples=1, limits={"max_parse_errors": 1})
    assert (trajectory.stop, trajectory.status) == ("env_done", "ok")


@pytest.mark.parametrize(
    ("fails_in", "error"),
    [
        ("reset", "KeyError: 'lost'"),
        ("step", "KeyError: 'lost'"),
        ("score", "KeyError: 'lost'"),
        ("", "OSError: nor"),
    ],
)
def test_what_failed_first_is_told_and_the_environment_is_closed(play, tmp_path, fails_in, error):
    (trajectory,) = play("Marks", samples=1, retries=0, columns={"fails_in": fails_in})
    assert trajectory.stop == "env_error"
    assert trajectory.error.startswith(error)
    assert (tmp_path / "closed").exists()


def test_what_owns_its_loop_is_closed_and_its_module_warmed_up(play, tmp_path):
    module = (
        MODULE
        + """
class Closes(OwnsItsLoop):
    async def close(self):
        open(f"{WARM}/closed", "a").write("closed")
closes = Closes()
Closes.__module__ = "another"
def warm_up():
    global WARM
    WARM = os.path.dirname(os.path.abspath(__file__))
"""
    )
    for name in ("Closes", "closes"):
        (trajectory,) = play(name, samples=1, retries=0, module=module)
        assert (trajectory.stop, trajectory.reward.value, trajectory.error) == ("stop", 1.0, "")
    assert (tmp_path / "closed").read_text() == "closedclosed"


@pytest.mark.parametrize("name", ["Marks", "LosesAndHangs"])
def test_what_failed_is_told_though_closing_it_hangs(play, name):
    columns = {"fails_in": "reset", "hangs": True}
    (trajectory,) = play(name, samples=1, retries=0, columns=columns, limits={"score_s": 0.5})
    assert trajectory.error.startswith("close took too long. Traceback")
    assert trajectory.error.endswith("KeyError: 'lost'")


def test_a_class_that_runs_a_program_is_closed(play):
    limits = {"episode_s": 60, "setup_s": 60, "score_s": 60}
    module = MODULE.replace('raise OSError("cannot be closed")', "print('closed')")
    (trajectory,) = play("RunsAProgram", samples=1, retries=0, limits=limits, module=module)
    assert (trajectory.stop, trajectory.reward.value, trajectory.error) == ("stop", 1.0, "")
    (trajectory,) = play("RunsAProgram", samples=1, retries=0, limits=limits)
    assert trajectory.error.startswith("OSError: cannot be closed")


def test_a_row_may_tighten_limits(play):
    (trajectory,) = play("Talks", samples=1, columns={"limits": {"max_turns": 2}})
    assert sum(turn.finish is not None for turn in trajectory.turns) == 2
    (trajectory,) = play("Talks", samples=1, columns={"limits": {"max_turns": 200}})
    assert sum(turn.finish is not None for turn in trajectory.turns) == 4


def test_an_engine_that_takes_its_time_ends_an_episode_in_order(play, chat):
    (trajectory,) = play(
        "Talks",
        samples=1,
        engine=SaysOk(chat, delay_s=0.4),
        limits={"max_turns": 50, "episode_s": 8, "setup_s": 60, "score_s": 60},
    )
    assert (trajectory.stop, trajectory.reward.value) == ("episode_timeout", 1.0)


def test_example_of_the_documentation_is_an_environment(play):
    page = (ROOT / "docs/environments.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    (right,) = play("Countdown", samples=1, module=code, question="say:1", columns={"start": 1})
    assert (right.stop, right.reward.value, right.reward.parts["left"]) == ("env_done", 2.0, 0.0)
    (wrong,) = play("Countdown", samples=1, module=code, question="say:7", columns={"start": 3})
    assert (wrong.reward.value, wrong.reward.parts["left"]) == (0.0, 3.0)
