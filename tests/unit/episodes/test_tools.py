import enum
import functools
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic
import pytest
from typing_extensions import TypedDict

from rlhf.episodes.tool_arguments import SchemaArguments, plain_schema
from rlhf.episodes.tools import NOT_TOOLS, Tool, by_name, tools_of
from rlhf.errors import ConfigError
from rlhf.interfaces import Context


class Unit(enum.Enum):
    KILOMETRE = "km"
    MILE = "mile"


@dataclass
class Place:
    """A place on a map."""

    name: str
    height: int = 0


class Box(TypedDict):
    low: float
    high: float


class Route(pydantic.BaseModel):
    title: str
    stops: list[Place]


class Tree(pydantic.BaseModel):
    label: str
    branches: list["Tree"] = []


def parameters(function):
    return Tool.from_function(function).schema["function"]["parameters"]


def read(function, is_text=False, **given):
    return Tool.from_function(function).read(given, is_text=is_text)


def test_schema_has_the_docstring_and_every_hint():
    def search(
        query: str, unit: Unit, limit: int = 5, kind: Literal["web", "news"] = "web", site: str | None = None
    ) -> str:
        """Search the corpus.

        Quotes are kept together.

        Args:
            query: What to look for,
                in words.
            unit (Unit): Of distances.
            limit: How many.

        Returns:
            Titles: one a line.
        """
        return ""

    assert Tool.from_function(search).schema == {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Search the corpus.\n\nQuotes are kept together.",
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"type": "string", "description": "What to look for, in words."},
                    "unit": {"type": "string", "enum": ["km", "mile"], "description": "Of distances."},
                    "limit": {"type": "integer", "default": 5, "description": "How many."},
                    "kind": {"type": "string", "enum": ["web", "news"], "default": "web"},
                    "site": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
                },
                "required": ["query", "unit"],
            },
        },
    }


def test_nested_types_are_written_where_they_are_used():
    def plan(
        route: Route, box: Box, floor: Annotated[int, pydantic.Field(ge=0, description="From 0.")]
    ) -> str:
        return ""

    place = {
        "type": "object",
        "description": "A place on a map.",
        "properties": {"name": {"type": "string"}, "height": {"type": "integer", "default": 0}},
        "required": ["name"],
    }
    properties = parameters(plan)["properties"]
    assert properties["route"]["properties"] == {
        "title": {"type": "string"},
        "stops": {"type": "array", "items": place},
    }
    assert properties["box"]["required"] == ["low", "high"]
    assert properties["floor"] == {"type": "integer", "minimum": 0, "description": "From 0."}
    assert "$defs" not in parameters(plan)


def test_a_type_that_contains_itself_keeps_its_references():
    def grow(tree: Tree) -> str:
        return tree.branches[0].label

    assert parameters(grow)["properties"]["tree"]["$ref"] == "#/$defs/Tree"
    assert "Tree" in parameters(grow)["$defs"]
    found = read(grow, tree={"label": "a", "branches": [{"label": "b"}]})
    assert found.values["tree"].branches[0].label == "b"


def test_context_is_given_by_us_and_hidden_from_the_model():
    def note(text: str, where: Context, again: Context | None = None) -> str:
        return text

    tool = Tool.from_function(note)
    assert list(tool.schema["function"]["parameters"]["properties"]) == ["text"]
    assert tool.context_parameters == ("where", "again")
    assert tool.read({"text": "a", "where": 1}).problems == (
        "'where': there is no such field; the fields are: text",
    )


