"""Every file under recipes/: it loads, is short, says only what differs, and a plan can be derived from it."""

import asyncio
import json
from pathlib import Path

import pytest

from rlhf.check.command import check
from rlhf.cli import main
from rlhf.config.evaluation import EvaluationFile
from rlhf.config.loading import EXTENDS, differences, load_recipe, read_mapping, read_with_overrides
from rlhf.config.pipeline import load_pipeline, section_of
from rlhf.config.presets import lay_over
from rlhf.config.schema import Recipe
from rlhf.config.section import Section
from rlhf.config.stage_kinds import KINDS
from rlhf.plan import derive_plan
from tests.recipes.documented_rows import ROWS

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared/data"
EVERY = sorted((ROOT / "recipes").rglob("*.yaml"))
PIPELINES = [path for path in EVERY if "stages" in read_with_overrides(path)]
EVALUATIONS = [path for path in EVERY if "sets" in read_with_overrides(path)]
RECIPES = [path for path in EVERY if path not in PIPELINES + EVALUATIONS]
ABSENT = object()


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(ROOT)))


@each(RECIPES)
def test_recipe_loads_and_has_a_plan(path):
    recipe = load_recipe(path)
    assert recipe.name
    assert derive_plan(recipe)


@each(RECIPES + EVALUATIONS)
def test_recipe_is_short(path):
    assert len(path.read_text().splitlines()) <= 40


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
        assert not repeated(stage, below, KINDS[stage["kind"]].section)


@each(PIPELINES)
def test_pipeline_loads_and_its_order_is_drawn(path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["pipeline", str(path), "--dry-run"]) == 0
    drawn = capsys.readouterr().out
    assert all(name in drawn for name in load_pipeline(path).stages)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    ["r1_zero/qwen2.5_0.5b_1gpu.yaml", "dapo/qwen2.5_7b_8gpu.yaml", "coder_v2/qwen2.5_coder_1.5b_8gpu.yaml"],
)
def test_check_accepts_a_gpu_recipe_on_rows_of_the_documented_columns(path, tmp_path):
    values = with_files(read_with_overrides(ROOT / "recipes" / path), tmp_path)
    recipe = Recipe.model_validate(values)
    found = tmp_path / "found.json"
    assert asyncio.run(check(recipe, code_dir=ROOT, json_file=found)) == 0, found.read_text()


def with_files(value, folder):
    """A copy in which every hub set is a file: GSM8K's own, where it is on this machine, else one documented row."""
    if isinstance(value, dict) and isinstance(value.get("dataset"), str):
        file = SHARED / f"gsm8k/{value.get('split', 'train')}.jsonl"
        if "gsm8k" not in value["dataset"] or not file.is_file():
            file = folder / f"{len(list(folder.iterdir()))}.jsonl"
            file.write_text(json.dumps(ROWS[value["dataset"], value.get("mapper")]) + "\n")
        kept = {key: inner for key, inner in value.items() if key not in ("dataset", "split")}
        return kept | {"file": str(file), "limit": 30}
    if isinstance(value, dict):
        return {key: with_files(inner, folder) for key, inner in value.items()}
    return [with_files(inner, folder) for inner in value] if isinstance(value, list) else value


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
