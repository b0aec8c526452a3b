"""What is minimised: the corrected policy term, the KL to the reference, entropy bonus and positive NLL."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf.algorithms.correction import (
    PUBLISHED_BOUNDS,
    Bounds,
    Correction,
    correction_weights,
    largest,
    mask_sums,
    mismatch_sums,
    off_policy_mask,
)
from rlhf.algorithms.kl import KlEstimator, k3, kl_terms
from rlhf.algorithms.policy_terms import (
    LOG_RATIO_LIMIT,
    POLICIES,
    SELECTING,
    PolicyInputs,
    PolicyTerm,
    select_by_covariance,
    trained_tokens,
)
from rlhf.batch import Batch
from rlhf.errors import ConfigError
from rlhf.importing import load_function
from rlhf.interfaces import LossOutput

Sums = dict[str, tuple[Tensor, Tensor]]
_OF_SELECTION = frozenset({"fraction", "window"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """The loss of every policy-gradient algorithm here; a picklable LossFunction.

    Sum over trained tokens of W * (w * policy term + kl_coef * KL - entropy_coef * H), plus positive_nll_coef
    times the mean negative log-likelihood of positively rewarded rows. A token is trained where its mask is
    set and its weight is not 0; whole rows are needed, so that row statistics are those of the whole row.
    Without old log-probabilities one update follows each batch: old = current, detached.
    Raises ValueError for a setting that the policy does not take and for combinations without a meaning.
    """

    policy: str | PolicyTerm = "ppo"
    """A name of POLICIES, a term with the same signature, or `module:attribute` or `file.py:attribute` of one."""
    clip_low: float | None = None
    """None: the default of the policy; the same for clip_high and dual_clip."""
    clip_high: float | None = None
    dual_clip: float | None = None
    policy_kwargs: tuple[tuple[str, Any], ...] = ()
    """Further settings of the policy as (name, value) pairs, for example (("tau_negative", 1.1),)."""
    old_from: Literal["learner", "rollout"] = "learner"
    """`rollout` bypasses the old policy: r = current / engine, which leaves nothing to correct."""
    log_ratio_limit: float | None = LOG_RATIO_LIMIT
    correction: Correction = "token_tis"
    correction_floor: float | None = None
    """With correction_cap, the bounds of the correction; None: the published one (PUBLISHED_BOUNDS)."""
    correction_cap: float | None = None
    opsm_delta: float | None = None
    """Bound of the off-policy sequence mask (DeepSeek-V3.2); None: no such mask."""
    kl_coef: float = 0.0
    kl_estimator: KlEstimator = "k3"
    kl_ratio_from: Literal["learner", "rollout"] = "learner"
    """The old policy in the ratio of k3_unbiased: the learner's, or the engine's, which did the sampling."""
    entropy_coef: float = 0.0
    positive_nll_coef: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning before a run starts."""
        if isinstance(self.policy, str) and ":" not in self.policy and self.policy not in POLICIES:
            raise ValueError(f"policy: found {self.policy!r}, expected one of {', '.join(POLICIES)}")
        parameters = inspect.signature(self.term).parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            known = {p.name for p in list(parameters)[1:]}
            if unknown := sorted(set(self.settings()) - known):
                takes = ", ".join(sorted(known)) or "no settings"
                raise ValueError(f"policy {self.policy!r} has no {', '.join(unknown)}; it takes {takes}")
        if self.old_from == "rollout" and self.correction != "none":
            raise ValueError(
                f"old_from is rollout and correction is {self.correction}: the ratio already runs from the "
                "engine to the current policy, a weight would count the gap twice. Set correction: none."
            )

    def __call__(
        self, logprobs: Float[Tensor, " N"], entropy: Float[Tensor, " N"] | None, batch: Batch
    ) -> LossOutput:
        """The share of `batch` in the optimizer batch's loss, and the sums behind its metrics."""
        if batch.advantages is None or batch.loss_weights is None:
            raise ValueError("the batch has no advantages or loss_weights: call the algorithm's add_* first")
        trained = trained_tokens(batch)
        weights = batch.loss_weights[trained]
        inputs = self.inputs(logprobs, batch, trained)
        token_loss, sums = self._policy(inputs)
        count = weights.new_tensor(trained.numel())
        sums["update/masked_share"] = (batch.loss_mask.sum() - count, batch.loss_mask.sum())
        learner = inputs.new.detach() if batch.old_logprobs is None else batch.old_logprobs[trained]
        sums |= mismatch_sums(learner, inputs.rollout)
        if batch.ref_logprobs is not None:
            kl = self._kl(inputs, batch.ref_logprobs[trained], learner)
            token_loss = token_loss + self.kl_coef * kl if self.kl_coef else token_loss
            sums["update/kl"] = (kl.detach().sum(), count)
        elif self.kl_coef:
            raise ValueError(f"kl_coef is {self.kl_coef} but the batch has no ref_logprobs")
        if entropy is not None:
            chosen = entropy[trained]
            token_loss = token_loss - self.entropy_coef * chosen if self.entropy_coef else token_loss
            sums["update/entropy"] = (chosen.detach().sum(), count)
        elif self.entropy_coef:
            raise ValueError(f"entropy_coef is {self.entropy_coef} but the learner gave no entropy")
        loss = (weights * token_loss).sum()
        if self.positive_nll_coef:
            nll, share = _positive_nll(inputs.new, batch, trained)
            loss = loss + self.positive_nll_coef * nll
            sums["update/positive_nll"] = (nll.detach(), share)
        sums["update/loss"] = (loss.detach(), weights.sum())
        uniform = {name: (top.to(loss.dtype), bottom.to(loss.dtype)) for name, (top, bottom) in sums.items()}
        return LossOutput(loss=loss, sums=uniform)

    @property
    def term(self) -> PolicyTerm:
        """The function behind `policy`."""
        if not isinstance(self.policy, str):
            return self.policy
        # By name, so that every rank loads the file itself.
        return POLICIES.get(self.policy) or load_function(self.policy, key="algorithm.policy")

    @property
    def bounds(self) -> Bounds:
        """The (lowest, highest) that the correction compares with."""
        low, high = PUBLISHED_BOUNDS[self.correction]
        return (
            low if self.correction_floor is None else self.correction_floor,
            high if self.correction_cap is None else self.correction_cap,
        )

    def prepare(self, minibatch: Batch, *, seed: int = 0) -> Batch:
        """One optimizer batch with what this loss needs from all of it: `selected` and `nll_weights`.

        Call it once per optimizer batch, after loss_weights and before micro-batches and ranks.
        """
        if isinstance(self.policy, str) and self.policy in SELECTING:
            chosen = self.selection()
            minibatch = select_by_covariance(minibatch, self.policy, seed=seed, **chosen)
        return add_nll_weights(minibatch) if self.positive_nll_coef else minibatch

    def inputs(self, logprobs: Float[Tensor, " N"], batch: Batch, trained: Int[Tensor, " M"]) -> PolicyInputs:
        """What the policy term reads: the trained tokens, selected before any arithmetic."""
        assert batch.advantages is not None
        new, rollout = logprobs[trained], batch.rollout_logprobs[trained]
        if self.old_from == "rollout":
            old = rollout
        else:
            old = new.detach() if batch.old_logprobs is None else batch.old_logprobs[trained]
        made = PolicyInputs(
            new=new,
            old=old,
            rollout=rollout,
            log_ratio=new - old,
            advantages=batch.advantages[trained],
            rows=batch.segment_ids[trained],
            num_rows=batch.num_rows,
            selected=None if batch.selected is None else batch.selected[trained],
            log_ratio_limit=self.log_ratio_limit,
        )
        return replace(made, log_ratio=made.bounded(made.log_ratio))

    def _policy(self, inputs: PolicyInputs) -> tuple[Float[Tensor, " M"], Sums]:
        """The policy term per token, weighted and masked, and its sums."""
        made = self.term(inputs, **self.settings())
        _check_term(made, inputs)
        loss, clipped = made
        weights = correction_weights(inputs, self.correction, bounds=self.bounds)
        dropped = None if self.opsm_delta is None else off_policy_mask(inputs, self.opsm_delta)
        out = weights.masked if dropped is None else weights.masked | dropped
        loss = loss if self.correction == "none" else weights.weight * loss
        loss = torch.where(out, torch.zeros_like(loss), loss)
        sums = _update_sums(inputs.log_ratio.detach(), clipped.detach())
        if inputs.selected is not None:
            sums["update/selected_share"] = (inputs.selected.sum(), loss.new_tensor(loss.numel()))
        return loss, sums | mask_sums(weights, self.correction, dropped)

    def _kl(
        self, inputs: PolicyInputs, ref: Float[Tensor, " M"], learner: Float[Tensor, " M"]
    ) -> Float[Tensor, " M"]:
        old = inputs.rollout if self.kl_ratio_from == "rollout" else learner
        log_ratio = inputs.bounded(inputs.new - old)
        return kl_terms(inputs.new, ref, log_ratio=log_ratio, estimator=self.kl_estimator)

    def settings(self) -> Mapping[str, Any]:
        """The keyword arguments that the term is called with."""
        clips = {"clip_low": self.clip_low, "clip_high": self.clip_high, "dual_clip": self.dual_clip}
        further = {n: v for n, v in self.policy_kwargs if n not in self.selection()}
        return {name: value for name, value in clips.items() if value is not None} | further

    def selection(self) -> dict[str, Any]:
        """The keyword arguments of `select_by_covariance`; {} for terms that read no selection."""
        selecting = isinstance(self.policy, str) and self.policy in SELECTING
        return {n: v for n, v in self.policy_kwargs if selecting and n in _OF_SELECTION}


