"""Preference losses: what a pair of answers contributes, from the log-probabilities of whole sequences.

An example is a pair (chosen, rejected). Its loss never depends on the other examples, and its weight comes from
`pair_weights` on the whole optimizer batch, so micro-batches and ranks change nothing.
A loss of a user's own has the signature of those below: `(pairs, *, settings...) -> (loss [P], implicit reward of
the chosen [P], of the rejected [P])`.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf.algorithms.pairs import Pairs

Term = tuple[Float[Tensor, " P"], Float[Tensor, " P"], Float[Tensor, " P"]]
PreferenceTerm = Callable[..., Term]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceOutput:
    """Losses with their gradient, 0 for an empty example; the rest is detached."""

    losses: Float[Tensor, " P"]
    chosen_rewards: Float[Tensor, " P"]
    """Implicit reward, in the units that the loss compares."""
    rejected_rewards: Float[Tensor, " P"]
    has_chosen: Bool[Tensor, " P"]
    has_rejected: Bool[Tensor, " P"]

    def sums(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Metrics as (numerator, denominator), to be added over micro-batches and ranks, then divided.

        Accuracy counts a pair only where the chosen is strictly ahead: a policy equal to its reference scores 0.
        """
        both = self.has_chosen & self.has_rejected
        margin = self.chosen_rewards - self.rejected_rewards
        return {
            "preference/accuracy": _selected_sum((margin > 0).to(margin.dtype), both),
            "preference/margin": _selected_sum(margin, both),
            "preference/chosen_reward": _selected_sum(self.chosen_rewards, self.has_chosen),
            "preference/rejected_reward": _selected_sum(self.rejected_rewards, self.has_rejected),
        }


def dpo(pairs: Pairs, *, beta: float = 0.1) -> Term:
    """-log sigmoid(beta h), h = log-ratio of the chosen - of the rejected. Source: DPO (2305.18290), eq. 7."""
    chosen, rejected = beta * pairs.chosen.log_ratios, beta * pairs.rejected.log_ratios
    return -logsigmoid(chosen - rejected), chosen, rejected


def cdpo(pairs: Pairs, *, beta: float = 0.1, label_smoothing: float = 0.1) -> Term:
    """-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h): a share e of the labels is taken to be flipped.

    Source: E. Mitchell, "A note on DPO with noisy preferences", 2023, eq. 3. TRL's `sigmoid` ignores label smoothing.
    """
    chosen, rejected = beta * pairs.chosen.log_ratios, beta * pairs.rejected.log_ratios
    return smoothed_preference(chosen - rejected, label_smoothing), chosen, rejected


def robust(pairs: Pairs, *, beta: float = 0.1, label_smoothing: float = 0.1) -> Term:
    """[-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)] / (1 - 2e): DPO, unbiased under flips; may be < 0.

    Source: "Provably Robust DPO" (2403.00409).
    """
    chosen, rejected = beta * pairs.chosen.log_ratios, beta * pairs.rejected.log_ratios
    margin = chosen - rejected
    top = -(1 - label_smoothing) * logsigmoid(margin) + label_smoothing * logsigmoid(-margin)
    return top / (1 - 2 * label_smoothing), chosen, rejected


def hinge(pairs: Pairs, *, beta: float = 0.1) -> Term:
    """max(0, 1 - beta h); exactly on the corner the gradient passes. Source: SLiC-HF (2305.10425), as in RSO."""
    chosen, rejected = beta * pairs.chosen.log_ratios, beta * pairs.rejected.log_ratios
    return (1 - (chosen - rejected)).clamp(min=0), chosen, rejected


def ipo(pairs: Pairs, *, beta: float = 0.1) -> Term:
    """(h - 1 / (2 beta))^2 on sums, as printed. Source: IPO (2310.12036), eq. 17, tau = beta."""
    chosen, rejected = pairs.chosen.log_ratios, pairs.rejected.log_ratios
    return (chosen - rejected - 1 / (2 * beta)).square(), beta * chosen, beta * rejected


def ipo_avg(pairs: Pairs, *, beta: float = 0.1) -> Term:
    """As `ipo` on log-ratios per token, as TRL has it: at the same beta a very different loss."""
    chosen, rejected = pairs.chosen.mean_log_ratios, pairs.rejected.mean_log_ratios
    return (chosen - rejected - 1 / (2 * beta)).square(), beta * chosen, beta * rejected


