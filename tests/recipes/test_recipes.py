"""Every file under recipes/: it loads, is short, says only what differs, and a plan can be derived from it."""

from pathlib import Path

import pytest

from rlhf.cli import main
from rlhf.config.alignment import AlignmentRecipe
from rlhf.config.alignment_bench import BenchRecipe
from rlhf.config.evaluation import EvaluationFile
from rlhf.config.loading import EXTENDS, differences, load_recipe, read_mapping, read_with_overrides
from rlhf.config.pipeline import load_pipeline, section_of
from rlhf.config.presets import lay_over
from rlhf.config.section import Section
from rlhf.config.stage_kinds import KINDS

ROOT = Path(__file__).parents[2]
EVERY = sorted((ROOT / "recipes").rglob("*.yaml"))
PIPELINES = [path for path in EVERY if "stages" in read_with_overrides(path)]
EVALUATIONS = [path for path in EVERY if "sets" in read_with_overrides(path)]
BENCHES = [path for path in EVERY if "alignment" in read_with_overrides(path)]
ALIGNMENTS = [path for path in EVERY if {"model", "data"} <= read_with_overrides(path).keys()]
RECIPES = [path for path in EVERY if path not in PIPELINES + EVALUATIONS + BENCHES + ALIGNMENTS]
ABSENT = object()


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(ROOT)))


@each(RECIPES)
def test_recipe_loads_and_its_plan_is_printed(path, capsys):
    assert main(["train", str(path), "--dry-run"]) == 0
    assert f"name: {load_recipe(path).name}\n" in capsys.readouterr().out


@each(RECIPES + EVALUATIONS + BENCHES + ALIGNMENTS)
def test_recipe_is_short(path):
    assert len(path.read_text().splitlines()) <= 40


@each(BENCHES + ALIGNMENTS)
def test_alignment_loads_and_says_only_what_differs(path, capsys):
    kind, section = ("bench", BenchRecipe) if path in BENCHES else ("train", AlignmentRecipe)
    assert main(["vision", kind, str(path), "--dry-run"]) == 0
    assert f"name: {path.stem}\n" in capsys.readouterr().out
    assert not repeated(read_mapping(path), {}, section)


@each(PIPELINES)
def test_pipeline_is_short(path):
    assert len(path.read_text().splitlines()) <= 80


@each(RECIPES)
def test_recipe_says_only_what_differs(path):
    """No key may repeat its default, or what the extended recipe already says."""
    values = read_mapping(path)
    if EXTENDS in values:
        assert not repeated(values, load_recipe(path.parent / values.pop(EXTENDS)).model_dump(mode="json"))
    else:
        assert not leaves(values).keys() - leaves(differences(load_recipe(path))).keys()


@each([*PIPELINES, *EVALUATIONS])
def test_pipeline_says_only_what_differs(path):
    """No key may repeat its default, what is shared, or what the extended file or the named recipe already says."""
    values = read_mapping(path)
    if EXTENDS in values:
        assert not repeated(values, read_with_overrides(path.parent / values.pop(EXTENDS)))
        return
    if path in EVALUATIONS:
        assert not repeated(values, {}, EvaluationFile)
        return
    shared = values.get("shared", {})
    sections = [KINDS[stage["kind"]].section for stage in values["stages"].values()]
    assert not set.intersection(*(repeated(shared, {}, section) for section in sections))
    for stage in values["stages"].values():
        recipe = stage.get("recipe")
        below = lay_over(shared, read_with_overrides(path.parent / recipe) if recipe else {})
        found = repeated(stage, below, KINDS[stage["kind"]].section)
        if "name" in below.get("algorithm", {}):
            # A preset lies below the stage, too: its default may be what the stage goes back to.
            found = {key for key in found if not key.startswith("algorithm.")}
        assert not found


@each(PIPELINES)
def test_pipeline_loads_and_its_order_is_drawn(path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["pipeline", str(path), "--dry-run"]) == 0
    drawn = capsys.readouterr().out
    assert all(name in drawn for name in load_pipeline(path).stages)


def repeated(values, below, section=None):
    """Dotted keys of `values` with the value that `below` has there, and without it the section's default."""
    known = leaves(below)
    return {
        key
        for key, value in leaves(values).items()
        if (known[key] if key in known else default_of(section, key)) == value
    }


def default_of(section, dotted):
    """The default of a key as YAML would say it; ABSENT where the key has none or leads out of the sections."""
    head, _, rest = dotted.partition(".")
    field = section.model_fields.get(head) if section else None
    if field is None:
        return ABSENT
    if rest:
        return default_of(section_of(field.annotation), rest)
    if field.is_required():
        return ABSENT
    default = field.get_default(call_default_factory=True)
    return default.model_dump(mode="json") if isinstance(default, Section) else default


def leaves(values, prefix=""):
    """{dotted key: value} for all that is not a mapping; a list, or an empty mapping, counts as one value."""
    found = {}
    for key, value in values.items():
        inner = (
            leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
        )
        found |= inner
    return found
