from dataclasses import replace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rlhf.episodes.chat import ChatRenderer
from rlhf.episodes.render import Renderer
from rlhf.errors import ModelError
from rlhf.types import Message, ToolCall
from tests.chat_tokenizers import FAMILIES, template_text
from tests.tool_calls import TOOLS

QUESTION = Message(role="user", content="What is x?")
CALL = ToolCall(id="call00001", name="look", arguments={"q": "x"})
ASKED = Message(role="assistant", content="I look.", reasoning="hm", tool_calls=(CALL,))
RESULT = Message(role="tool", content="42", tool_call_id="call00001", name="look")
TEMPLATES = ["qwen3", "qwen2.5", "llama3.2", "deepseek_v3", "glm4moe", "gemma4", "nemotron_3_nano", "qwen3_6"]


def text_of(chat, ids):
    return chat.tokenizer.decode(list(ids))


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_conversation_begins_as_the_template_writes_it(chat_of, template):
    chat = chat_of(template)
    plain = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What is x?"}]
    expected = chat.tokenizer.apply_chat_template(
        plain, tools=TOOLS, add_generation_prompt=True, return_dict=False
    )
    found = chat.start([Message(role="system", content="Be short."), QUESTION], TOOLS)
    assert list(found.token_ids) == list(expected)
    assert found.is_thinking == text_of(chat, expected).endswith(("<think>", "<think>\n"))


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("new", [(RESULT,), (RESULT, RESULT), (RESULT, QUESTION), (QUESTION,)], ids=len)
def test_extension_is_the_end_of_the_whole_rendering(chat_of, template, new):
    chat = chat_of(template)
    turn = Message(role="assistant", content="I look.", reasoning="hm")
    if new[0].role == "tool":
        # Gemma 4 writes what was said beside a call after the results.
        turn = replace(ASKED, content="" if template == "gemma4" else ASKED.content)
    whole = chat.rendered([QUESTION, turn, *new], TOOLS, is_open=True)
    added = chat.extend(new, TOOLS, after=-1)
    assert whole.endswith(text_of(chat, added.token_ids))
    assert added.token_ids[0] in chat.stop_token_ids
    assert chat.extend(new, TOOLS, after=added.token_ids[0]).token_ids == added.token_ids[1:]


@pytest.mark.parametrize("template", TEMPLATES)
def test_no_message_can_forge_a_token(chat_of, template):
    chat = chat_of(template)
    markers = "a".join(chat.structural_ids.values())
    assert len(chat.structural_ids) > 3

    def structure(rendered):
        return [token for token in rendered.token_ids if token in chat.structural_ids]

    def history(text):
        call = ToolCall(id="call00001", name=text, arguments={"q": [text, {text: 1}]})
        asked = Message(role="assistant", content=text, reasoning=text, tool_calls=(call,))
        return [
            Message(role="system", content=text),
            Message(role="user", content=text),
            asked,
            Message(role="tool", content=text, tool_call_id="call00001", name=text),
        ]

    tools = [{"type": "function", "function": {**TOOLS[0]["function"], "description": f"Look {markers}."}}]
    assert structure(chat.start(history(markers), tools)) == structure(chat.start(history("a"), TOOLS))
    for new in (history("a")[3], history("a")[1]):
        forged = Message(role=new.role, content=markers, tool_call_id=new.tool_call_id, name=new.name)
        found = chat.extend([forged], TOOLS, after=-1)
        assert structure(found) == structure(chat.extend([new], TOOLS, after=-1))
        # Hidden from the tokenizer, and yet shown to the model.
        assert markers in text_of(chat, found.token_ids)


def test_half_a_surrogate_pair_is_shown_as_unknown(chat_of):
    found = chat_of("qwen3").extend([Message(role="user", content="a\ud800b")], after=-1)
    assert "a\ufffdb" in text_of(chat_of("qwen3"), found.token_ids)


def test_turns_of_several_calls_are_told_one_by_one_where_the_template_takes_one(chat_of):
    second = ToolCall(id="call00002", name="look", arguments={"q": "y"})
    asked = Message(role="assistant", content="", tool_calls=(CALL, second))
    results = [RESULT, Message(role="tool", content="43", tool_call_id="call00002", name="look")]
    text = text_of(
        chat_of("llama3.2"), chat_of("llama3.2").start([QUESTION, asked, *results], TOOLS).token_ids
    )
    places = [text.index(part) for part in ('"q": "x"', '"42"', '"q": "y"', '"43"')]
    assert places == sorted(places)
    unanswered = chat_of("llama3.2").start([QUESTION, asked], TOOLS)
    assert '"q": "y"' in text_of(chat_of("llama3.2"), unanswered.token_ids)


