import logging

import pytest

from rlhf.episodes.chat import ChatRenderer
from rlhf.episodes.render import Renderer
from rlhf.episodes.template_check import check_template
from rlhf.errors import ModelError
from tests.chat_tokenizers import FAMILIES, Family, save_tokenizer, text_templates
from tests.tool_calls import TOOLS

NO_CALLS = "(a tool call): the call of 'look' is not shown"
NO_STOP = "without any of the stop tokens"
REFUSED = {
    # (without tools, with tools); what is not here is extended in both cases.
    "cohere": (None, NO_CALLS),
    "cohere2": (None, NO_CALLS),
    "deepseek_r1_distill": (None, NO_CALLS),
    "diffusion_gemma": (None, NO_STOP),
    "gemma": (None, NO_CALLS),
    "gemma3": (None, NO_CALLS),
    "gptoss": (NO_STOP, NO_STOP),
    "lfm2": (None, NO_CALLS),
    "llama3": (None, NO_CALLS),
    "phi3": (None, NO_CALLS),
    "phi3_5": (None, NO_CALLS),
}


def found(chat, tools):
    try:
        check_template(chat, tools)
    except ModelError as error:
        return str(error)
    return None


@pytest.mark.parametrize("template", text_templates())
def test_templates_are_extended_or_refused_with_the_reason(chat_of, template):
    for tools, expected in zip(((), TOOLS), REFUSED.get(template, (None, None)), strict=True):
        message = found(chat_of(template), tools)
        print(f"\n{template:24} {'with tools' if tools else 'plain':10} {message or 'extended'}")
        assert (message is None) == (expected is None)
        assert expected is None or expected in message


@pytest.mark.parametrize("template", text_templates())
def test_what_is_refused_really_is_different_and_what_is_extended_is_not(chat_of, template):
    """Held against whole renderings, asked of the tokenizer itself."""
    tokenizer = chat_of(template).tokenizer
    stops = [tokenizer.decode([token]) for token in chat_of(template).stop_token_ids]
    for is_called, message in zip((False, True), REFUSED.get(template, (None, None)), strict=True):
        holds = [holds_whole(tokenizer, stops, is_called=kind) for kind in {False, is_called}]
        assert all(holds) == (message is None)


def holds_whole(tokenizer, stops, *, is_called):
    """A turn's words, a stop token, the new words, in that order, alike after every history."""
    call = {"id": "call00001", "type": "function", "function": {"name": "look", "arguments": {"q": "word9"}}}
    turn = {"role": "assistant", "content": ""} | (
        {"tool_calls": [call]} if is_called else {"content": "word9"}
    )
    new = {"role": "user", "content": "word7"}
    if is_called:
        new = {"role": "tool", "content": "word7", "tool_call_id": "call00001", "name": "look"}
    question = {"role": "user", "content": "word1"}
    answer = {"role": "assistant", "content": "word2"}
    tails = set()
    for history in ([question], [question, answer, question]):
        text = whole(tokenizer, [*history, turn, new])
        _, said, after = text.rpartition("word9")
        ended = [after.find(stop) for stop in stops if stop in after]
        if not (said and ended and min(ended) < after.find("word7")):
            return False
        tails.add(after)
    return len(tails) == 1


def whole(tokenizer, messages):
    texts = ""
    for as_text in (False, True):
        for message in messages:
            for call in message.get("tool_calls", ()):
                call["function"]["arguments"] = '{"q": "word9"}' if as_text else {"q": "word9"}
        try:
            texts = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception:  # noqa: BLE001
            continue
        if "word9" in texts:
            break
    return texts


