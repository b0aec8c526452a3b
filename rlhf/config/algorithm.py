"""The sections `algorithm` and `critic` of a recipe: what is optimised, free of how it is run."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from rlhf.config.presets import lay_over, preset_values
from rlhf.config.section import Count, Fraction, NonNegative, Positive, Section


class CosineConfig(Section):
    """Rewards in place of the task's, from length 0 to sampling.max_tokens along half a cosine."""

    correct: tuple[float, float] = (2.0, 1.0)
    wrong: tuple[float, float] = (-10.0, 0.0)
    truncated: float = -10.0


class ShapingConfig(Section):
    """What a completion's length does to its reward; dynamic sampling and curriculum see the task's own."""

    overlong_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of sampling.max_tokens over which DAPO's soft overlong penalty falls to -1; None: no penalty."""
    overlong_coef: Positive = 1.0
    """Weight of that penalty."""
    truncated_coef: float | None = None
    """Rewards of truncated completions are multiplied by this; a negative one is itself their reward."""
    kimi_coef: Positive | None = None
    """Weight of Kimi k1.5's length reward: 0.5 for the shortest of a group to -0.5 for the longest."""
    cosine: CosineConfig | None = None
    """Replace the reward by one that depends on correctness and length; excludes the two above."""
    correct_above: float = 0.5
    """A completion is correct if its task reward is above this (cosine, kimi_coef)."""

    @property
    def is_on(self) -> bool:
        """Whether any of it is done."""
        steps = (self.overlong_share, self.truncated_coef, self.kimi_coef, self.cosine)
        return any(step is not None for step in steps)


_INPUTS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "gae": frozenset({"values"}),
        "gdpo": frozenset({"reward_parts"}),
        "process": frozenset({"step_rewards"}),
        "distill": frozenset({"teacher_logprobs", "old_logprobs"}),
    }
)