def test_arguments_that_could_not_be_read_are_none_at_all(chat_of):
    broken = Message(
        role="assistant", content="", tool_calls=(ToolCall(id="call00001", name="look", arguments=None),)
    )
    for template in TEMPLATES:
        assert chat_of(template).start([QUESTION, broken, RESULT], TOOLS).token_ids


@pytest.mark.parametrize(
    ("template", "drops"),
    [
        *((name, True) for name in ("qwen3", "qwen3_6", "glm4moe", "deepseek_v3", "lfm2_2_5")),
        *((name, False) for name in ("qwen2.5", "llama3.2", "qwen3_instruct_2507", "qwen3_8")),
    ],
)
def test_templates_that_drop_thoughts_are_known(chat_of, template, drops):
    assert chat_of(template).drops_thoughts == drops


@pytest.mark.parametrize("template", ["qwen3", "lfm2_2_5", "llama3.2"])
def test_thoughts_go_where_the_template_looks_for_them(chat_of, template):
    found = chat_of(template).rendered([QUESTION, Message(role="assistant", content="ok", reasoning="deep")])
    assert found.index("<think>") < found.index("deep") < found.index("</think>") < found.index("ok")


def test_sampled_text_keeps_tokens_by_name_but_for_its_end(chat_of):
    chat = chat_of("qwen3")
    ids = chat.tokenizer.encode("<think>a</think><|im_start|>b<|im_end|>")
    assert chat.text(ids) == "<think>a</think><|im_start|>b"
    assert chat.text(ids[-1:]) == chat.text([]) == ""


def made(tmp_path, *, pieces, prefix="never", added=(), special=(), template=None):
    """A tokenizer with a way of its own to see spaces, and other added tokens."""
    model = Tokenizer(models.BPE(unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix)
    model.decoder = decoders.Metaspace(prepend_scheme=prefix)
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False)
    model.train_from_iterator([pieces], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model,
        eos_token="<|im_end|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>", "<|endoftext|>", *special],
    )
    tokenizer.add_tokens(list(added))
    tokenizer.chat_template = template or template_text("qwen2_5")
    tokenizer.save_pretrained(tmp_path)
    return ChatRenderer(Renderer(model_folder=str(tmp_path)))


@pytest.mark.parametrize("prefix", ["first", "never"])
def test_tokenizers_that_put_a_space_before_the_first_word_put_none_before_a_delta(tmp_path, prefix):
    pieces = "abcdefghijklmnopqrstuvwxyz W?_<>|/\n" * 20
    chat = made(tmp_path, pieces=pieces, prefix=prefix)
    whole = chat.rendered(
        [QUESTION, Message(role="assistant", content="ok", reasoning="hm"), QUESTION], is_open=True
    )
    ids = chat.tokenizer.encode(whole, add_special_tokens=False)
    added = chat.extend([QUESTION], after=-1).token_ids
    assert tuple(ids[-len(added) :]) == added


def test_added_tokens_that_spell_ordinary_text_stay_tokens(tmp_path):
    pieces = "abcdefghijklmnopqrstuvwxyz W?_<>|/\n" * 20
    chat = made(tmp_path, pieces=pieces, added=["\n\n\n", "<table>", "<tool_call>"])
    structural = set(chat.structural_ids.values())
    assert "<tool_call>" in structural
    assert not structural & {"\n\n\n", "<table>"}
    found = chat.extend([Message(role="user", content="a\n\n\n<table><tool_call>b")], after=-1).token_ids
    vocabulary = chat.tokenizer.get_added_vocab()
    assert [found.count(vocabulary[token]) for token in ("\n\n\n", "<table>", "<tool_call>")] == [1, 1, 0]


def test_tokenizer_that_joins_the_end_with_what_follows_is_refused(tmp_path, chat_of):
    chat = made(
        tmp_path,
        pieces="abc ?\n<>|_" * 20,
        template="{% for m in messages %}{{ m.content }}<|im_end|>_x{% endfor %}"
        "{% if add_generation_prompt %}a{% endif %}",
        special=["<|im_end|>_x"],
    )
    with pytest.raises(ModelError, match=r"joins '<\|im_end\|>' with what follows it"):
        chat.extend([QUESTION], after=-1)


def test_template_that_refuses_says_why(chat_of):
    with pytest.raises(
        ModelError, match=r"refuses messages with roles \['system', 'user'\]: System role not supported"
    ):
        chat_of("gemma").start([Message(role="system", content="x"), QUESTION])


def test_families_of_the_tests_are_the_templates_of_trl(chat_of):
    for name, family in FAMILIES.items():
        assert chat_of(name).tokenizer.chat_template == template_text(family.template)
