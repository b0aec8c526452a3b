import asyncio
import time
from dataclasses import replace

import pytest

from rlhf.config.environment import EpisodeLimits
from rlhf.episodes.conversation import Conversation, Dialect, EpisodeEnded, Policy
from rlhf.episodes.ledger import TokenLedger, check_laws
from rlhf.episodes.parsing import parser_of
from rlhf.errors import ConfigError, EpisodeError, ModelError
from rlhf.types import Completion, Message, Sampling, ToolCall
from tests.conversations import CALL, CUT, QUESTION, Played, result, user
from tests.tool_calls import TOOLS


def test_conversation_is_one_row_extended_by_what_is_new(chat_of):
    played = Played(chat_of("qwen3"), [f"I look. {CALL}", "It is 42."], tools=())
    played.thread.tools = TOOLS
    played.thread.messages += [Message(role="system", content="Be short.")]
    asked = played.sample(QUESTION)
    assert [call.arguments for call in asked.tool_calls] == [{"q": "x"}]
    played.sample(result(asked.tool_calls[0]))
    (row,) = played.rows()
    assert row.startswith("<|im_start|>system\nBe short.")
    assert row.endswith(
        "<|im_start|>user\nWhat is x?<|im_end|>\n<|im_start|>assistant\n"
        f"{{I look. {CALL}<|im_end|>}}\n<|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n{It is 42.<|im_end|>}"
    )


def test_what_was_sampled_is_never_written_anew(chat_of):
    spaced = '<tool_call>  {"arguments":{"q":"x"} ,"name":"look"}</tool_call>\n\n\n'
    played = Played(chat_of("qwen3"), [spaced, "ok"])
    asked = played.sample(QUESTION)
    played.sample(result(asked.tool_calls[0]))
    assert f"{{{spaced}<|im_end|>}}" in played.rows()[0]


def test_calls_of_an_episode_have_names_of_their_own(chat_of):
    played = Played(chat_of("qwen3"), [CALL + CALL, CALL])
    first = played.sample(QUESTION)
    second = played.sample(*map(result, first.tool_calls))
    assert [call.id for call in (*first.tool_calls, *second.tool_calls)] == [
        "call00001",
        "call00002",
        "call00003",
    ]


def test_cut_turn_ends_the_episode_and_is_recorded(chat_of):
    played = Played(chat_of("qwen3"), [f"half a {CUT}", "whole"])
    with pytest.raises(EpisodeEnded) as end:
        played.sample(QUESTION)
    assert (end.value.stop, end.value.last.content) == ("length", "half a")
    played.sample(user("go on"))
    assert "{half a }<|im_end|>\n<|im_start|>user\ngo on<|im_end|>" in played.rows()[0]


@pytest.mark.parametrize(
    ("template", "sampled", "new", "between"),
    [
        ("qwen3_6", "ok<|endoftext|>", user("more"), "<|im_end|>\n<|im_start|>user"),
        ("llama3_1", "ok<|eom_id|>", user("more"), "<|eot_id|><|start_header_id|>user"),
        ("glm4moe", "ok<|user|>", user("more"), "\nmore<|assistant|>"),
        ("glm4moe", "ok<|endoftext|>", user("more"), "<|user|>\nmore<|assistant|>"),
        ("glm4moe", "ok<|user|>", Message(role="tool", content="42"), "<|observation|>\n<tool_response>"),
    ],
)
def test_turn_ended_in_another_way_is_ended_as_the_template_does(chat_of, template, sampled, new, between):
    played = Played(chat_of(template), [sampled, "ok"], syntax="none")
    played.sample(QUESTION)
    played.sample(new)
    assert f"{{{sampled}}}{between}" in played.rows()[0]


def test_limits_end_the_episode_before_anything_is_written(chat_of):
    played = Played(chat_of("qwen2.5"), ["a", "b", "c"], max_turns=2)
    played.sample(QUESTION)
    played.sample(user("more"))
    with pytest.raises(EpisodeEnded) as end:
        played.sample(user("more"))
    assert end.value.stop == "max_turns"
    assert played.rows()[0].endswith("{b<|im_end|>}")


