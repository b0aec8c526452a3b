import json

import pyarrow.parquet
import pytest

from rlhf.config.reject import DecontaminateConfig, FilterConfig, PairsConfig, SelectConfig
from rlhf.config.task import SourceConfig
from rlhf.data.prompts import load_prompts
from rlhf.data.selection import Rules
from rlhf.errors import DataError
from rlhf.offline.collect import CollectPlan, collect
from rlhf.offline.rows import new_rows
from rlhf.offline.selected import write_selected
from rlhf.telemetry.metrics import declared, wilson
from rlhf.types import RewardResult, Sampling
from tests.fakes import make_prompt, make_trajectory, run_virtually

LEVELS = ("easy", "hard")


def grade(text: str) -> RewardResult:
    last = int(text[-1])
    if last == 7:
        return RewardResult(value=None, outcome="not_applicable")
    return RewardResult(value=float(last % 2), parts={"task": float(last % 2), "m.f": last / 10})


@pytest.fixture
def collected(tmp_path):
    async def roll_out(prompt, *, seeds, sampling):
        return [make_trajectory(text=f"it is {s}", reward=None, sample_index=i) for i, s in enumerate(seeds)]

    class Reward:
        async def score(self, group):
            return [grade(t.completion) for t in group.trajectories]

    prompts = [make_prompt(i, level=LEVELS[i % 2]) for i in range(12)]
    plan = CollectPlan(prompts=prompts, sampling=Sampling(max_tokens=8), samples_per_prompt=8)
    run_virtually(collect(roll_out, Reward(), plan, tmp_path / "collected"))
    return tmp_path / "collected"


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(collected, folder, **config):
    config = SelectConfig(**config)
    folder.mkdir(exist_ok=True)
    metrics = write_selected(
        collected, Rules(config=config, filters=dict(zip(["m.f"], config.filters, strict=False))), folder
    )
    for name in metrics:
        declared(name)
    return metrics, json.loads((folder / "summary.json").read_text())


def test_rows_are_read_as_rows_to_learn_from(collected, tmp_path):
    metrics, _ = run(collected, tmp_path / "out", per_prompt=2, keep_columns=("level", "reference", "absent"))
    source = SourceConfig(file=str(tmp_path / "out/rows.jsonl"))
    rows = load_prompts(source, key="sft.source", require_reference=True)
    assert len(rows) == metrics["reject/kept"] > 12
    for row in rows:
        source_id, _, _ = row.id.partition("#")
        assert row.messages == make_prompt(int(source_id[1:])).messages
        assert row.reference == "7"
        assert row.columns["completion"].startswith("it is ")
        assert grade(row.columns["completion"]).value == row.columns["reward"] == 1.0
        assert row.columns["level"] == LEVELS[int(source_id[1:]) % 2]
        assert row.columns["source"] == source_id


def test_every_sample_is_counted_once_and_prompts_have_their_difficulty(collected, tmp_path):
    filters = (FilterConfig(use="m:f", at_most=0.6),)
    metrics, summary = run(
        collected, tmp_path / "out", filters=filters, limit=5, pairs=PairsConfig(per_prompt=2)
    )
    assert summary["kept"] + sum(summary["dropped"].values()) == summary["samples"] == 96
    assert set(summary["dropped"]) == {"ungradable", "wrong", "filter/m.f", "per_prompt", "limit"}
    assert (summary["kept"], metrics["reject/dropped/limit"]) == (5, summary["dropped"]["limit"])
    prompts = lines(tmp_path / "out/prompts.jsonl")
    assert sum(summary["pass_rate_histogram"]) == len(prompts) == 12
    assert sum(p["num_kept"] for p in prompts) == 5
    for prompt in prompts:
        assert prompt["num_samples"] + prompt["num_ungradable"] == 8
        assert prompt["pass_rate"] == prompt["num_correct"] / prompt["num_samples"]
        low, high = wilson(prompt["num_correct"], prompt["num_samples"])
        assert (prompt["pass_rate_low"], prompt["pass_rate_high"]) == (low, high)
    pairs = lines(tmp_path / "out/pairs.jsonl")
    assert len(pairs) == summary["pairs"] > 0
    for pair in pairs:
        assert grade(pair["chosen"]).value == pair["chosen_reward"] == 1
        assert grade(pair["rejected"]).value == pair["rejected_reward"] == 0


