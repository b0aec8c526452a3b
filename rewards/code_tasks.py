"""Small programming tasks: a chain of operations to be written as one Python function.

A problem reads `+3*2-1=`, its demonstration `def f(x): return (x+3)*2-1`: short enough for a model of under a million
weights, and wrong in a way that compiles where brackets are left out. Graded as any other code, with the setting
`whole_text: true` of `rewards.code_tests:grade`.
"""

import random
from itertools import product
from typing import Any

from rewards.reasoning_tasks import Split, lot, split_of

_INPUTS: tuple[int, ...] = (0, 1, 2, 7, -5)
_STEPS = tuple(f"{sign}{number}" for sign, number in product("+-*", "23456789"))
_NO_BRACKETS = str.maketrans("", "", "()")


def problems(
    seed: int = 0, size: int = 1000, *, split: Split = "train", operations: int = 3
) -> list[dict[str, Any]]:
    """Rows {id, prompt, tests, reference, gold_completion} of `size` distinct problems.

    A problem belongs to one split for ever, by the hash of its text: no seed can leak a held-out one.
    Raises ValueError when there are fewer distinct problems.
    """
    chains = list(product(_STEPS, repeat=operations))
    random.Random(seed).shuffle(chains)
    rows = [_row(chain) for chain in chains if split_of("".join(chain)) == split][:size]
    if len(rows) < size:
        raise ValueError(
            f"found only {len(rows)} distinct {split} problems of {operations} operations, expected {size}: "
            "lower the size or raise operations"
        )
    return rows


def demonstrations(
    seed: int = 0, size: int = 1000, *, operations: int = 3, careless: float = 0.0
) -> list[dict[str, Any]]:
    """Training rows of `problems` with a `completion`, for supervised fine-tuning.

    A share `careless` of them has no brackets: such a program runs, and computes something else wherever a product
    follows a sum. Imitation keeps the habit; tests find out.
    """
    rows = problems(seed, size, operations=operations)
    for row in rows:
        is_careless = lot(f"style {row['id']}") < careless
        row["completion"] = _without_brackets(row["reference"]) if is_careless else row["reference"]
    return rows


def _row(chain: tuple[str, ...]) -> dict[str, Any]:
    program, values, before = "x", _INPUTS, ""
    for step in chain:
        # A product binds before the sum on its left.
        program = f"({program}){step}" if step[0] == "*" and before in ("+", "-") else program + step
        before = step[0]
        values = tuple(_apply(step, value) for value in values)
    solution = f"def f(x): return {program}"
    text = "".join(chain)
    return {
        "id": text,
        "prompt": f"{text}=",
        "reference": solution,
        "gold_completion": solution,
        "tests": {
            "kind": "function",
            "fn_name": "f",
            "inputs": [[value] for value in _INPUTS],
            "outputs": list(values),
        },
    }


def _apply(step: str, value: int) -> int:
    sign, number = step[0], int(step[1:])
    return {"+": value + number, "-": value - number, "*": value * number}[sign]


def _without_brackets(program: str) -> str:
    head, colon, body = program.partition(":")
    return head + colon + body.translate(_NO_BRACKETS)
