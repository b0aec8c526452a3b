"""Arguments made from a schema are arguments that the tool takes."""

import enum
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from pydantic import Field

from rlhf.episodes.schema_values import arguments_for
from rlhf.episodes.tool_arguments import SchemaArguments
from rlhf.episodes.tools import Tool, schema_of


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Place:
    row: Annotated[int, Field(ge=5, multiple_of=4)]
    names: tuple[str, float]


def tool(
    text: Annotated[str, Field(min_length=9)],
    short: Annotated[str, Field(max_length=2)],
    below: Annotated[int, Field(lt=0)],
    part: Annotated[float, Field(gt=0, lt=1)],
    many: Annotated[list[Place], Field(min_length=2)],
    kind: Literal["b", "a"],
    colour: Colour,
    yes: bool,
    maybe: int | None,
    nothing: None,
    table: dict[str, int],
    given: int = 3,
) -> None:
    """Take anything."""


def test_arguments_fit_the_hints_they_were_made_from():
    found = Tool.from_function(tool)
    arguments = arguments_for(found.schema, word="word")
    assert "given" not in arguments
    assert found.read(arguments).problems == ()


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"type": "object", "properties": {}},
        {
            "type": "object",
            "properties": {"a": {"type": ["integer", "null"]}, "b": {"const": 7}},
            "required": ["a"],
        },
        {"properties": {"a": True, "b": {"type": []}}, "required": None},
        {"type": "object", "properties": {"a": {"oneOf": [{"enum": ["x"]}, {"type": "null"}]}, "b": {}}},
    ],
)
def test_arguments_fit_a_servers_schema(parameters):
    assert SchemaArguments(parameters)(arguments_for(schema_of("t", "", parameters))).problems == ()
