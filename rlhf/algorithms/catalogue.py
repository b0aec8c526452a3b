"""From the section `algorithm` of a recipe to functions: one record holds all that an algorithm is."""

import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from functools import partial, wraps
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
from rlhf.algorithms.policy_terms import LOG_RATIO_LIMIT, POLICIES, SELECTING, select_by_covariance
from rlhf.algorithms.reduce import AGGREGATIONS, Aggregation, loss_weights
from rlhf.algorithms.shaping import CosineReward, Shaping
from rlhf.algorithms.token_rewards import kl_token_rewards
from rlhf.algorithms.value_loss import ValueLoss
from rlhf.batch import Batch
from rlhf.config.algorithm import AlgorithmConfig
from rlhf.config.refusals import ONE_BY_ONE, refuse_algorithm
from rlhf.config.schema import Recipe
from rlhf.config.settings import checked_settings
from rlhf.errors import ConfigError
from rlhf.importing import load_function


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
    inputs: frozenset[str] = frozenset()
    """What the advantages read of the batch beyond what every batch has."""
    teachers: tuple[str, ...] = ()
    """Names of the teachers, in the order of Batch.teacher_ids; none: the reference is the teacher, if one is read."""
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
        return self.kl_coef > 0 or ("teacher_logprobs" in self.inputs and not self.teachers)

    @property
    def needs_entropy(self) -> bool:
        """The loss needs the entropy with its gradient, not only as a metric."""
        return self.loss.entropy_coef != 0

    def needs_old_logprobs(self, num_updates: int) -> bool:
        """The batch must carry old_logprobs: with one update per batch old = current, but advantages come before."""
        return num_updates > 1 or self.kl_in_reward is not None or "old_logprobs" in self.inputs

    def add_advantages(self, batch: Batch) -> Batch:
        """The whole step with `advantages`, and `returns` for a critic. Groups must be complete: before any split."""
        if self.shaping is not None:
            batch = self.shaping(batch)
        if self.kl_in_reward is not None:
            penalty = kl_token_rewards(batch, kl_coef=self.kl_in_reward, estimator=self.loss.kl_estimator)
            of_turns = batch.token_rewards
            batch = replace(batch, token_rewards=penalty if of_turns is None else of_turns + penalty)
        advantages = self.advantages(batch)
        _check_advantages(advantages, batch)
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
            "correction": loss.correction + (f" {list(loss.bounds)}" if any(loss.bounds) else ""),
            "opsm_delta": loss.opsm_delta,
            "log_ratio_limit": None if loss.log_ratio_limit == LOG_RATIO_LIMIT else str(loss.log_ratio_limit),
            "old_from": None if loss.old_from == "learner" else loss.old_from,
            "entropy_coef": loss.entropy_coef or None,
            "positive_nll_coef": loss.positive_nll_coef or None,
        }
        policy = _settings(loss.term, loss.settings()) | self._selection()
        policy |= {k: v for k, v in extra.items() if v is not None}
        weights = {} if self.loss_normaliser is None else {"C": f"{self.loss_normaliser:g}"}
        kl = f"{self.kl_coef:g} x {loss.kl_estimator} in the {'loss' if self.kl_in_reward is None else 'reward'}"
        kl += ", ratio to the engine" if loss.kl_ratio_from == "rollout" else ""
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

    def _selection(self) -> dict[str, Any]:
        if self.loss.policy not in SELECTING:
            return {}
        chosen = _settings(select_by_covariance, self.loss.selection())
        unread = {"seed", "window"} if self.loss.policy == "kl_cov" else {"seed"}
        return {key: value for key, value in chosen.items() if key not in unread}


def resolve(recipe: Recipe) -> Algorithm:
    """The algorithm of a recipe. Raises ConfigError, with the key, for what is unknown or cannot mean anything."""
    config = recipe.algorithm
    _known("algorithm.aggregation", config.aggregation, AGGREGATIONS)
    estimator = _chosen("algorithm.advantages", config.advantages, ADVANTAGES)
    loss = _policy_loss(config)
    refuse_algorithm(recipe)
    settings = dict(config.advantage_kwargs)
    if config.advantages == "gdpo":
        settings.setdefault("weights", tuple(reward.weight for reward in recipe.task.rewards))
    settings = checked_settings("algorithm.advantage_kwargs", estimator, settings)
    if ":" in config.advantages:
        estimator = _guarded(estimator, config.advantages)
    normaliser = None
    if config.aggregation == "seq_mean_token_sum_norm":
        normaliser = config.loss_normaliser or float(recipe.sampling.max_tokens)
    has_critic = "values" in config.inputs
    shared = {key: settings[key] for key in ("gamma", "bootstrap_truncated") if key in settings}
    return Algorithm(
        name=config.name,
        advantages=partial(estimator, **settings),
        loss=loss,
        aggregation=cast("Aggregation", config.aggregation),
        loss_normaliser=normaliser,
        whiten=config.whiten,
        mask_truncated=config.mask_truncated,
        shaping=_shaping(config, max_tokens=recipe.sampling.max_tokens),
        kl_in_reward=config.kl_coef if config.kl_in == "reward" and config.kl_coef else None,
        value_loss=ValueLoss(clip=recipe.critic.value_clip) if has_critic else None,
        returns=partial(returns, lam=recipe.critic.lam, **shared) if has_critic else None,
        inputs=config.inputs,
        teachers=tuple(config.teachers),
        least_rewards=1 if config.advantages in ONE_BY_ONE or recipe.schedule.samples_per_prompt == 1 else 2,
    )


