"""From the section `algorithm` of a recipe to functions: one record holds all that an algorithm is."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from rlhf.algorithms.advantages import whiten
from rlhf.algorithms.correction import CORRECTIONS, Correction
from rlhf.algorithms.estimators import ADVANTAGES, AdvantageFunction
from rlhf.algorithms.gae import returns
from rlhf.algorithms.kl import KL_ESTIMATORS, KlEstimator
from rlhf.algorithms.losses import PolicyLoss
from rlhf.algorithms.policy_terms import POLICIES
from rlhf.algorithms.reduce import AGGREGATIONS, Aggregation, loss_weights
from rlhf.algorithms.shaping import CosineReward, Shaping
from rlhf.algorithms.token_rewards import kl_token_rewards
from rlhf.algorithms.value_loss import ValueLoss
from rlhf.batch import Batch
from rlhf.config.algorithm import AlgorithmConfig
from rlhf.config.schema import Recipe
from rlhf.errors import ConfigError
from rlhf.importing import load_function

_WITH_CRITIC = frozenset({"gae"})
_ONE_BY_ONE = frozenset({"reinforce", "reinforce_pp", "gae", "process", "distill"})
"""Estimators to which a sample says something without another one of its prompt."""
_BLIND_TO_TOKEN_REWARDS = {
    "gdpo": "it reads the parts of the task's reward, not token rewards",
    "pass_at_k": "it reads who is correct, not token rewards",
    "process": "it reads the rewards of steps, not token rewards",
    "distill": "it reads log-probabilities, not rewards",
    "maxrl": "it divides by the group's mean reward, which a penalty may bring near 0",
}
_BLIND_TO_THE_REWARD = frozenset({"gdpo", "process", "distill"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """All that tells one algorithm from another. A record, never subclassed."""

    name: str
    advantages: AdvantageFunction
    """Whole step -> advantages [N]; its settings are bound."""
    loss: PolicyLoss
    aggregation: Aggregation
    loss_normaliser: float | None = None
    whiten: bool = False
    mask_truncated: bool = False
    shaping: Shaping | None = None
    """What lengths do to the rewards, before anything else."""
    kl_in_reward: float | None = None
    """Coefficient of the KL penalty on every token's reward; None: there is none."""
    value_loss: ValueLoss | None = None
    """None: there is no critic."""
    returns: AdvantageFunction | None = None
    """What the critic is trained towards."""
    distils: bool = False
    """The reference is the teacher that the advantages read."""
    least_rewards: int = 2
    """Gradable samples without which a group says nothing: 1 where each is judged by itself."""

    @property
    def kl_coef(self) -> float:
        """Weight of the KL to the reference, wherever it acts."""
        return self.loss.kl_coef if self.kl_in_reward is None else self.kl_in_reward

    def with_kl_coef(self, coef: float) -> "Algorithm":
        """The same algorithm with another weight of the KL."""
        if self.kl_in_reward is not None:
            return replace(self, kl_in_reward=coef)
        return replace(self, loss=replace(self.loss, kl_coef=coef))

    @property
    def needs_reference(self) -> bool:
        """The batch must carry ref_logprobs."""
        return self.kl_coef > 0 or self.distils

    @property
    def needs_entropy(self) -> bool:
        """The loss needs the entropy with its gradient, not only as a metric."""
        return self.loss.entropy_coef != 0

    def needs_old_logprobs(self, num_updates: int) -> bool:
        """The batch must carry old_logprobs: with one update per batch old = current, but advantages come before."""
        return num_updates > 1 or self.kl_in_reward is not None or self.distils

    def add_advantages(self, batch: Batch) -> Batch:
        """The whole step with `advantages`, and `returns` for a critic. Groups must be complete: before any split."""
        if self.shaping is not None:
            batch = self.shaping(batch)
        if self.kl_in_reward is not None:
            penalty = kl_token_rewards(batch, kl_coef=self.kl_in_reward, estimator=self.loss.kl_estimator)
            batch = replace(batch, token_rewards=penalty)
        advantages = self.advantages(batch)
        if advantages.shape != batch.rollout_logprobs.shape:
            raise ConfigError(
                f"algorithm.advantages gave a tensor of shape {tuple(advantages.shape)}, expected one number for "
                f"each of the {batch.num_tokens} tokens of the batch."
            )
        if self.whiten:
            advantages = whiten(advantages, batch)
        return replace(
            batch, advantages=advantages, returns=None if self.returns is None else self.returns(batch)
        )

    def add_loss_weights(self, minibatch: Batch, *, seed: int = 0) -> Batch:
        """One optimizer batch with all that its loss needs from the whole of it: before micro-batches and ranks.

        Rows that were not gradable, and truncated ones under `mask_truncated`, count as empty.
        """
        kept = ~torch.isnan(minibatch.rewards)
        if self.mask_truncated:
            kept = kept & ~minibatch.truncated
        weights = loss_weights(minibatch, self.aggregation, normaliser=self.loss_normaliser, kept=kept)
        return self.loss.prepare(replace(minibatch, loss_weights=weights), seed=seed)

    def lines(self) -> list[tuple[str, str]]:
        """(what, which) for the printed plan, defaults written out."""
        bound, loss = cast("partial[Tensor]", self.advantages), self.loss
        switches = {"whiten": self.whiten, "mask_truncated": self.mask_truncated}
        estimator = _settings(bound.func, bound.keywords) | {key: True for key, on in switches.items() if on}
        extra = {
            "correction": f"{loss.correction} {list(loss.bounds)}",
            "opsm_delta": loss.opsm_delta,
            "old_from": None if loss.old_from == "learner" else loss.old_from,
            "entropy_coef": loss.entropy_coef or None,
            "positive_nll_coef": loss.positive_nll_coef or None,
        }
        policy = _settings(loss.term, loss.settings()) | {k: v for k, v in extra.items() if v is not None}
        weights = {} if self.loss_normaliser is None else {"C": f"{self.loss_normaliser:g}"}
        kl = f"{self.kl_coef:g} x {loss.kl_estimator} in the {'loss' if self.kl_in_reward is None else 'reward'}"
        lines = [
            ("algorithm", self.name),
            ("  advantages", _listed(bound.func, estimator)),
            ("  loss", _listed(loss.term, policy)),
            ("  aggregation", _listed(self.aggregation, weights)),
            *(() if self.shaping is None else (("  reward shaping", _shown(self.shaping)),)),
            ("  KL to the reference", kl if self.kl_coef else "none"),
        ]
        if self.value_loss is not None:
            towards = cast("partial[Tensor]", self.returns).keywords
            lines.append(("  critic", _listed("value loss", {"clip": self.value_loss.clip, **towards})))
        return lines


