"""The kinds of stages: the keys of each, what it leaves, and which keys do not change what comes out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from pydantic import Field, model_validator

from rlhf.config.evaluation import EvaluationFile
from rlhf.config.merge import MergeConfig
from rlhf.config.reject import CollectConfig, SelectConfig
from rlhf.config.sandbox import SandboxConfig
from rlhf.config.schema import (
    EngineConfig,
    LearnerConfig,
    ModelConfig,
    PlacementConfig,
    Recipe,
    SamplingConfig,
    TimeoutConfig,
    longest_row,
)
from rlhf.config.section import Section, as_its_own
from rlhf.config.services import ServiceConfig, unknown_service
from rlhf.config.task import TaskConfig
from rlhf.config.trainer import DpoConfig, RewardModelConfig, SftConfig


class RenderedTask(Section):
    """How prompts are shown to a model that does not sample."""

    template: str = "chat"
    """As task.template of a recipe."""
    system_prompt: str | None = None


class SftStage(Section):
    """Supervised fine-tuning; of a student on a teacher's rows it is off-policy distillation."""

    seed: int = 0
    model: ModelConfig
    task: RenderedTask = RenderedTask()
    sft: SftConfig


class DpoStage(Section):
    """Direct preference optimization on pairs."""

    seed: int = 0
    model: ModelConfig
    task: RenderedTask = RenderedTask()
    dpo: DpoConfig


class RewardModelStage(Section):
    """A model that scores, learned from pairs."""

    seed: int = 0
    model: ModelConfig
    task: RenderedTask = RenderedTask()
    reward_model: RewardModelConfig


class RejectStage(Section):
    """Rejection sampling: many samples of many prompts, of which the good ones become training rows."""

    seed: int = 0
    model: ModelConfig
    task: TaskConfig
    services: dict[str, ServiceConfig] = Field(default_factory=dict)
    sandbox: SandboxConfig = SandboxConfig()
    sampling: SamplingConfig = SamplingConfig()
    engine: EngineConfig = EngineConfig()
    placement: PlacementConfig = PlacementConfig()
    timeouts: TimeoutConfig = TimeoutConfig()
    collect: CollectConfig = CollectConfig()
    select: SelectConfig = SelectConfig()

    @model_validator(mode="after")
    def _has_one_source(self) -> "RejectStage":
        if self.task.scenarios:
            raise ValueError(
                f"task.scenarios names {', '.join(self.task.scenarios)}: a reject stage samples one source. Set "
                "task.train, and write a stage for each scenario."
            )
        return self

    @model_validator(mode="after")
    def _can_be_run(self) -> "RejectStage":
        if (problem := unknown_service(self.select, self.services)) is not None:
            raise ValueError(problem)
        with as_its_own():
            self.recipe("reject")
        return self

    def recipe(self, name: str) -> Recipe:
        """The recipe that samples and grades as this stage says."""
        values = {key: value for key, value in dict(self).items() if key not in ("collect", "select")}
        learner = LearnerConfig(microbatch_tokens=longest_row(self.task, self.sampling))
        return Recipe(name=name, learner=learner, **values)


class SelectStage(Section):
    """Another selection from samples that a reject stage has drawn and graded: nothing is drawn again."""

    seed: int = 0
    samples: str
    """The folder of a complete collection: `${reject.samples}`."""
    select: SelectConfig = SelectConfig()
    """Its filters must be among the rewards and filters that the samples were graded with."""


class MergeStage(Section):
    """One model of several, or of a base and its adapters; also another type."""

    seed: int = 0
    merge: MergeConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class StageKind:
    """What all stages of a kind have in common."""

    section: type[Section]
    artefacts: Mapping[str, str]
    """Name -> path below the stage's folder, which a stage may override. `${stage}` stands for the first."""
    own: frozenset[str] = frozenset()
    """Top-level keys of `section` that the pipeline fills in, so that a stage cannot say them."""
    unread: frozenset[str] = frozenset()
    """Dotted keys of `section` that this kind does not read."""
    unshared: frozenset[str] = frozenset()
    """Keys of `section` that other kinds know, too, and that only the stage itself may say."""
    preset: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """What the kind itself sets; a stage may not say otherwise."""

    @property
    def makes_model(self) -> bool:
        """Whether its main artefact is a model's folder."""
        return next(iter(self.artefacts)) == "model"


_MODEL = MappingProxyType({"model": "model"})
_ROWS = MappingProxyType({"rows": "rows.jsonl", "pairs": "pairs.jsonl", "prompts": "prompts.jsonl"})
_DRAWN = MappingProxyType({**_ROWS, "samples": "collected"})
_SCORES = MappingProxyType({"scores": "eval.json", "samples": "samples.jsonl"})
_UNREAD = frozenset({"task.heldout", "task.curriculum"})
_OF_RECIPE = frozenset({"name", "run_dir"})
_OF_SFT = frozenset({"sft"})
_DISTILL = MappingProxyType({"algorithm": {"advantages": "distill"}})

KINDS: Mapping[str, StageKind] = MappingProxyType(
    {
        "sft": StageKind(section=SftStage, artefacts=_MODEL),
        "distill": StageKind(section=SftStage, artefacts=_MODEL),
        "rl": StageKind(section=Recipe, artefacts=_MODEL, own=_OF_RECIPE, unshared=_OF_SFT),
        "on_policy_distill": StageKind(
            section=Recipe, artefacts=_MODEL, own=_OF_RECIPE, unshared=_OF_SFT, preset=_DISTILL
        ),
        "reject": StageKind(section=RejectStage, artefacts=_DRAWN, unread=_UNREAD),
        "select": StageKind(section=SelectStage, artefacts=_ROWS),
        "dpo": StageKind(section=DpoStage, artefacts=_MODEL),
        "reward_model": StageKind(section=RewardModelStage, artefacts=_MODEL),
        "merge": StageKind(section=MergeStage, artefacts=_MODEL),
        "eval": StageKind(section=EvaluationFile, artefacts=_SCORES, own=_OF_RECIPE),
    }
)

_OF_TRAINER = ("num_ranks", "threads", "microbatch_size", "checkpoint_every")
NOT_LEARNED = (
    "placement",
    "timeouts",
    "telemetry",
    "sandbox",
    "sync",
    "checkpoint.every",
    "checkpoint.keep",
    "task.reward_workers",
    "task.reward_memory_mb",
    "learner.num_ranks",
    "learner.threads",
    "engine.num_engines",
    "engine.tensor_parallel",
    "engine.threads",
    "engine.kv_cache_mb",
    "engine.gpu_memory_fraction",
    *(f"{kind}.{key}" for kind in ("sft", "dpo", "reward_model") for key in _OF_TRAINER),
    "collect.chunks_in_flight",
)
"""Sections and keys of any stage that say where, how safely and how fast it runs, not what comes out: they do not
enter a stage's key. (Another number of devices changes the last digits of a float, as another device does.)"""
