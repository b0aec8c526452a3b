import asyncio

import pytest

from rlhf.episodes.compaction import ASK, with_summary, without_oldest
from rlhf.episodes.conversation import EpisodeEnded
from rlhf.episodes.ledger import check_laws
from rlhf.types import Message, ToolCall
from tests.conversations import CALL, CUT, QUESTION, Played, result, user
from tests.policies import WrittenPolicy

SYSTEM = Message(role="system", content="Be short.")
SUMMARY = "x was looked up; it is 42."


def asked(number):
    call = ToolCall(id=f"call{number:05d}", name="look", arguments={"q": str(number)})
    return Message(role="assistant", content=f"ask {number}", tool_calls=(call,))


def answered(number):
    return Message(role="tool", content=f"found {number}", tool_call_id=f"call{number:05d}", name="look")


def rounds(*numbers):
    return [message for number in numbers for message in (asked(number), answered(number))]


def said(text):
    return Message(role="assistant", content=text)


@pytest.mark.parametrize(
    ("share", "kept"), [(0.25, [2, 3, 4]), (0.5, [3, 4]), (0.75, [4]), (0.8, []), (1.0, [])]
)
def test_oldest_rounds_are_left_out_and_the_task_is_kept(share, kept):
    found = without_oldest([SYSTEM, QUESTION, *rounds(1, 2, 3, 4)], share)
    assert found == [SYSTEM, QUESTION, *rounds(*kept)]


def test_one_round_is_rounded_up():
    assert without_oldest([QUESTION, *rounds(1)], 0.75) == [QUESTION]


def test_what_users_and_the_model_said_stays_without_the_tools_between():
    talk = [QUESTION, *rounds(1), said("It is 1."), user("And y?"), *rounds(2)]
    assert without_oldest(talk, 1.0) == [QUESTION, said("It is 1."), user("And y?")]
    assert without_oldest(talk, 0.5) == [QUESTION, said("It is 1."), user("And y?"), *rounds(2)]


def test_parallel_calls_go_together():
    two = Message(role="assistant", content="", tool_calls=(*asked(1).tool_calls, *asked(2).tool_calls))
    talk = [QUESTION, two, answered(1), answered(2), *rounds(3)]
    assert without_oldest(talk, 0.5) == [QUESTION, *rounds(3)]


def test_where_no_tools_are_called_turns_and_their_answers_are_rounds():
    talk = [QUESTION, said("1"), user("low"), said("2"), user("high")]
    assert without_oldest(talk, 0.5) == [QUESTION, said("2"), user("high")]
    (only,) = without_oldest(talk, 1.0)
    assert only.content == "What is x?\n\nhigh"


def test_summary_stands_after_the_task_and_before_what_users_said_last():
    talk = [SYSTEM, QUESTION, *rounds(1, 2)]
    system, task = with_summary(talk, SUMMARY)
    assert system == SYSTEM
    assert task.content.startswith("What is x?\n\nYour summary")
    assert task.content.endswith(SUMMARY)
    (task,) = with_summary([QUESTION, said("hm"), user("And y?")], SUMMARY)
    assert task.content.endswith(f"{SUMMARY}\n\nAnd y?")


def test_nothing_said_yet_is_not_changed():
    assert without_oldest([SYSTEM, QUESTION], 1.0) == [SYSTEM, QUESTION]


def play(played, count):
    """Rounds of tool calls in a context that holds about seven."""

    async def run():
        new = [QUESTION]
        for number in range(count):
            message = await played.thread.sample(*new)
            new = [result(call, f"found {number} " + "word " * 40) for call in message.tool_calls]

    asyncio.run(run())
    segments, turns, dropped = played.ledger.finish()
    check_laws(segments, turns, dropped, seal=played.ledger.seal)
    assert all(len(segment.token_ids) <= 1500 for segment in segments)
    assert sum(segment.num_sampled for segment in segments) == played.policy.num_sampled
    return [segment.reason for segment in segments]