def test_context_never_grows_beyond_its_limit(chat_of):
    played = Played(chat_of("qwen2.5"), ["a" * 30, "b " * 400], max_tokens=300, tools=())
    played.sample(QUESTION)
    with pytest.raises(EpisodeEnded) as end:
        played.sample(user("word " * 2000))
    assert end.value.stop == "max_tokens"
    played.thread.settle()
    assert "word word" not in played.rows()[0]


def test_turn_has_the_tokens_that_the_context_has_room_for(chat_of):
    played = Played(chat_of("qwen2.5"), ["b " * 400], max_tokens=300, tools=())
    with pytest.raises(EpisodeEnded) as end:
        played.sample(QUESTION)
    assert (end.value.stop, played.thread.num_context) == ("max_tokens", 300)


def test_sampled_tokens_are_limited_over_all_turns(chat_of):
    played = Played(chat_of("qwen2.5"), ["a b c", "f g h i j k l m n o p"], max_sampled_tokens=12)
    played.sample(QUESTION)
    with pytest.raises(EpisodeEnded):
        played.sample(user("more"))
    assert played.policy.num_sampled == 12
    with pytest.raises(EpisodeEnded) as end:
        played.sample(user("more"))
    assert end.value.stop == "max_tokens"
    first, second = (request.sampling.max_tokens for request in played.engine.requests)
    assert (first, second) == (12, 12 - len(played.engine.log[0][1].token_ids))


def test_nothing_is_sampled_before_a_message(chat_of):
    with pytest.raises(EpisodeError, match="must begin with a message"):
        Played(chat_of("qwen3"), ["a"]).sample()


def test_messages_shown_one_by_one_are_written_as_if_together(chat_of):
    rows = []
    for parts in ([1, 1], [2]):
        played = Played(chat_of("qwen3"), [CALL + CALL, "ok"])
        new = list(map(result, played.sample(QUESTION).tool_calls))
        for size in parts:
            played.thread.show(new[:size], [0.5] * size)
            new = new[size:]
        played.sample()
        rows.append(played.rows())
        assert [turn.seconds for turn in played.ledger.finish()[1] if turn.finish is None] == [0.5, 0.5]
    assert rows[0] == rows[1]


def test_what_was_shown_last_is_written_when_the_episode_is_over(chat_of):
    played = Played(chat_of("qwen3"), [CALL])
    played.thread.show([result(played.sample(QUESTION).tool_calls[0])])
    assert played.rows()[0].endswith("<|im_end|>}")
    played.thread.settle()
    played.thread.settle()
    assert played.rows()[0].count("<tool_response>") == 1
    assert played.ledger.finish()[1][-1].message.content == "42"


def test_rewritten_history_is_a_new_row(chat_of):
    played = Played(chat_of("qwen3"), ["one", "two"])
    played.sample(QUESTION)
    played.thread.rewrite([user("Again.")])
    played.sample(user("And more."))
    assert played.reasons() == ["start", "rewrite"]
    first, second = played.rows()
    assert first.endswith("{one<|im_end|>}")
    assert second.count("Again.") == second.count("And more.") == 1
    assert second.endswith("<|im_start|>assistant\n{two<|im_end|>}")


def test_forks_share_what_was_said_and_train_it_once(chat_of):
    played = Played(chat_of("qwen3"), ["one", "left", "right"])
    played.sample(QUESTION)
    other = played.thread.fork()
    idle = played.thread.fork()
    played.sample(user("Left?"))
    played.sample(user("Right?"), thread=other)
    assert played.reasons() == ["start", "fork"]
    first, second = played.rows()
    assert first.count("{one") == 1
    assert "one<|im_end|>\n" in second
    assert "{one" not in second
    assert second.endswith("{right<|im_end|>}")
    assert idle.messages == played.thread.messages[:2]


def test_fork_before_the_first_turn_is_a_conversation_of_its_own(chat_of):
    played = Played(chat_of("qwen3"), ["left", "right"])
    played.thread.show([QUESTION])
    other = played.thread.fork()
    played.sample()
    played.sample(user("Quick!"), thread=other)
    assert [row.count("What is x?") for row in played.rows()] == [1, 1]
    assert "Quick!" not in played.rows()[0]


def test_turn_that_the_engine_lost_can_be_sampled_again(chat_of):
    played = Played(chat_of("qwen3"), ["one", ConnectionError("gone"), "two"])
    played.sample(QUESTION)
    with pytest.raises(ConnectionError):
        played.sample(user("More."))
    played.sample()
    assert played.reasons() == ["start"]
    assert played.rows()[0].count("More.") == 1


