from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.episodes.ledger import TokenLedger, check_laws
from rlhf.errors import EpisodeError
from rlhf.types import NOT_SAMPLED, Completion, Dropped, Message, token_digest


def completion(ids, version=3):
    return Completion(
        token_ids=tuple(ids),
        logprobs=tuple(-0.5 for _ in ids),
        versions=tuple(version for _ in ids),
        finish_reason="stop",
    )


def test_single_turn_masks_exactly_what_was_sampled():
    ledger = TokenLedger()
    segment = ledger.open([10, 11])
    ledger.append(
        segment, completion([20, 1]), seen=[10, 11], message=Message(role="assistant", content="hi")
    )
    (segment,), (turn,), _ = ledger.finish()
    assert segment.token_ids == (10, 11, 20, 1)
    assert segment.loss_mask == (False, False, True, True)
    assert segment.rollout_logprobs == (0.0, 0.0, -0.5, -0.5)
    assert segment.versions == (NOT_SAMPLED, NOT_SAMPLED, 3, 3)
    assert (turn.message, turn.segment, turn.start, turn.stop) == (
        Message(role="assistant", content="hi"),
        0,
        2,
        4,
    )


def test_sampling_from_an_unwritten_context_is_refused():
    ledger = TokenLedger()
    segment = ledger.open([10, 11])
    with pytest.raises(ValueError, match="the engine saw 3 ids that are not the 2 written down"):
        ledger.append(
            segment, completion([20]), seen=[10, 11, 12], message=Message(role="assistant", content="")
        )


def test_a_reward_before_any_turn_is_the_environments_error():
    ledger = TokenLedger()
    ledger.open([10])
    with pytest.raises(EpisodeError, match=r"a reward of 1\.0 came before any turn"):
        ledger.reward(1.0)


def test_rewritten_context_starts_a_segment_and_dropped_tokens_are_counted():
    ledger = TokenLedger()
    segment = ledger.open([10])
    ledger.append(segment, completion([20]), seen=[10], message=Message(role="assistant", content="a"))
    segment = ledger.open([12], "rewrite")
    ledger.drop(completion([30, 31]), "superseded")
    ledger.append(segment, completion([21]), seen=[12], message=Message(role="assistant", content="b"))
    segments, turns, dropped = ledger.finish()
    assert [segment.token_ids for segment in segments] == [(10, 20), (12, 21)]
    assert [turn.segment for turn in turns] == [0, 1]
    assert dropped == (Dropped(num_tokens=2, reason="superseded"),)


TOKENS = st.lists(st.integers(0, 99), max_size=5)


@given(prompt=TOKENS, steps=st.lists(st.tuples(st.sampled_from(["sample", "observe"]), TOKENS)))
def test_segment_is_the_concatenation_and_turns_point_at_their_tokens(prompt, steps):
    ledger, written = TokenLedger(), list(prompt)
    segment = ledger.open(prompt)
    sampled = [False] * len(prompt)
    for kind, ids in steps:
        if kind == "sample":
            ledger.append(
                segment, completion(ids), seen=written, message=Message(role="assistant", content="")
            )
        else:
            ledger.observe(segment, ids, messages=[Message(role="tool", content="")])
        written += ids
        sampled += [kind == "sample"] * len(ids)
    (segment,), turns, _ = ledger.finish()
    assert segment.token_ids == tuple(written)
    assert segment.loss_mask == tuple(sampled)
    assert [segment.token_ids[turn.start : turn.stop] for turn in turns] == [tuple(ids) for _, ids in steps]


def recorded(ids, *, context, start, kept=None):
    """A completion whose routing names the place of each token, plus `start`."""
    length = context + len(ids)
    routing = np.arange(start, start + length, dtype=np.int16)[:, None, None].repeat(2, 1).repeat(3, 2)
    routing[-1] = -1
    return replace(completion(ids), routing=routing, kept=kept)


def test_routing_of_later_turns_adds_only_what_was_not_known():
    ledger = TokenLedger()
    segment = ledger.open([10, 11])
    ledger.append(
        segment,
        recorded([20, 21], context=2, start=0),
        seen=ledger.context(segment),
        message=Message(role="assistant", content="a"),
    )
    ledger.observe(segment, [30], messages=[Message(role="tool", content="t")])
    ledger.append(
        segment,
        recorded([22, 23], context=5, start=100),
        seen=ledger.context(segment),
        message=Message(role="assistant", content="b"),
    )
    ledger.observe(segment, [31, 32], messages=[Message(role="tool", content="t")])
    (segment,), _, _ = ledger.finish()
    # The last sampled token of the first turn was an input only in the second; the last tokens never were.
    assert segment.routing[:, 0, 0].tolist() == [0, 1, 2, 103, 104, 105, -1, -1, -1]
    assert segment.routing.shape == (9, 2, 3)
    assert segment.routing.dtype == np.int16


def test_kept_sets_stand_at_their_tokens():
    kept = (np.array([3, 20], np.int32), np.array([], np.int32))
    ledger = TokenLedger()
    segment = ledger.open([10, 11])
    ledger.append(
        segment,
        replace(completion([20, 21]), kept=kept),
        seen=ledger.context(segment),
        message=Message(role="assistant", content="a"),
    )
    ledger.observe(segment, [30], messages=[Message(role="tool", content="t")])
    (segment,), _, _ = ledger.finish()
    assert [ids.tolist() for ids in segment.kept] == [[], [], [3, 20], [], []]
    assert segment.trained_mask == (False, False, True, False, False)
    assert segment.loss_mask == (False, False, True, True, False)