def simpo(pairs: Pairs, *, beta: float = 2.0, gamma: float = 1.0) -> Term:
    """-log sigmoid(beta (mean_c - mean_r) - gamma), no reference. Source: SimPO (2405.14734), eq. 6.

    It recommends beta from 2 to 2.5 and gamma from 0.5 to 1.5.
    """
    chosen, rejected = beta * pairs.chosen.means, beta * pairs.rejected.means
    return -logsigmoid(chosen - rejected - gamma), chosen, rejected


def orpo(pairs: Pairs, *, odds_weight: float = 0.1) -> Term:
    """-mean_c - w log sigmoid(o_c - o_r), o = p - log(1 - e^p) the log-odds of the mean p; no reference.

    A mean nearer to 0 than the dtype's epsilon counts as that far, without gradient through its odds. The
    likelihood is that of the trained tokens; the paper's and TRL's has the prompt in it, too.
    Source: ORPO (2403.07691), eq. 6 and 7; w is its lambda, TRL's beta.
    """
    chosen, rejected = _log_odds(pairs.chosen.means), _log_odds(pairs.rejected.means)
    loss = -pairs.chosen.means - odds_weight * logsigmoid(chosen - rejected)
    return loss, odds_weight * chosen, odds_weight * rejected


def kto(
    pairs: Pairs, *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> Term:
    """w_D sigmoid(-beta (l_c - z)) + w_U sigmoid(beta (l_r - z)), l = log-ratio; a side that is empty is left out.

    Sides are examples of their own: `labelled` makes them from rows with a thumb up or down. Keep
    `kto_balance` between 1 and 4/3. Source: KTO (2402.01306); 1 - sigmoid(x) = sigmoid(-x).
    """
    if pairs.baseline is None:
        raise ValueError(
            "baseline is None but kto needs z of the whole optimizer batch: give kto_baseline(...)"
        )
    z = pairs.baseline.detach()
    chosen, rejected = pairs.chosen.log_ratios, pairs.rejected.log_ratios
    zeros = torch.zeros_like(chosen)
    desirable = desirable_weight * torch.sigmoid(-beta * (chosen - z))
    undesirable = undesirable_weight * torch.sigmoid(beta * (rejected - z))
    loss = torch.where(pairs.chosen.counts > 0, desirable, zeros)
    loss = loss + torch.where(pairs.rejected.counts > 0, undesirable, zeros)
    return loss, beta * chosen, beta * rejected


PREFERENCE_LOSSES: Mapping[str, PreferenceTerm] = {
    term.__name__: term for term in (dpo, cdpo, robust, hinge, ipo, ipo_avg, simpo, orpo, kto)
}
_RANGES: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "beta": (lambda x: 0 < x < math.inf, "a number above 0"),
    "label_smoothing": (lambda x: 0 <= x < 0.5, "a number in [0, 0.5)"),
    "gamma": (lambda x: 0 <= x < math.inf, "a number of 0 or more"),
    "odds_weight": (lambda x: 0 < x < math.inf, "a number above 0"),
    "desirable_weight": (lambda x: 0 < x < math.inf, "a number above 0"),
    "undesirable_weight": (lambda x: 0 < x < math.inf, "a number above 0"),
    "nll_coef": (lambda x: 0 <= x < math.inf, "a number of 0 or more"),
    "kl_coef": (lambda x: 0 <= x < math.inf, "a number of 0 or more"),
    "margin": (lambda x: -math.inf < x < math.inf, "a finite number"),
    "centre_coef": (lambda x: 0 <= x < math.inf, "a number of 0 or more"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceSettings:
    """Which preference loss, and its numbers; None is the loss's own default.

    Raises ValueError for a number out of range and for one that the loss does not read.
    """

    loss: str | PreferenceTerm = "dpo"
    """A name of PREFERENCE_LOSSES, or a term with the same signature, which gets pairs with both sides."""
    beta: float | None = None
    label_smoothing: float | None = None
    gamma: float | None = None
    """SimPO's margin, not divided by beta."""
    odds_weight: float | None = None
    desirable_weight: float | None = None
    undesirable_weight: float | None = None
    kwargs: tuple[tuple[str, Any], ...] = ()
    """Further settings of a term of one's own, as (name, value) pairs."""
    nll_coef: float = 0.0
    """Times the negative log-likelihood per token of the chosen, mean over examples: keeps it from falling."""

    def __post_init__(self) -> None:
        if isinstance(self.loss, str) and self.loss not in PREFERENCE_LOSSES:
            near = get_close_matches(self.loss, PREFERENCE_LOSSES, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"loss is {self.loss!r}. {hint}Expected one of: {', '.join(PREFERENCE_LOSSES)}")
        check_range("nll_coef", self.nll_coef)
        if self.nll_coef and self.term is orpo:
            raise ValueError(f"nll_coef is {self.nll_coef} but orpo has that term already: leave it out")
        takes = inspect.signature(self.term).parameters
        for name, value in self.given().items():
            if name not in takes:
                known = ", ".join(list(takes)[1:])
                raise ValueError(
                    f"{name} is {value} but {self.loss} does not read it, expected only: {known}"
                )
            if name in _RANGES:
                check_range(name, value)

    @property
    def term(self) -> PreferenceTerm:
        """The loss itself."""
        return PREFERENCE_LOSSES[self.loss] if isinstance(self.loss, str) else self.loss

    @property
    def one_sided(self) -> bool:
        """The two sides of a pair are examples of their own; either may be empty."""
        return self.term is kto

    @property
    def needs_reference(self) -> bool:
        """The rows must carry ref_sums. A term of one's own is asked at run time instead."""
        return self.term not in (simpo, orpo) and isinstance(self.loss, str)

    def given(self) -> dict[str, Any]:
        """The settings of the term that are not left to its defaults."""
        named = {
            "beta": self.beta,
            "label_smoothing": self.label_smoothing,
            "gamma": self.gamma,
            "odds_weight": self.odds_weight,
            "desirable_weight": self.desirable_weight,
            "undesirable_weight": self.undesirable_weight,
        }
        return {name: value for name, value in named.items() if value is not None} | dict(self.kwargs)


def preference_losses(pairs: Pairs, settings: PreferenceSettings) -> PreferenceOutput:
    """The loss of each example and what its metrics need.

    An example with an empty row gives loss 0 and gradient 0; under kto it counts by the other side alone.
    The batch's loss is sum(pair_weights * losses).
    """
    has_chosen, has_rejected = pairs.chosen.counts > 0, pairs.rejected.counts > 0
    if not settings.one_sided:
        has_chosen = has_rejected = has_chosen & has_rejected
    clean = replace(pairs, chosen=pairs.chosen.only(has_chosen), rejected=pairs.rejected.only(has_rejected))
    losses, chosen, rejected = settings.term(clean, **settings.given())
    if settings.nll_coef:
        losses = losses - settings.nll_coef * clean.chosen.means
    return PreferenceOutput(
        losses=torch.where(has_chosen | has_rejected, losses, torch.zeros_like(losses)),
        chosen_rewards=chosen.detach(),
        rejected_rewards=rejected.detach(),
        has_chosen=has_chosen,
        has_rejected=has_rejected,
    )


def kto_balance(num_desirable: int, num_undesirable: int, settings: PreferenceSettings) -> float:
    """w_D n_D / (w_U n_U). Both numbers are at least 1.

    KTO (2402.01306) wants it from 1 to 3/2, TRL from 1 to 4/3.
    """
    desirable = 1.0 if settings.desirable_weight is None else settings.desirable_weight
    undesirable = 1.0 if settings.undesirable_weight is None else settings.undesirable_weight
    return desirable * num_desirable / (undesirable * num_undesirable)


def smoothed_preference(margin: Float[Tensor, "*P"], label_smoothing: float) -> Float[Tensor, "*P"]:
    """-(1 - e) log sigmoid(margin) - e log sigmoid(-margin)."""
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


def log1mexp(x: Float[Tensor, "*P"]) -> Float[Tensor, "*P"]:
    """log(1 - e^x) for x < 0, exact at both ends. Source: M. Maechler, "Accurately computing log(1 - exp(-|a|))"."""
    near = x > -math.log(2)
    middle = torch.full_like(x, -1.0)  # each branch sees only what it can bear: inf * 0 in a gradient is NaN
    close = torch.log(-torch.expm1(torch.where(near, x, middle)))
    return torch.where(near, close, torch.log1p(-torch.exp(torch.where(near, middle, x))))


def check_range(name: str, value: float) -> None:
    """Raises ValueError, naming the setting, what was found and what was expected."""
    allowed, expected = _RANGES[name]
    if not allowed(value):
        raise ValueError(f"{name} is {value}, expected {expected}")


def _log_odds(means: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    bounded = means.clamp(max=-torch.finfo(means.dtype).eps)
    return bounded - log1mexp(bounded)


def _selected_sum(values: Float[Tensor, " P"], kept: Bool[Tensor, " P"]) -> tuple[Tensor, Tensor]:
    return torch.where(kept, values, torch.zeros_like(values)).sum(), kept.sum().to(values.dtype)
