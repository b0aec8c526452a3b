"""The keys of an evaluation: which sets, how they are sampled, and the file that `rlhf eval` reads."""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from rlhf.config.environment import EnvironmentConfig
from rlhf.config.rewards import RewardConfig
from rlhf.config.sandbox import SandboxConfig
from rlhf.config.schema import (
    EngineConfig,
    LearnerConfig,
    ModelConfig,
    PlacementConfig,
    Recipe,
    SamplingConfig,
    ScheduleConfig,
    TimeoutConfig,
    longest_row,
)
from rlhf.config.section import Count, Fraction, NonNegative, Section, as_its_own
from rlhf.config.services import ServiceConfig
from rlhf.config.task import SourceConfig, TaskConfig

NAME = re.compile(r"\w[\w.+-]*( [\w.+-]+)*")
"""Of a model or a set, which name folders."""


class EvalSet(Section):
    """Prompts that a model is measured on, and what differs from `task` for them."""

    source: SourceConfig
    rewards: tuple[RewardConfig, ...] | None = None
    """Default: those of `task`. The first one says what is right."""
    template: str | None = None
    """Default: task.template."""
    system_prompt: str | None = None
    """Default: task.system_prompt."""
    environment: EnvironmentConfig | None = None
    """Default: task.environment."""
    needs_reference: bool | None = None
    """Default: task.needs_reference."""
    gold_template: str | None = None
    """Default: task.gold_template."""
    votes: Literal["text", "reward"] = "text"
    """Which wrong answers are one vote of maj@k (the right ones always are). text: equal texts. reward: those that
    the first reward takes for each other, one written as gold_template has it, the other as the gold answer."""


class EvaluateConfig(Section):
    """How a set is sampled, and which figures are made of the samples."""

    num_samples: PositiveInt = 1
    """Per prompt."""
    temperature: NonNegative | None = None
    """Default: 0 (greedy) for one sample, else sampling.temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Default: sampling.top_p."""
    max_tokens: PositiveInt | None = None
    """Default: sampling.max_tokens."""
    ks: tuple[PositiveInt, ...] = ()
    """The k of pass@k and its kin; default: the powers of 2 up to num_samples."""
    best_of: str | None = None
    """The part of the reward by which best-of-k chooses, for example `reward_model`; none: no best-of-k."""
    samples_kept: Count = 200
    """Samples of a set that samples.jsonl and the report show."""
    prompts_per_chunk: PositiveInt = 32
    """What a kill costs at most, and on a CPU what an engine decodes together."""

    @model_validator(mode="after")
    def _can_be_estimated(self) -> "EvaluateConfig":
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(
                f"eval.temperature is 0 and eval.num_samples is {self.num_samples}: greedy samples are all the same. "
                "Set num_samples: 1, or a temperature above 0."
            )
        above = [k for k in self.ks if k > self.num_samples]
        if above or list(self.ks) != sorted(set(self.ks)):
            raise ValueError(
                f"eval.ks is {list(self.ks)} and eval.num_samples is {self.num_samples}: expected rising numbers of "
                "at most num_samples, since k samples cannot be drawn from fewer."
            )
        return self

    @property
    def sizes(self) -> tuple[int, ...]:
        """`ks`, or in its place the powers of 2 up to num_samples."""
        return self.ks or tuple(2**i for i in range(self.num_samples.bit_length()))


class EvaluationTask(Section):
    """What the sets of an evaluation have in common; the keys of a recipe's `task` without its prompts."""

    template: str = "chat"
    system_prompt: str | None = None
    environment: EnvironmentConfig | None = None
    rewards: tuple[RewardConfig, ...] = ()
    """Of the sets that name none."""
    needs_reference: bool = True
    gold_template: str = "<think>x</think><answer>{reference}</answer>"
    reward_workers: PositiveInt = 2
    reward_memory_mb: PositiveInt = 2048
    max_ungradable: Fraction = 0.05


