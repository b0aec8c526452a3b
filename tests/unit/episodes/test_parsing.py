import json
import keyword
import string
import time
from dataclasses import asdict

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rlhf.episodes.call_syntax import MAX_CALLS, SYNTAXES
from rlhf.episodes.parsing import parse, parser_of, syntax_of
from rlhf.errors import ConfigError
from rlhf.types import message_of
from tests.tool_calls import FORMS, MALFORMED, STRING_FORMS, TOOLS, UNUSUAL, block, meant, written


def read(form, text, **more):
    return parse(text, syntax=FORMS.get(form, form), tools=TOOLS, **more)


def called(message):
    return [(call.name, meant(call), call.error) for call in message.tool_calls]


@pytest.mark.parametrize("form", FORMS)
def test_calls_come_back_as_written(form):
    arguments = {"q": 'naïve 漢字 {a} \n"quoted" \\ 🦜', "n": 3, "deep": {"a": [1, None, True]}}
    text = block(form, [written(form, "look", arguments), written(form, "add", {})])
    message = read(form, text)
    assert called(message) == [("look", arguments, None), ("add", {}, None)]
    assert message.content == "" or form.startswith("deepseek")
    assert all(call.raw for call in message.tool_calls)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "pythonic"])
def test_text_before_a_call_is_content_and_thoughts_are_neither(form):
    before = "<|python_tag|>" if form == "llama3" else ""
    text = f"<think>\nhm\n</think>\n\nI look. {before}" + block(form, [written(form, "look", {"q": "x"})])
    message = read(form, text)
    assert (message.reasoning, message.content) == ("hm", "I look.")
    assert called(message) == [("look", {"q": "x"}, None)]


@pytest.mark.parametrize("form", STRING_FORMS)
@pytest.mark.parametrize(
    "marker",
    [
        "<tool_call>",
        "</tool_call>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁call▁begin｜>",
        "<think>a</think>",
        "[TOOL_CALLS]",
        "; {",
    ],
)
def test_markers_in_strings_are_text(form, marker):
    arguments = {"q": f"a{marker}b"}
    message = read(form, block(form, [written(form, "look", arguments), written(form, "look", {"n": 1})]))
    assert called(message) == [("look", arguments, None), ("look", {"n": 1}, None)]


@pytest.mark.parametrize("form", FORMS)
def test_without_tools_nothing_is_a_call(form):
    text = block(form, [written(form, "look", {"q": "x"})])
    message = parse(text, syntax=FORMS[form])
    assert (message.content, message.tool_calls) == (text.strip(), ())


@pytest.mark.parametrize(
    ("text", "is_thinking", "reasoning", "content"),
    [
        ("answer", False, None, "answer"),
        ("<think>a</think>b", False, "a", "b"),
        ("\n<think>\na\n</think>\n\nb", False, "a", "b"),
        ("a</think>b", True, "a", "b"),
        ("<think>a</think>b", True, "a", "b"),
        ("</think>b", True, "", "b"),
        ("<think></think>", False, "", ""),
        ("never closed", True, "never closed", ""),
        ("<think>never closed", False, "never closed", ""),
        ("a</think>b<think>c</think>d", True, "a\n\nc", "bd"),
        ("b <think>c</think> d <think>e</think> f", False, "c\n\ne", "b  d  f"),
        ("b <think> is how thoughts begin", False, None, "b <think> is how thoughts begin"),
        ("a</think>b</think>c", True, "a", "b</think>c"),
    ],
)
def test_thoughts_are_told_from_the_answer(text, is_thinking, reasoning, content):
    message = read("hermes", text, is_thinking=is_thinking)
    assert (message.reasoning, message.content) == (reasoning, content)


@pytest.mark.parametrize("form", FORMS)
def test_a_call_in_a_thought_is_a_thought(form):
    call = block(form, [written(form, "look", {"q": "x"})])
    unclosed = read(form, f"let me see {call}", is_thinking=True)
    assert (unclosed.content, unclosed.tool_calls) == ("", ())
    closed = read(form, f"maybe {call}</think>{call}", is_thinking=True)
    assert called(closed) == [("look", {"q": "x"}, None)]
    assert call.strip() in closed.reasoning


