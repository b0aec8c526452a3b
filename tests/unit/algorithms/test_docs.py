"""docs/algorithms.md has a row for everything that a recipe can name, and nothing else."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import rlhf.algorithms
from rlhf.algorithms.correction import CORRECTIONS, PUBLISHED_BOUNDS
from rlhf.algorithms.estimators import ADVANTAGES
from rlhf.algorithms.kl import KL_ESTIMATORS
from rlhf.algorithms.policy_terms import POLICIES
from rlhf.algorithms.preference import PREFERENCE_LOSSES
from rlhf.algorithms.reduce import AGGREGATIONS
from rlhf.config.algorithm import AlgorithmConfig, CriticConfig, ShapingConfig
from rlhf.config.presets import PRESETS

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/algorithms.md").read_text(encoding="utf-8")
SAMPLING = (ROOT / "docs/sampling.md").read_text(encoding="utf-8")
MODULES = [
    importlib.import_module(f"rlhf.algorithms.{m.name}")
    for m in pkgutil.iter_modules(rlhf.algorithms.__path__)
]
SOURCED = [
    function
    for module in MODULES
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__
    and not name.startswith("_")
    and "Source:" in (function.__doc__ or "")
]
NAME = re.compile(r"`([a-z_0-9]+)`")
ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")


def section(page: str, title: str) -> str:
    return page.split(f"\n## {title}")[1].split("\n## ")[0]


def tables(text: str) -> list[list[list[str]]]:
    """Cells of the rows of each table, its head first."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if not line.startswith("|"):
            found.append([])
        elif not line.startswith("|---"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
    return [table for table in found if table]


def named(rows: list[list[str]]) -> list[str]:
    return [name for row in rows[1:] for name in NAME.findall(row[0])]


@pytest.mark.parametrize(
    ("title", "names"),
    [
        ("Presets", PRESETS),
        ("Advantages", ADVANTAGES),
        ("Policy terms", POLICIES),
        ("Aggregations", AGGREGATIONS),
        ("KL to the reference", KL_ESTIMATORS),
        ("Corrections", CORRECTIONS),
        ("Preference losses", PREFERENCE_LOSSES),
    ],
)
def test_a_name_of_the_code_has_one_row_and_a_row_names_something(title, names):
    assert sorted(named(tables(section(PAGE, title))[0])) == sorted(names)


def test_every_row_is_as_wide_as_the_head_of_its_table():
    ragged = [
        row
        for page in (PAGE, SAMPLING)
        for table in tables(page)
        for row in table
        if len(row) != len(table[0])
    ]
    assert not ragged


@pytest.mark.parametrize("function", SOURCED, ids=lambda function: function.__name__)
def test_a_function_with_a_source_is_named(function):
    names = {function.__name__} | {name for name, other in ADVANTAGES.items() if other is function}
    assert names & set(NAME.findall(PAGE))


def test_every_paper_of_the_code_is_on_the_page():
    cited = {number for module in MODULES for number in ARXIV.findall(inspect.getsource(module))}
    assert cited - set(ARXIV.findall(PAGE)) == set()


def test_every_key_of_shaping_is_described():
    assert set(ShapingConfig.model_fields) - set(NAME.findall(section(SAMPLING, "Reward shaping"))) == set()


@pytest.mark.parametrize("config", [AlgorithmConfig, CriticConfig])
def test_every_key_of_the_sections_is_mentioned(config):
    mentioned = set(re.findall(r"[a-z_0-9]+", " ".join(re.findall(r"`([^`]+)`", PAGE))))
    elsewhere = {"weight_decay", "max_grad_norm", "warmup_steps", "lr_schedule", "min_lr_ratio"}
    assert set(config.model_fields) - mentioned - elsewhere == set()


def test_presets_are_as_printed():
    rows = {NAME.findall(row[0])[0]: row for row in tables(section(PAGE, "Presets"))[0][1:]}
    for name, sections in PRESETS.items():
        keys = AlgorithmConfig(name=name)
        _, advantage, loss, aggregation, kl, also = rows[name][:6]
        assert NAME.findall(advantage)[0] == keys.advantages
        assert ("whitened" in advantage) == keys.whiten
        assert keys.policy == (NAME.findall(loss) or ["ppo"])[0]
        assert NAME.findall(aggregation) == [keys.aggregation]
        assert kl == "off" if keys.kl_coef == 0 else kl.split(", ")[1] == f"{keys.kl_coef:g}"
        assert (f"in the {keys.kl_in}" in kl) == (keys.kl_coef > 0)
        assert (keys.kl_estimator or "k1") in kl or keys.kl_coef == 0
        others = {section: set(keys) for section, keys in sections.items() if section != "algorithm"}
        assert "critic" in also or "critic" not in others
        assert others.get("sampling", set()) | others.get("schedule", set()) <= set(re.findall(r"\w+", also))


def test_bounds_of_corrections_are_as_printed():
    for name, _, bounds, *_ in tables(section(PAGE, "Corrections"))[0][1:]:
        printed = [float(number) for number in re.findall(r"[\d.]+", bounds)]
        assert printed == [bound for bound in PUBLISHED_BOUNDS[name.strip("`")] if bound is not None]


def test_defaults_of_preference_losses_are_as_printed():
    for row in tables(section(PAGE, "Preference losses"))[0][1:]:
        parameters = inspect.signature(PREFERENCE_LOSSES[NAME.findall(row[0])[0]]).parameters.values()
        defaults = [f"`{p.name}` {p.default:g}" for p in parameters if p.default is not p.empty]
        assert row[2] == ", ".join(defaults)


def test_files_that_the_page_names_exist():
    files = set(re.findall(r"`((?:rlhf|tests)/[\w/*.]+)`", PAGE))
    assert len(files) > 10
    assert [name for name in files if not list(ROOT.glob(name))] == []