class EvaluationFile(Section):
    """A file of `rlhf eval`: models and the sets that they are measured on."""

    name: str
    seed: int = 0
    run_dir: str | None = None
    """Default: runs/<name>."""
    model: ModelConfig | None = None
    models: dict[str, ModelConfig] = Field(default_factory=dict)
    """Several models by name, in place of `model`: one table."""
    sets: dict[str, EvalSet] = Field(min_length=1)
    eval: EvaluateConfig = EvaluateConfig()
    task: EvaluationTask = EvaluationTask()
    services: dict[str, ServiceConfig] = Field(default_factory=dict)
    """As in a recipe: models that rewards ask."""
    sandbox: SandboxConfig = SandboxConfig()
    sampling: SamplingConfig = SamplingConfig()
    engine: EngineConfig = EngineConfig()
    placement: PlacementConfig = PlacementConfig()
    timeouts: TimeoutConfig = TimeoutConfig()

    @model_validator(mode="after")
    def _has_models(self) -> "EvaluationFile":
        if (self.model is None) == (not self.models):
            raise ValueError("give exactly one of model (one) and models (several by name)")
        return self

    @model_validator(mode="after")
    def _names_are_folders(self) -> "EvaluationFile":
        for key, names in (("models", self.models), ("sets", self.sets)):
            problem = name_problem(names, key)
            if problem is not None:
                raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _is_judged(self) -> "EvaluationFile":
        for name, one in self.sets.items():
            if not (one.rewards or one.environment or self.task.rewards or self.task.environment):
                raise ValueError(
                    f"sets.{name} names no rewards, and neither does task: nothing would tell right from wrong. "
                    "Name a reward, for example `rewards: [{use: 'rewards.math_answer:grade'}]`."
                )
        return self

    @model_validator(mode="after")
    def _can_be_run(self) -> "EvaluationFile":
        with as_its_own():
            recipe = self.recipe(next(iter(self.all_models.values())))
        for name, one in self.judged_sets.items():
            with as_its_own(f"sets.{name}: "):
                recipe_of_set(recipe, one, self.eval)
        return self

    @property
    def all_models(self) -> dict[str, ModelConfig]:
        """The models by name; a single one is called `model`."""
        return dict(self.models) if self.model is None else {"model": self.model}

    @property
    def judged_sets(self) -> dict[str, EvalSet]:
        """The sets, each with its rewards written out."""
        return {
            name: one if one.rewards is not None else one.model_copy(update={"rewards": self.task.rewards})
            for name, one in self.sets.items()
        }

    def recipe(self, model: ModelConfig) -> Recipe:
        """The recipe that `evaluate_models` takes. Its task.train is the first set's, and nothing trains on it."""
        first = next(iter(self.sets.values()))
        common: dict[str, Any] = self.task.model_dump()
        if not self.task.rewards and self.task.environment is None:
            # Every set is judged by what it names itself; a recipe's task must name something, too.
            common["rewards"] = next((s.rewards for s in self.sets.values() if s.rewards), ())
            if not common["rewards"]:
                common["environment"] = first.environment
        task = TaskConfig(train=first.source, **common)
        most = max(self.sampling.max_tokens, self.eval.max_tokens or 0)
        row = longest_row(task, self.sampling.model_copy(update={"max_tokens": most}))
        return Recipe(
            name=self.name,
            seed=self.seed,
            run_dir=self.run_dir,
            model=model,
            task=task,
            services=self.services,
            sandbox=self.sandbox,
            sampling=self.sampling,
            learner=LearnerConfig(microbatch_tokens=row),
            engine=self.engine,
            placement=self.placement,
            timeouts=self.timeouts,
        )


def recipe_of_set(recipe: Recipe, one: EvalSet, config: EvaluateConfig) -> Recipe:
    """The recipe with a set in place of its task, sampled as `config` has it, and nothing of training."""
    task = recipe.task
    judged = TaskConfig(
        train=one.source,
        template=task.template if one.template is None else one.template,
        system_prompt=task.system_prompt if one.system_prompt is None else one.system_prompt,
        environment=one.environment or task.environment,
        rewards=task.rewards if one.rewards is None else one.rewards,
        needs_reference=task.needs_reference if one.needs_reference is None else one.needs_reference,
        gold_template=task.gold_template if one.gold_template is None else one.gold_template,
        reward_workers=task.reward_workers,
        reward_memory_mb=task.reward_memory_mb,
        max_ungradable=task.max_ungradable,
    )
    drawn = {
        "max_tokens": config.max_tokens or recipe.sampling.max_tokens,
        "keep_routing": False,
        "keep_sampling_mask": False,
    }
    sampling = recipe.sampling.model_copy(update=drawn)
    return Recipe(
        name=recipe.name,
        seed=recipe.seed,
        model=recipe.model,
        task=judged,
        services=recipe.services,
        sandbox=recipe.sandbox,
        sampling=sampling.model_copy(update={"top_p": 1.0, "top_k": 0}),
        # How many steps there were says which of its rewards count at the end.
        schedule=ScheduleConfig(num_steps=recipe.schedule.num_steps),
        learner=LearnerConfig(microbatch_tokens=longest_row(judged, sampling)),
        engine=recipe.engine,
        placement=recipe.placement,
        timeouts=recipe.timeouts,
    )


def name_problem(names: Iterable[str], key: str) -> str | None:
    """What to say of the first name that cannot be a folder's; None where all can."""
    bad = next((name for name in names if not NAME.fullmatch(name)), None)
    if bad is None:
        return None
    return f"{key}: {bad!r} is to be a folder's name; use letters, digits, any of _ . + - and single spaces"