class AlgorithmConfig(Section):
    """A preset by name, and what is set beside it: a key written here wins over the preset."""

    name: str = "grpo"
    """A preset (rlhf/config/presets.py): what it sets is printed by `--dry-run`."""
    advantages: str = "grpo"
    """An estimator (rlhf/algorithms/estimators.py), or `module:attribute` or `file.py:attribute` of your own."""
    advantage_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Settings of the estimator, for example {gamma: 1.0, lam: 0.95} of gae."""
    advantage_inputs: tuple[
        Literal["values", "reward_parts", "step_rewards", "teacher_logprobs", "old_logprobs"], ...
    ] = ()
    """What an estimator of your own reads of the batch that is there on request alone; `values` asks for a critic."""
    whiten: bool = False
    """Whiten the advantages over all trained tokens of the step, as a last move."""
    policy: str = "ppo"
    """A policy term (rlhf/algorithms/policy_terms.py), or `module:attribute` or `file.py:attribute`."""
    policy_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Settings of the policy term beside the clips, for example {tau_negative: 1.1} of sapo."""
    clip_low: Positive | None = None
    """None: the policy term's own; the same for clip_high and dual_clip."""
    clip_high: Positive | None = None
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    log_ratio_limit: Positive | None = 20.0
    """Log-ratios are clamped to +- this before exp; None: not at all."""
    old_from: Literal["learner", "rollout"] = "learner"
    """The old policy of the ratio: the learner's before the update, or the engine's log-probabilities as they are."""
    aggregation: str = "seq_mean_token_mean"
    loss_normaliser: Positive | None = None
    """The constant C of `seq_mean_token_sum_norm`; None: sampling.max_tokens."""
    kl_coef: NonNegative = 0.0
    """Weight of the KL to the frozen reference; above 0 the reference is held and evaluated."""
    kl_in: Literal["loss", "reward"] = "loss"
    kl_estimator: str | None = None
    """None: k3_unbiased in the loss, k1 in the reward."""
    kl_ratio_from: Literal["learner", "rollout"] = "learner"
    """The old policy in the ratio of k3_unbiased."""
    kl_target: Positive | None = None
    """KL per token towards which kl_coef is steered, step by step; None: kl_coef stays."""
    kl_horizon: Positive = 10_000.0
    """Samples over which the steering acts."""
    reference: str | None = None
    """Model folder or hub name of the frozen reference, which is the teacher of `advantages: distill`.
    None: the model before training."""
    teachers: dict[str, str] = Field(default_factory=dict)
    """Several teachers of `advantages: distill` in place of the reference: {name: folder or hub name}."""
    teacher_by: str | None = None
    """The prompt column that names the teacher of a row."""
    reference_reset_every: Count = 0
    """Steps after which the policy becomes the reference; 0: never."""
    entropy_coef: float = 0.0
    positive_nll_coef: NonNegative = 0.0
    """Weight of the mean negative log-likelihood of positively rewarded rows (VAPO)."""
    correction: str = "token_tis"
    """Weight or mask for learner/engine mismatch and staleness (rlhf/algorithms/correction.py)."""
    correction_floor: Positive | None = None
    """With correction_cap the bounds of the correction; None: the published ones."""
    correction_cap: Positive | None = None
    opsm_delta: float | None = None
    """Bound of DeepSeek-V3.2's off-policy sequence mask; None: no such mask."""
    masked_share_warning: Fraction = 0.3
    """Warn at every step in which off-policy masks drop a larger share of the trained tokens."""
    mask_truncated: bool = False
    """Leave truncated rows out of the loss (they stay in the baseline)."""
    shaping: ShapingConfig | None = None

    @property
    def inputs(self) -> frozenset[str]:
        """What the estimator reads of the batch beyond what every batch has."""
        return _INPUTS.get(self.advantages, frozenset(self.advantage_inputs))

    @property
    def engine_ratio(self) -> str | None:
        """A key by which the loss compares the learner's log-probabilities with the engine's; None: none does."""
        ratio_of_kl = self.kl_ratio_from == "rollout" and self.kl_estimator in (None, "k3_unbiased")
        compares = {
            "correction": self.correction != "none",
            "old_from": self.old_from == "rollout",
            "opsm_delta": self.opsm_delta is not None,
            "kl_ratio_from": self.kl_coef > 0 and self.kl_in == "loss" and ratio_of_kl,
        }
        return next((key for key, is_on in compares.items() if is_on), None)

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        return (
            lay_over(preset_values(values).get("algorithm", {}), values)
            if isinstance(values, dict)
            else values
        )


def frozen_models(config: AlgorithmConfig) -> dict[str, str]:
    """Reference and teachers, by the key that names them."""
    found = {} if config.reference is None else {"algorithm.reference": config.reference}
    return found | {f"algorithm.teachers.{name}": path for name, path in config.teachers.items()}


class LoraConfig(Section):
    """Low-rank adapters through peft; the base stays frozen and serves as the reference."""

    rank: PositiveInt = 16
    alpha: Positive = 32.0
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Module names that get an adapter."""


class CriticConfig(Section):
    """The critic of algorithms with a value function: a network like the policy, with a scalar head.

    It starts from the policy's first weights; ranks, micro-batches and the rest of AdamW are the learner's.
    """

    lr: Positive = 1e-5
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive | None = 1.0
    warmup_steps: Count = 0
    """Optimizer steps of the learning rate's rise."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    min_lr_ratio: Fraction = 0.0
    """Final learning rate as a share of `lr` (linear, cosine)."""
    lam: Fraction = 1.0
    """Lambda of the returns that the critic is trained towards; 1: the sum of what was rewarded."""
    value_clip: Positive | None = 0.5
    """Furthest a value may move from that before the update and still lower the loss; None: any."""
    pretrain_steps: Count = 0
    """Loop steps at the start in which only the critic is trained."""
    lora: LoraConfig | None = None
    """Train adapters (and the head) instead of the whole critic; independent of model.lora."""
