"""Reward functions that misbehave on request; loaded by the workers of test_scoring.py through their path."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from rlhf.types import Prompt, RewardResult, Trajectory, TrajectoryGroup


def sample(completion: str, reference: str) -> object:
    """Do what the completion says; any other completion is graded against the reference."""
    return _act(completion, reference)


def _act(completion: str, reference: str | None) -> object:
    if completion == "hang":
        print("about to hang")
        time.sleep(1000)
    elif completion.startswith("fork "):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        with open(completion.removeprefix("fork "), "w") as file:
            file.write(str(child.pid))
        time.sleep(1000)
    elif completion == "exit":
        print("last words")
        os._exit(3)
    elif completion == "sys.exit":
        sys.exit(1)
    elif completion == "raise":
        print("seen in the detail")
        raise ValueError("bad sample")
    elif completion == "chatter":
        os.write(2, b"x" * 100_000)
        raise ValueError("after chatter")
    elif completion == "child returns":
        os.fork()
        return 1.0
    elif completion.startswith("slow "):
        return _slow(completion.removeprefix("slow "))
    elif completion == "modules":
        return RewardResult(value=1.0, detail={"modules": " ".join(m for m in sys.modules if "." not in m)})
    values: dict[str, object] = {
        "nan": float("nan"),
        "inf": float("inf"),
        "text": "1.0",
        "none": None,
        "list": [1.0],
        "true": True,
        "dict": {"score": 0.5, "style": 0.25, "note": "x"},
        "no score": {"reward": 1.0},
        "bad outcome": RewardResult(value=1.0, outcome="fine"),  # type: ignore[arg-type]
    }
    return values.get(completion, completion == reference)


def _slow(how: str) -> float:
    """Sleep so many seconds; or, `once FILE`, for ever the first time, when there is no such file yet."""
    mark = how.removeprefix("once ")
    if mark == how:
        time.sleep(float(how))
    elif not os.path.exists(mark):
        open(mark, "x").close()
        time.sleep(1000)
    return 1.0


def batch(prompts: Sequence[Prompt], trajectories: Sequence[Trajectory]) -> list[object]:
    """`sample` over a batch."""
    if any(t.completion == "short" for t in trajectories):
        return []
    return [_act(t.completion, p.reference) for p, t in zip(prompts, trajectories, strict=True)]


def group(group: TrajectoryGroup) -> list[float]:
    """The share of siblings with the same completion."""
    texts = [t.completion for t in group.trajectories]
    if "raise" in texts:
        raise ValueError("bad group")
    return [texts.count(text) / len(texts) for text in texts]


def trl(completions: list[str], answer: list[str], **kwargs: Any) -> list[float | None]:
    """TRL's signature; the column `answer` is required."""
    assert len(kwargs["prompts"]) == len(completions)
    return [None if c == "none" else float(c == a) for c, a in zip(completions, answer, strict=True)]


def trl_chat(completions: list[list[dict[str, str]]], prompts: list[list[dict[str, str]]]) -> list[float]:
    """TRL's conversational signature."""
    return [float(c[0]["content"] == p[-1]["content"]) for c, p in zip(completions, prompts, strict=True)]


def trl_bare(completions, **kwargs):  # type: ignore[no-untyped-def]
    """TRL's signature, unannotated, for conversational completions."""
    return [float(completion[0]["content"] == "a") for completion in completions]


def verl(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any]
) -> dict[str, Any]:
    """verl's signature."""
    return {"score": float(solution_str == ground_truth), "index": extra_info["index"], "source": data_source}


async def judge(completion: str, reference: str) -> float:
    """An asynchronous judge; `wait` never ends, `block` blocks the worker's loop."""
    if completion == "wait":
        await asyncio.sleep(1000)
    if completion == "block":
        time.sleep(1000)
    await asyncio.sleep(0.2)
    return float(completion == reference)


class Judge:
    """A class is instantiated with its kwargs."""

    def __init__(self, bonus: float) -> None:
        self._bonus = bonus

    def __call__(self, completion: str) -> float:
        return len(completion) * self._bonus


def length(trajectory: Trajectory, scale: float = 1.0) -> float:
    """A reward of the tokens."""
    return trajectory.num_sampled * scale


def unknown(text: str, gold: str) -> float:
    """A signature nobody knows."""
    return float(text == gold)


KEPT: list[object] = []
"""What the leaks below hold."""
AT_ONCE = 0
TRIES = 0


def leaky(completion: str) -> float:
    """Leave behind what the completion says, `<amount> <what>`."""
    amount, what = completion.split()
    for _ in range(int(amount)):
        if what == "MB":
            KEPT.append(b"x" * 2**20)
        elif what == "files":
            KEPT.append(open(__file__))  # noqa: SIM115
        elif what == "children" and os.fork() == 0:
            signal.pause()
    if what == "MB-in-the-call":
        KEPT.append(b"x" * (int(amount) * 2**20))
        time.sleep(1)
        KEPT.clear()
    return float(os.getpid())


def session(completion: str) -> float:
    """Start a process in a session of its own, whose id goes to the file that the completion names; then hang."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
    with open(completion, "w") as file:
        file.write(str(child.pid))
    time.sleep(1000)
    return 0.0


def dies_once(completion: str) -> float:
    """Kill the worker unless the file that the completion names exists; then it does."""
    if not os.path.exists(completion):
        with open(completion, "w"):
            os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


class Busy(ConnectionResetError):
    """An error of one's own."""


def flaky(completion: str) -> float:
    """Fail until the try that the completion names, `<try> <error>`; the value is the number of tries."""
    global TRIES  # noqa: PLW0603
    TRIES += 1
    wanted, _, error = completion.partition(" ")
    if int(wanted) > TRIES:
        raise {"busy": Busy, "value": ValueError}.get(error, ConnectionError)(f"try {TRIES}")
    tries, TRIES = TRIES, 0
    return tries


async def flaky_judge(completion: str) -> float:
    """`flaky`, awaited."""
    await asyncio.sleep(0)
    return flaky(completion)


async def crowd(completion: str) -> dict[str, float]:
    """Tell how many run in this worker at the same time."""
    global AT_ONCE  # noqa: PLW0603
    AT_ONCE += 1
    await asyncio.sleep(0.25)
    seen = AT_ONCE
    await asyncio.sleep(0.25)
    AT_ONCE -= 1
    return {"score": seen, "pid": os.getpid()}


async def crowd_batch(prompts: Sequence[Prompt], trajectories: Sequence[Trajectory]) -> list[float]:
    """Asynchronous, but all in one call."""
    return [0.0 for _ in zip(prompts, trajectories, strict=True)]


def trl_logs(completions, trainer_state, log_extra, log_metric, **kwargs):  # type: ignore[no-untyped-def]
    """TRL's signature with its callbacks."""
    log_extra("tokens", [len(ids) for ids in kwargs["completion_ids"]])
    log_metric("share of/steps", trainer_state.global_step / trainer_state.max_steps)
    return [float(completion == "a") for completion in completions]


def only_code(completion: str, task: str) -> float | None:
    """Applies to one task only, by its own word."""
    return float(len(completion)) if task == "code" else None


def guess(completion: str) -> float:
    """Chance that nobody seeded by hand."""
    return random.random() + len({completion, "x", "y"}) + hash(completion) % 1000