def resolve(recipe: Recipe) -> Algorithm:
    """The algorithm of a recipe. Raises ConfigError, with the key, for what is unknown or cannot mean anything."""
    config = recipe.algorithm
    _known("algorithm.aggregation", config.aggregation, AGGREGATIONS)
    _check_combinations(config)
    if config.reference_reset_every and recipe.model.lora is not None:
        raise ConfigError(
            f"algorithm.reference_reset_every is {config.reference_reset_every} and model.lora is set: with LoRA the "
            "reference is the frozen base with its adapters off, which cannot take the policy's weights. "
            "Set reference_reset_every: 0, or remove model.lora."
        )
    estimator = _chosen("algorithm.advantages", config.advantages, ADVANTAGES)
    settings = dict(config.advantage_kwargs)
    if config.advantages == "gdpo":
        _check_gates(recipe)
        settings.setdefault("weights", tuple(reward.weight for reward in recipe.task.rewards))
    _check_settings("algorithm.advantage_kwargs", estimator, settings)
    _check_estimator(config, samples_per_prompt=recipe.schedule.samples_per_prompt)
    _check_schedule(recipe)
    normaliser = None
    if config.aggregation == "seq_mean_token_sum_norm":
        normaliser = config.loss_normaliser or float(recipe.sampling.max_tokens)
    has_critic = config.advantages in _WITH_CRITIC
    shared = {key: settings[key] for key in ("gamma", "bootstrap_truncated") if key in settings}
    return Algorithm(
        name=config.name,
        advantages=partial(estimator, **settings),
        loss=_policy_loss(config),
        aggregation=cast("Aggregation", config.aggregation),
        loss_normaliser=normaliser,
        whiten=config.whiten,
        mask_truncated=config.mask_truncated,
        shaping=_shaping(config, max_tokens=recipe.sampling.max_tokens),
        kl_in_reward=config.kl_coef if config.kl_in == "reward" and config.kl_coef else None,
        value_loss=ValueLoss(clip=recipe.critic.value_clip) if has_critic else None,
        returns=partial(returns, lam=recipe.critic.lam, **shared) if has_critic else None,
        distils=config.advantages == "distill",
        least_rewards=1 if config.advantages in _ONE_BY_ONE or recipe.schedule.samples_per_prompt == 1 else 2,
    )


