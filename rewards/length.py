"""Rewards for length, and penalties for saying the same thing again.

`algorithm.shaping` (docs/sampling.md) has the soft overlong penalty and the cosine reward, too, on sampled tokens and
on the whole reward of every trajectory, after dynamic sampling has seen the task's: use it when length is the whole
run's concern. Use these as parts of `task.rewards` when length belongs to the task: only for some prompts (`when`), in
words or characters, or as a part of its own in the metrics. A part here makes every group look varied to that sampling.
"""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

from rewards.prose import pieces, repeated_share, words
from rlhf.errors import LoadError
from rlhf.types import Prompt, RewardResult, Trajectory

Unit = Literal["tokens", "words", "characters"]


def length(trajectory: Trajectory, unit: Unit) -> int:
    """How long the sampled text is: of all the assistant's turns."""
    if unit not in get_args(Unit):
        raise ValueError(f"unit is {unit!r}, expected one of {', '.join(get_args(Unit))}")
    if unit == "tokens":
        return trajectory.num_sampled
    said = [turn.message.content for turn in trajectory.turns if turn.message.role == "assistant"]
    return sum(len(words(text)) if unit == "words" else len(text) for text in said)


def soft_overlong(trajectory: Trajectory, *, max_length: int, cache: int, unit: Unit = "tokens") -> float:
    """0 up to max_length - cache, then falling linearly to -1 at max_length; -1 beyond.

    Source: DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13).
    """
    if not 0 < cache <= max_length:
        raise ValueError(f"cache is {cache}, expected 1 to max_length = {max_length}")
    return min(0.0, max(-1.0, (max_length - cache - length(trajectory, unit)) / cache))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosine:
    """A reward in place of the grader's: half a cosine from the value at length 0 to that at `max_length`.

    CosFn(t) = end + (start - end) (1 + cos(pi t / T)) / 2, apart for right and wrong completions: a short right
    one is worth more than a long one, a long wrong one more than a short one. A completion cut at the token
    limit gets `cut` (the paper's r_e). What the grader cannot grade is not graded here either. Source: arXiv
    2502.03373, cosine reward, and its values; an empty or copied completion is wrong, so gets the least.
    """

    grader: str
    """`module:attribute` of a reward of (completion, reference); above 0.5 is right."""
    max_length: int
    right: tuple[float, float] = (2.0, 1.0)
    wrong: tuple[float, float] = (-10.0, 0.0)
    cut: float = -10.0
    unit: Unit = "tokens"

    def __post_init__(self) -> None:
        if self.max_length <= 0:
            raise ValueError(f"max_length is {self.max_length}, expected at least 1")
        if self.unit not in get_args(Unit):
            raise ValueError(f"unit is {self.unit!r}, expected one of {', '.join(get_args(Unit))}")
        _loaded(self.grader)

    def __call__(self, prompt: Prompt, trajectory: Trajectory) -> RewardResult:
        """The scaled reward; part `grade` is the grader's value."""
        graded = self._grade(trajectory.completion, prompt.reference)
        if graded.value is None:
            return graded
        start, end = self.right if graded.value > 0.5 else self.wrong
        progress = min(length(trajectory, self.unit) / self.max_length, 1.0)
        value = end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
        if trajectory.stop == "length":
            value = self.cut
        parts = {"grade": graded.value}
        return RewardResult(value=value, outcome=graded.outcome, parts=parts, detail=graded.detail)

    def _grade(self, completion: str, reference: str | None) -> RewardResult:
        graded = _loaded(self.grader)(completion=completion, reference=reference)
        return graded if isinstance(graded, RewardResult) else RewardResult(value=float(graded))


@cache
def _loaded(grader: str) -> Callable[..., Any]:
    module_name, _, attribute = grader.partition(":")
    try:
        module = importlib.import_module(module_name)
        function: Callable[..., Any] = getattr(module, attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise LoadError(f"grader is {grader!r}, expected `module:attribute`: {error}") from error
    getattr(module, "warm_up", lambda: None)()
    return function


def repetition(completion: str, *, size: int = 3) -> float:
    """-(1 - distinct / all runs of `size` neighbouring words): 0 says nothing twice, -1 only one thing.

    0 for fewer words than `size`. Case does not count; a loop without spaces is cut into pieces. Source: open-r1's
    repetition penalty (its max_penalty is the recipe's weight), after arXiv 2502.03373.
    """
    if size < 1:
        raise ValueError(f"size is {size}, expected at least 1")
    return -repeated_share(pieces(completion), size)


def repeated_tokens(trajectory: Trajectory, *, size: int = 40, per_token: float | None = None) -> float:
    """-(share of sampled tokens that lie in a run of `size` tokens seen before in the completion).

    With `per_token` (the paper's is -0.05) it is that number for each such token, added up, which has no floor.
    Source: arXiv 2502.03373, n-gram repetition penalty, whose per-token rewards are summed here.
    """
    if size < 1:
        raise ValueError(f"size is {size}, expected at least 1")
    repeated = total = 0
    for segment in trajectory.segments:
        tokens = [t for t, sampled in zip(segment.token_ids, segment.loss_mask, strict=True) if sampled]
        repeated += _covered(tokens, size)
        total += len(tokens)
    if per_token is not None:
        return per_token * repeated
    return -repeated / total if total else 0.0


def _covered(tokens: list[int], size: int) -> int:
    seen: set[tuple[int, ...]] = set()
    covered, end = 0, 0
    for start in range(len(tokens) - size + 1):
        run = tuple(tokens[start : start + size])
        if run in seen:
            covered += start + size - max(start, end)
            end = start + size
        seen.add(run)
    return covered
