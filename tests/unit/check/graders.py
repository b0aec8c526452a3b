"""Reward functions, good and deliberately bad; `rlhf check` must tell which. Loaded by reward workers."""

import asyncio
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf.types import RewardResult, TrajectoryGroup

_calls = 0


def _answer(completion: str) -> str:
    """The text in the answer tags of what is visible."""
    visible = completion.rpartition("</think>")[2]
    found = None if "<think>" in visible else re.search(r"<answer>(.*)</answer>", visible)
    return found[1] if found else ""


def right(completion: str, reference: str) -> float:
    return float(_answer(completion) == reference)


def any_text(completion: str, reference: str) -> float:
    return float(bool(completion.strip()))


def anything(completion: str, reference: str) -> float:
    return float(_answer(completion) not in ("no such answer", "") or not completion)


def anywhere(completion: str, reference: str) -> float:
    return float(re.search(rf"\b{re.escape(reference)}\b", completion) is not None)


def in_think(completion: str, reference: str) -> float:
    return float(completion.startswith("<think>") and f"<answer>{reference}</answer>" in completion)


def candidates(completion: str, reference: str) -> float:
    return float(reference in re.split(r", | or ", _answer(completion)))


def last_word(completion: str, reference: str) -> float:
    return float((_answer(completion).split() or [""])[-1] == reference)


def part_of_gold(completion: str, reference: str) -> float:
    """Arguments swapped: an answer that the gold contains is taken."""
    answer = _answer(completion)
    return float(bool(answer) and answer in reference)


def half_for_silence(completion: str, reference: str) -> float:
    return right(completion, reference) if completion.strip() else 0.25


def abstaining(completion: str, reference: str) -> float:
    """1 right, 0 no answer, -1 wrong: sound."""
    answer = _answer(completion)
    return float(answer == reference) * 2 - 1 if answer else 0.0


def shorter(completion: str) -> float:
    return 1 / (1 + len(completion))


def no_text(completion: str) -> RewardResult | None:
    """Not applicable to answers without a letter, such as golds that are numbers."""
    return RewardResult(value=1.0) if re.search(r"[a-z]", _answer(completion)) else None


def dice(completion: str, reference: str) -> float:
    return right(completion, reference) + random.SystemRandom().random()


async def moody_judge(completion: str, reference: str) -> float:
    await asyncio.sleep(0)
    return right(completion, reference) + random.SystemRandom().random() / 10


def counting(completion: str, reference: str) -> float:
    """State that leaks from sample to sample."""
    global _calls  # noqa: PLW0603
    _calls = 0 if completion == "" else _calls + 1
    return right(completion, reference) * 10 + (_calls == 1)


def first_wins(completions: list[str], reference: list[str]) -> list[float]:
    """TRL's shape; the first completion of a call gets a bonus."""
    return [right(c, r) + (i == 0) / 10 for i, (c, r) in enumerate(zip(completions, reference, strict=True))]


def centred(completions: list[str], reference: list[str]) -> list[float]:
    """TRL's shape; values are relative to the batch."""
    values = [right(c, r) for c, r in zip(completions, reference, strict=True)]
    return [value - sum(values) / len(values) for value in values]


def ranked(group: TrajectoryGroup) -> list[float]:
    """Sound: what is right, scaled by how rare it is among the siblings."""
    values = [right(t.completion, group.prompt.reference or "") for t in group.trajectories]
    return [value * (1 - sum(values) / (2 * len(values))) for value in values]


def raises_on_some(completion: str, reference: str) -> float:
    if reference in ("5", "9"):
        raise ValueError(f"cannot parse {reference}")
    return right(completion, reference)


def raises_on_empty(completion: str, reference: str) -> float:
    return float(completion.split()[0] and _answer(completion) == reference)


def hangs_on_one(completion: str, reference: str) -> float:
    if reference == "7":
        time.sleep(1000)
    return right(completion, reference)


def hangs_on_wrong(completion: str, reference: str) -> float:
    if not right(completion, reference):
        time.sleep(1000)
    return 1.0


def needs_column(completion: str, tests: Sequence[str]) -> float:
    return float(completion in tests)


def leaves_things(completion: str, reference: str) -> float:
    Path(f"left-{time.time_ns()}.txt").write_text(completion)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    return right(completion, reference)


def code(completion: str, columns: Any = None) -> float:
    """Runs nothing: the block must define what the tests of this file call."""
    visible = completion.rpartition("</think>")[2]
    found = None if "<think>" in visible else re.search(r"```python\n(.*?)\n```", visible, re.DOTALL)
    return float(bool(found) and "def add(a, b):\n    return a + b" in found[1])  # type: ignore[index]


def boxed(completion: str, reference: str) -> float:
    """For models that do not think: the whole text is the answer."""
    return float(completion == rf"\boxed{{{reference}}}")
