"""What a set of preference pairs says about length, and how well scores agree with it. No tensors here.

A pair is (length of the chosen, length of the rejected), in tokens of the answers; its score gap is the score of the
chosen minus that of the rejected. Intervals are Wilson 95 %.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf.telemetry.metrics import wilson

Lengths = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthBias:
    """Whether a rule that sees only lengths would label the pairs."""

    num_pairs: int
    num_longer: int
    """Pairs whose chosen is the longer one."""
    num_shorter: int
    correlation: float
    """Of the length difference with the label, over both orders of every pair; 0 where all lengths are equal."""
    margin: float

    @property
    def longer_wins(self) -> float:
        """Accuracy of `the longer one is better`; a pair of equal lengths counts half."""
        return (self.num_longer + 0.5 * self._num_ties) / self.num_pairs

    @property
    def interval(self) -> tuple[float, float]:
        """Of that accuracy."""
        return wilson(self.num_longer + 0.5 * self._num_ties, self.num_pairs)

    @property
    def is_biased(self) -> bool:
        """The whole interval lies above 0.5 by more than the margin."""
        return self.interval[0] > 0.5 + self.margin

    @property
    def _num_ties(self) -> int:
        return self.num_pairs - self.num_longer - self.num_shorter

    def metrics(self) -> dict[str, float]:
        """Under the names of telemetry/metrics.py."""
        share_low, share_high = wilson(self.num_longer, self.num_pairs)
        low, high = self.interval
        return {
            "length/chosen_longer_share": self.num_longer / self.num_pairs,
            "length/chosen_longer_share_low": share_low,
            "length/chosen_longer_share_high": share_high,
            "length/longer_wins": self.longer_wins,
            "length/longer_wins_low": low,
            "length/longer_wins_high": high,
            "length/label_correlation": self.correlation,
            "length/is_biased": float(self.is_biased),
        }

    def warning(self) -> str | None:
        """A sentence for log and summary; None where there is nothing to warn of."""
        if not self.is_biased:
            return None
        low, high = self.interval
        return (
            f"the pairs are length-biased: `the longer one is better` is right for {self.longer_wins:.3f} of "
            f"{self.num_pairs} pairs [{low:.3f}, {high:.3f}], more than {0.5 + self.margin:g}. What is learned from "
            "them may be length. Balance the pairs by length, or compare accuracy where the chosen is the shorter one."
        )


def length_bias(lengths: Lengths, *, margin: float) -> LengthBias:
    """The finding for a set of at least one pair."""
    gaps = [chosen - rejected for chosen, rejected in lengths]
    return LengthBias(
        num_pairs=len(gaps),
        num_longer=sum(gap > 0 for gap in gaps),
        num_shorter=sum(gap < 0 for gap in gaps),
        correlation=both_ways_correlation(gaps, [1.0] * len(gaps)),
        margin=margin,
    )


def both_ways_correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Pearson's r of two differences, every pair taken in both orders (so that both means are 0); 0 without spread."""
    spread = math.fsum(x * x for x in left) * math.fsum(y * y for y in right)
    if spread == 0:
        return 0.0
    return math.fsum(x * y for x, y in zip(left, right, strict=True)) / math.sqrt(spread)


def accuracy_metrics(gaps: Sequence[float], *, when: str) -> dict[str, float]:
    """`preference/accuracy_<when>` with its interval: the share of pairs whose chosen is strictly ahead."""
    correct = sum(gap > 0 for gap in gaps)
    low, high = wilson(correct, len(gaps))
    name = f"preference/accuracy_{when}"
    return {name: correct / len(gaps), f"{name}_low": low, f"{name}_high": high}


def accuracy_by_length(lengths: Lengths, gaps: Sequence[float]) -> Mapping[str, float]:
    """Accuracy where the chosen is the shorter or the longer one, and the mean of the two: the length-balanced one.

    A side without pairs is left out, and the balanced accuracy with it.
    """
    sides: dict[str, list[float]] = {"shorter": [], "longer": []}
    for (chosen, rejected), gap in zip(lengths, gaps, strict=True):
        if chosen != rejected:
            sides["longer" if chosen > rejected else "shorter"].append(gap)
    found: dict[str, float] = {}
    for side, those in sides.items():
        if those:
            found |= accuracy_metrics(those, when=f"chosen_{side}")
            found[f"preference/num_chosen_{side}"] = len(those)
    halves = [found.get(f"preference/accuracy_chosen_{side}") for side in sides]
    if None not in halves:
        found["preference/accuracy_balanced"] = math.fsum(half for half in halves if half is not None) / 2
    differences = [chosen - rejected for chosen, rejected in lengths]
    found["length/score_correlation"] = both_ways_correlation(differences, gaps)
    return found
