"""The rule of image codes, and the records that carry it."""

from dataclasses import replace

import pytest

from rlhf.episodes.ledger import TokenLedger, check_record
from rlhf.image_codes import DrawnImages
from rlhf.telemetry.recording import load_groups, save_groups
from rlhf.types import Completion, Message, Prompt, Trajectory, TrajectoryGroup
from tests.drawing import RULE

TEXT = (5, 6, 7)


def drawn(*spans):
    return DrawnImages(rule=RULE, spans=spans)


def completion(ids, found):
    return Completion(
        token_ids=ids,
        logprobs=(-1.0,) * len(ids),
        versions=(0,) * len(ids),
        finish_reason="stop",
        drawn=found,
    )


def record(*turns) -> Trajectory:
    """One row: text, then what the engine returned, with a token of text that nobody sampled between."""
    ledger = TokenLedger()
    place = ledger.open(TEXT)
    for index, turn in enumerate(turns):
        message = Message(role="assistant", content=str(index))
        ledger.append(place, turn, seen=ledger.context(place), message=message)
        ledger.observe(place, [9], messages=[Message(role="user", content="go on")])
    segments, found, _ = ledger.finish()
    return Trajectory(segments=segments, turns=found, stop="stop", sample_index=0, seed=0, seal=ledger.seal)


IMAGE = (79, 80, 81, 82, 83, 84)


def test_a_null_row_keeps_images_and_where_they_begin():
    assert RULE.null_row((*TEXT, *IMAGE, 9)) == (0, 0, 0, *IMAGE, 0)


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ((*TEXT, 79), None),
        (TEXT, None),
        ((5, 79, 6), "goes on after"),
        ((5, 91), "holds image codes"),
        ((), None),
    ],
)
def test_a_prompt_is_text_at_most_ended_by_the_beginning_of_an_image(ids, says):
    found = RULE.prompt_problem(ids)
    assert (found is None) if says is None else says in found


def test_images_lie_where_the_segment_has_them_in_every_turn():
    found = record(completion((*IMAGE, 1), drawn((1, 6))), completion((8, *IMAGE), drawn((2, 7))))
    (segment,) = found.segments
    assert segment.drawn == drawn((4, 9), (13, 18))
    assert [segment.token_ids[start:stop] for start, stop in segment.drawn.spans] == [IMAGE[1:]] * 2
    check_record(found)


def test_the_seal_tells_that_images_were_moved():
    found = record(completion((*IMAGE, 1), drawn((1, 6))))
    moved = replace(found.segments[0], drawn=drawn((4, 8)))
    with pytest.raises(ValueError, match="not those that the engine returned"):
        check_record(replace(found, segments=(moved,)))


def test_a_row_is_drawn_by_one_rule():
    other = DrawnImages(rule=replace(RULE, guidance=9.0), spans=())
    with pytest.raises(ValueError, match="images of an episode were drawn by"):
        record(completion((4, 1), drawn()), completion((4, 1), other))


def test_saved_groups_keep_their_images(tmp_path):
    prompt = Prompt(id="p", messages=(Message(role="user", content="x"),))
    group = TrajectoryGroup(
        index=0,
        prompt=prompt,
        trajectories=(record(completion(IMAGE, drawn((1, 6)))), record(completion((4,), None))),
    )
    save_groups(tmp_path / "groups.jsonl.gz", [group])
    assert load_groups(tmp_path / "groups.jsonl.gz") == [group]
