"""The final answer of an episode, graded by a reward function of the completion."""

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

from rlhf.errors import EpisodeError, LoadError
from rlhf.interfaces import Context
from rlhf.types import RewardResult

Grade = Callable[..., RewardResult | float]
"""(completion, reference, **options) -> its value."""


def final_answer(context: Context) -> str:
    """What the model wrote last, beside its calls; empty when it never came to write."""
    written = (m.content for m in reversed(context.messages) if m.role == "assistant")
    return next(written, "")


def is_reference(completion: str, reference: str | None) -> float:
    """1 when the completion is the reference but for the white space around it, else 0."""
    if reference is None:
        raise EpisodeError("the row has no reference, expected the right answer in its column `reference`")
    return float(completion.strip() == reference.strip())


def load_grade(grade: str | Grade) -> Grade:
    """The function named `module:attribute`, or the function itself. LoadError when there is none."""
    if not isinstance(grade, str):
        return grade
    module, _, attribute = grade.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise LoadError(
            f"kwargs.grade: {grade!r} cannot be loaded ({error}); expected module:attribute of a function "
            "(completion, reference)."
        ) from error
    if not callable(found):
        raise LoadError(f"kwargs.grade: {grade!r} is a {type(found).__name__}, expected a function.")
    return found  # type: ignore[no-any-return]


def score_answer(context: Context, grade: Grade, options: Mapping[str, Any]) -> float:
    """The value of the final answer. EpisodeError when it could not be graded: that is never a score of 0."""
    found = grade(final_answer(context), context.prompt.reference, **options)
    if not isinstance(found, RewardResult):
        return float(found)
    if found.value is None or not math.isfinite(found.value):
        raise EpisodeError(f"the answer could not be graded: {found.outcome} {dict(found.detail)}")
    return found.value