def test_messages_after_a_turn_that_never_came_begin_a_new_row(chat_of):
    played = Played(chat_of("qwen3"), ["one", ConnectionError("gone"), "two"])
    played.sample(QUESTION)
    with pytest.raises(ConnectionError):
        played.sample(user("More."))
    played.sample(user("Well?"))
    assert played.reasons() == ["start", "rewrite"]
    assert played.rows()[1].endswith(
        "More.<|im_end|>\n<|im_start|>user\nWell?<|im_end|>\n<|im_start|>assistant\n{two<|im_end|>}"
    )


def test_messages_shown_while_the_model_speaks_come_after_it(chat_of):
    played = Played(chat_of("qwen3"), ["one", "two"])

    async def run():
        asked = asyncio.create_task(played.thread.sample(QUESTION))
        await asyncio.sleep(0)
        played.thread.show([user("Late.")])
        await asked
        await played.thread.sample()

    asyncio.run(run())
    assert [message.content for message in played.thread.messages] == ["What is x?", "one", "Late.", "two"]
    assert "{one<|im_end|>}\n<|im_start|>user\nLate.<|im_end|>" in played.rows()[0]


def test_message_that_the_template_refuses_is_an_error(chat_of):
    played = Played(chat_of("gemma3"), ["one"], syntax="none", tools=())
    played.sample(QUESTION)
    with pytest.raises(ModelError, match="refuses messages"):
        played.sample(Message(role="tool", content="x", tool_call_id="call00001", name="look"))


def test_turns_have_seeds_of_their_own_the_same_in_every_retry(chat_of):
    seeds = []
    for _ in range(2):
        played = Played(chat_of("qwen3"), ["a", "b", "c"])
        for text in "xyz":
            played.sample(user(text))
        seeds.append([request.seeds for request in played.engine.requests])
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 3
    assert seeds[0][0] == (7,)


@pytest.mark.parametrize(
    ("template", "first", "after"),
    [
        ("qwen3_6", True, True),  # opens thinking in every prompt
        ("qwen3_5_nothink", False, False),  # closes it in every prompt
        ("qwen3", False, False),  # leaves it to the model
        ("deepseekv3", True, False),  # opens it after a user, but not after results
        ("nemotron_3_nano", True, True),
        ("llama3_1", False, False),  # whose results may say <think>, which is no token here
        ("qwen2_5", False, False),
    ],
)
def test_thinking_that_the_prompt_opens_is_read_as_such(chat_of, template, first, after):
    played = Played(chat_of(template), ["hm</think>ok", "hm</think>ok"])
    assert (played.sample(QUESTION).reasoning == "hm") == first
    message = Message(role="tool", content="look: <think>", tool_call_id="call00000", name="look")
    assert (played.sample(message).reasoning == "hm") == after


@pytest.mark.parametrize("template", ["qwen3", "qwen3_6", "glm4moe", "nemotron_3_nano"])
def test_template_history_keeps_thoughts_across_calls_and_drops_them_at_a_users_message(chat_of, template):
    opens = "<think>" in chat_of(template).opening
    think = ("" if opens else "<think>\n") + "deep0thought\n</think>\n\n"
    syntax = parser_of("auto", written=chat_of(template).written_call())
    asks = CALL if template == "qwen3" else chat_of(template).written_call().rpartition("</think>")[2]
    asks = asks.partition("<|im_end|>")[0].strip()
    assert syntax(asks, tools=TOOLS).tool_calls
    said = [think + asks, think + "It is 42.", "Bye.", "Bye."]
    played = Played(chat_of(template), said, history="template")
    call = played.sample(QUESTION).tool_calls[0]
    played.sample(result(call))
    assert played.reasons() == ["start"]
    played.sample(user("Thanks."))
    assert played.reasons() == ["start", "template"]
    kept, dropped = played.rows()
    assert kept.count("deep0thought") == 2
    assert "deep0thought" not in dropped
    assert ("It is 42." in dropped, "42" in dropped, "Thanks." in dropped) == (True, True, True)
    whole = chat_of(template).start(played.thread.messages[:-1], TOOLS).token_ids
    assert played.engine.log[-1][0] == whole
    assert next(t for t in played.ledger.finish()[1] if t.segment == 1).message.content == "Thanks."


