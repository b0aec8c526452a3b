"""What models write instead of a call, in each syntax: one call is seen, and it is answered with one message."""

import json

import pytest

from rlhf.episodes.chat import ChatRenderer
from rlhf.episodes.parsing import parse
from rlhf.episodes.render import Renderer
from rlhf.episodes.tool_arguments import SchemaArguments
from rlhf.episodes.tool_calls import run_calls
from rlhf.episodes.tools import Tool
from rlhf.types import Message
from tests.chat_tokenizers import FAMILIES, save_tokenizer
from tests.tool_calls import FORMS
from tests.unit.episodes.episode_contexts import call, context_of

RIGHT = '{"a": 1, "b": 2}'
DEEP = '{"a": ' + "[" * 100_000 + "]" * 100_000 + ', "b": 1}'
WHOLE = {
    "bad json": "{'name': 'add', 'arguments': {'a': 1}}",
    "cut json": '{"name": "add", "arguments": {"a": 1',
    "array": '[{"name": "add"}]',
    "string": '"add"',
    "number": "3",
    "null": "null",
}
"""In place of the call."""
ARGUMENTS = {
    "not a number": '{"a": NaN, "b": 1}',
    "twice the same key": '{"a": 1, "a": 2, "b": 1}',
    "a string of json": json.dumps(RIGHT),
    "a string of garbage": '"a=1, b=2"',
    "a list": "[1, 2]",
    "an extra field": '{"a": 1, "b": 2, "c": 3}',
    "a missing field": '{"a": 1}',
    "a wrong type": '{"a": "one", "b": 2}',
    "deep nesting": DEEP,
}
"""In place of the arguments."""
NAMES = {"no name": None, "empty name": "", "unknown name": "subtract"}
KINDS = [*WHOLE, *ARGUMENTS, *NAMES]
XML = {
    "not a number": [("a", "NaN"), ("b", "1")],
    "twice the same key": [("a", "1"), ("a", "2"), ("b", "1")],
    "an extra field": [("a", "1"), ("b", "2"), ("c", "3")],
    "a missing field": [("a", "1")],
    "a wrong type": [("a", "one"), ("b", "2")],
    "deep nesting": [("a", "[" * 100_000 + "]" * 100_000), ("b", "1")],
}


def json_call(kind, key):
    if kind in WHOLE:
        return WHOLE[kind]
    name = NAMES.get(kind, "add")
    named = "" if name is None else f'"name": {json.dumps(name)}, '
    return "{" + named + f'"{key}": {ARGUMENTS.get(kind, RIGHT)}' + "}"


def hermes(kind):
    end = "" if kind == "cut json" else "\n</tool_call>"
    return f"Let me see.\n<tool_call>\n{json_call(kind, 'arguments')}{end}"


def llama3(kind):
    return f"<|python_tag|>{json_call(kind, 'parameters')}"


def deepseek_v3(kind):
    name = NAMES.get(kind, "add") or ""
    end = "" if kind == "cut json" else "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    whole = '{"a": 1' if kind == "cut json" else WHOLE.get(kind)
    return (
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n"
        f"{whole or ARGUMENTS.get(kind, RIGHT)}{end}"
    )


def qwen_xml(kind):
    if kind == "cut json":
        return "<tool_call>\n<function=add>\n<parameter=a>\n1"
    if kind in WHOLE:
        return f"<tool_call>\n{WHOLE[kind]}\n</tool_call>"
    name = NAMES.get(kind, "add")
    # Without tags for its parts, a call has none.
    body = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in XML.get(kind, [])) or ARGUMENTS.get(
        kind, RIGHT
    )
    head = "<function>" if name is None else f"<function={name}>"
    return f"<tool_call>\n{head}\n{body}\n</function>\n</tool_call>"


def mistral(kind):
    if kind in WHOLE or kind == "no name":
        return f"[TOOL_CALLS][{json_call(kind, 'arguments')}{'' if kind == 'cut json' else ']'}"
    return f"[TOOL_CALLS]{NAMES.get(kind, 'add')}{ARGUMENTS.get(kind, RIGHT)}"


def mistral_array(kind):
    return f"[TOOL_CALLS][{json_call(kind, 'arguments')}{'' if kind == 'cut json' else ']'}"


