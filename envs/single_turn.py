"""One question, one answer: the smallest environment.

Reads any row with a `prompt`, and what its grader needs: `reference`, for the graders named here.

    task: {environment: {use: "envs.single_turn:SingleTurn", kwargs: {grade: "rewards.math_answer:grade"}}}
"""

from collections.abc import Mapping
from typing import Any

from envs.answers import Grade, is_reference, load_grade, score_answer
from rlhf.interfaces import Context
from rlhf.types import Message, Prompt, Step


class SingleTurn:
    """Ends with the model's first turn, which `grade` scores: (completion, reference, **options) -> value."""

    def __init__(
        self, *, grade: str | Grade = is_reference, options: Mapping[str, Any] | None = None
    ) -> None:
        self._grade = load_grade(grade)
        self._options = dict(options or {})

    def reset(self, prompt: Prompt, context: Context) -> None:
        """The prompt's own messages."""

    def step(self, action: Message, context: Context) -> Step:  # noqa: ARG002 -- the protocol's
        """The end."""
        return Step(terminated=True)

    def score(self, context: Context) -> float:
        """The value of the answer."""
        return score_answer(context, self._grade, self._options)
