"""The keys of `task`: what is asked, in which environment, and how it is judged."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field, PositiveInt, field_validator, model_validator

from rlhf.config.environment import EnvironmentConfig
from rlhf.config.points import value_at
from rlhf.config.rewards import RewardConfig
from rlhf.config.section import Count, Fraction, NonNegative, Positive, Section

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


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


class ScenarioConfig(Section):
    """One of several kinds of prompts that a run trains on together."""

    train: SourceConfig
    heldout: SourceConfig | None = None
    weight: Positive = 1.0
    """Its share of the prompts of every step, divided by the sum of all weights."""
    weight_points: tuple[tuple[Count, NonNegative], ...] = ()
    """[step, weight] pairs in place of `weight`: linear between two points, constant outside them."""
    rewards: tuple[RewardConfig, ...] = ()
    """Of its prompts alone, beside task.rewards. The first one decides its accuracy."""
    environment: EnvironmentConfig | None = None
    needs_reference: bool = True

    def weight_at(self, step: int) -> float:
        """Its weight at a step."""
        return value_at(self.weight_points, step) if self.weight_points else self.weight

    @model_validator(mode="after")
    def _points_rise(self) -> "ScenarioConfig":
        steps = [step for step, _ in self.weight_points]
        if steps != sorted(set(steps)):
            raise ValueError(f"weight_points has steps {steps}: put them in rising order, each step once.")
        if steps and self.weight != 1:
            raise ValueError(
                f"weight is {self.weight:g} and weight_points is given, which stands in its place. Remove one of them."
            )
        return self


class TaskConfig(Section):
    """What is asked and how it is judged."""

    train: SourceConfig | None = None
    """Needed without `scenarios`."""
    heldout: SourceConfig | None = None
    """Prompts for evaluation; never trained on."""
    scenarios: dict[str, ScenarioConfig] = Field(default_factory=dict)
    """Several kinds of prompts, each with its own rewards, trained on together, in place of `train` and `heldout`."""
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

    @field_validator("scenarios")
    @classmethod
    def _can_be_named(cls, scenarios: dict[str, ScenarioConfig]) -> dict[str, ScenarioConfig]:
        for name in scenarios:
            # eval/log/* are numbers of environments.
            if not _NAME.fullmatch(name) or name == "log":
                raise ValueError(
                    f"{name!r} cannot name a scenario: expected letters, digits, _ and -, a letter first, as metrics "
                    "are named after it, and not 'log'."
                )
        return scenarios

    @model_validator(mode="after")
    def _has_one_kind_of_source(self) -> "TaskConfig":
        if self.train is None and not self.scenarios:
            raise ValueError(
                "task.train is missing, and there are no task.scenarios: give one of the two, where the prompts are."
            )
        given = dict(self)
        for key in ("train", "heldout", "environment"):
            if self.scenarios and given[key] is not None:
                raise ValueError(
                    f"task.{key} and task.scenarios are both given: each scenario has its own. Remove task.{key}, or "
                    f"write it as task.scenarios.{next(iter(self.scenarios))}.{key}."
                )
        if self.scenarios and not self.needs_reference:
            raise ValueError(
                "task.needs_reference is false and task.scenarios is given: each scenario has its own. Set "
                f"task.scenarios.{next(iter(self.scenarios))}.needs_reference: false."
            )
        steps = {step for scenario in self.scenarios.values() for step, _ in scenario.weight_points}
        for step in sorted(steps):
            if all(scenario.weight_at(step) == 0 for scenario in self.scenarios.values()):
                raise ValueError(
                    f"task.scenarios: every weight is 0 at step {step}, so that no prompt would be chosen."
                )
        return self

    @model_validator(mode="after")
    def _is_judged(self) -> "TaskConfig":
        for key, part in self.parts.items():
            if not part.rewards and part.environment is None:
                raise ValueError(
                    f"{key}.rewards is empty and there is no {key}.environment: nothing would tell good answers "
                    "from bad. Name a reward, for example `rewards: [{use: 'rewards.math_answer:grade'}]`, or an "
                    "environment."
                )
            if part.environment is not None and self.template != "chat":
                raise ValueError(
                    f"task.template is {self.template!r} and {key}.environment is given: turns need a chat template. "
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

    @property
    def parts(self) -> Mapping[str, "TaskConfig"]:
        """Key -> plain task: itself as `task`, or each scenario as if it were the only one."""
        return {self.key_of(name): self.alone(name) for name in self.scenarios or [""]}

    def key_of(self, scenario: str) -> str:
        """The key of a scenario; '' where there are none."""
        return f"task.scenarios.{scenario}" if scenario else "task"

    def alone(self, scenario: str) -> "TaskConfig":
        """One scenario as a plain task, with its own rewards before the common ones; '' gives the task itself."""
        if not scenario:
            return self
        one = self.scenarios[scenario]
        changes = {
            "scenarios": {},
            "train": one.train,
            "heldout": one.heldout,
            "environment": one.environment,
            "needs_reference": one.needs_reference,
            "rewards": (*one.rewards, *self.rewards),
        }
        return self.model_copy(update=changes)

    def shares(self, num_steps: int) -> Mapping[str, float]:
        """Scenario -> its share of the prompts of a run of `num_steps`; {'': 1} without scenarios."""
        if not self.scenarios:
            return {"": 1.0}
        sums = dict.fromkeys(self.scenarios, 0.0)
        for step in range(num_steps):
            weights = {name: scenario.weight_at(step) for name, scenario in self.scenarios.items()}
            for name, weight in weights.items():
                sums[name] += weight / sum(weights.values()) / num_steps
        return sums

    @property
    def all_rewards(self) -> tuple[RewardConfig, ...]:
        """Those of scenarios, each for its own prompts alone, then the common ones."""
        own = (
            reward.model_copy(update={"when": {**reward.when, "scenario": name}})
            for name, scenario in self.scenarios.items()
            for reward in scenario.rewards
        )
        return (*own, *self.rewards)

    @property
    def reward_keys(self) -> tuple[str, ...]:
        """The key of each of `all_rewards`."""
        of_scenarios = (
            f"{self.key_of(name)}.rewards[{i}]"
            for name, scenario in self.scenarios.items()
            for i in range(len(scenario.rewards))
        )
        return (*of_scenarios, *(f"task.rewards[{i}]" for i in range(len(self.rewards))))

    @property
    def environments(self) -> Mapping[str, EnvironmentConfig]:
        """Scenario -> environment, of those that have one; the scenario '' stands for `task.environment`."""
        every = {name: self.alone(name).environment for name in self.scenarios or [""]}
        return {name: environment for name, environment in every.items() if environment is not None}