def _policy_loss(config: AlgorithmConfig) -> PolicyLoss:
    in_loss = config.kl_in == "loss"
    kl_estimator = config.kl_estimator or ("k3_unbiased" if in_loss else "k1")
    _known("algorithm.kl_estimator", kl_estimator, KL_ESTIMATORS)
    _known("algorithm.correction", config.correction, CORRECTIONS)
    _chosen("algorithm.policy", config.policy, POLICIES)
    try:
        return PolicyLoss(
            policy=_portable(config.policy),
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            dual_clip=config.dual_clip,
            policy_kwargs=tuple(config.policy_kwargs.items()),
            old_from=config.old_from,
            log_ratio_limit=config.log_ratio_limit,
            correction=cast("Correction", config.correction),
            correction_floor=config.correction_floor,
            correction_cap=config.correction_cap,
            opsm_delta=config.opsm_delta,
            kl_coef=config.kl_coef if in_loss else 0.0,
            kl_estimator=cast("KlEstimator", kl_estimator),
            kl_ratio_from=config.kl_ratio_from,
            entropy_coef=config.entropy_coef,
            positive_nll_coef=config.positive_nll_coef,
        )
    except ValueError as error:
        raise ConfigError(f"algorithm.{error}") from error


def _shaping(config: AlgorithmConfig, *, max_tokens: int) -> Shaping | None:
    if config.shaping is None:
        return None
    given = config.shaping.model_dump(exclude={"overlong_share", "cosine"})
    share, cosine = config.shaping.overlong_share, config.shaping.cosine
    try:
        return Shaping(
            max_tokens=max_tokens,
            cosine=None if cosine is None else CosineReward(**cosine.model_dump()),
            overlong_cache=None if share is None else max(round(share * max_tokens), 1),
            **given,
        )
    except ConfigError as error:
        raise ConfigError(f"algorithm.shaping: {error}") from error


def _check_combinations(config: AlgorithmConfig) -> None:
    if config.loss_normaliser is not None and config.aggregation != "seq_mean_token_sum_norm":
        raise ConfigError(
            f"algorithm.loss_normaliser is {config.loss_normaliser} but algorithm.aggregation is "
            f"{config.aggregation}, which has no constant. "
            "Remove the first, or set algorithm.aggregation: seq_mean_token_sum_norm."
        )
    for key in ("correction_floor", "correction_cap"):
        if getattr(config, key) is not None and config.correction in ("none", "token_is"):
            raise ConfigError(
                f"algorithm.{key} is {getattr(config, key)} but algorithm.correction is {config.correction}, which "
                "has no bounds. Remove the first, or set correction: token_tis."
            )
    if config.kl_coef > 0 and config.kl_in == "loss" and config.kl_estimator == "k1":
        raise ConfigError(
            f"algorithm.kl_estimator is k1 and algorithm.kl_coef is {config.kl_coef}: as a loss term "
            "k1 has an expected gradient of 0. Use k2, k3, k3_st or k3_unbiased, or set kl_in: reward."
        )
    if config.kl_in == "reward" and config.kl_estimator in ("k3_st", "k3_unbiased"):
        raise ConfigError(
            f"algorithm.kl_estimator is {config.kl_estimator} and algorithm.kl_in is reward: a reward has no "
            "gradient, which is all that this estimator changes. Use k1, k2 or k3."
        )
    for key in ("kl_target", "reference_reset_every"):
        if getattr(config, key) and not config.kl_coef:
            raise ConfigError(
                f"algorithm.{key} is {getattr(config, key)} but algorithm.kl_coef is 0: no KL is taken. "
                "Remove the first, or set kl_coef."
            )


