import math
import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.config.reject import DeduplicateConfig, FilterConfig, PairsConfig, PassRateConfig, SelectConfig
from rlhf.data.collected import Collected, Sample, of_line, to_line
from rlhf.data.selection import Rules, jaccard, ngrams, pairs, select
from rlhf.types import Message, ToolCall
from tests.fakes import make_prompt

FILTER = FilterConfig(use="m:f", at_least=0.25, at_most=0.75)
TEXTS = ("one two three four", "One  two three FOUR", "one two three five", "six", "seven eight", "")


def sample(index=0, *, reward=1.0, text="six", parts=None, stop="stop", num_tokens=3, **changes):
    found = {"task": reward} if reward is not None and parts is None else parts or {}
    return Sample(
        index=index, seed=index, completion=text, reward=reward, is_correct=reward is not None and reward > 0.5,
        outcome="ok" if reward is not None else "error", parts=found, stop=stop, num_tokens=num_tokens, **changes,
    )  # fmt: skip


def collected(*samples):
    return Collected(prompt=make_prompt(), samples=samples)


samples = st.lists(
    st.builds(
        lambda reward, text, part, stop, size: sample(
            reward=reward, text=text, parts={"task": reward or 0.0, "m.f": part}, stop=stop, num_tokens=size
        ),
        st.sampled_from([None, 0.0, 0.5, 0.75, 1.0]),
        st.sampled_from(TEXTS),
        st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
        st.sampled_from(["stop", "stop", "length"]),
        st.integers(1, 4),
    ),
    max_size=12,
).map(lambda found: collected(*(replace(one, index=i) for i, one in enumerate(found))))
configs = st.builds(
    SelectConfig,
    require_correct=st.booleans(),
    min_reward=st.sampled_from([None, 0.6, 1.0]),
    allow_truncated=st.booleans(),
    filters=st.sampled_from([(), (FILTER,)]),
    per_prompt=st.sampled_from([None, 1, 2, 5]),
    rank_by=st.sampled_from([None, "m.f"]),
    prefer=st.sampled_from(["earlier", "shorter"]),
    deduplicate=st.sampled_from(
        [None, DeduplicateConfig(), DeduplicateConfig(jaccard=0.3, ngram=2), DeduplicateConfig(jaccard=1.0)]
    ),
    pass_rate=st.sampled_from([None, PassRateConfig(low=0.2, high=0.8), PassRateConfig(low=0.5, only_certain=True)]),
    pairs=st.sampled_from([PairsConfig(per_prompt=2), PairsConfig(per_prompt=9, rejected="worst", min_gap=0.5)]),
)  # fmt: skip


def rules(config):
    return Rules(config=config, filters={"m.f": FILTER} if config.filters else {})


def slow_reasons(one, config):
    """{index: reason or None}, rule by rule over all samples."""
    found = {s.index: None for s in one.samples}
    broken = [
        ("pass_rate", [slow_is_outside(one, config.pass_rate)] * len(one.samples)),
        ("ungradable", [s.reward is None for s in one.samples]),
        ("empty", [s.completion == "" for s in one.samples]),
        ("truncated", [s.stop == "length" and not config.allow_truncated for s in one.samples]),
        ("wrong", [config.require_correct and not s.is_correct for s in one.samples]),
        ("low_reward", [(s.reward or 0.0) < (config.min_reward or -1) for s in one.samples]),
        ("filter/m.f", [bool(config.filters) and not 0.25 <= s.parts["m.f"] <= 0.75 for s in one.samples]),
    ]
    for reason, breaks in broken:
        for s, does in zip(one.samples, breaks, strict=True):
            found[s.index] = found[s.index] or (reason if does else None)
    unique = []
    for s in slowly_sorted([s for s in one.samples if found[s.index] is None], config):
        if any(are_alike(s.completion, other.completion, config.deduplicate) for other in unique):
            found[s.index] = "duplicate"
        else:
            unique.append(s)
    for s in unique[len(unique) if config.per_prompt is None else config.per_prompt :]:
        found[s.index] = "per_prompt"
    return found


def slow_is_outside(one, band):
    n, c = sum(s.reward is not None for s in one.samples), sum(s.is_correct for s in one.samples)
    if band is None or not n:
        return False
    low = high = p = c / n
    if band.only_certain:
        z = 1.959963984540054
        middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        low, high = (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)
    return high < band.low - 1e-12 or low > band.high + 1e-12


def slowly_sorted(left, config):
    """By swapping neighbours that stand the wrong way round."""
    for _ in left:
        for i in range(len(left) - 1):
            if is_better(left[i + 1], left[i], config):
                left[i], left[i + 1] = left[i + 1], left[i]
    return left


def is_better(a, b, config):
    if a.reward != b.reward:
        return a.reward > b.reward
    if config.rank_by and a.parts["m.f"] != b.parts["m.f"]:
        return a.parts["m.f"] > b.parts["m.f"]
    if config.prefer == "shorter" and a.num_tokens != b.num_tokens:
        return a.num_tokens < b.num_tokens
    return a.index < b.index


def are_alike(one, other, how):
    if how is None:
        return False
    one, other = one.lower().split(), other.lower().split()
    if one == other:
        return True
    if how.jaccard is None or not one or not other:
        return False
    grams = [
        {" ".join(t[i : i + how.ngram]) for i in range(max(1, len(t) - how.ngram + 1))} for t in (one, other)
    ]
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1]) >= how.jaccard


