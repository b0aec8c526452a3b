"""Chains of sums with visible reasoning: problems and verification from reasoning-gym, demonstrations by us.

A problem reads `8+4+6-8=`, its demonstration `<think>12 18 10</think><answer>10</answer>`: running totals
of two digits, so that every step is one small lookup that a model of under a million weights can learn.
"""

import re
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from itertools import accumulate
from typing import Any, Literal

from rlhf.types import Prompt, RewardResult, Trajectory

Split = Literal["train", "heldout"]
SEED_STRIDE = 10**9
"""reasoning-gym draws problem i of seed s from s + i: neighbouring seeds would share their problems."""
THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)
IN_LETTERS = str.maketrans("0123456789", "abcdefghij")
ANSWER = re.compile(r"<answer>([^<]*)</answer>\s*\Z")


def problems(
    seed: int = 0, size: int = 1000, *, split: Split = "train", terms: int = 4, digits: int = 1
) -> list[dict[str, str]]:
    """Rows {id, prompt, reference} of `size` distinct problems whose running totals stay in 0..99.

    A problem belongs to one split for ever, by the hash of its text: no seed can leak a held-out one.
    Raises ValueError when there are fewer distinct problems.
    """
    rows: dict[str, dict[str, str]] = {}
    for expression, answer in _draw(seed, 100 * size, terms=terms, digits=digits):
        if split_of(expression) == split and expression not in rows and _is_small(expression):
            rows[expression] = {"id": expression, "prompt": f"{expression}=", "reference": answer}
            if len(rows) == size:
                return list(rows.values())
    raise ValueError(
        f"found only {len(rows)} distinct {split} problems of {terms} terms with {digits} digits, "
        f"expected {size}: lower the size or raise terms or digits"
    )


def demonstrations(
    seed: int = 0, size: int = 1000, *, terms: int = 4, careless: float = 0.0, mixed: float = 0.0
) -> list[dict[str, str]]:
    """Training rows of `problems` with a worked `completion`, for supervised fine-tuning.

    A share `careless` of them stops one term early and gives the total it has reached: data of mixed quality.
    Imitation keeps the habit; reinforcement finds out that it does not pay.
    A share `mixed` of the running totals is written in letters (a for 0, j for 9), which makes a thought no wronger
    but hard to read: what language mixing is to DeepSeek-R1-Zero. A reward for right answers does not mind.
    """
    rows = problems(seed, size, terms=terms)
    return [
        row | {"completion": _work(row["id"], is_careless=lot(f"style {row['id']}") < careless, mixed=mixed)}
        for row in rows
    ]


def worked(expression: str, *, is_careless: bool = False) -> str:
    """The completion of one problem, by its id; a careless one stops one term early."""
    return _work(expression, is_careless=is_careless, mixed=0.0)


def warm_up() -> None:
    """Import reasoning-gym before the first deadline runs (reward workers call this when they load)."""
    _chain_sum(0, 1, 2, 1)


def verify(prompt: Prompt, trajectory: Trajectory) -> RewardResult:
    """1 when reasoning-gym accepts the text in the closing <answer> tags as the reference, else 0.

    Outcome `unparsable` when the completion does not end in <answer>...</answer>, or a think block is still open there.
    """
    found = ANSWER.search(trajectory.completion)
    if found is None or "<think>" in trajectory.completion.rpartition("</think>")[2]:
        return RewardResult(value=0.0, outcome="unparsable")
    # Partial credit (reasoning-gym pays up to 0.01 for a wrong but well-formed answer) would reward guessing.
    is_right = _chain_sum(0, 1, 2, 1).score_answer(found[1], {"answer": prompt.reference}) == 1.0
    return RewardResult(
        value=float(is_right), outcome="ok" if is_right else "wrong", detail={"answer": found[1]}
    )


def one_notation(completion: str) -> float:
    """The share of the thought's words that are numbers in digits; 0 where there is no closed thought.

    Readability of these tasks, in the form of DeepSeek-R1's language consistency (arXiv 2501.12948v2, eq. 7).
    """
    thought = THOUGHT.search(completion)
    words = thought[1].split() if thought else []
    return sum(word.isascii() and word.isdigit() for word in words) / len(words) if words else 0.0


def split_of(problem: str) -> Split:
    """The split that a problem belongs to for ever: one of eight is held out."""
    return "heldout" if sha256(problem.encode()).digest()[0] < 32 else "train"


def lot(what: str) -> float:
    """A number in [0, 1) that belongs to the text for ever."""
    return int.from_bytes(sha256(what.encode()).digest()[:4], "big") / 2**32


def _draw(seed: int, size: int, *, terms: int, digits: int) -> Iterator[tuple[str, str]]:
    for entry in _chain_sum(seed, size, terms, digits):
        yield entry["metadata"]["expression"].replace(" ", ""), entry["answer"]


@cache
def _chain_sum(seed: int, size: int, terms: int, digits: int) -> Any:
    import reasoning_gym

    bounds = {"min_terms": terms, "max_terms": terms, "min_digits": digits, "max_digits": digits}
    return reasoning_gym.create_dataset("chain_sum", seed=seed * SEED_STRIDE, size=size, **bounds)


def _terms(expression: str) -> list[str]:
    return re.findall(r"[+-]?\d+", expression)


def _totals(expression: str) -> list[int]:
    return list(accumulate(int(term) for term in _terms(expression)))


def _is_small(expression: str) -> bool:
    return all(0 <= total <= 99 for total in _totals(expression))


def _work(expression: str, *, is_careless: bool, mixed: float) -> str:
    totals = _totals(expression)[1:]
    shown = totals[:-1] if is_careless else totals
    words = [
        f"{total:02d}".translate(IN_LETTERS if lot(f"notation {place} {expression}") < mixed else {})
        for place, total in enumerate(shown)
    ]
    return f"<think>{' '.join(words)}</think><answer>{shown[-1]}</answer>"