def no_hint(a: int, b) -> str: ...
def stars(*args: int) -> str: ...
def double_stars(**kwargs: int) -> str: ...
def positional(a: int, /) -> str: ...
def unknown_hint(a: "Nothing") -> str: ...
def no_schema(a: object()) -> str: ...
def no_json(a: type(test_schema_has_the_docstring_and_every_hint)) -> str: ...


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (no_hint, r"tool no_hint: parameter 'b' has no type hint"),
        (stars, r"tool stars: parameter `\*args: int` is variadic positional"),
        (double_stars, r"tool double_stars: parameter `\*\*kwargs: int` is variadic keyword"),
        (positional, r"tool positional: parameter `a: int` is positional-only"),
        (unknown_hint, r"tool unknown_hint: its signature cannot be read \(name 'Nothing' is not defined\)"),
        (no_schema, r"tool no_schema: "),
        (no_json, r"tool no_json: parameter 'a': no schema can be made"),
        (lambda: "", r"tool '<lambda>': expected a name"),
    ],
)
def test_what_cannot_be_a_tool_is_refused_when_it_is_made(function, says):
    with pytest.raises(ConfigError, match=says):
        Tool.from_function(function)


def test_odd_callables_are_tools():
    class Counter:
        def __call__(self, step: int) -> int:
            """Counts."""
            return step

    async def later(a: int) -> int:
        return a

    def add(a: int, b: int) -> int:
        return a + b

    named = Tool.from_function(Counter(), name="count", read_only=True, timeout_s=1.5)
    assert (named.name, named.read_only, named.timeout_s, named.is_async) == ("count", True, 1.5, False)
    assert named.run(**named.read({"step": "2"}).values) == 2
    assert Tool.from_function(later).is_async
    assert Tool.from_function(functools.partial(later, 1), name="x").is_async
    part = Tool.from_function(functools.partial(add, b=2), name="add_two")
    assert part.run(**part.read({"a": 1}).values) == 3


class Shop:
    """A shop."""

    @property
    def trap(self):
        raise AssertionError("a property was looked at")

    def buy(self, item: str) -> str:
        return item

    def look(self) -> str:
        return ""

    @staticmethod
    def prices(kind: str) -> str:
        return kind

    def reset(self, x): ...
    def step(self, x): ...
    def score(self, x): ...
    def close(self): ...
    def get_reward(self): ...
    def _hidden(self, x): ...


class LargerShop(Shop):
    def sell(self, item: str) -> str:
        return item

    def buy(self, item: str, number: int) -> str:
        return item * number


def test_an_objects_public_methods_are_tools():
    tools = tools_of(LargerShop(), read_only=["look"])
    assert [(tool.name, tool.read_only) for tool in tools] == [
        ("buy", False),
        ("look", True),
        ("prices", False),
        ("sell", False),
    ]
    assert by_name(tools)["buy"].run(item="a", number=2) == "aa"
    assert "step" in NOT_TOOLS
    with pytest.raises(ConfigError, match=r"also the read-only \['nope'\]"):
        tools_of(Shop(), read_only=["nope"])
    with pytest.raises(ConfigError, match="expected at least one"):
        tools_of(object())


def test_two_tools_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="two are named 'buy'"):
        by_name([*tools_of(Shop()), *tools_of(LargerShop())])


def everything(
    text: str = "", number: int = 0, share: float = 0.0, switch: bool = False, names: list[str] = [], other: Any = None,  # noqa: B006
    maybe: str | None = "x", unit: Unit = Unit.MILE, place: Place | None = None, either: int | str = 0,
) -> str:  # fmt: skip
    return ""


@pytest.mark.parametrize(
    ("key", "given", "meant", "num_coerced"),
    [
        ("number", 3, 3, 0),
        ("number", "3", 3, 1),
        ("number", 3.0, 3, 1),
        ("share", 3, 3.0, 0),
        ("text", 1234, "1234", 1),
        ("text", "1234", "1234", 0),
        ("text", "null", "null", 0),
        ("switch", "true", True, 1),
        ("names", ["a"], ["a"], 0),
        ("names", '["a"]', ["a"], 1),
        ("names", [1, 2], ["1", "2"], 1),
        ("maybe", None, None, 0),
        ("unit", "km", Unit.KILOMETRE, 0),
        ("place", {"name": "a"}, Place("a"), 0),
        ("place", '{"name": "a", "height": 2}', Place("a", 2), 1),
        ("either", "3", "3", 0),
        ("other", {"a": [1]}, {"a": [1]}, 0),
    ],
)
def test_typed_arguments_are_taken_as_meant_and_what_was_coerced_counts(key, given, meant, num_coerced):
    found = read(everything, **{key: given})
    assert not found.problems
    assert found.values == {key: meant}
    assert type(found.values[key]) is type(meant)
    assert found.num_coerced == num_coerced