def test_a_limit_draws_by_its_seed_and_keeps_the_order(collected, tmp_path):
    drawn = []
    for seed in range(6):
        run(collected, tmp_path / f"{seed}", limit=4, seed=seed)
        drawn.append([row["id"] for row in lines(tmp_path / f"{seed}/rows.jsonl")])
    run(collected, tmp_path / "all")
    everything = [row["id"] for row in lines(tmp_path / "all/rows.jsonl")]
    assert all([name for name in everything if name in of_seed] == of_seed for of_seed in drawn)
    assert {len(of_seed) for of_seed in drawn} == {4}
    assert len({tuple(of_seed) for of_seed in drawn}) > 3


def test_parquet_has_the_same_rows(collected, tmp_path):
    run(collected, tmp_path / "out", keep_columns=("level",))
    run(collected, tmp_path / "out", keep_columns=("level",), format="parquet")
    found = pyarrow.parquet.read_table(tmp_path / "out/rows.parquet").to_pylist()
    expected = lines(tmp_path / "out/rows.jsonl")
    for row in expected:
        row["prompt"] = [{"role": "user", "content": row["prompt"]}]
    assert found == expected
    source = SourceConfig(file=str(tmp_path / "out/rows.parquet"))
    assert len(load_prompts(source, key="sft.source", require_reference=True)) == len(expected)


def test_parquet_of_no_rows_is_a_file_all_the_same(collected, tmp_path):
    metrics, _ = run(collected, tmp_path / "out", min_reward=2.0, format="parquet")
    assert metrics["reject/kept"] == 0
    assert pyarrow.parquet.read_table(tmp_path / "out/rows.parquet").num_rows == 0


def test_prompts_of_a_test_set_are_left_out_and_counted_by_set(collected, tmp_path):
    (tmp_path / "test.jsonl").write_text('{"question": "Question  3"}\n{"question": "something else"}\n')
    against = {"bench": SourceConfig(file=str(tmp_path / "test.jsonl"), columns={"prompt": "question"})}
    metrics, summary = run(collected, tmp_path / "out", decontaminate=DecontaminateConfig(against=against))
    assert summary["contaminated_by"] == {"bench": 1}
    assert summary["dropped"]["contaminated"] == 8
    assert metrics["reject/contaminated"] == 1
    assert [p["id"] for p in lines(tmp_path / "out/prompts.jsonl") if p["contaminated"] == ["bench"]] == [
        "p3"
    ]


def test_a_test_set_that_cannot_be_read_is_named(collected, tmp_path):
    against = {"bench": SourceConfig(file=str(tmp_path / "none.jsonl"))}
    with pytest.raises(DataError, match=r"select.decontaminate.against.bench.file: there is no file"):
        run(collected, tmp_path / "out", decontaminate=DecontaminateConfig(against=against))
    assert not (tmp_path / "out/rows.jsonl").exists()


def test_parquet_refuses_a_column_that_comes_too_late_to_be_one(tmp_path):
    columns = ("id", "completion", "reference", "reward", "pass_rate", "num_tokens", "source")
    row = dict.fromkeys(columns) | {"prompt": "?"}

    def write_all():
        with new_rows(tmp_path / "rows.parquet") as write:
            for _ in range(1024):
                write(row)
            write(row | {"level": 3})

    with pytest.raises(DataError, match=r"select.keep_columns: \['level'\] first stand in a row after"):
        write_all()
    assert not (tmp_path / "rows.parquet").exists()


def test_where_nothing_could_be_graded_there_is_no_pass_rate(tmp_path):
    async def roll_out(prompt, *, seeds, sampling):
        return [make_trajectory(text="7", reward=None, sample_index=i) for i, _ in enumerate(seeds)]

    class Reward:
        async def score(self, group):
            return [grade(t.completion) for t in group.trajectories]

    plan = CollectPlan(prompts=[make_prompt(0)], sampling=Sampling(max_tokens=8), samples_per_prompt=2)
    run_virtually(collect(roll_out, Reward(), plan, tmp_path / "collected"))
    metrics, summary = run(tmp_path / "collected", tmp_path / "out")
    assert "reject/pass_rate" not in metrics
    assert (summary["pass_rate"], summary["ungraded_prompts"]) == (None, 1)