def _check_estimator(config: AlgorithmConfig, *, samples_per_prompt: int) -> None:
    """Refuse settings of the estimator that would do nothing, or harm."""
    name, settings = config.advantages, config.advantage_kwargs
    if config.kl_in == "reward" and config.kl_coef and name in _BLIND_TO_TOKEN_REWARDS:
        raise ConfigError(
            f"algorithm.kl_in is reward, but algorithm.advantages is {name}: {_BLIND_TO_TOKEN_REWARDS[name]}. "
            "Set kl_in: loss."
        )
    shaping = None if config.shaping is None else config.shaping.model_dump()
    if shaping is not None and name in _BLIND_TO_THE_REWARD:
        raise ConfigError(
            f"algorithm.shaping is {shaping}, but algorithm.advantages is {name}, which does not read the trajectory's "
            "reward, all that shaping changes. Set algorithm.shaping: null."
        )
    if name == "distill" and config.reference is None:
        raise ConfigError(
            "algorithm.advantages is distill, but algorithm.reference is not set: the teacher would be the model "
            "that is trained, before training. Set algorithm.reference to the teacher's folder or hub name."
        )
    alpha = settings.get("length_alpha")
    if alpha is not None and ("lam" in settings or alpha <= 0):
        raise ConfigError(
            f"algorithm.advantage_kwargs is {settings}: length_alpha, above 0, gives every trajectory a lam of its "
            "own, 1 - 1 / (length_alpha x tokens). Remove lam, or length_alpha."
        )
    if settings.get("k", 1) > samples_per_prompt:
        raise ConfigError(
            f"algorithm.advantage_kwargs.k is {settings['k']}, but schedule.samples_per_prompt is "
            f"{samples_per_prompt}: no group has k samples. Raise the last, or lower k."
        )


def _check_gates(recipe: Recipe) -> None:
    gates = [reward.use for reward in recipe.task.rewards if reward.gate]
    if gates:
        raise ConfigError(
            f"task.rewards has the gate {gates[0]}, but algorithm.advantages is gdpo, which reads the other rewards "
            "one by one: a gate closes only their sum. Close them in the reward functions, or choose another estimator."
        )


def _check_schedule(recipe: Recipe) -> None:
    """Refuse a run that would train nothing."""
    name, schedule = recipe.algorithm.advantages, recipe.schedule
    if schedule.samples_per_prompt == 1 and name in ADVANTAGES and name not in _ONE_BY_ONE:
        raise ConfigError(
            f"schedule.samples_per_prompt is 1, but algorithm.advantages is {name}, which compares the samples of a "
            "prompt: every advantage would be 0. Raise the first, or choose one of "
            f"{', '.join(sorted(_ONE_BY_ONE))}."
        )
    if schedule.samples_per_prompt == 1 and schedule.drop_zero_variance:
        raise ConfigError(
            "schedule.samples_per_prompt is 1 and schedule.drop_zero_variance is true: the rewards of one sample are "
            "always equal, so every group would be discarded. Raise the first, or set the second to false."
        )
    pretraining = recipe.critic.pretrain_steps if name in _WITH_CRITIC else 0
    if pretraining >= schedule.num_steps:
        raise ConfigError(
            f"critic.pretrain_steps is {pretraining} and schedule.num_steps is {schedule.num_steps}: the policy would "
            "never be trained. Lower the first, or raise the second."
        )


def _chosen(key: str, name: str, names: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The function of that name, or the user's own."""
    return load_function(name, key=key) if ":" in name else names[_known(key, name, names)]


def _portable(spec: str) -> str:
    """`spec` as other processes, with other working folders, can load it."""
    file, colon, attribute = spec.rpartition(":")
    return f"{Path(file).resolve()}{colon}{attribute}" if file.endswith(".py") else spec


def _check_settings(key: str, function: Callable[..., Any], settings: Mapping[str, Any]) -> None:
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    if unknown := sorted(set(settings) - set(known)):
        takes = ", ".join(known) or "no settings"
        raise ConfigError(f"{key}: found {', '.join(unknown)}; {function.__name__} takes {takes}.")
    needed = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty}
    if missing := sorted(needed - set(settings)):
        raise ConfigError(f"{key}: {function.__name__} needs {', '.join(missing)}, which has no default.")


def _known(key: str, name: str, names: Iterable[str]) -> str:
    if name in names:
        return name
    near = get_close_matches(name, names, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"{key}: found {name!r}. {hint}Known: {', '.join(names)}.")


def _settings(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword settings of a function: its defaults, and what is given over them."""
    parameters = inspect.signature(function).parameters.values()
    defaults = {
        p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty
    }
    return {key: value for key, value in {**defaults, **given}.items() if value is not None}


def _shown(record: Shaping) -> str:
    settings = {key: value for key, value in asdict(record).items() if value is not None}
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def _listed(what: str | Callable[..., Any], settings: Mapping[str, Any]) -> str:
    name = what if isinstance(what, str) else getattr(what, "__name__", repr(what))
    listed = ", ".join(f"{key} {value}" for key, value in settings.items())
    return f"{name} ({listed})" if listed else name