@pytest.mark.parametrize("template", ["qwen3", "llama3.2", "qwen2.5"])
def test_template_history_is_one_row_where_nothing_was_thought_or_thoughts_are_kept(chat_of, template):
    think = "" if template == "qwen3" else "<think>hm</think>"
    played = Played(chat_of(template), [f"{think}one", "two"], history="template")
    played.sample(QUESTION)
    played.sample(user("More."))
    assert played.reasons() == ["start"]


def test_thoughts_are_dropped_once(chat_of):
    played = Played(chat_of("qwen3"), ["<think>hm</think>one", "two", "three"], history="template")
    for text in "xyz":
        played.sample(user(text))
    assert played.reasons() == ["start", "template"]


def test_append_history_keeps_every_thought(chat_of):
    played = Played(chat_of("qwen3"), ["<think>hm</think>one", "two"])
    played.sample(QUESTION)
    played.sample(user("More."))
    assert played.reasons() == ["start"]


class RepeatingPolicy:
    """The same turn every time."""

    def __init__(self, chat, text, length):
        ids = chat.tokenizer.encode(text, add_special_tokens=False)
        filler = chat.tokenizer.encode("the cat sat on a mat ", add_special_tokens=False) * length
        self._ids = (*filler[: length - len(ids) - 1], *ids, chat.stop_token_ids[0])

    async def generate(self, request):
        size = len(self._ids)
        return [
            Completion(
                token_ids=self._ids, logprobs=(-1.0,) * size, versions=(0,) * size, finish_reason="stop"
            )
        ]


async def play(thread, count):
    new = [QUESTION]
    for _ in range(count):
        asked = await thread.sample(*new)
        new = [result(call, "the cat sat on a mat " * 28) for call in asked.tool_calls]


def timed(chat, turns):
    """(seconds a turn, with its laws checked, and seconds for the whole history made into tokens anew)."""
    played = Played(chat, [], max_turns=10_000, max_tokens=1_000_000)
    played.policy.engine = RepeatingPolicy(chat, CALL, 200)
    began = time.process_time()
    asyncio.run(play(played.thread, turns))
    segments, *rest = played.ledger.finish()
    check_laws(segments, *rest, seal=played.ledger.seal)
    cost = (time.process_time() - began) / turns
    began = time.process_time()
    chat.start(played.thread.messages, TOOLS)
    return cost, time.process_time() - began, len(segments[0].token_ids)


def test_cost_of_a_turn_does_not_grow_with_the_conversation(chat_of):
    costs = {}
    for turns in (4, 32, 128):
        cost, anew, length = min(timed(chat_of("qwen3"), turns) for _ in range(3))
        costs[turns] = cost
        print(
            f"\n{turns:4} turns, {length:6} tokens: {1000 * cost:.2f} ms a turn, its laws checked twice; "
            f"{1000 * anew:.2f} ms for the whole history made into tokens anew"
        )
    assert costs[128] < 3 * costs[4]


LONG = "x" * 1281


@pytest.mark.parametrize(
    ("message", "tools"),
    [
        (user(LONG), ()),
        (Message(role="assistant", content="", reasoning=LONG), ()),
        (replace(QUESTION, tool_calls=(ToolCall(id="1", name="f", arguments={"q": LONG}, raw=""),)), ()),
        (QUESTION, ({"type": "function", "function": {"name": "f", "description": LONG}},)),
    ],
)
def test_what_can_have_no_room_is_never_tokenised(message, tools):
    no_tokenizer = Dialect(chat=None, parse=None)
    limits = EpisodeLimits(max_tokens=10)
    policy = Policy(engine=None, sampling=Sampling(max_tokens=10), seed=0, limits=limits)
    thread = Conversation(no_tokenizer, policy, TokenLedger(), tools=tools)
    thread.show([message])
    with pytest.raises(EpisodeEnded, match="max_tokens"):
        thread.write()
    thread.settle()
    assert thread.num_context == 0


def test_tools_that_the_template_cannot_show_are_refused_when_they_are_known(chat_of):
    played = Played(chat_of("gemma3"), ["one"], syntax="none")
    with pytest.raises(ConfigError, match="the call of 'look' is not shown"):
        played.sample(QUESTION)