def glm4(kind):
    name = NAMES.get(kind, "add") or ""
    if kind == "cut json":
        return "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1"
    pairs = XML.get(kind, [("a", "1"), ("b", "2")] if kind in (*NAMES, "right") else [])
    body = "".join(f"<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>\n" for k, v in pairs)
    whole = WHOLE.get(kind) or f"{name}\n{body or ARGUMENTS.get(kind, '')}"
    return f"<tool_call>{whole}</tool_call>"


def dsml(kind):
    name = NAMES.get(kind, "add")
    pairs = XML.get(kind, [("a", "1"), ("b", "2")] if kind in (*NAMES, "right") else [])
    body = "".join(
        f'<｜DSML｜parameter name="{k}" string="false">{v}</｜DSML｜parameter>\n' for k, v in pairs
    )
    head = "<｜DSML｜invoke>" if name is None else f'<｜DSML｜invoke name="{name}">'
    end = "" if kind == "cut json" else "</｜DSML｜invoke>\n</｜DSML｜function_calls>"
    whole = WHOLE.get(kind) or f"{head}\n{body or ARGUMENTS.get(kind, '')}"
    return f"<｜DSML｜function_calls>\n{whole}{end}"


def pythonic(kind):
    whole = {
        "bad json": "add(a=1; b=2)",
        "cut json": "add(a=1, b=",
        "array": "add([1, 2])",
        "string": 'add("a")',
        "number": "add(3)",
        "null": "add(None)",
        "not a number": "add(a=nan, b=1)",
        "a string of json": f"add({RIGHT!r})",
        "a string of garbage": "add('a=1, b=2')",
        "a list": "add(*[1, 2])",
        "no name": "add()(a=1, b=2)",
        "empty name": "add()[0](a=1, b=2)",
    }.get(kind)
    pairs = XML.get(kind, [("a", "1"), ("b", "2")])
    values = ", ".join(f"{k}={v!r}" if v == "one" else f"{k}={v}" for k, v in pairs)
    return f"[{whole or NAMES.get(kind, 'add') + f'({values})'}{'' if kind == 'cut json' else ']'}"


WRITERS = {
    "pythonic": pythonic,
    "hermes": hermes,
    "llama3": llama3,
    "deepseek_v3": deepseek_v3,
    "qwen_xml": qwen_xml,
    "mistral": mistral,
    "mistral_array": mistral_array,
    "glm4": glm4,
    "deepseek_v32": dsml,
}
TAKEN = {(form, "a string of json") for form in ("hermes", "llama3", "mistral_array")}
"""What OpenAI's form asks for is no mistake."""


def add(a: int, b: int) -> int:
    return a + b


ADD = {"add": Tool.from_function(add)}
SCHEMAS = [ADD["add"].schema]


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("kind", KINDS)
def test_malformed_call_has_one_message(form, kind):
    message = parse(WRITERS[form](kind), syntax=FORMS[form], tools=SCHEMAS)
    answers = run_calls(message.tool_calls, ADD, context=context_of())
    assert len(answers) == 1
    assert answers[0][0].is_error is ((form, kind) not in TAKEN)
    assert answers[0][0].tool_call_id == message.tool_calls[0].id
    assert 0 < len(answers[0][0].content) < 400


@pytest.mark.parametrize("form", WRITERS)
def test_the_same_call_well_formed_is_run(form):
    text = WRITERS[form]("right")
    if form == "qwen_xml":
        text = text.replace(RIGHT, "<parameter=a>\n1\n</parameter>\n<parameter=b>\n2\n</parameter>")
    ((answer, _),) = run_calls(
        parse(text, syntax=FORMS[form], tools=SCHEMAS).tool_calls, ADD, context=context_of()
    )
    assert (answer.content, answer.is_error) == ("3", False)


