"""Every public data set that a recipe names is read, mapped and parsed from a row of its documented columns."""

from pathlib import Path

import pytest

from rlhf.config.loading import read_with_overrides
from rlhf.config.task import SourceConfig
from rlhf.data.records import parse_row
from rlhf.importing import load_function
from tests.recipes.documented_rows import ROWS

ROOT = Path(__file__).parents[2]


def hub_sources():
    """{(data set, mapper): (file, source)} of all files, every `extends:` laid under."""
    found = {}
    for path in sorted((ROOT / "recipes").rglob("*.yaml")):
        for source in sources_in(read_with_overrides(path)):
            found.setdefault((source["dataset"], source.get("mapper")), (path.name, source))
    return found


def sources_in(value):
    if isinstance(value, dict):
        if isinstance(value.get("dataset"), str):
            yield value
        for inner in value.values():
            yield from sources_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from sources_in(inner)


SOURCES = hub_sources()


@pytest.mark.parametrize("key", sorted(SOURCES, key=str), ids=lambda key: f"{key[0]}-{key[1]}")
def test_hub_set_of_a_recipe_is_read_from_its_documented_columns(key):
    assert key in ROWS, "write a row of its documented columns into tests/recipes/documented_rows.py"
    _, source = SOURCES[key]
    prompt = parsed(source, ROWS[key])
    assert prompt.messages[0].role == "user"
    assert prompt.messages[0].content.strip()


def test_every_documented_row_belongs_to_a_recipe():
    originals = {"BytedTsinghua-SIA/DAPO-Math-17k"}
    assert {key for key in ROWS if key[0] not in originals} == set(SOURCES)


@pytest.mark.parametrize(
    ("dataset", "reference"),
    [
        ("openai/gsm8k:main", "5"),
        ("DigitalLearningGmbH/MATH-lighteval", "42"),
        ("HuggingFaceH4/MATH-500", "42"),
        ("HuggingFaceH4/aime_2024", "042"),
        ("open-r1/DAPO-Math-17k-Processed:all", "42"),
        ("open-r1/OpenR1-Math-220k", "42"),
    ],
)
def test_gold_of_a_math_set_is_found(dataset, reference):
    keys = [key for key in SOURCES if key[0] == dataset]
    assert keys
    assert {parsed(SOURCES[key][1], ROWS[key]).reference for key in keys} == {reference}


def test_dapo_original_rows_are_read_without_a_mapper():
    prompt = parsed({"dataset": "x"}, ROWS["BytedTsinghua-SIA/DAPO-Math-17k", None])
    assert prompt.reference == "42"
    assert prompt.is_chat


def parsed(source, row):
    config = SourceConfig.model_validate({k: v for k, v in source.items() if k in SourceConfig.model_fields})
    mapped = load_function(config.mapper, key="mapper")(row) if config.mapper else row
    return parse_row(mapped, location="row:0", columns=config.columns, key="task.train")
