import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.tool_calls import match, parse, valid
from rlhf.errors import DataError
from tests.unit.rewards.attempts import prompt_of, worthless

WEATHER = {
    "name": "weather",
    "description": "The weather somewhere.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer", "minimum": 1},
            "unit": {"type": "string", "enum": ["C", "F"]},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["city"],
    },
}
TIME = {
    "name": "time",
    "parameters": {"type": "dict", "properties": {"offset": {"type": "float"}}, "required": []},
}
TOOLS = [{"type": "function", "function": WEATHER}, TIME]


def call(name: str, /, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


PARIS = call("weather", city="Paris")
ROME = call("weather", city="Rome", days=2)
VALID = {
    "one call": PARIS,
    "after a thought": f"<think>hm</think>I will look. {PARIS}",
    "two calls": f"{PARIS}\n{ROME}",
    "every argument": call("weather", city="Paris", days=3, unit="C", tags=["a", "b"]),
    "no arguments": call("time"),
    "a number of BFCL's type": call("time", offset=1),
    "a fence inside an argument": call("weather", city="```python\nx\n```"),
    "a closing tag inside an argument": call("weather", city="</tool_call>"),
    "an earlier code block": f"```\nx\n```\n{PARIS}",
    "a tool's own text in code": f"I use `weather` here. {PARIS}",
    "an unclosed inline mark": f"5` or so\n{PARIS}",
    "on one line": PARIS.replace("\n", ""),
}
INVALID = {
    "unknown tool": call("wether", city="Paris"),
    "missing argument": call("weather", days=1),
    "unknown argument": call("weather", city="Paris", day=1),
    "wrong type": call("weather", city=5),
    "true for an integer": call("weather", city="Paris", days=True),
    "out of range": call("weather", city="Paris", days=0),
    "not in the enum": call("weather", city="Paris", unit="K"),
    "wrong item": call("weather", city="Paris", tags=[1]),
    "one bad of two": f"{PARIS}{call('weather')}",
    "arguments as text": '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Paris\\"}"}</tool_call>',
    "no arguments key": '<tool_call>{"name": "time"}</tool_call>',
    "another key": '<tool_call>{"name": "time", "arguments": {}, "id": 1}</tool_call>',
    "a list": '<tool_call>["time", {}]</tool_call>',
    "not closed": PARIS.removesuffix("</tool_call>"),
    "not JSON": "<tool_call>weather(city='Paris')</tool_call>",
    "nothing": "<tool_call></tool_call>",
    "text after the object": PARIS.replace("\n</tool_call>", " Paris\n</tool_call>"),
    "a key twice": '<tool_call>{"name": "time", "name": "weather", "arguments": {"city": "P"}}</tool_call>',
    "NaN": '<tool_call>{"name": "time", "arguments": {"offset": NaN}}</tool_call>',
    "very deep": '<tool_call>{"name": "time", "arguments": ' + "[" * 9000 + "]" * 9000 + "}</tool_call>",
    "a huge number": '<tool_call>{"name": "time", "arguments": {"offset": ' + "9" * 9000 + "}}</tool_call>",
    "seventeen calls": PARIS * 17,
}
NO_CALL = {
    "in the thought": f"<think>{PARIS}</think>Done.",
    "in an open thought": f"<think>{PARIS}",
    "in a fence": f"```\n{PARIS}\n```",
    "in a longer fence": f"````\n```\n{PARIS}\n````",
    "in a fence of tildes": f"~~~xml\n{PARIS}\n~~~",
    "in an open fence": f"```xml\n{PARIS}",
    "in inline code": f"`{PARIS}`".replace("\n", ""),
    "without tags": json.dumps({"name": "weather", "arguments": {"city": "Paris"}}),
    "only a closing tag": PARIS.removeprefix("<tool_call>"),
    "another tag": PARIS.replace("tool_call", "function_call"),
    "capital letters": PARIS.replace("tool_call", "TOOL_CALL"),
}


@pytest.mark.parametrize("name", VALID)
def test_valid_calls_earn_one(name: str) -> None:
    assert valid(VALID[name], TOOLS).value == 1.0
    assert valid(VALID[name], json.dumps(TOOLS)).value == 1.0


@pytest.mark.parametrize("name", INVALID)
def test_invalid_calls_earn_nothing_and_say_why(name: str) -> None:
    result = valid(INVALID[name], TOOLS)
    assert (result.value, result.outcome) == (0.0, "wrong")
    assert result.detail["problem"]
    assert match(INVALID[name], TOOLS, []).value == 0.0


@pytest.mark.parametrize("name", NO_CALL)
def test_forged_calls_do_not_count(name: str) -> None:
    result = valid(NO_CALL[name], TOOLS)
    assert (result.value, result.outcome) == (0.0, "unparsable")
    expected = [{"name": "weather", "arguments": {"city": "Paris"}}]
    assert match(NO_CALL[name], TOOLS, expected).value == 0.0


def test_problems_are_named() -> None:
    assert valid(call("wether"), TOOLS).detail["problem"] == "there is no tool 'wether'"
    assert valid(call("weather"), TOOLS).detail["problem"] == "weather: 'city' is a required property"
    assert "more than 16" in str(valid(PARIS * 17, TOOLS).detail["problem"])
    assert valid(PARIS * 17, TOOLS, max_calls=17).value == 1.0


def test_a_template_that_opens_the_thought() -> None:
    assert valid(f"hm</think>{PARIS}", TOOLS, prompt_opens_think=True).value == 1.0
    assert valid(PARIS, TOOLS, prompt_opens_think=True).outcome == "unparsable"


def expected(*calls: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"name": name, "arguments": arguments} for name, arguments in calls]