@pytest.mark.parametrize("kind", MALFORMED)
@pytest.mark.parametrize("end", ["\n</tool_call>", ""])
def test_malformed_call_is_a_call_with_its_error(kind, end):
    body, error = MALFORMED[kind]
    message = read("hermes", f"so <tool_call>\n{body}{end}")
    assert [(call.arguments, call.error) for call in message.tool_calls] == [(None, error)]
    assert message.content == "so"


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_call_is_read_as_it_was_meant(kind):
    body, (name, arguments) = UNUSUAL[kind]
    assert called(read("hermes", f"<tool_call>{body}</tool_call>")) == [(name, arguments, None)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_cut_call_is_never_one_that_was_not_meant(form, share):
    text = block(form, [written(form, "look", {"q": "a long enough text", "n": 12345})])
    message = read(form, text[: int(share * len(text))])
    for call in message.tool_calls:
        assert call.error == "invalid_json" or meant(call) == {"q": "a long enough text", "n": 12345}


def test_good_calls_among_malformed_ones_are_kept():
    good = written("hermes", "look", {"q": "x"})
    message = read("hermes", f"{good}<tool_call>{{oops</tool_call>{good}")
    assert [call.error for call in message.tool_calls] == [None, "invalid_json", None]


def test_llama_call_with_words_after_it_keeps_both():
    message = read("llama3", '{"name": "look", "parameters": {}} as you asked')
    assert (called(message), message.content) == ([("look", {}, None)], "as you asked")


def test_llama_answer_in_json_is_no_call():
    text = '{"answer": 4}'
    assert read("llama3", text).content == text
    assert read("llama3", f"see {written('llama3', 'look', {})}").tool_calls == ()


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("[look(q='x', n=-1.5)]", [("look", {"q": "x", "n": -1.5}, None)]),
        (
            ' [\r\n look(q="""a\nb"""),\n web.look()\n]\n',
            [("look", {"q": "a\nb"}, None), ("web.look", {}, None)],
        ),
        (
            r"[look(q='\d+', n=(1, [True, None], {'a': 'é'}))]",
            [("look", {"q": r"\d+", "n": [1, [True, None], {"a": "é"}]}, None)],
        ),
        ("[look('x')]", [("look", None, "not_an_object")]),
        ("[look(*q)]", [("look", None, "not_an_object")]),
        ("[look(q='x'", [("look", None, "invalid_json")]),
        ("[look(q='x')] as you asked", [("look", None, "invalid_json")]),
        ("[look(q='x', q='y')]", [("look", None, "invalid_json")]),
        ("[look(**{'q': 'x'})]", [("look", None, "invalid_json")]),
        *(
            (f"[look(q='x'), look(n={value})]", [("look", {"q": "x"}, None), ("look", None, "invalid_json")])
            for value in (
                "open('f')",
                "n",
                "1 + n",
                "b'x'",
                "{1, 2}",
                "1j",
                "...",
                "1e999",
                "0x" + "f" * 9999,
            )
        ),
        ("[look()(q='x')]", [("", {"q": "x"}, None)]),
        ("[look" + ".a" * 2000 + "(q='x')]", [("look" + ".a" * 2000, {"q": "x"}, None)]),
        ("[look(q='x'), 'or', 2]", []),
        ("[1, 2]", []),
        ("I look. [look(q='x')]", []),
    ],
)
def test_pythonic_calls_are_of_literals(text, calls):
    message = read("pythonic", text)
    assert called(message) == calls
    assert message.content == ("" if calls else text)


def test_pythonic_calls_have_the_text_that_was_sampled():
    message = read("pythonic", "[look(q='é🦜'),\n look( n = 1 )]")
    assert [call.raw for call in message.tool_calls] == ["look(q='é🦜')", "look( n = 1 )"]


PIECES = [
    *(
        "<tool_call>",
        "</tool_call>",
        "<think>",
        "</think>",
        "<function=",
        "<parameter=",
        "</parameter>",
        "</function>",
    ),
    *("<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    *(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
    ),
    *(
        "<｜DSML｜function_calls>",
        '<｜DSML｜invoke name="',
        '<｜DSML｜parameter name="',
        "</｜DSML｜parameter>",
    ),
    *(
        "</｜DSML｜invoke>",
        "function",
        "```json\n",
        "```",
        '{"name": "look", "arguments": ',
        '{"q": 1}',
        "{",
        "}",
        "[",
    ),
    *("]", '"', ":", ",", "\\", "\n", " ", ">", "NaN", "1e999", "\ud800", "9" * 5000, "; ", "look"),
    *("[look(", "q=", "'", ")", "b'x'", "{1}", "-", "(", "**", ".a"),
]
SOUP = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)


