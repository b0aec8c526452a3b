"""Sequences and pairs of them, as the preference losses read them: log-probabilities summed over whole rows."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf.batch import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """P sequences by their log-probabilities, summed over trained tokens. A row without any says nothing."""

    sums: Float[Tensor, " P"]
    counts: Int[Tensor, " P"]
    """Trained tokens; sums / counts are the means."""
    ref_sums: Float[Tensor, " P"] | None = None
    """Under the frozen reference; None where the loss needs none."""

    def __post_init__(self) -> None:
        for name, value in (("sums", self.sums), ("ref_sums", self.ref_sums)):
            if value is not None and value.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"{name} is {value.dtype}, expected float32 or float64: a sum in fewer bits can flip a pair"
                )

    @property
    def means(self) -> Float[Tensor, " P"]:
        """Log-probability per trained token; 0 for a row without any."""
        return self.sums / self.counts.clamp(min=1)

    @property
    def log_ratios(self) -> Float[Tensor, " P"]:
        """The sequence's log pi / pi_ref. Raises ValueError without a reference."""
        if self.ref_sums is None:
            raise ValueError("ref_sums is None but the loss compares with a reference: give its sums")
        return self.sums - self.ref_sums.detach()

    @property
    def mean_log_ratios(self) -> Float[Tensor, " P"]:
        """`log_ratios` per trained token."""
        return self.log_ratios / self.counts.clamp(min=1)

    def select(self, rows: Int[Tensor, " R"] | slice) -> "Rows":
        """The rows of these places, in that order."""
        ref_sums = None if self.ref_sums is None else self.ref_sums[rows]
        return Rows(sums=self.sums[rows], counts=self.counts[rows], ref_sums=ref_sums)

    def only(self, kept: Bool[Tensor, " P"]) -> "Rows":
        """The same rows, those not `kept` made empty: whatever they held, it reaches no value and no gradient."""
        zeros = torch.zeros_like(self.sums)
        ref_sums = None if self.ref_sums is None else torch.where(kept, self.ref_sums, zeros)
        return Rows(
            sums=torch.where(kept, self.sums, zeros),
            counts=torch.where(kept, self.counts, torch.zeros_like(self.counts)),
            ref_sums=ref_sums,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """P examples: row i of `chosen` is preferred to row i of `rejected`."""

    chosen: Rows
    rejected: Rows
    baseline: Float[Tensor, ""] | None = None
    """KTO's z, from `kto_baseline`."""

    def __post_init__(self) -> None:
        if self.chosen.counts.shape != self.rejected.counts.shape:
            raise ValueError(
                f"rejected has {self.rejected.counts.numel()} rows, expected {self.chosen.counts.numel()}: "
                "one for each chosen row"
            )


def sequence_logprobs(
    logprobs: Float[Tensor, " N"], batch: Batch
) -> tuple[Float[Tensor, " B"], Int[Tensor, " B"]]:
    """Sum of the log-probabilities of each row's trained tokens, and their number.

    In float32, in float64 where given float64. Tokens are selected: what lies under the mask is never read.
    """
    places = torch.nonzero(batch.loss_mask).squeeze(1)
    picked = logprobs[places].to(torch.promote_types(logprobs.dtype, torch.float32))
    sums = picked.new_zeros(batch.num_rows).index_add(0, batch.segment_ids[places], picked)
    return sums, batch.row_sampled()


def interleaved(rows: Rows) -> Pairs:
    """Pairs from rows laid out chosen, rejected, chosen, rejected. Raises ValueError for an odd number of rows."""
    if rows.counts.numel() % 2:
        raise ValueError(
            f"found {rows.counts.numel()} rows, expected an even number: chosen, rejected, chosen, .."
        )
    return Pairs(chosen=rows.select(slice(0, None, 2)), rejected=rows.select(slice(1, None, 2)))


def labelled(rows: Rows, desirable: Bool[Tensor, " P"], *, baseline: Float[Tensor, ""]) -> Pairs:
    """Unpaired rows for kto: each stands on the side of its label, its other side is empty."""
    return Pairs(chosen=rows.only(desirable), rejected=rows.only(~desirable), baseline=baseline)


def kto_baseline(mismatched: Rows) -> Float[Tensor, ""]:
    """KTO's z: the mean log-ratio of mismatched rows (a prompt with the answer to another one), at least 0.

    Detached. Give the mismatched rows of the WHOLE optimizer batch, before ranks and micro-batches: z enters
    every loss. Without any it is 0. Source: KTO (2402.01306).
    """
    counted = mismatched.counts > 0
    log_ratios = mismatched.only(counted).log_ratios.detach()
    return (log_ratios.sum() / counted.sum().clamp(min=1)).clamp(min=0)


def pair_weights(
    chosen_counts: Int[Tensor, " P"], rejected_counts: Int[Tensor, " P"], *, one_sided: bool = False
) -> Float[Tensor, " P"]:
    """What each example of an optimizer batch weighs, float64; from the WHOLE batch, before any split.

    1 / (number of pairs with both sides); `one_sided` (kto): 1 / (number of sides). 0 for an empty example.
    """
    sides = torch.stack([chosen_counts > 0, rejected_counts > 0])
    counted = sides.any(0) if one_sided else sides.all(0)
    total = sides.sum() if one_sided else counted.sum()
    return counted.double() / total.clamp(min=1)