P, R = ("weather", {"city": "Paris"}), ("weather", {"city": "Rome", "days": 2})


@pytest.mark.parametrize(
    ("completion", "wanted", "ordered", "value"),
    [
        (PARIS, [P], False, 1.0),
        (PARIS + ROME, [R, P], False, 1.0),
        (PARIS + ROME, [R, P], True, 0.0),
        (ROME + PARIS, [R, P], True, 1.0),
        (PARIS + PARIS, [P], False, 0.0),
        (PARIS, [P, P], False, 0.0),
        (PARIS + PARIS, [P, P], False, 1.0),
        (PARIS, [R], False, 0.0),
        (call("weather", city="Paris", days=1), [P], False, 0.0),
        (call("weather", city="paris"), [P], False, 0.0),
        (call("weather", city="Rome", days=2.0), [R], False, 1.0),
        (call("time", offset=1), [("time", {"offset": 1.0})], False, 1.0),
        (call("time", offset=0), [("time", {"offset": False})], False, 0.0),
    ],
)
def test_match_wants_the_expected_calls_and_no_other(completion, wanted, ordered: bool, value: float) -> None:
    assert match(completion, TOOLS, expected(*wanted), ordered=ordered).value == value
    assert match(completion, TOOLS, json.dumps(expected(*wanted)), ordered=ordered).value == value


def test_match_reads_the_calls_of_the_openai_api() -> None:
    wanted = [{"type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}]
    assert match(PARIS, TOOLS, wanted).value == 1.0


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ({"city": "New York"}, 1.0),
        ({"city": "new-york", "days": 2}, 1.0),
        ({"city": "NYC", "days": 3}, 1.0),
        ({"city": "NYC", "days": 4}, 0.0),
        ({"city": "NYC", "unit": "C"}, 0.0),
        ({"city": "Newark"}, 0.0),
    ],
)
def test_match_takes_bfcls_lists_of_accepted_values(arguments: dict[str, Any], value: float) -> None:
    wanted = [{"weather": {"city": ["New York", "NYC"], "days": [2, 3, ""]}}]
    assert match(call("weather", **arguments), TOOLS, wanted).value == value


def test_match_finds_the_one_way_to_pair_calls_with_accepted_values() -> None:
    wanted = [{"weather": {"city": ["A", "B"]}}, {"weather": {"city": ["A"]}}]
    both = call("weather", city="A") + call("weather", city="B")
    assert match(both, TOOLS, wanted).value == 1.0
    assert match(call("weather", city="B") * 2, TOOLS, wanted).value == 0.0


@pytest.mark.parametrize(
    ("completion", "value"), [("No tool can do that.", 1.0), ("", 0.0), ("...", 0.0), (PARIS, 0.0)]
)
def test_where_no_call_is_expected_an_answer_is_right_and_nothing_is_not(
    completion: str, value: float
) -> None:
    assert match(completion, TOOLS, []).value == value


@pytest.mark.parametrize("name", worthless(prompt_of()))
def test_a_worthless_completion_earns_nothing(name: str) -> None:
    completion = worthless(prompt_of("Use <tool_call> to ask for the weather in Paris."))[name]
    assert valid(completion, TOOLS).value == 0.0
    assert match(completion, TOOLS, expected(P)).value == 0.0


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        (None, "expected a list of mappings"),
        ("{", "expected a JSON list"),
        ([{"description": "x"}], "expected {name"),
        ([TIME, TIME], "'time' is there twice"),
        ([{"name": "t", "parameters": {"type": "objekt"}}], "are no JSON schema"),
    ],
)
def test_a_bad_tools_column_is_an_error_and_never_a_score(tools: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        valid("", tools)


def test_a_bad_expected_call_is_an_error_and_never_a_score() -> None:
    with pytest.raises(DataError, match="an expected call is"):
        match(PARIS, TOOLS, [{"weather": "Paris"}])


def test_a_schema_that_refers_to_an_address_is_not_fetched() -> None:
    tools = [{"name": "t", "parameters": {"properties": {"a": {"$ref": "http://localhost:9/schema.json"}}}}]
    with pytest.raises(Exception, match="Unresolvable"):
        valid(call("t", a=1), tools)


@given(st.text(alphabet='`~<>{}"tool_cal/\n name:', max_size=120))
def test_any_text_is_parsed(text: str) -> None:
    assert valid(text, TOOLS).value == 0.0
    parse(text)


def test_long_texts_take_linear_time() -> None:
    start = time.process_time()
    for text in (
        "<tool_call>" * 20_000,
        "`" * 100_000,
        "`a" * 50_000,
        "```\n" * 50_000,
        "` \n" * 50_000,
        "~~~a\n" * 20_000,
    ):
        parse(text)
    assert time.process_time() - start < 10