def _policy_loss(config: AlgorithmConfig) -> PolicyLoss:
    in_loss = config.kl_in == "loss"
    kl_estimator = config.kl_estimator or ("k3_unbiased" if in_loss else "k1")
    _known("algorithm.kl_estimator", kl_estimator, KL_ESTIMATORS)
    _known("algorithm.correction", config.correction, CORRECTIONS)
    term = _chosen("algorithm.policy", config.policy, POLICIES)
    try:
        loss = PolicyLoss(
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
    low, high = loss.bounds
    if (low is not None and low > 1) or (high is not None and high < 1) or (low == high == 1):
        raise ConfigError(
            f"algorithm.correction is {config.correction} with the bounds {low} (correction_floor) and {high} "
            "(correction_cap): expected 1 between them, the weight where engine and learner agree."
        )
    settings = checked_settings("algorithm.policy_kwargs", term, loss.settings())
    selection = {"policy": config.policy, **loss.selection()}
    ours = settings | checked_settings("algorithm.policy_kwargs", select_by_covariance, selection)
    return replace(loss, policy_kwargs=tuple((key, ours[key]) for key in config.policy_kwargs))


def _shaping(config: AlgorithmConfig, *, max_tokens: int) -> Shaping | None:
    if config.shaping is None or not config.shaping.is_on:
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


def _check_advantages(advantages: Any, batch: Batch) -> None:
    """Refuse what a function of a user's own may give by mistake."""
    if not isinstance(advantages, Tensor) or advantages.shape != batch.rollout_logprobs.shape:
        found = f"tensor of shape {tuple(advantages.shape)}" if isinstance(advantages, Tensor) else "value"
        raise ConfigError(
            f"algorithm.advantages gave a {found} ({type(advantages).__name__}), expected a tensor with one number "
            f"for each of the {batch.num_tokens} tokens of the batch."
        )
    wanted = batch.loss_mask & ~torch.isnan(batch.rewards)[batch.segment_ids]
    if broken := int((~torch.isfinite(advantages[wanted])).sum()):
        raise ConfigError(
            f"algorithm.advantages gave NaN or infinity for {broken} of the {int(wanted.sum())} trained tokens of a "
            "step, expected finite numbers. Rewards that could not be graded are NaN: leave them out of statistics."
        )


def _chosen(key: str, name: str, names: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The function of that name, or the user's own."""
    return load_function(name, key=key) if ":" in name else names[_known(key, name, names)]


def _guarded(estimator: AdvantageFunction, spec: str) -> AdvantageFunction:
    """The user's own estimator: what it raises is told with its place in their file."""

    @wraps(estimator)
    def guarded(batch: Batch, **settings: Any) -> Any:
        try:
            return estimator(batch, **settings)
        except Exception as error:
            stack = "".join(traceback.format_tb(error.__traceback__)[-2:])
            raise ConfigError(
                f"algorithm.advantages: {spec} failed on a step: {type(error).__name__}: {error}\n{stack}"
            ) from error

    return guarded


def _portable(spec: str) -> str:
    """`spec` as other processes, with other working folders, can load it."""
    file, colon, attribute = spec.rpartition(":")
    return f"{Path(file).resolve()}{colon}{attribute}" if file.endswith(".py") else spec


def _known(key: str, name: str, names: Iterable[str]) -> str:
    if name in names:
        return name
    near = get_close_matches(name, names, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"{key}: found {name!r}. {hint}Known: {', '.join(names)}.")


def _settings(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword settings of a function: its defaults, and what is given over them."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {key: value for key, value in {**defaults, **given}.items() if value is not None}


def _shown(record: Shaping) -> str:
    unread = set() if record.overlong_cache is not None else {"overlong_coef"}
    if record.cosine is None and record.kimi_coef is None:
        unread.add("correct_above")
    settings = {k: v for k, v in asdict(record).items() if v is not None and k not in unread}
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def _listed(what: str | Callable[..., Any], settings: Mapping[str, Any]) -> str:
    name = what if isinstance(what, str) else getattr(what, "__name__", repr(what))
    listed = ", ".join(f"{key} {value}" for key, value in settings.items())
    return f"{name} ({listed})" if listed else name
