"""Which samples of a prompt are kept, and why each of the others is not. Pure: one prompt at a time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from rlhf.config.reject import DeduplicateConfig, FilterConfig, PassRateConfig, SelectConfig
from rlhf.data.collected import Collected, Sample
from rlhf.data.decontamination import normalised, words
from rlhf.telemetry.metrics import wilson
from rlhf.types import STATUS_OF

OF_PROMPT = frozenset({"contaminated", "pass_rate"})
"""Reasons that leave out all samples of a prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difficulty:
    """How often a prompt was solved, of its samples that could be graded."""

    num_samples: int
    num_correct: int

    @classmethod
    def of(cls, collected: Collected) -> "Difficulty":
        """Of all samples of a prompt."""
        return cls(num_samples=collected.num_gradable, num_correct=collected.num_correct)

    @property
    def pass_rate(self) -> float | None:
        """None where nothing could be graded."""
        return self.num_correct / self.num_samples if self.num_samples else None

    @property
    def interval(self) -> tuple[float, float]:
        """The Wilson 95% interval of the pass rate."""
        return wilson(self.num_correct, self.num_samples)

    def is_outside(self, band: PassRateConfig) -> bool:
        """Whether the prompt is too hard or too easy. One that could not be graded is neither."""
        if self.pass_rate is None:
            return False
        low, high = self.interval if band.only_certain else (self.pass_rate, self.pass_rate)
        return high < band.low or low > band.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """`select` of a recipe, its filters by the names under which the reward's parts have them."""

    config: SelectConfig
    filters: Mapping[str, FilterConfig] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What became of a prompt's samples."""

    kept: tuple[Sample, ...]
    """Best first."""
    dropped: Mapping[int, str]
    """Why, by the index of the sample; the first rule that it broke."""
    ranked: tuple[Sample, ...]
    """Those that break no rule of their own and repeat none before them: `kept`, were there no `per_prompt`."""
    difficulty: Difficulty


def select(collected: Collected, rules: Rules, *, contaminated: bool = False) -> Selection:
    """Judge every sample of a prompt; `contaminated`: the prompt says what a test set says."""
    difficulty, config = Difficulty.of(collected), rules.config
    of_prompt = None
    if contaminated:
        of_prompt = "contaminated"
    elif config.pass_rate is not None and difficulty.is_outside(config.pass_rate):
        of_prompt = "pass_rate"
    dropped, passed = {}, []
    for sample in collected.samples:
        reason = of_prompt or broken_rule(sample, rules)
        if reason is None:
            passed.append(sample)
        else:
            dropped[sample.index] = reason
    ranked = []
    for sample, is_repeated in _marked(in_order(passed, config), config.deduplicate):
        if is_repeated:
            dropped[sample.index] = "duplicate"
        else:
            ranked.append(sample)
    kept = ranked[: config.per_prompt]
    dropped |= {sample.index: "per_prompt" for sample in ranked[len(kept) :]}
    return Selection(kept=tuple(kept), dropped=dropped, ranked=tuple(ranked), difficulty=difficulty)


def broken_rule(sample: Sample, rules: Rules) -> str | None:
    """The first rule that a sample breaks by itself, in the order of docs/rejection.md; None: none."""
    config = rules.config
    if sample.reward is None:
        return "ungradable"
    if sample.is_episode and not sample.messages:
        return "not_one_conversation"
    if _is_empty(sample):
        return "empty"
    if _is_cut(sample) and not config.allow_truncated:
        return "truncated"
    if config.require_correct and not sample.is_correct:
        return "wrong"
    if config.min_reward is not None and sample.reward < config.min_reward:
        return "low_reward"
    return next(
        (f"filter/{name}" for name, one in rules.filters.items() if not _passes(sample, name, one)), None
    )


def in_order(samples: Sequence[Sample], config: SelectConfig) -> list[Sample]:
    """Best first: by reward, the part `rank_by`, then as `prefer` says; ties by the sample's index."""

    def key(sample: Sample) -> tuple[float, float, int, int]:
        part = 0.0 if config.rank_by is None else sample.parts.get(config.rank_by, float("-inf"))
        length = sample.num_tokens if config.prefer == "shorter" else 0
        return (float("inf") if sample.reward is None else -sample.reward, -part, length, sample.index)

    return sorted(samples, key=key)


def pairs(collected: Collected, selection: Selection, config: SelectConfig) -> list[tuple[Sample, Sample]]:
    """(chosen, rejected) of a prompt: the best right ones against wrong ones, a sample in one pair at most.

    Nothing for a prompt that was left out. The right ones keep every rule but `per_prompt`; the wrong ones are graded,
    whole and no repetition.
    """
    how = config.pairs
    if how is None or OF_PROMPT & set(selection.dropped.values()):
        return []
    wrong = [s for s in collected.samples if s.reward is not None and not s.is_correct]
    wrong = [s for s in wrong if not _is_empty(s) and (config.allow_truncated or not _is_cut(s))]
    wrong = in_order(wrong, config)
    rejected = [sample for sample, is_repeated in _marked(wrong, config.deduplicate) if not is_repeated]
    if how.rejected == "worst":
        rejected.reverse()
    chosen = [sample for sample in selection.ranked if sample.is_correct]
    return list(islice(_apart(chosen, rejected, how.min_gap), how.per_prompt))


def _apart(
    chosen: Sequence[Sample], rejected: Sequence[Sample], gap: float
) -> Iterator[tuple[Sample, Sample]]:
    free = list(rejected)
    for right in chosen:
        assert right.reward is not None
        for place, wrong in enumerate(free):
            assert wrong.reward is not None
            if right.reward - wrong.reward >= gap:
                yield right, free.pop(place)
                break


def _is_empty(sample: Sample) -> bool:
    """Whether there is nothing to learn: the model ended at once."""
    return not sample.is_episode and not sample.completion


def _is_cut(sample: Sample) -> bool:
    return STATUS_OF[sample.stop] == "truncated"


def _passes(sample: Sample, name: str, one: FilterConfig) -> bool:
    """Whether a part is within its bounds; a part that does not apply to the prompt says nothing."""
    value = sample.parts.get(name)
    if value is None:
        return True
    return (one.at_least is None or value >= one.at_least) and (one.at_most is None or value <= one.at_most)


def _marked(samples: Sequence[Sample], how: DeduplicateConfig | None) -> Iterator[tuple[Sample, bool]]:
    """Each sample, and whether it says what one before it says that does not."""
    texts: set[str] = set()
    shingles: list[frozenset[tuple[str, ...]]] = []
    for sample in samples:
        if how is None:
            yield sample, False
            continue
        text = normalised(sample.text)
        is_repeated = text in texts
        if how.jaccard is not None and not is_repeated:
            found = ngrams(text, how.ngram)
            is_repeated = any(jaccard(found, other) >= how.jaccard for other in shingles)
            if not is_repeated:
                shingles.append(found)
        if not is_repeated:
            texts.add(text)
        yield sample, is_repeated


def ngrams(text: str, size: int) -> frozenset[tuple[str, ...]]:
    """The runs of `size` words; of a text with fewer, all of it; nothing of one without words."""
    found = words(text)
    if not found:
        return frozenset()
    return frozenset(tuple(found[i : i + size]) for i in range(max(len(found) - size + 1, 1)))


def jaccard(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> float:
    """What two sets have in common, as a share of what they have together."""
    return len(one & other) / max(len(one | other), 1)