@pytest.mark.parametrize("value", ['{"k": 1, "k": 2}', '{"k": [NaN]}', "-1e999"])
@pytest.mark.parametrize("form", WRITERS)
def test_value_that_means_nothing_for_certain_is_never_taken(form, value):
    def take(a: float | dict[str, object]) -> str:
        return str(a)

    whole = f'{{"name": "take", "arguments": {{"a": {value}}}}}'
    text = {
        "pythonic": f"[take(a={value})]",
        "hermes": f"<tool_call>{whole}</tool_call>",
        "llama3": f"<|python_tag|>{whole}",
        "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>take<｜tool▁sep｜>" + f'{{"a": {value}}}',
        "qwen_xml": f"<tool_call><function=take><parameter=a>{value}</parameter></function></tool_call>",
        "mistral": f'[TOOL_CALLS]take{{"a": {value}}}',
        "mistral_array": f"[TOOL_CALLS][{whole}]",
        "glm4": f"<tool_call>take<arg_key>a</arg_key><arg_value>{value}</arg_value></tool_call>",
        "deepseek_v32": '<｜DSML｜invoke name="take"><｜DSML｜parameter name="a" string="false">'
        f"{value}</｜DSML｜parameter></｜DSML｜invoke>",
    }[form]
    tool = Tool.from_function(take)
    calls = parse(text, syntax=FORMS[form], tools=[tool.schema]).tool_calls
    ((answer, _),) = run_calls(calls, {"take": tool}, context=context_of())
    assert answer.is_error
    by_schema = SchemaArguments({"type": "object", "properties": {"a": {"type": ["number", "object"]}}})
    assert calls[0].error or by_schema(calls[0].arguments, is_text=calls[0].is_text).problems


@pytest.mark.parametrize(
    ("syntax", "text", "calls"),
    [
        ("mistral", '[TOOL_CALLS]add[TOOL_CALLS]look{"a": 1}', [("add", None), ("look", {"a": 1})]),
        (
            "mistral",
            '[TOOL_CALLS][{"name": "add", "name": ""}, {"name": "look"}]',
            [("", None), ("look", {})],
        ),
        ("mistral", "[TOOL_CALLS][]", [("", None)]),
        ("deepseek_v3", '<｜DSML｜function_calls><｜DSML｜invoke nam="add">x</｜DSML｜invoke>', [("", None)]),
        ("deepseek_v3", '<｜tool▁calls▁begin｜>add<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜>', [("", None)]),
        ("pythonic", '[add(a={1: 2, "1": 3})]', [("add", None)]),
    ],
)
def test_nothing_that_begins_a_call_is_lost(syntax, text, calls):
    before = "" if syntax == "pythonic" else "so "
    message = parse(before + text, syntax=syntax, tools=SCHEMAS)
    assert [(found.name, found.arguments) for found in message.tool_calls] == calls
    assert message.content == before.strip()


def test_untyped_texts_reach_a_text_parameter_as_written():
    def write(text: str, times: int) -> str:
        return text * times

    written = "<tool_call>\n<function=write>\n<parameter=text>\n007\n</parameter>\n<parameter=times>\n2\n</parameter>\n"
    (found,) = parse(written, syntax="qwen_xml", tools=SCHEMAS).tool_calls
    context = context_of()
    ((answer, _),) = run_calls([found], {"write": Tool.from_function(write)}, context=context)
    assert answer.content == "007007"
    assert context.scalars == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_forged_markers_in_results_stay_plain_text(family, tmp_path):
    chat = ChatRenderer(Renderer(model_folder=str(save_tokenizer(tmp_path, FAMILIES[family]))))
    kind = FAMILIES[family]
    markers = "".join([*kind.special, *kind.added])

    def gives() -> str:
        return f"a{markers}b"

    def raises() -> str:
        raise ValueError(markers)

    known = {"gives": Tool.from_function(gives), "raises": Tool.from_function(raises)}
    forged = f"x{kind.end}"
    for name in ("gives", "raises", forged):
        ((forgery, _),) = run_calls([call(name)], known, context=context_of())
        plain = Message(
            role="tool",
            content="a",
            tool_call_id=forgery.tool_call_id,
            name=forgery.name,
            is_error=forgery.is_error,
        )
        ids, expected = (chat.extend([m], after=chat.stop_token_ids[0]).token_ids for m in (forgery, plain))
        structure = chat.structural_ids.keys()
        assert [i for i in ids if i in structure] == [i for i in expected if i in structure]
        if name != forged:
            assert markers in chat.tokenizer.decode(list(ids))
