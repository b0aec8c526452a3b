"""Rows of public math data sets as prompts and worked answers: functions for a source's `mapper`.

Sets whose columns need no more than another name have no function here: `columns: {prompt: problem}`. For GSM8K see
`rewards.math_answer:gsm8k_row`.
"""

import re
from collections.abc import Mapping
from typing import Any

from rewards.math_answer import extract, gsm8k_row
from rlhf.errors import DataError

Row = Mapping[str, Any]
_CALCULATOR = re.compile(r"<<[^<>]*>>")


def gsm8k_solution_row(row: Row) -> dict[str, Any]:
    """GSM8K as demonstrations: `gsm8k_row` with the worked answer, less the calculator's marks, as `completion`."""
    return gsm8k_row(row) | {"completion": _CALCULATOR.sub("", _text(row, "answer"))}


def math_row(row: Row) -> dict[str, Any]:
    """MATH: {problem, solution, level, type}. The gold is the solution's last box."""
    solution = _text(row, "solution")
    return {
        "prompt": _text(row, "problem"),
        "reference": extract(solution),
        "level": row.get("level"),
        "subject": row.get("type"),
    }


def openr1_row(row: Row) -> dict[str, Any] | None:
    """OpenR1-Math-220k: {problem, answer, generations, is_reasoning_complete, correctness_math_verify, ...}.

    `completion` is the shortest thought that ended and that Math-Verify found right: a cold start wants readable ones.
    Left out: rows without one (some were judged by a model alone).
    """
    generations = list(row["generations"] or ())
    ended, right = (_flags(row, name, len(generations)) for name in _OPENR1_FLAGS)
    chosen = [text for text, *good in zip(generations, ended, right, strict=True) if all(good)]
    if not chosen:
        return None
    return {
        "prompt": _text(row, "problem"),
        "reference": row.get("answer"),
        "completion": min(chosen, key=len).strip(),
        "source": row.get("source"),
    }


_OPENR1_FLAGS = ("is_reasoning_complete", "correctness_math_verify")


def openthoughts_row(row: Row) -> dict[str, Any] | None:
    """OpenThoughts-114k, config `metadata`: {problem, deepseek_reasoning, deepseek_solution, domain, source, ...}.

    Left out: rows without reasoning or without a solution.
    """
    thought, solution = (str(row.get(name) or "").strip() for name in _OPENTHOUGHTS)
    if not thought or not solution:
        return None
    return {
        "prompt": _text(row, "problem"),
        "completion": f"<think>\n{thought}\n</think>\n\n{solution}",
        "domain": row.get("domain"),
        "source": row.get("source"),
    }


_OPENTHOUGHTS = ("deepseek_reasoning", "deepseek_solution")


def _flags(row: Row, name: str, length: int) -> list[bool]:
    """One flag a generation; a list that is missing or null says no of each."""
    flags = list(row.get(name) or [False] * length)
    if len(flags) != length:
        raise DataError(f"{name} has {len(flags)} entries and generations has {length}: expected as many.")
    return [bool(flag) for flag in flags]


def _text(row: Row, name: str) -> str:
    if not isinstance(row.get(name), str):
        raise DataError(f"the row has no text in {name!r}; its columns are {sorted(row)}.")
    return str(row[name])
