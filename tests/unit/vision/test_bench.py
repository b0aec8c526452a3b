"""The bench: what it chooses, which settings it tries, and one whole small bench."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rlhf.config.alignment import LossConfig
from rlhf.config.alignment_bench import GridConfig
from rlhf.config.schema import ModelConfig
from rlhf.data.dual_encoder import read_retrieval_config, texts_of
from rlhf.errors import ConfigError
from rlhf.vision.bench import Choice, base_model, bench_of, choose, grid_of, prepare, used, with_verdict
from rlhf.vision.bench_report import run_bench
from rlhf.vision.bench_runs import Done, Job
from rlhf.vision.bench_table import COLUMNS, Gate, Row
from rlhf.vision.orders import read_orders
from rlhf.vision.report import write_bench_report
from tests.unit.vision.benches import bench
from tests.unit.vision.recipes import TEXTS, recipe

CONTROLS = ("no_replay", "judge_only", "rephraser_only", "no_teacher")


def done(taste: float, *, precision: float = 0.5, zero_shot: float = 0.8, recall_10: float = 0.9) -> Done:
    values = {"taste": taste, "precision": precision, "zero_shot": zero_shot, "recall_10": recall_10}
    return Done(
        measures={name: [value - 0.125, value + 0.125] for name, value in values.items()}, places=[], cpu_s=1
    )


def tried(lr: float, taste: float, *, holds: bool, share: float = 0.5) -> tuple[Choice, Done]:
    loss = {"name": "dpo", "replay_coef": 1.0}
    return Choice(loss=loss, lr=lr, queries_per_step=4, used=share, keeps=holds), done(taste)


def test_choice_is_the_best_taste_among_those_that_hold_retention():
    found = choose(
        {"dpo": [tried(1, 5.0, holds=True), tried(2, 9.0, holds=False), tried(3, 6.0, holds=True)]}
    )
    assert (found["dpo"].lr, found["dpo"].keeps) == (3, True)


def test_choice_is_what_loses_least_where_nothing_holds_retention():
    lost = [(1, 5.0, 2.5), (2, 4.0, 1.25), (3, 9.0, 4.0)]
    found = choose({"dpo": [tried(lr, taste, holds=False, share=share) for lr, taste, share in lost]})
    assert (found["dpo"].lr, found["dpo"].keeps) == (2, False)


def test_each_row_has_its_own_choice():
    found = choose({"dpo": [tried(1, 5.0, holds=True)], "ipo": [tried(2, 9.0, holds=False)]})
    assert {row: choice.lr for row, choice in found.items()} == {"dpo": 1, "ipo": 2}


@pytest.mark.parametrize(
    ("lost", "verdict"),
    [
        ({}, True),
        ({"precision": 0.46875}, True),
        ({"precision": 0.4375}, False),
        ({"zero_shot": 0.7}, False),
        ({"recall_10": 0.8}, False),
        ({"precision": 0.9, "zero_shot": 0.9, "recall_10": 0.9}, True),
    ],
)
def test_retention_holds_while_every_ability_stays_in_its_allowance(lost, verdict):
    limits = {"precision": 0.03125, "zero_shot": 0.05, "recall_10": 0.05}
    config = bench(retention=limits, validation_share=1.0)
    choice = tried(1, 7.0, holds=False)[0]
    assert with_verdict(choice, config, done(5.0), done(7.0, **lost)).keeps is verdict
    half = bench(retention={name: 2 * limit for name, limit in limits.items()}, validation_share=0.5)
    assert with_verdict(choice, half, done(5.0), done(7.0, **lost)).keeps is verdict


@pytest.mark.parametrize(
    ("found", "share"),
    [
        ({}, 0),
        ({"precision": 0.75, "zero_shot": 0.9, "recall_10": 1.0}, 0),
        ({"precision": 0.375}, 0.5),
        ({"precision": 0.375, "zero_shot": 0.55}, 2),
        ({"zero_shot": 0.9, "recall_10": 0.875}, 0.25),
    ],
)
def test_share_used_is_that_of_the_ability_that_lost_most_of_its_allowance(found, share):
    config = bench(retention={"precision": 0.25, "zero_shot": 0.125, "recall_10": 0.1})
    assert used(config, done(5.0), done(7.0, **found)) == pytest.approx(share, abs=1e-4)


def test_an_allowance_of_nothing_is_used_by_any_loss():
    config = bench(retention={"precision": 0, "zero_shot": 0, "recall_10": 0})
    assert used(config, done(5.0), done(7.0)) == 0
    assert used(config, done(5.0), done(7.0, precision=0.375)) > 1


@pytest.mark.parametrize(
    ("row", "keys"),
    [
        ("sft", set()),
        ("sft_list", set()),
        ("dpo", {"beta", "label_smoothing"}),
        ("ipo", {"beta"}),
        ("rp_dpo", {"beta", "label_smoothing", "closure"}),
        ("rp_pl", {"beta"}),
        ("grpo", {"kl_coef"}),
    ],
)
def test_settings_of_a_row_are_those_its_loss_reads(row, keys):
    grid = GridConfig(lr=(1e-3, 1e-4), replay_coef=(1, 2, 3))
    found = grid_of(recipe(), row, grid)
    assert len(found) == grid.size == 6
    assert {(choice.lr, choice.loss["replay_coef"]) for choice in found} == {
        (lr, coef) for lr in grid.lr for coef in grid.replay_coef
    }
    for choice in found:
        assert choice.loss.keys() == {"name", "replay_coef", "replay_label_smoothing", *keys}
        assert LossConfig.model_validate(choice.loss).name == row
        assert choice.queries_per_step == 4
        assert not choice.keeps


@pytest.mark.parametrize(("row", "key"), [("rp_pl", "beta"), ("ipo", "beta"), ("grpo", "kl_coef")])
def test_grid_goes_through_all_values_of_a_key(row, key):
    grid = GridConfig(**{key: (0.5, 1.5)}, lr=(1e-3, 1e-4), queries_per_step=9)
    found = grid_of(recipe(), row, grid)
    assert {(choice.loss[key], choice.lr, choice.queries_per_step) for choice in found} == {
        (value, lr, 9) for value in (0.5, 1.5) for lr in (1e-3, 1e-4)
    }


def test_settings_keep_what_the_recipe_says_of_its_loss_beyond_the_grid():
    own = recipe(
        loss={"name": "rp_dpo", "label_smoothing": 0.1, "closure": "dominance", "replay_label_smoothing": 0.2}
    )
    (found,) = grid_of(own, "rp_dpo", GridConfig())
    loss = LossConfig.model_validate(found.loss)
    assert (loss.label_smoothing, loss.closure, loss.replay_label_smoothing) == (0.1, "dominance", 0.2)


def job(**changes: Any) -> Job:
    values = {
        "row": "dpo",
        "loss": {"name": "dpo"},
        "lr": 1e-3,
        "queries_per_step": 4,
        "seed": 0,
        "orders": "a",
        "on": "test",
    }
    return Job(**(values | changes))


@pytest.mark.parametrize(
    "change",
    [
        {"row": "ipo"}, {"loss": {"name": "dpo", "beta": 2.0}}, {"lr": 1e-4}, {"queries_per_step": 5},
        {"seed": 1}, {"orders": "b"}, {"on": "validation"},
    ],
)  # fmt: skip
def test_runs_that_differ_are_written_to_other_files(tmp_path, change):
    shared = bench_of(bench(), str(tmp_path), tmp_path)
    assert shared.file_of(job()) == shared.file_of(job())
    assert shared.file_of(job()) != shared.file_of(job(**change))


@pytest.mark.parametrize(
    "change",
    [
        {"alignment": {"schedule": {"num_steps": 3, "replay_per_step": 8}}},
        {"alignment": {"learner": {"lr": 1e-3, "weight_decay": 0.5}}},
        {"test": {"top_k": 5}},
    ],
)
def test_runs_of_another_bench_in_the_same_folder_are_not_read(tmp_path, change):
    values = bench()
    ours, other = (bench_of(config, str(tmp_path), tmp_path) for config in (values, bench(**change)))
    assert ours.file_of(job()) != other.file_of(job())


def test_runs_of_another_model_in_the_same_folder_are_not_read(tmp_path):
    model = tmp_path / "pretrained"
    model.mkdir()
    files = []
    for weights in ("one", "other"):
        (model / "config.json").write_text(weights)
        files.append(bench_of(bench(), str(model), tmp_path).file_of(job()))
    assert files[0] != files[1]


def test_bench_trains_in_one_process_whatever_the_recipe_says(tmp_path):
    config = bench(alignment={"learner": {"num_ranks": 4}})
    assert bench_of(config, str(tmp_path), tmp_path).recipe.learner.num_ranks == 1


def test_model_that_is_not_pretrained_knows_the_words_of_queries(tmp_path):
    model = base_model(recipe(), tmp_path, silent)
    tokens = texts_of(model, read_retrieval_config(ModelConfig(path=model)))
    assert len(set(map(tuple, tokens.ids(TEXTS)))) == len(TEXTS)


def silent(what: str, number: float, total: float) -> None:
    del what, number, total


def test_lists_follow_the_weights_of_the_judges(tmp_path):
    tilted = {"judges": {"brightness": {"use": "tests.retrievers:Brightness", "weight": -1.0}}}
    few = {"seeds": 1, "controls": ["no_teacher", "judge_only"]}
    made = [
        prepare(config, tmp_path, silent).lists for config in (bench(**few), bench(**few, alignment=tilted))
    ]
    assert made[0].keys() == {("both", 0), ("no_teacher", 0), ("judge_only", 0)}
    first, other = (read_orders(Path(lists["both", 0])) for lists in made)
    assert [one.teacher["taste"] for one in first] != [one.teacher["taste"] for one in other]
    assert read_orders(Path(made[0]["no_teacher", 0]))[0].teacher.keys() == {"semantic", "taste", "constant"}


@dataclass
class Whole:
    """A bench that ran twice."""

    folder: Path
    rows: list[Row]
    gates: list[Gate]
    phases: list[str] = field(default_factory=list)
    opened_early: list[str] = field(default_factory=list)
    """Runs on the test split that were there before choices and gates were written down."""
    frozen_ns: int = 0
    made_ns: dict[str, int] = field(default_factory=dict)
    """When each run of the first call was written."""
    again: tuple[Sequence[Row], Sequence[Gate]] = ()
    made_again_ns: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("bench")
    found = Whole(folder=folder, rows=[], gates=[])

    def watch(what: str, number: float, total: float) -> None:
        found.phases.append(what)
        if not (folder / "frozen.json").is_file():
            found.opened_early += [file.name for file in folder.glob("jobs/*-test-*")]

    found.rows, found.gates = run_bench(bench(), folder, watch)
    found.frozen_ns = (folder / "frozen.json").stat().st_mtime_ns
    found.made_ns = times(folder)
    found.again = run_bench(bench(), folder, silent)
    found.made_again_ns = times(folder)
    return found


def times(folder: Path) -> dict[str, int]:
    files = [*folder.glob("jobs/*"), *folder.glob("lists/*"), *folder.glob("pretrained/*.safetensors")]
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in files}


@pytest.mark.slow
def test_test_split_is_opened_after_choices_and_gates_are_frozen(whole):
    assert not whole.opened_early
    on_test = [when for name, when in whole.made_ns.items() if "-test-" in name]
    assert len(on_test) == 2 * (2 + len(CONTROLS)) + 1
    assert whole.frozen_ns <= min(on_test)
    assert [
        name for name, when in whole.made_ns.items() if "-validation-" in name and when > whole.frozen_ns
    ] == []
    frozen = json.loads((whole.folder / "frozen.json").read_text())
    config = bench()
    assert frozen["gates"] == config.gates.model_dump()
    assert frozen["retention"] == config.retention.model_dump()
    assert frozen["choices"].keys() == config.rows.keys()
    assert frozen["choices"]["rp_pl"]["loss"]["beta"] in (0.5, 1.0)
    assert frozen["choices"]["sft"]["lr"] in (1e-4, 1e-3)


@pytest.mark.slow
def test_bench_tunes_each_row_on_validation_and_runs_each_seed_on_test(whole):
    runs = [name.removeprefix("jobs/").split("-")[:3] for name in whole.made_ns if name.startswith("jobs/")]
    counts = {(row, on): sum(run[:2] == [row, on] for run in runs) for row, on, _ in runs}
    assert counts == {
        ("pretrained", "validation"): 1, ("pretrained", "test"): 1,
        ("rp_pl", "validation"): 2, ("sft", "validation"): 2,
        **{(row, "test"): 2 for row in ("rp_pl", "sft", *CONTROLS)},
    }  # fmt: skip
    phases = list(dict.fromkeys(phase.split(" · ")[0] for phase in whole.phases))
    assert phases == ["pre-training", "making lists", "tuning", "judging on the test split"]


@pytest.mark.slow
def test_bench_done_before_runs_nothing_and_says_the_same(whole):
    assert whole.made_again_ns == whole.made_ns
    rows, gates = whole.again
    assert gates == whole.gates
    for row, before in zip(rows, whole.rows, strict=True):
        assert (row.name, row.kind, row.calls, row.cpu_s, row.verdicts, row.settings) == (
            before.name, before.kind, before.calls, before.cpu_s, before.verdicts, before.settings,
        )  # fmt: skip
        assert {name: values.tolist() for name, values in row.measures.items()} == {
            name: values.tolist() for name, values in before.measures.items()
        }


@pytest.mark.slow
def test_bench_has_a_row_for_every_way_to_retrieve(whole):
    kinds = {row.name: row.kind for row in whole.rows}
    untrained = [
        "pre-trained",
        "+ rephrase",
        "cascade 6",
        "cascade 12",
        "rephrase + cascade 6",
        "rephrase + cascade 12",
    ]
    assert kinds == {
        **dict.fromkeys([*untrained, "oracle"], "untrained"),
        **dict.fromkeys(["rp_pl", "sft"], "trained"),
        **dict.fromkeys(CONTROLS, "control"),
    }
    for row in whole.rows:
        assert row.measures["taste"].shape == ((1 if row.kind == "untrained" else 2), 2)
        assert sum(row.verdicts) == pytest.approx(1)
        assert (row.cpu_s > 0) == (row.kind != "untrained")
    by_name = {row.name: row for row in whole.rows}
    assert by_name["pre-trained"].verdicts == (0, 1, 0)
    assert by_name["oracle"].mean("taste") == by_name["oracle"].mean("precision") == 1
    assert set(COLUMNS) == by_name["rp_pl"].measures.keys() == by_name["pre-trained"].measures.keys()


@pytest.mark.slow
def test_bench_leaves_its_table_gates_and_frontier(whole):
    left = json.loads((whole.folder / "bench.json").read_text())
    assert [line["row"] for line in left["table"]] == [row.name for row in whole.rows]
    assert [gate["name"] for gate in left["gates"]] == [gate.name for gate in whole.gates]
    assert len(left["gates"]) == 8
    assert [point["row"] for point in left["frontier"]] == ["pre-trained", "rp_pl", "rp_pl", "sft", "sft"]
    assert all(0 <= point["zero_shot"] <= 1 for point in left["frontier"])
    page = write_bench_report(whole.folder).read_text()
    assert page.count("<circle") == 5 + 3
    assert all(f"<td>{row.name}</td>" in page for row in whole.rows)
    assert all(f"<td>{gate.name}</td>" in page for gate in whole.gates)


@pytest.mark.slow
def test_gates_that_change_after_the_test_split_was_opened_are_refused(whole):
    moved = bench().model_copy(update={"gates": bench().gates.model_copy(update={"over_sft": -9.0})})
    with pytest.raises(ConfigError, match="its test split was opened since"):
        run_bench(moved, whole.folder, silent)
