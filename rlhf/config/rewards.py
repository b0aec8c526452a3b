"""The keys of one reward of a recipe (`task.rewards`)."""

from typing import Any

from pydantic import Field, PositiveInt, field_validator

from rlhf.config.section import Positive, Section


class RetriesConfig(Section):
    """Errors of a reward that deserve another try."""

    on: tuple[str, ...] = Field(min_length=1)
    """Exceptions, by builtin or dotted name, or `file.py:attribute`; their subclasses count, too."""
    times: PositiveInt = 3
    """Further tries after the first, with growing pauses, all within limit_s."""


class RewardConfig(Section):
    """One reward function and how it counts."""

    use: str
    """`module:attribute` or `file.py:attribute`."""
    weight: float = 1.0
    limit_s: Positive = 5.0
    """Deadline per sample, retries included; the worker's process group is killed when it passes."""
    retries: RetriesConfig | None = None
    """Never after a deadline."""
    concurrency: PositiveInt | None = None
    """Samples that one worker awaits at a time, for an `async` reward of one sample; default: those of a group."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    when: dict[str, Any] = Field(default_factory=dict)
    """Apply only to prompts whose columns have these values."""
    gate: bool = False
    """Multiply the total by (value > 0) instead of adding."""
    optional: bool = False
    """A failure leaves this part out for the whole group instead of voiding the sample."""

    @field_validator("use", mode="before")
    @classmethod
    def _is_a_name(cls, use: Any) -> Any:
        if callable(use):
            raise ValueError(
                f"found the object {use!r}, expected its name: the worker processes import rewards. Put the function "
                "at the top level of a module and write 'module:attribute' or 'file.py:attribute'"
            )
        return use