def test_rewritten_context_starts_its_records_anew():
    ledger = TokenLedger()
    segment = ledger.open([10])
    ledger.append(
        segment, recorded([20], context=1, start=0), seen=[10], message=Message(role="assistant", content="a")
    )
    segment = ledger.open([12, 13], "rewrite")
    ledger.append(
        segment,
        recorded([21], context=2, start=50),
        seen=[12, 13],
        message=Message(role="assistant", content="b"),
    )
    first, second = ledger.finish()[0]
    assert first.routing[:, 0, 0].tolist() == [0, -1]
    assert second.routing[:, 0, 0].tolist() == [50, 51, -1]


def test_episode_without_records_has_none():
    ledger = TokenLedger()
    segment = ledger.open([10])
    ledger.append(segment, completion([20]), seen=[10], message=Message(role="assistant", content=""))
    (segment,), _, _ = ledger.finish()
    assert segment.routing is None
    assert segment.kept is None
    assert segment.trained_mask is segment.loss_mask


def test_records_that_come_and_go_are_refused():
    ledger = TokenLedger()
    segment = ledger.open([10])
    ledger.append(
        segment,
        recorded([20], context=1, start=0),
        seen=ledger.context(segment),
        message=Message(role="assistant", content=""),
    )
    with pytest.raises(ValueError, match=r"were reported \(True, False\), now \(False, False\)"):
        ledger.append(
            segment,
            completion([21]),
            seen=ledger.context(segment),
            message=Message(role="assistant", content=""),
        )


def test_routing_of_another_length_is_refused():
    ledger = TokenLedger()
    segment = ledger.open([10, 11])
    with pytest.raises(ValueError, match="routing of 2 tokens for 3 written down"):
        ledger.append(
            segment,
            recorded([20], context=1, start=0),
            seen=[10, 11],
            message=Message(role="assistant", content=""),
        )


SAID = Message(role="assistant", content="")


def test_segments_grow_side_by_side():
    ledger = TokenLedger()
    left, right = ledger.open([1]), ledger.open([2, 3], "fork")
    ledger.append(right, completion([30]), seen=[2, 3], message=SAID)
    ledger.append(left, completion([10, 11]), seen=[1], message=SAID)
    ledger.observe(right, [4], messages=[Message(role="tool", content="t")])
    ledger.append(right, completion([31]), seen=[2, 3, 30, 4], message=SAID)
    segments, turns, _ = ledger.finish()
    assert [segment.token_ids for segment in segments] == [(1, 10, 11), (2, 3, 30, 4, 31)]
    assert [(turn.segment, turn.start, turn.stop) for turn in turns] == [
        (1, 2, 3),
        (0, 1, 3),
        (1, 3, 4),
        (1, 4, 5),
    ]


def test_digests_are_of_the_ids_that_the_engine_was_asked_with():
    ledger = TokenLedger()
    segment = ledger.open([1, 2])
    ledger.append(segment, completion([10]), seen=[1, 2], message=SAID)
    ledger.observe(segment, [4, 5], messages=[Message(role="tool", content="t")])
    ledger.append(segment, completion([11]), seen=[1, 2, 10, 4, 5], message=SAID)
    _, turns, _ = ledger.finish()
    assert [turn.context_digest for turn in turns] == [
        token_digest([1, 2]),
        "",
        token_digest([1, 2, 10, 4, 5]),
    ]


def test_segments_that_nobody_sampled_are_left_out_but_for_the_first():
    ledger = TokenLedger()
    ledger.open([1])
    ledger.open([2], "rewrite")
    assert [segment.token_ids for segment in ledger.finish()[0]] == [(1,)]
    ledger.append(1, completion([20]), seen=[2], message=SAID)
    assert [segment.token_ids for segment in ledger.finish()[0]] == [(2, 20)]
    assert TokenLedger().finish() == ((), (), ())


def test_turns_of_no_token_and_empty_observations_are_records_too():
    ledger = TokenLedger()
    segment = ledger.open([1])
    ledger.append(segment, completion([]), seen=[1], message=SAID)
    ledger.observe(segment, [], messages=[Message(role="tool", content=""), Message(role="user", content="")])
    ledger.append(segment, completion([10]), seen=[1], message=SAID)
    assert [(turn.start, turn.stop) for turn in ledger.finish()[1]] == [(1, 1), (1, 1), (1, 1), (1, 2)]


def test_seal_counts_what_earlier_attempts_lost():
    lost = Dropped(num_tokens=5, reason="env_error")
    ledger = TokenLedger([lost])
    segment = ledger.open([1])
    ledger.append(segment, completion([10, 11]), seen=[1], message=SAID)
    segments, turns, dropped = ledger.finish()
    assert dropped == (lost,)
    assert ledger.num_sampled == 2
    assert ledger.seal.startswith("7-")
    check_laws(segments, turns, dropped, seal=ledger.seal)
    with pytest.raises(ValueError, match="but 2 are written and 0 dropped"):
        check_laws(segments, turns, (), seal=ledger.seal)


def test_changed_kept_sets_break_the_seal():
    ledger = TokenLedger()
    segment = ledger.open([1])
    kept = (np.array([3, 20], np.int32),)
    ledger.append(segment, replace(completion([20]), kept=kept), seen=[1], message=SAID)
    (found,), turns, dropped = ledger.finish()
    other = replace(found, kept=(found.kept[0], np.array([3, 21], np.int32)))
    with pytest.raises(ValueError, match="kept sets"):
        check_laws([other], turns, dropped, seal=ledger.seal)


def test_rewards_belong_to_the_turn_sampled_last():
    ledger = TokenLedger()
    segment = ledger.open([1])
    ledger.append(segment, completion([10]), seen=[1], message=SAID)
    ledger.observe(segment, [2], messages=[Message(role="tool", content="t")])
    ledger.reward(0.5)
    ledger.reward(0.25)
    assert [turn.reward for turn in ledger.finish()[1]] == [0.75, 0.0]
