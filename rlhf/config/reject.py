"""The keys of rejection sampling: how much is drawn (`collect`) and what of it is kept (`select`)."""

from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from rlhf.config.rewards import RewardConfig
from rlhf.config.section import Fraction, NonNegative, Positive, Section
from rlhf.config.task import SourceConfig


class CollectConfig(Section):
    """How much is drawn, and in what portions."""

    samples_per_prompt: PositiveInt = 16
    prompts_per_chunk: PositiveInt = 64
    """Decoded together and written together: what a kill costs at most, times `chunks_in_flight`."""
    chunks_in_flight: PositiveInt | Literal["auto"] = "auto"
    """auto: 1 on a CPU, where a run then repeats bit for bit; 2 on GPUs, where the tail of one chunk would leave them
    idle."""

    def in_flight(self, device: str) -> int:
        """Chunks at the same time on a device."""
        if self.chunks_in_flight == "auto":
            return 1 if device == "cpu" else 2
        return self.chunks_in_flight


class FilterConfig(Section):
    """A reward function that a kept sample must satisfy; it adds nothing to the reward."""

    use: str
    """`module:attribute` or `file.py:attribute`."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    at_least: float | None = None
    at_most: float | None = None
    limit_s: Positive = 5.0
    """Deadline per sample."""
    when: dict[str, Any] = Field(default_factory=dict)
    """Apply only to prompts whose columns have these values."""

    @model_validator(mode="after")
    def _is_bounded(self) -> "FilterConfig":
        if self.at_least is None and self.at_most is None:
            raise ValueError(
                f"{self.use} has neither at_least nor at_most: it would keep everything. Give one."
            )
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(
                f"{self.use}: at_least is {self.at_least} and at_most is {self.at_most}: nothing would be kept."
            )
        return self

    @property
    def reward(self) -> RewardConfig:
        """It as a reward that adds nothing."""
        return RewardConfig(
            use=self.use, kwargs=self.kwargs, weight=0.0, limit_s=self.limit_s, when=self.when
        )


class DeduplicateConfig(Section):
    """When two samples of one prompt say the same: the better one stays.

    Case, white space and the width of characters do not count.
    """

    jaccard: Fraction | None = None
    """Also when their runs of `ngram` words have at least this share in common; none: only equal texts."""
    ngram: PositiveInt = 3


class PassRateConfig(Section):
    """Leave out prompts that are too hard or too easy: share of right samples outside [low, high]."""

    low: Fraction = 0.0
    high: Fraction = 1.0
    only_certain: bool = False
    """Only where the whole 95% interval lies outside."""

    @model_validator(mode="after")
    def _is_band(self) -> "PassRateConfig":
        if self.low > self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}: low must not be above high.")
        return self


class DecontaminateConfig(Section):
    """Leave out prompts that say what a test set says."""

    against: dict[str, SourceConfig] = Field(min_length=1)
    """Test sets by name, for the summary."""
    ngram: PositiveInt = 10
    """Words in a row that two texts may not share; a text with fewer is compared as a whole."""


class PairsConfig(Section):
    """Right against wrong samples of one prompt, for preference training."""

    per_prompt: PositiveInt = 1
    rejected: Literal["best", "worst"] = "best"
    """Which wrong samples come first, in the order of `select`."""
    min_gap: NonNegative = 0.0
    """Least difference of the two rewards."""


class SelectConfig(Section):
    """What of the samples is kept; docs/rejection.md has the order of the rules."""

    require_correct: bool = True
    """Keep only samples that solved the task: whose first reward is above 0.5."""
    min_reward: float | None = None
    """Least total reward."""
    allow_truncated: bool = False
    """Keep samples that were cut by a limit: what is learned of them ends in the middle."""
    filters: tuple[FilterConfig, ...] = ()
    """Graded beside `task.rewards` by the same workers."""
    per_prompt: PositiveInt | None = 1
    """Best samples kept of a prompt; none: all."""
    rank_by: str | None = None
    """A part of the reward (`language.consistency`) that decides between equal rewards."""
    prefer: Literal["earlier", "shorter"] = "earlier"
    """What decides then."""
    deduplicate: DeduplicateConfig | None = DeduplicateConfig()
    pass_rate: PassRateConfig | None = None
    decontaminate: DecontaminateConfig | None = None
    pairs: PairsConfig | None = None
    limit: PositiveInt | None = None
    """Rows at most, drawn at random."""
    seed: int = 0
    """Of that draw."""
    keep_columns: tuple[str, ...] = ()
    """Columns of the prompts that the rows keep (a domain, a level), but for names that rows have anyway (`source`)."""
    format: Literal["jsonl", "parquet"] = "jsonl"
    """Of the rows."""
