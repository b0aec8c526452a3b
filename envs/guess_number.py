"""A number to be guessed: a toy of several turns that a tiny model learns on a laptop.

Reads rows of `rows`: `reference` is the number, `low` and `high` are its bounds, and the prompt reads `1-9`. The model
writes a number, and is told `higher`, `lower` or `yes`. The score falls with the turns used.
"""

import random
import re
from collections.abc import Iterator
from typing import Any

from rlhf.errors import DataError
from rlhf.interfaces import Context
from rlhf.types import Message, Prompt, Step

MAX_GUESSES = 8
_NUMBER = re.compile(r"\s*(\d{1,9})\s*\Z", re.ASCII)


def rows(seed: int = 0, size: int = 1000, *, low: int = 1, high: int = 9) -> list[dict[str, Any]]:
    """Rows {id, prompt, reference, low, high}, each number as often as any other but for one."""
    if not 0 <= low < high:
        raise DataError(f"rows: low is {low} and high {high}, expected 0 <= low < high.")
    numbers = [low + i % (high - low + 1) for i in range(size)]
    random.Random(seed).shuffle(numbers)
    return [
        {
            "id": f"{seed}-{i}",
            "prompt": f"{low}-{high}",
            "reference": str(number),
            "low": low,
            "high": high,
        }
        for i, number in enumerate(numbers)
    ]


def demonstrations(
    seed: int = 0, size: int = 1000, *, low: int = 1, high: int = 9, careless: float = 0.0
) -> list[dict[str, Any]]:
    """Rows of `rows` with `messages`: a game of at most `MAX_GUESSES`, won by halving what is left.

    A share `careless` of the guesses is any number, whatever was answered before: data of mixed quality.
    """
    rng = random.Random(seed)
    return [
        row | {"messages": list(_game(row, careless=careless, rng=rng))}
        for row in rows(seed, size, low=low, high=high)
    ]


class GuessNumber:
    """Scores 1 for the first guess right, down to 1/`max_guesses` for the last one, and 0 for none.

    A turn that is no number from `low` to `high` is answered `replies[3]` and counts as a guess.
    """

    def __init__(
        self,
        *,
        max_guesses: int = MAX_GUESSES,
        replies: tuple[str, str, str, str] = ("higher", "lower", "yes", "no"),
    ) -> None:
        if max_guesses < 1 or len(replies) != 4:
            raise DataError(
                f"GuessNumber: max_guesses is {max_guesses} and replies {replies!r}, expected 1 or more and 4 texts: "
                "for a guess too low, one too high, the right one, and a turn that is no guess."
            )
        self._max_guesses = max_guesses
        self._replies = tuple(replies)
        self._num_guesses = 0
        self._is_found = False

    def reset(self, prompt: Prompt, context: Context) -> None:  # noqa: ARG002 -- the protocol's
        """The prompt's own messages. DataError for a row that has not what is read here."""
        try:
            self._number = int(str(prompt.reference))
            self._low, self._high = int(prompt.columns["low"]), int(prompt.columns["high"])
        except (KeyError, ValueError) as error:
            raise DataError(
                f"row {prompt.id}: expected a number in `reference` and its bounds in `low` and `high` ({error!r})."
            ) from error

    def step(self, action: Message, context: Context) -> Step:  # noqa: ARG002 -- the protocol's
        """Where the number lies."""
        self._num_guesses += 1
        guess = _NUMBER.match(action.content)
        too_low, too_high, right, senseless = self._replies
        if guess is None or not self._low <= int(guess[1]) <= self._high:
            answer = senseless
        elif int(guess[1]) == self._number:
            self._is_found = True
            answer = right
        else:
            answer = too_low if int(guess[1]) < self._number else too_high
        is_over = self._is_found or self._num_guesses >= self._max_guesses
        return Step(messages=(Message(role="user", content=answer),), terminated=is_over)

    def score(self, context: Context) -> float:
        """1 less what the guesses after the first cost."""
        context.log(guesses=self._num_guesses, found=float(self._is_found))
        return 1.0 - (self._num_guesses - 1) / self._max_guesses if self._is_found else 0.0


def _game(row: dict[str, Any], *, careless: float, rng: random.Random) -> Iterator[dict[str, str]]:
    yield {"role": "user", "content": row["prompt"]}
    low, high, number = row["low"], row["high"], int(row["reference"])
    for turn in range(1, MAX_GUESSES + 1):
        guess = rng.randint(row["low"], row["high"]) if rng.random() < careless else (low + high) // 2
        yield {"role": "assistant", "content": str(guess)}
        if guess == number or turn == MAX_GUESSES:
            return
        yield {"role": "user", "content": "higher" if guess < number else "lower"}
        low, high = (max(low, guess + 1), high) if guess < number else (low, min(high, guess - 1))
