"""What every learner rank is built from: plain values, picklable, ready to be sent to another process."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rlhf.config.algorithm import CriticConfig
from rlhf.config.schema import LearnerConfig, ModelConfig

EntropyMode = Literal["none", "metric", "gradient"]
"""Whether entropy is computed, and whether gradients flow through it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlace:
    """Which rank this is, on what, and where the ranks meet (address and port of rank 0)."""

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"
    address: str = "127.0.0.1"
    port: int = 0
    timeout_s: float = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerPlan:
    """What is trained and how; the same on every rank."""

    model: ModelConfig
    learner: LearnerConfig
    total_steps: int
    """Optimizer steps of the whole run: the length of the learning-rate schedules."""
    seed: int = 0
    needs_reference: bool = False
    """Hold the initial weights frozen (LoRA holds them anyway)."""
    reference: ModelConfig | None = None
    """What the frozen reference is loaded from instead; None: `model`."""
    teachers: Mapping[str, ModelConfig] = field(default_factory=dict)
    """Frozen models beside the reference, by name."""
    reference_resets: bool = False
    """The reference will be set to the policy now and then, so checkpoints hold it. Not with LoRA."""
    critic: CriticConfig | None = None
    """Train a critic of the policy's size beside it."""
    critic_alone: int = 0
    """Optimizer steps of the critic before the first of the policy, whose schedule is that much shorter."""
    entropy: EntropyMode = "metric"
    """`gradient` when the loss trains the entropy it is given."""
    keep_routing: bool = False
    """Batches carry the experts that the sampler chose."""