@pytest.mark.parametrize("syntax", SYNTAXES)
@given(text=SOUP | st.text(max_size=60), is_thinking=st.booleans())
@example(text='{"name": ', is_thinking=False)
def test_any_text_is_read(syntax, text, is_thinking):
    message = parse(text, syntax=syntax, is_thinking=is_thinking, tools=TOOLS)
    for call in message.tool_calls:
        assert (call.arguments is None) == (call.error is not None)
        assert isinstance(call.name, str)
    # It goes to the episode's process as JSON.
    assert message_of(json.loads(json.dumps(asdict(message)))) == message


@pytest.mark.parametrize("form", FORMS)
@given(
    calls=st.lists(
        st.dictionaries(
            st.text(string.ascii_letters, min_size=1).filter(lambda key: not keyword.iskeyword(key)),
            st.text(string.printable.replace("\r", ""))
            | st.integers(-9, 9)
            | st.booleans()
            | st.lists(st.integers()),
            max_size=3,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_is_written_well_is_read_well(form, calls):
    calls = [{k: v for k, v in call.items() if form in STRING_FORMS or is_plain(v)} for call in calls]
    message = read(form, block(form, [written(form, "look", call) for call in calls]))
    assert called(message) == [("look", call, None) for call in calls]


def is_plain(value):
    """Text without a type can say it: no markup, and no text that reads as JSON."""
    if not isinstance(value, str):
        return True
    try:
        json.loads(value)
    except ValueError:
        return "<" not in value and value == value.strip("\n")
    return False


SIZE = 200_000
ADVERSARIAL = [
    *PIECES,
    '<tool_call>{"a": "',
    '<tool_call>{"',
    '<tool_call>{"a":',
    "<tool_call>[",
    "<tool_call><function=f><parameter=x",
    "<parameter=x\n",
    '<｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": "',
    "<｜tool▁call▁begin｜>f<｜tool▁sep｜>```json\n",
    '[TOOL_CALLS]f{"a": "',
    '[TOOL_CALLS][{"name": "f"},',
    "<think></think>",
    "</think><think>",
    "\n```\n",
    '{"name": "look"};',
    "<tool_call>f<arg_key>a</arg_key><arg_value>",
    "look(q='é'),\n",
    "a.",
    "((",
]
STARTS = [
    "",
    '{"name": "look", ',
    "<tool_call>",
    "<|python_tag|>",
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n",
    "[look(), ",
]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_long_texts_are_read_in_linear_time(syntax):
    slowest = (0.0, "")
    for piece in ADVERSARIAL:
        for start in STARTS:
            text = start + piece * (SIZE // len(piece)) + ("]" if piece.endswith("\n") else "x")
            began = time.process_time()
            parse(text, syntax=syntax, tools=TOOLS)
            slowest = max(slowest, (time.process_time() - began, start + piece))
    print(f"{syntax}: slowest of {len(ADVERSARIAL) * len(STARTS)} texts of {SIZE:,} characters: {slowest}")
    # What grows with the square takes a minute.
    assert slowest[0] < 10.0, slowest


def test_calls_beyond_the_most_are_text():
    call = written("hermes", "look", {})
    message = read("hermes", call * (MAX_CALLS + 5))
    assert len(message.tool_calls) == MAX_CALLS
    assert message.content == call * 5


def test_parsers_are_known_by_name():
    text = written("hermes", "look", {"q": "x"})
    assert called(parser_of("hermes")(text, tools=TOOLS)) == [("look", {"q": "x"}, None)]
    assert called(parser_of("auto", written=text)(text, tools=TOOLS)) == [("look", {"q": "x"}, None)]
    assert parser_of("none")(text, tools=TOOLS).content == text
    with pytest.raises(
        ConfigError, match=r"tool_syntax is 'hermez', expected auto, one of hermes, .*`vllm:NAME`"
    ):
        parser_of("hermez")


def test_unknown_way_to_write_calls_is_refused_where_there_are_tools():
    read = parser_of("auto", written="<|tool_call_start|>[f(a='x')]<|tool_call_end|>")
    assert read("<think>a</think>b").content == "b"
    with pytest.raises(ConfigError, match="writes calls in a way not known here"):
        read("b", tools=TOOLS)


@pytest.mark.parametrize("form", FORMS)
def test_syntax_is_known_by_how_a_call_is_written(form):
    assert syntax_of(block(form, [written(form, "look", {"argument": "value"})])) == FORMS[form]
