"""A lookup and a calculator, both needed: a toy of two tools that a tiny model learns on a laptop.

Reads rows of `rows`: the prompt reads `k*7`, where `k` is a name whose number stands in the column `table`. The number
is drawn anew for every row, so it must be looked up, and the product is too large for a guess. The answer is the
product, with nothing else.
"""

import random
import re
import string
from collections.abc import Iterator
from typing import Any

from envs.answers import final_answer, is_reference
from rlhf.errors import DataError
from rlhf.interfaces import Context
from rlhf.types import Prompt

_PRODUCT = re.compile(r"\s*(\d{1,9})\s*([-+*])\s*(\d{1,9})\s*\Z", re.ASCII)


def rows(seed: int = 0, size: int = 1000, *, digits: int = 2) -> list[dict[str, Any]]:
    """Rows {id, prompt, reference, table}, whose numbers have so many digits."""
    if not 1 <= digits <= 6:
        raise DataError(f"rows: digits is {digits}, expected 1 to 6.")
    rng = random.Random(seed)
    return [{"id": f"{seed}-{i}", **_row(rng, digits)} for i in range(size)]


def demonstrations(
    seed: int = 0, size: int = 1000, *, digits: int = 2, careless: float = 0.0
) -> list[dict[str, Any]]:
    """Rows of `rows` with `messages`: lookup, calculator, answer.

    A share `careless` of them leaves the calculator out and answers what was looked up: data of mixed quality.
    """
    rng = random.Random(seed)
    return [
        row | {"messages": list(_work(row, is_careless=rng.random() < careless))}
        for row in rows(seed, size, digits=digits)
    ]


class TwoTools:
    """Tools `get` and `calc`. Scores 1 for the right answer, else 0."""

    def reset(self, prompt: Prompt, context: Context) -> None:
        """The prompt's own messages. DataError for a row without a table."""
        table = prompt.columns.get("table")
        if not isinstance(table, dict) or not table:
            raise DataError(
                f"row {prompt.id}: its column `table` is {table!r:.80}, expected names and numbers."
            )
        self._table = {str(name): int(number) for name, number in table.items()}
        self._context = context
        self._uses = {"get": 0, "calc": 0}

    def get(self, name: str) -> int:
        """The number of a name."""
        self._uses["get"] += 1
        if name not in self._table:
            raise KeyError(f"no {name}")
        return self._table[name]

    def calc(self, sum: str) -> int:  # noqa: A002 -- the model writes it
        """The value of a product, sum or difference of two numbers."""
        self._uses["calc"] += 1
        found = _PRODUCT.match(sum)
        if found is None:
            raise ValueError("expected a*b, a+b or a-b")
        left, sign, right = int(found[1]), found[2], int(found[3])
        return left * right if sign == "*" else left + right if sign == "+" else left - right

    def score(self, context: Context) -> float:
        """Whether the answer is right."""
        context.log(gets=self._uses["get"], calcs=self._uses["calc"])
        return is_reference(final_answer(context), context.prompt.reference)


def _row(rng: random.Random, digits: int) -> dict[str, Any]:
    name, other = rng.sample(string.ascii_lowercase, 2)
    number, decoy = (rng.randrange(10 ** (digits - 1) + (digits == 1), 10**digits) for _ in range(2))
    factor = rng.randint(2, 9)
    table = {name: number, other: decoy}
    return {"prompt": f"{name}*{factor}", "reference": str(number * factor), "table": table}


def _work(row: dict[str, Any], *, is_careless: bool) -> Iterator[dict[str, Any]]:
    name, _, factor = row["prompt"].partition("*")
    number = row["table"][name]
    calls = [("get", {"name": name}, number), ("calc", {"sum": f"{number}*{factor}"}, row["reference"])]
    yield {"role": "user", "content": row["prompt"]}
    for i, (tool, arguments, result) in enumerate(calls[: 1 if is_careless else 2]):
        function = {"name": tool, "arguments": arguments}
        call = {"id": f"call_{i}", "type": "function", "function": function}
        yield {"role": "assistant", "content": "", "tool_calls": [call]}
        yield {"role": "tool", "content": str(result), "tool_call_id": f"call_{i}", "name": tool}
    yield {"role": "assistant", "content": str(number if is_careless else row["reference"])}