@pytest.mark.parametrize(
    ("key", "written", "meant", "num_coerced"),
    [
        ("text", "3.10", "3.10", 0),
        ("text", "007", "007", 0),
        ("text", "true", "true", 0),
        ("text", '{"a":  1}', '{"a":  1}', 0),
        ("text", "null", "null", 0),
        ("maybe", "null", None, 0),
        ("maybe", "a\nb", "a\nb", 0),
        ("number", "3", 3, 0),
        ("number", "3.0", 3, 1),
        ("share", "1e3", 1000.0, 0),
        ("switch", "false", False, 0),
        ("switch", "False", False, 1),
        ("names", '["a", "b"]', ["a", "b"], 0),
        ("unit", "km", Unit.KILOMETRE, 0),
        ("place", '{"name": "a"}', Place("a"), 0),
        ("either", "3", "3", 0),
    ],
)
def test_untyped_texts_are_what_their_parameter_asks_for(key, written, meant, num_coerced):
    found = read(everything, is_text=True, **{key: written})
    assert not found.problems
    assert found.values == {key: meant}
    assert type(found.values[key]) is type(meant)
    assert found.num_coerced == num_coerced


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"number": "many"}, "'number': Input should be a valid integer"),
        ({"number": None}, "'number': "),
        ({"number": 2.5}, "'number': "),
        ({"text": ["a"]}, "'text': Input should be a valid string"),
        ({"text": None}, "'text': "),
        ({"share": "NaN"}, "'share': Input should be a finite number"),
        ({"unit": "yard"}, "'unit': Input should be 'km' or 'mile', found yard"),
        ({"place": {"height": 1}}, "'place.name': Field required"),
        ({"names": ["a", {}]}, "'names.1': "),
        ({"txet": "a"}, "'txet': there is no such field; did you mean 'text'?"),
        ({"text": "\ud800"}, "'text': "),
        ({"": 1}, "'': there is no such field"),
    ],
)
def test_what_cannot_be_meant_is_named(given, says):
    problems = read(everything, **given).problems
    assert len(problems) == 1
    assert problems[0].startswith(says)


def test_missing_fields_are_named_and_problems_are_few_and_short():
    def needs(a: int, b: str, c: int = 1) -> str:
        return ""

    assert read(needs).problems == ("'a': this field is missing", "'b': this field is missing")
    many = read(needs, **{f"z{i}" * 1000: "y" * 100_000 for i in range(1000)}).problems
    assert len(many) == 5
    assert sum(map(len, many)) < 1000


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"anyOf": [True, {"type": "integer"}]}}},
        {"properties": {"a": {"type": None, "oneOf": None}}},
        {"properties": None},
        {},
    ],
)
def test_odd_schemas_of_servers_are_read(schema):
    shown = plain_schema({"type": "object", "additionalProperties": True, **schema})
    assert SchemaArguments(shown)({"a": "3"}, is_text=True).problems == ()


def test_a_hint_whose_validator_raises_is_a_problem_not_an_error():
    def odd(a: Annotated[int, pydantic.AfterValidator(lambda value: {}[value])]) -> str:
        return ""

    assert read(odd, a=1).problems == ("'a': cannot be read (KeyError)",)


def test_deeply_nested_values_never_raise():
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    assert len(read(everything, names=deep).problems) == 1
    assert len(read(everything, other=deep).problems) == 1