def add_nll_weights(minibatch: Batch) -> Batch:
    """One optimizer batch with `nll_weights`: 1 / their number on the trained tokens of rewarded rows (> 0, unshaped).

    Source: VAPO (arXiv 2504.05118), the positive-example language-model loss.
    """
    weights = torch.zeros_like(minibatch.rollout_logprobs)
    trained = trained_tokens(minibatch)
    graded = minibatch.rewards if minibatch.task_rewards is None else minibatch.task_rewards
    positive = trained[(graded > 0)[minibatch.segment_ids[trained]]]
    weights[positive] = 1 / max(positive.numel(), 1)
    return replace(minibatch, nll_weights=weights)


def _positive_nll(
    new: Float[Tensor, " M"], batch: Batch, trained: Int[Tensor, " M"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    if batch.nll_weights is None:
        raise ValueError("positive_nll_coef is set but the batch has no nll_weights: call prepare first")
    weights = batch.nll_weights[trained]
    return -(weights * new).sum(), weights.sum()


def _check_term(made: Any, inputs: PolicyInputs) -> None:
    """Refuse what a term of a user's own may give by mistake: a loss that is one number would broadcast."""
    shape = inputs.advantages.shape
    shapes = (
        [part.shape if isinstance(part, Tensor) else part for part in made] if type(made) is tuple else []
    )
    if shapes != [shape, shape]:
        found = (
            f"{[tuple(s) if isinstance(s, torch.Size) else s for s in shapes]}"
            if shapes
            else f"a {type(made).__name__}"
        )
        raise ConfigError(
            f"algorithm.policy gave {found}, expected two tensors of {shape.numel()} numbers: the loss of each trained "
            "token, and whether a bound caught it."
        )


def _update_sums(log_ratio: Float[Tensor, " M"], clipped: Bool[Tensor, " M"]) -> Sums:
    ratio = log_ratio.exp()
    count = ratio.new_tensor(ratio.numel())
    return {
        "update/clip_share": (clipped.sum(), count),
        "update/ratio_mean": (ratio.sum(), count),
        "update/ratio_max": (largest(ratio), count),
        "update/kl_old": (k3(log_ratio).sum(), count),
    }
