from pathlib import Path

import pytest

from rlhf.config.evaluation import EvaluationFile
from rlhf.config.loading import EXTENDS, checked_section, load_recipe, read_mapping, read_with_overrides

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))


def load(path):
    """The checked section of a file: an evaluation's in recipes/eval, a recipe elsewhere."""
    if path.parent.name == "eval":
        return checked_section(EvaluationFile, read_with_overrides(path), where=path)
    return load_recipe(path)


@each_recipe
def test_recipe_loads(path):
    assert load(path).name


@each_recipe
def test_recipe_is_short(path):
    assert len(path.read_text().splitlines()) <= 40


@each_recipe
def test_recipe_says_only_what_differs(path):
    """No key may repeat its default, or what the extended recipe already says."""
    values = read_mapping(path)
    base = values.pop(EXTENDS, None)
    if base is None:
        redundant = (
            leaves(values).keys() - leaves(load(path).model_dump(mode="json", exclude_defaults=True)).keys()
        )
    else:
        below = leaves(load(path.parent / base).model_dump(mode="json"))
        redundant = {key for key, value in leaves(values).items() if key in below and below[key] == value}
    assert not redundant


def leaves(values, prefix=""):
    """{dotted key: value} for all that is not a mapping; a list, or an empty mapping, counts as one value."""
    found = {}
    for key, value in values.items():
        inner = (
            leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
        )
        found |= inner
    return found
