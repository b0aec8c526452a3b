"""The keys of one reward of a recipe (`task.rewards`)."""

from collections.abc import Sequence
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
    first_step: int | None = None
    """The first weight version whose samples it grades; negative: counted from the end, -400 for the last 400 steps."""
    last_step: int | None = None
    """The last such version; -1 is the run's last."""

    @field_validator("use", mode="before")
    @classmethod
    def _is_a_name(cls, use: Any) -> Any:
        if callable(use):
            raise ValueError(
                f"found the object {use!r}, expected its name: the worker processes import rewards. Put the function "
                "at the top level of a module and write 'module:attribute' or 'file.py:attribute'"
            )
        return use

    @property
    def is_scheduled(self) -> bool:
        """Whether it counts in a part of the run alone."""
        return self.first_step is not None or self.last_step is not None

    def counts_at(self, version: int, num_steps: int) -> bool:
        """Whether it grades what weight version `version` has sampled, in a run of `num_steps`."""
        first = _from_start(self.first_step, num_steps, default=0)
        last = _from_start(self.last_step, num_steps, default=version)
        return first <= version <= last


def uncovered_step(rewards: Sequence[RewardConfig], num_steps: int) -> int | None:
    """The first weight version at which no reward adds to the total, gates left aside; None: there is none."""
    changes = {0}
    for reward in rewards:
        changes.add(_from_start(reward.first_step, num_steps, default=0))
        changes.add(_from_start(reward.last_step, num_steps, default=-1) + 1)
    return next(
        (
            version
            for version in sorted(changes)
            if 0 <= version < num_steps
            and not any(reward.counts_at(version, num_steps) and not reward.gate for reward in rewards)
        ),
        None,
    )


def _from_start(step: int | None, num_steps: int, *, default: int) -> int:
    if step is None:
        return default
    return step if step >= 0 else num_steps + step