CHATML = """{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\n' + m.content }}
{%- for call in m.tool_calls or [] %}
{{- '<tool_call>' + call.function.name + ' ' + (call.function.arguments | tojson) }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""


def variant(old, new):
    assert CHATML.count(old) == 1
    return CHATML.replace(old, new)


BAD = {
    "nothing opens the model's turn": (
        variant("{%- if add_generation_prompt %}", "{%- if false %}"),
        "does nothing with add_generation_prompt",
    ),
    "system messages are lost": (
        variant("messages %}", "messages if m.role != 'system' %}"),
        r"\(a system message\): it is shown 0 times, expected once",
    ),
    "system messages come twice": (
        variant("+ m.content }}", "+ m.content + (m.content if m.role == 'system' else '') }}"),
        r"\(a system message\): it is shown 2 times",
    ),
    "results are lost": (
        variant("+ m.content }}", "+ (m.content if m.role != 'tool' else '') }}"),
        r"\(a tool message\): after '<\|im_end\|>' the template writes",
    ),
    "results come twice": (
        variant("+ m.content }}", "+ m.content + (m.content if m.role == 'tool' else '') }}"),
        r"\(a tool message\): after '<\|im_end\|>' the template writes",
    ),
    "only the first result is shown": (
        variant(
            "+ m.content }}", "+ ('' if m.role == 'tool' and loop.previtem.role == 'tool' else m.content) }}"
        ),
        r"\(a tool message and a tool message\): after",
    ),
    "results in the wrong order": (
        variant(
            "in messages %}",
            "in (messages[:-2] + messages[-2:][::-1] if messages | length > 1 and messages[-2].role == 'tool'"
            " else messages) %}",
        ),
        r"\(a tool message and a tool message\): after",
    ),
    "what was thought comes back later": (
        variant(
            "'\n' + m.content",
            "'\n' + (messages | map(attribute='reasoning_content', default='') | join if m.role == 'user' else '')"
            " + m.content",
        ),
        r"after a turn without thinking\): the template writes",
    ),
    "messages are numbered": (
        variant("'\n' + m.content", "'\n' + loop.index | string + m.content"),
        r"after a longer conversation\): the template writes",
    ),
    "an earlier call changes what follows": (
        variant(
            "'\n' + m.content",
            "'\n' + ('again ' if m.role == 'tool' and messages[:loop.index0 - 1] | selectattr('role', 'eq', 'tool')"
            " | list else '') + m.content",
        ),
        r"\(a tool message after an earlier call\): the template writes",
    ),
    "what is said beside a call changes what follows": (
        variant(
            "'\n' + m.content",
            "'\n' + ('said ' if m.role == 'tool' and 'words' in loop.previtem.content else '') + m.content",
        ),
        r"\(a tool message after words beside the call\): the template writes",
    ),
    "only letters of one script are shown": (
        variant("+ m.content }}", "+ (m.content | replace('漢', '?')) }}"),
        "in several scripts",
    ),
    "turns end without a stop token": (
        variant("'<|im_end|>\n'", "'<|im_start|>\n'"),
        "without any of the stop tokens",
    ),
    "calls are not shown": (
        variant("in m.tool_calls or []", "in []"),
        r"\(a tool call\): the call of 'look' is not shown",
    ),
    "nothing opens the model's turn after results": (
        variant(
            "{%- if add_generation_prompt %}",
            "{%- if add_generation_prompt and messages[-1].role != 'tool' %}",
        ),
        r"\(the model's turn after a tool message\): it begins with",
    ),
}


def load(folder, template):
    save_tokenizer(
        folder, Family("qwen3", "<|im_end|>", FAMILIES["qwen3"].special, ("<tool_call>",)), template
    )
    return ChatRenderer(Renderer(model_folder=str(folder)))


def test_plain_template_is_extended(tmp_path):
    check_template(load(tmp_path, CHATML), TOOLS)


@pytest.mark.parametrize("defect", BAD)
def test_bad_template_is_refused(tmp_path, defect):
    template, reason = BAD[defect]
    with pytest.raises(ModelError, match=reason) as error:
        check_template(load(tmp_path, template), TOOLS)
    assert "model.chat_template" in str(error.value)
    print(f"\n{defect}: {error.value}")


class CarelessRenderer(ChatRenderer):
    """Encodes messages as they come."""

    def _hide(self, value, hidden):
        return value


@pytest.mark.parametrize("tools", [(), TOOLS], ids=["plain", "tools"])
def test_renderer_whose_messages_forge_tokens_is_refused(tmp_path, tools):
    load(tmp_path, CHATML)
    careless = CarelessRenderer(Renderer(model_folder=str(tmp_path)))
    with pytest.raises(
        ModelError, match=r"\(markers in a user message\): .*'<\|im_end\|>': 1.* become tokens"
    ):
        check_template(careless, tools)


def test_refused_system_message_refuses_no_template(chat_of):
    check_template(chat_of("gemma"))


def test_deepseeks_results_are_opened_in_every_round_and_that_is_said(chat_of, caplog):
    with caplog.at_level(logging.WARNING):
        check_template(chat_of("deepseek_v3"), TOOLS)
    assert "begins tool results with '<｜tool▁outputs▁begin｜>' only once" in caplog.text
    assert "does not show the model its tools" in caplog.text