@given(samples, configs)
def test_select_agrees_with_the_slow_version_and_accounts_for_every_sample_once(one, config):
    found = select(one, rules(config))
    expected = slow_reasons(one, config)
    assert found.dropped == {index: reason for index, reason in expected.items() if reason is not None}
    assert {s.index for s in found.kept} == {index for index, reason in expected.items() if reason is None}
    assert len(found.kept) + len(found.dropped) == len(one.samples)


@given(samples, configs, st.randoms(use_true_random=False))
def test_select_does_not_depend_on_the_order_of_the_samples(one, config, shuffler):
    shuffled = list(one.samples)
    shuffler.shuffle(shuffled)
    again = replace(one, samples=tuple(shuffled))
    assert select(again, rules(config)) == select(one, rules(config))
    assert pairs(again, select(again, rules(config)), config) == pairs(
        one, select(one, rules(config)), config
    )


@given(samples, configs)
def test_select_keeps_what_it_kept_and_more_with_a_larger_k(one, config):
    config = config.model_copy(update={"pass_rate": None})
    kept = select(one, rules(config)).kept
    assert select(replace(one, samples=kept), rules(config)).kept == kept
    sizes = [select(one, rules(config.model_copy(update={"per_prompt": k}))).kept for k in (1, 2, 3, None)]
    assert all(more[: len(fewer)] == fewer for fewer, more in pairwise(sizes))


@given(samples, configs)
def test_pairs_set_right_against_wrong_samples_each_used_once(one, config):
    selection = select(one, rules(config))
    found = pairs(one, selection, config)
    used = [s.index for pair in found for s in pair]
    assert len(used) == len(set(used))
    assert len(found) <= config.pairs.per_prompt
    for chosen, rejected in found:
        assert chosen.is_correct
        assert not rejected.is_correct
        assert "" not in (chosen.completion, rejected.completion)
        assert chosen.reward - rejected.reward >= config.pairs.min_gap
        assert chosen in selection.ranked
    if "pass_rate" in selection.dropped.values():
        assert not found


def test_pairs_begin_with_the_best_or_the_worst_wrong_sample():
    one = collected(sample(0), sample(1, reward=0.0, text="a"), sample(2, reward=0.5, text="b"))
    for rejected, index in (("best", 2), ("worst", 1)):
        config = SelectConfig(pairs=PairsConfig(rejected=rejected))
        assert [pair[1].index for pair in pairs(one, select(one, rules(config)), config)] == [index]


def test_a_contaminated_prompt_keeps_nothing():
    one = collected(sample(0), sample(1, reward=None))
    found = select(one, rules(SelectConfig()), contaminated=True)
    assert Counter(found.dropped.values()) == {"contaminated": 2}
    assert not pairs(one, found, SelectConfig(pairs=PairsConfig()))


def test_a_part_that_does_not_apply_passes_its_filter():
    found = select(collected(sample(parts={"task": 1.0})), rules(SelectConfig(filters=(FILTER,))))
    assert len(found.kept) == 1


def test_an_episode_that_is_no_one_conversation_is_left_out():
    lone = sample(0, is_episode=True)
    whole = sample(1, is_episode=True, messages=(Message(role="user", content="q"),), text="other")
    assert select(collected(lone, whole), rules(SelectConfig())).dropped == {0: "not_one_conversation"}


def test_episodes_with_equal_last_turns_differ_by_what_was_said_before():
    def played(index, city):
        call = ToolCall(id="1", name="look", arguments={"city": city})
        said = (
            Message(role="assistant", content="", tool_calls=(call,)),
            Message(role="assistant", content="done"),
        )
        return sample(index, text="done", is_episode=True, messages=said)

    found = select(
        collected(played(0, "a"), played(1, "b"), played(2, "a")), rules(SelectConfig(per_prompt=None))
    )
    assert found.dropped == {2: "duplicate"}


@given(st.text(alphabet="ab ", max_size=12), st.text(alphabet="ab ", max_size=12), st.integers(1, 3))
def test_jaccard_is_symmetric_and_one_only_for_equal_sets(one, other, size):
    first, second = ngrams(one, size), ngrams(other, size)
    assert jaccard(first, second) == jaccard(second, first)
    assert (jaccard(first, second) == 1) == (first == second != frozenset())


@given(samples)
def test_collected_survives_its_line(one):
    assert of_line(to_line(one)) == one


def test_collected_with_every_field_survives_its_line():
    call = ToolCall(id="1", name="look", arguments={"q": "\u2028é"}, raw="x", is_text=True)
    messages = (
        Message(role="assistant", content="", reasoning="hm", tool_calls=(call,)),
        Message(role="tool", content="no", tool_call_id="1", name="look", is_error=True, failure="raised"),
    )
    one = collected(sample(is_episode=True, messages=messages, tools=({"type": "function"},)))
    one = replace(
        one, prompt=replace(one.prompt, columns={"n": 1, "l": [1, 2]}, images=("a.png",), is_chat=True)
    )
    assert of_line(to_line(one)) == one
    assert to_line(one).count("\n") == 1


@pytest.mark.parametrize("seed", range(3))
def test_difficulty_counts_gradable_samples_only(seed):
    generator = random.Random(seed)
    rewards = [generator.choice([None, 0.0, 1.0]) for _ in range(9)]
    found = select(
        collected(*(sample(i, reward=r) for i, r in enumerate(rewards))), rules(SelectConfig())
    ).difficulty
    assert found.num_samples == 9 - rewards.count(None)
    assert found.pass_rate == rewards.count(1.0) / found.num_samples
    assert found.interval[0] <= found.pass_rate <= found.interval[1]
