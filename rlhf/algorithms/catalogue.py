"""Names and the bundles they stand for. Adding an algorithm is one function and one entry here."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from rlhf.algorithms.advantages import group_relative
from rlhf.algorithms.kl import KL_ESTIMATORS
from rlhf.algorithms.losses import PolicyLoss
from rlhf.algorithms.reduce import AGGREGATIONS, Aggregation, loss_weights
from rlhf.batch import Batch
from rlhf.config.schema import AlgorithmConfig
from rlhf.errors import ConfigError

AdvantageFunction = Callable[[Batch], Tensor]
"""Whole step -> advantages [N], 0 where not trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """All that tells one algorithm from another. A record, never subclassed; it pickles."""

    name: str
    advantages: AdvantageFunction
    loss: PolicyLoss
    aggregation: Aggregation
    loss_normaliser: float | None = None
    mask_truncated: bool = False

    def __str__(self) -> str:
        """The whole bundle in one line, for the printed plan."""
        fields = {
            "aggregation": self.aggregation,
            "loss_normaliser": self.loss_normaliser,
            **asdict(self.loss),
            "mask_truncated": self.mask_truncated,
        }
        settings = ", ".join(f"{key} {value}" for key, value in fields.items() if value is not None)
        return f"{self.name} ({settings})"

    @property
    def needs_reference(self) -> bool:
        """The batch must carry ref_logprobs."""
        return self.loss.kl_coef > 0

    @property
    def needs_entropy(self) -> bool:
        """The loss needs the entropy with its gradient, not only as a metric."""
        return self.loss.entropy_coef != 0

    def needs_old_logprobs(self, num_minibatches: int) -> bool:
        """The batch must carry old_logprobs: only with several updates per batch; with one, old = current."""
        return num_minibatches > 1

    def add_advantages(self, batch: Batch) -> Batch:
        """The whole step with `advantages` filled in. Groups must be complete: call it before any split."""
        return replace(batch, advantages=self.advantages(batch))

    def add_loss_weights(self, minibatch: Batch) -> Batch:
        """One optimizer batch with `loss_weights` filled in: before micro-batches and ranks.

        Rows that were not gradable, and truncated ones under `mask_truncated`, count as empty.
        """
        kept = ~torch.isnan(minibatch.rewards)
        if self.mask_truncated:
            kept = kept & ~minibatch.truncated
        weights = loss_weights(minibatch, self.aggregation, normaliser=self.loss_normaliser, kept=kept)
        return replace(minibatch, loss_weights=weights)


CATALOGUE: Mapping[str, Algorithm] = {
    algorithm.name: algorithm
    for algorithm in (
        Algorithm(
            name="grpo",
            advantages=partial(group_relative, normalise=True),
            loss=PolicyLoss(clip_low=0.2, clip_high=0.2),
            aggregation="seq_mean_token_mean",
        ),
        Algorithm(
            name="dr_grpo",
            advantages=partial(group_relative, normalise=False),
            loss=PolicyLoss(clip_low=0.2, clip_high=0.2),
            aggregation="seq_mean_token_sum_norm",
        ),
    )
}


def resolve(config: AlgorithmConfig, *, max_tokens: int) -> Algorithm:
    """The bundle that `config.name` stands for, with its overrides.

    `max_tokens` (sampling.max_tokens) is the constant C of `seq_mean_token_sum_norm` unless one is given.
    Raises ConfigError for an unknown name and for an override that would have no effect.
    """
    base = CATALOGUE[_known("algorithm.name", config.name, CATALOGUE)]
    given = {name: value for name, value in config.model_dump().items() if value is not None}
    if "kl_estimator" in given:
        _known("algorithm.kl_estimator", given["kl_estimator"], KL_ESTIMATORS)
    if "aggregation" in given:
        _known("algorithm.aggregation", given["aggregation"], AGGREGATIONS)
    loss = replace(base.loss, **_fields(given, PolicyLoss))
    algorithm = replace(base, loss=loss, **_fields(given, Algorithm))
    if algorithm.aggregation == "seq_mean_token_sum_norm":
        algorithm = replace(algorithm, loss_normaliser=given.get("loss_normaliser", float(max_tokens)))
    _check_combinations(algorithm, given)
    return algorithm


def _fields(given: Mapping[str, Any], record: type) -> dict[str, Any]:
    names = cast("Mapping[str, Any]", record.__dataclass_fields__)  # type: ignore[attr-defined]
    return {name: value for name, value in given.items() if name in names}


def _check_combinations(algorithm: Algorithm, given: Mapping[str, Any]) -> None:
    if "loss_normaliser" in given and algorithm.aggregation != "seq_mean_token_sum_norm":
        raise ConfigError(
            f"algorithm.loss_normaliser is {given['loss_normaliser']} but algorithm.aggregation is "
            f"{algorithm.aggregation}, which has no constant. "
            "Remove the first, or set algorithm.aggregation: seq_mean_token_sum_norm."
        )
    if "correction_cap" in given and algorithm.loss.correction == "none":
        raise ConfigError(
            f"algorithm.correction_cap is {given['correction_cap']} but algorithm.correction is none. "
            "Remove the cap, or set correction: token_tis."
        )
    if algorithm.loss.kl_coef > 0 and algorithm.loss.kl_estimator == "k1":
        raise ConfigError(
            f"algorithm.kl_estimator is k1 and algorithm.kl_coef is {algorithm.loss.kl_coef}: as a loss term "
            "k1 has an expected gradient of 0. Use k2, k3, k3_st or k3_unbiased."
        )


def _known(key: str, name: str, names: Iterable[str]) -> str:
    if name in names:
        return name
    near = get_close_matches(name, names, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"{key}: found {name!r}. {hint}Known: {', '.join(names)}.")
