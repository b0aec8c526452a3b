"""A demonstrated conversation has the tokens of an episode in which the model says the same."""

from dataclasses import replace

import pytest

from rlhf.episodes.chat import ChatRenderer
from rlhf.episodes.demonstration import demonstration_ids
from rlhf.episodes.render import Renderer
from rlhf.errors import DataError
from rlhf.types import Message, ToolCall
from tests.chat_tokenizers import FAMILIES
from tests.conversations import Played, user
from tests.tool_calls import TOOLS

PLAIN = (
    Message(role="system", content="be short"),
    user("What is 2 + 2?"),
    Message(role="assistant", content="4"),
    user("and <|im_end|> twice that?"),
    Message(role="assistant", content="8, naïve 漢字"),
)
SEARCH = (
    user("What is x?"),
    Message(
        role="assistant",
        content="",
        tool_calls=(ToolCall(id="call00001", name="look", arguments={"q": "x"}),),
    ),
    Message(role="tool", content='{"x": 42}', tool_call_id="call00001", name="look"),
    Message(role="assistant", content="It is 42."),
    user("Sure?"),
    Message(role="assistant", content="Yes."),
)


ENDS_ITSELF = {
    "content": Message(role="assistant", content="Qwen ends turns by <|im_end|>, Llama by <|eot_id|>."),
    "reasoning": Message(role="assistant", content="4", reasoning="so <|im_end|>"),
    "arguments": Message(
        role="assistant",
        content="",
        tool_calls=(ToolCall(id="call00001", name="look", arguments={"q": [{"<|im_end|>": 1}]}),),
    ),
}
THINKING = (
    user("What is 2 + 2?"),
    Message(role="assistant", content="4", reasoning="two and two"),
    user("And twice?"),
    Message(role="assistant", content="8", reasoning="four and four"),
)
TEMPLATES = [*FAMILIES, "qwen3_5_think", "qwen3_5_nothink", "glm4moe", "nemotron_3_nano"]
"""Turns opened by a thought, by an empty one, by none; ended by a token of their own, or by what begins the next."""


@pytest.fixture(scope="module")
def laptop_chat(characters):
    return ChatRenderer(Renderer(model_folder=characters, chat_template="recipes/cpu/chat.jinja"))


def turns_of(chat, ids, is_learned):
    """The text of each run of learned tokens."""
    runs, was = [], False
    for token, learned in zip(ids, is_learned, strict=True):
        if learned:
            runs = [*runs[:-1], [*runs[-1], token]] if was else [*runs, [token]]
        was = learned
    return [chat.tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("conversation", [PLAIN, SEARCH, THINKING], ids=["plain", "tools", "thinking"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_ids_are_those_of_an_episode_and_read_as_was_meant(chat_of, template, conversation):
    chat = chat_of(template)
    ids, is_learned = demonstration_ids(chat, conversation, TOOLS)
    played = play(chat, conversation, turns_of(chat, ids, is_learned))
    (segment,) = played.ledger.finish()[0]
    assert segment.token_ids == tuple(ids)
    assert segment.loss_mask == tuple(is_learned)
    assert meaning(played.thread.messages) == meaning(conversation)


def meaning(messages):
    """What the assistant says, thinks and calls."""
    turns = [m for m in messages if m.role == "assistant"]
    return [
        (m.content, m.reasoning or None, [(c.name, c.arguments, c.error) for c in m.tool_calls])
        for m in turns
    ]


@pytest.mark.parametrize("conversation", [PLAIN, SEARCH], ids=["plain", "tools"])
@pytest.mark.parametrize("family", ["qwen2.5", "llama3.2"])
def test_text_is_the_template_s_own_where_it_rewrites_nothing(chat_of, family, conversation):
    chat = chat_of(family)
    conversation = tuple(replace(m, content=m.content.replace("<|im_end|>", "")) for m in conversation)
    ids, _ = demonstration_ids(chat, conversation, TOOLS)
    whole = chat.rendered(conversation, TOOLS)
    assert whole.rstrip("\n") == chat.tokenizer.decode(ids)


def test_only_the_assistant_s_turns_with_their_ends_are_learned(laptop_chat):
    ids, is_learned = demonstration_ids(laptop_chat, SEARCH)
    assert turns_of(laptop_chat, ids, is_learned) == [
        '[look(q="x")]<eos>',
        "It is 42.<eos>",
        "Yes.<eos>",
    ]
    given = laptop_chat.tokenizer.decode(
        [t for t, learned in zip(ids, is_learned, strict=True) if not learned]
    )
    assert given == 'UWhat is x?\nAT{"x": 42}\nAUSure?\nA'


def test_what_comes_after_the_last_turn_is_left_out(laptop_chat):
    whole = demonstration_ids(laptop_chat, SEARCH)
    assert demonstration_ids(laptop_chat, (*SEARCH, user("thanks"))) == whole


@pytest.mark.parametrize(
    "roles", [[], ["user"], ["assistant"], ["assistant", "user"], ["user", "assistant", "assistant"]]
)
def test_conversation_without_turns_in_their_places_is_refused(laptop_chat, roles):
    messages = [Message(role=role, content="x") for role in roles]
    with pytest.raises(DataError, match="expected turns of the assistant, one at a time"):
        demonstration_ids(laptop_chat, messages)


def play(chat, conversation, texts):
    """An episode over the same messages in which these texts are sampled."""
    played = Played(chat, texts)
    new = []
    for message in conversation:
        if message.role == "assistant":
            played.sample(*new)
            new = []
        else:
            new.append(message)
    return played


@pytest.mark.parametrize("where", ENDS_ITSELF)
def test_a_turn_that_would_end_within_itself_is_named(chat_of, where):
    with pytest.raises(DataError, match=r"contains '<\|im_end\|>', with which the model ends"):
        demonstration_ids(chat_of("qwen3"), (user("q"), ENDS_ITSELF[where]), TOOLS)
