import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.episodes.ledger import TokenLedger
from rlhf.types import NOT_SAMPLED, Completion, Message


def completion(ids, version=3):
    return Completion(
        token_ids=tuple(ids),
        logprobs=tuple(-0.5 for _ in ids),
        versions=tuple(version for _ in ids),
        finish_reason="stop",
    )


def test_single_turn_masks_exactly_what_was_sampled():
    ledger = TokenLedger()
    ledger.extend_prompt([10, 11])
    ledger.append(completion([20, 1]), seen=[10, 11], text="hi")
    (segment,), (turn,) = ledger.finish()
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
    ledger.extend_prompt([10, 11])
    with pytest.raises(ValueError, match="the engine saw 3 ids that are not the 2 written down"):
        ledger.append(completion([20]), seen=[10, 11, 12], text="")


def test_rewritten_context_starts_a_segment_and_dropped_tokens_are_counted():
    ledger = TokenLedger()
    ledger.extend_prompt([10])
    ledger.append(completion([20]), seen=[10], text="a")
    ledger.extend_prompt([12], rewrite=True)
    ledger.drop(completion([30, 31]))
    ledger.append(completion([21]), seen=[12], text="b")
    segments, turns = ledger.finish()
    assert [segment.token_ids for segment in segments] == [(10, 20), (12, 21)]
    assert [turn.segment for turn in turns] == [0, 1]
    assert ledger.num_dropped == 2


TOKENS = st.lists(st.integers(0, 99), max_size=5)


@given(prompt=TOKENS, steps=st.lists(st.tuples(st.sampled_from(["sample", "observe"]), TOKENS)))
def test_segment_is_the_concatenation_and_turns_point_at_their_tokens(prompt, steps):
    ledger, written = TokenLedger(), list(prompt)
    ledger.extend_prompt(prompt)
    sampled = [False] * len(prompt)
    for kind, ids in steps:
        if kind == "sample":
            ledger.append(completion(ids), seen=written, text="")
        else:
            ledger.observe(ids, message=Message(role="tool", content=""))
        written += ids
        sampled += [kind == "sample"] * len(ids)
    (segment,), turns = ledger.finish()
    assert segment.token_ids == tuple(written)
    assert segment.loss_mask == tuple(sampled)
    assert [segment.token_ids[turn.start : turn.stop] for turn in turns] == [tuple(ids) for _, ids in steps]