def before_sampling(played):
    """What compacted rows begin with, after the tools."""
    return [row.partition("{<")[0].partition("What is x?")[2] for row in played.rows()[1:]]


CALLS = {
    "qwen2.5": CALL,
    "llama3.2": '{"name": "look", "parameters": {"q": "x"}}',
    "deepseek_v3": "</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>look\n```json\n"
    '{"q": "x"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
}
LIMITS = {"max_tokens": 1500, "max_turns": 100}


@pytest.mark.parametrize("template", CALLS)
@pytest.mark.parametrize(("how", "most"), [("discard_75", 2), ("discard_all", 0)])
def test_full_context_goes_on_without_its_oldest_rounds(chat_of, template, how, most):
    played = Played(chat_of(template), [CALLS[template]] * 16, compaction=how, **LIMITS)
    reasons = play(played, 16)
    assert reasons[0] == "start"
    assert set(reasons[1:]) == {"compaction"}
    openings = [played.chat.tokenizer.decode(asked) for asked in first_contexts(played)[1:]]
    assert all("What is x?" in text and "found 0" not in text for text in openings)
    assert all(text.count("found") <= most for text in openings)


def first_contexts(played):
    """What the model was asked with first in each row."""
    segments, turns, _ = played.ledger.finish()
    starts = {}
    for turn in turns:
        if turn.finish is not None:
            starts.setdefault(turn.segment, segments[turn.segment].token_ids[: turn.start])
    return [starts[place] for place in sorted(starts)]


class SummingPolicy(WrittenPolicy):
    """Calls a tool in every turn, and sums up when it is asked to."""

    def __init__(self, chat, summary=SUMMARY):
        super().__init__(chat, [])
        self.summary = summary

    async def generate(self, request):
        is_asked = ASK.content in self._chat.tokenizer.decode(request.prompt_token_ids)
        self._texts = [self.summary if is_asked else CALL]
        return await super().generate(request)


def test_model_sums_up_a_full_context_and_goes_on_from_there(chat_of):
    played = Played(chat_of("qwen2.5"), [], compaction="summary", **LIMITS)
    played.policy.engine = SummingPolicy(played.chat)
    reasons = play(played, 16)
    assert reasons == ["start", *["compaction"] * (len(reasons) - 1)]
    assert len(reasons) > 2
    first, second, *_ = played.rows()
    # The request and the summary are the end of the row that they sum up, and trained there.
    assert ASK.content in first
    assert first.endswith(f"{{{SUMMARY}<|im_end|>}}")
    assert (
        f"What is x?\n\nYour summary of the work so far, which is no longer shown:\n\n{SUMMARY}<|im_end|>"
        in second
    )
    assert ASK.content not in played.chat.tokenizer.decode(first_contexts(played)[1])
    assert ASK not in played.thread.messages


def test_summary_that_was_cut_is_used_as_it_is(chat_of):
    played = Played(chat_of("qwen2.5"), [], compaction="summary", **LIMITS)
    played.policy.engine = SummingPolicy(played.chat, f"so far {CUT}")
    assert "compaction" in play(played, 16)
    assert "no longer shown:\n\nso far<|im_end|>" in played.rows()[1]


def test_without_room_for_a_summary_the_oldest_rounds_go(chat_of):
    played = Played(chat_of("qwen2.5"), [CALL] * 6, compaction="summary", **LIMITS)
    asked = played.sample(QUESTION)
    size = 1450 - played.thread.num_context
    word = played.chat.tokenizer.encode(" word", add_special_tokens=False)
    played.sample(result(asked.tool_calls[0], " word" * (size // len(word) - 20)))
    assert played.reasons() == ["start", "compaction"]
    assert all(ASK.content not in row for row in played.rows())


def test_task_that_is_too_long_by_itself_ends_the_episode(chat_of):
    played = Played(chat_of("qwen2.5"), ["a"] * 9, compaction="discard_all", **LIMITS)
    with pytest.raises(EpisodeEnded) as end:
        played.sample(user("word " * 1500))
    assert end.value.stop == "max_tokens"
    assert played.engine.log == []
