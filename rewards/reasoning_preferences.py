"""Preference pairs on chains of sums: a worked right answer, and one that is worse.

Problems and their split are those of `reasoning_tasks`: held-out pairs are about held-out problems.
"""

import re
from typing import Literal

from rewards.reasoning_tasks import Split, lot, problems, worked

Against = Literal["wrong", "slip", "careless", "either", "wordy"]
PADDING = " so"
"""What an answer is made longer with; it says nothing."""
LAST_TOTAL = re.compile(r"\d+</think><answer>\d+")


def pairs(
    seed: int = 0,
    size: int = 1000,
    *,
    split: Split = "train",
    against: Against = "wrong",
    longer_chosen: float | None = None,
) -> list[dict[str, str]]:
    """Rows {id, prompt, chosen, rejected} of `size` distinct problems.

    The rejected answer is `wrong` (another total, of the same length), a `slip` (one running total is a little off, and
    what follows goes on from it), `careless` (it stops a term early: shorter), `either` of these two in half of the
    pairs each, or `wordy` (the same with words behind it: longer).
    `longer_chosen` pads one answer of every pair, the chosen in that share of them: with `wrong`, 0.5 is a set
    without length bias, 0.9 one with it.
    """
    rows = []
    for problem in problems(seed, size, split=split):
        chosen = worked(problem["id"])
        rejected = _worse(problem["id"], chosen, against)
        if longer_chosen is not None:
            padding = PADDING * (1 + int(3 * lot(f"words {problem['id']}")))
            if lot(f"longer {problem['id']}") < longer_chosen:
                chosen += padding
            else:
                rejected += padding
        rows.append(
            {"id": problem["id"], "prompt": problem["prompt"], "chosen": chosen, "rejected": rejected}
        )
    return rows


def _worse(expression: str, right: str, against: Against) -> str:
    if against == "either":
        against = "slip" if lot(f"either {expression}") < 1 / 2 else "careless"
    if against == "slip":
        return _slip(expression, right)
    if against == "careless":
        return worked(expression, is_careless=True)
    if against == "wordy":
        return right + 3 * PADDING
    total = int(right.rpartition("<answer>")[2].removesuffix("</answer>"))
    tens, ones = divmod(total, 10)
    other = 10 * tens + (ones + 1 + int(9 * lot(f"total {expression}"))) % 10
    return LAST_TOTAL.sub(f"{other:02d}</think><answer>{other}", right)


def _slip(expression: str, right: str) -> str:
    totals = [int(word) for word in right.removeprefix("<think>").partition("</think>")[0].split()]
    place = int(len(totals) * lot(f"place {expression}"))
    off = 1 + int(3 * lot(f"off {expression}"))
    is_lower = lot(f"lower {expression}") < 1 / 2 and min(totals[place:]) >= off
    totals = totals[:place] + [total - off if is_lower else total + off for total in totals[place:]]
    return f"<think>{' '.join(f'{total:02d}' for total in totals)}</think><answer>{totals[-1]}</answer>"
