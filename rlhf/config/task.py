"""The keys of `task`: what is asked, in which environment, and how it is judged."""

from typing import Any

from pydantic import Field, PositiveInt, model_validator

from rlhf.config.environment import EnvironmentConfig
from rlhf.config.rewards import RewardConfig
from rlhf.config.section import Fraction, Section


class SourceConfig(Section):
    """Where prompts come from. Exactly one of file, dataset, generator."""

    file: str | None = None
    """A .jsonl or .parquet file, or a folder of them, or a `datasets` folder written by save_to_disk."""
    dataset: str | None = None
    """A hub data set, `name` or `name:config`."""
    generator: str | None = None
    """`module:attribute`: a function (seed=, size=, **kwargs) -> rows."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the generator."""
    split: str = "train"
    """Split of a `datasets` source, or of a folder whose file names name splits."""
    mapper: str | None = None
    """`module:attribute`: row -> row, before the columns are read (returns None to leave a row out)."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Rename columns: {prompt: question, reference: answer}."""
    limit: PositiveInt | None = None
    """Use only the first rows."""
    seed: int = 0
    """Seed of a generator."""

    @model_validator(mode="after")
    def _one_source(self) -> "SourceConfig":
        given = [name for name in ("file", "dataset", "generator") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of file, dataset, generator; found {given or 'none'}")
        return self


class CurriculumConfig(Section):
    """Pass over prompts whose measured pass rate lies outside [low, high]."""

    low: Fraction = 0.05
    high: Fraction = 0.95
    revisit: Fraction = 0.1
    """Chance, drawn anew each epoch, to roll out such a prompt all the same."""

    @model_validator(mode="after")
    def _is_band(self) -> "CurriculumConfig":
        if self.low > self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}: low must not be above high.")
        if (self.low, self.high) == (0, 1) or self.revisit == 1:
            raise ValueError(
                f"low is {self.low}, high is {self.high} and revisit is {self.revisit}: no prompt would ever be "
                "passed over. Narrow the band and set revisit below 1, or set task.curriculum: null."
            )
        return self


class TaskConfig(Section):
    """What is asked and how it is judged."""

    train: SourceConfig
    heldout: SourceConfig | None = None
    """Prompts for evaluation; never trained on."""
    template: str = "chat"
    """`chat` (the tokenizer's chat template) or a plain template with {prompt}, for example 'Q: {prompt}\\nA: '."""
    system_prompt: str | None = None
    environment: EnvironmentConfig | None = None
    """What the model acts in, turn by turn; none: it answers once."""
    rewards: tuple[RewardConfig, ...] = ()
    """Needed without an environment, which scores by itself."""
    curriculum: CurriculumConfig | None = None
    """Roll out prompts by how often training has solved them; none: every prompt once an epoch."""
    needs_reference: bool = True
    """Refuse rows without a gold answer. False for rewards that do not compare with one (a format, a judge)."""
    gold_template: str = "<think>x</think><answer>{reference}</answer>"
    """What a right completion looks like, for `rlhf check`; {reference} stands for the gold answer. A row's column
    `gold_completion`, the whole text, comes first."""
    reward_workers: PositiveInt = 2
    """Processes that grade."""
    reward_memory_mb: PositiveInt = 2048
    """Resident memory of a reward worker above which it is killed (in a call) or replaced (after one)."""
    max_ungradable: Fraction = 0.05
    """Stop the run when a larger share of the last 200 samples was not gradable."""

    @model_validator(mode="after")
    def _is_judged(self) -> "TaskConfig":
        if not self.rewards and self.environment is None:
            raise ValueError(
                "task.rewards is empty and there is no task.environment: nothing would tell good answers from bad. "
                "Name a reward, for example `rewards: [{use: 'rewards.math_answer:grade'}]`, or an environment."
            )
        if self.environment is not None and self.template != "chat":
            raise ValueError(
                f"task.template is {self.template!r} and task.environment is given: turns need a chat template. "
                "Set task.template: chat, with a model.chat_template if the tokenizer has none."
            )
        return self

    @model_validator(mode="after")
    def _has_slot(self) -> "TaskConfig":
        if "{reference}" not in self.gold_template:
            raise ValueError(
                f"task.gold_template is {self.gold_template!r}, expected a text with {{reference}} where the gold "
                r"answer stands, for example '\boxed{{reference}}'."
            )
        return self
