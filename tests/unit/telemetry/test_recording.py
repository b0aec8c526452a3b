import math
import random
from dataclasses import replace

import numpy as np
import pytest

from rlhf.errors import DataError
from rlhf.telemetry.recording import (
    SampleRecorder,
    load_groups,
    read_samples,
    sample_files,
    sample_line,
    save_groups,
)
from rlhf.types import Message, RewardResult
from tests.unit.telemetry.synthetic import advantages_of, decode, make_group, make_trajectory


def record(run_dir, groups, *, step=3, count=6, seed=0):
    recorder = SampleRecorder(run_dir, decode=decode, samples_per_step=count, seed=seed)
    line = recorder.record(step, groups, advantages_of(groups))
    return line, [entry for path in sample_files(run_dir) for entry in read_samples(path)]


def test_recorder_writes_token_exact_entries(tmp_path):
    groups = [make_group(0, version=2)]
    line, entries = record(tmp_path, groups)

    entry = entries[0]
    trajectory = groups[0].trajectories[entry["sample_index"]]
    segment = entry["segments"][0]
    assert (tmp_path / "samples" / "step-000003.jsonl").is_file()
    assert tuple(segment["token_ids"]) == trajectory.segments[0].token_ids
    assert "".join(segment["pieces"]).endswith(trajectory.completion)
    assert tuple(segment["versions"]) == trajectory.segments[0].versions
    assert entry["prompt"] == groups[0].prompt.messages[0].content
    assert entry["reward"] == trajectory.reward.value
    assert line is not None
    assert "\n" not in line


def test_recorder_keeps_best_and_worst(tmp_path):
    groups = [make_group(i) for i in range(4)]
    _, entries = record(tmp_path, groups, count=9)
    values = sorted(t.reward.value for g in groups for t in g.trajectories)

    by_pick = {
        pick: [e["reward"] for e in entries if e["pick"] == pick] for pick in ("best", "worst", "random")
    }

    assert sorted(by_pick["best"]) == values[-3:]
    assert sorted(by_pick["worst"]) == values[:3]
    assert len(by_pick["random"]) == 3


def test_recorder_choice_depends_on_seed_and_step_only(tmp_path):
    groups = [make_group(i) for i in range(4)]

    again = [record(tmp_path / name, groups)[1] for name in "ab"]
    other = record(tmp_path / "c", groups, seed=1)[1]

    assert again[0] == again[1]
    assert again[0] != other


@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_recorder_takes_any_count(tmp_path, count):
    groups = [make_group(0)]

    line, entries = record(tmp_path, groups, count=count)

    assert len(entries) == min(count, 8)
    assert (line is None) == (count == 0)


def test_recorder_keeps_ungradable_trajectories_as_unknown(tmp_path):
    broken = RewardResult(value=None, outcome="error", parts={"judge": math.nan}, detail={"message": "boom"})
    group = make_group(0)
    group = replace(group, trajectories=(replace(group.trajectories[0], reward=broken),))
    recorder = SampleRecorder(tmp_path, decode=decode, samples_per_step=1)
    recorder.record(1, [group], [[math.nan]])

    [entry] = read_samples(sample_files(tmp_path)[0])

    assert (entry["reward"], entry["outcome"], entry["advantage"]) == (None, "error", None)
    assert entry["parts"] == {"judge": None}


def test_recorder_removes_samples_that_will_be_recorded_again(tmp_path):
    groups = [make_group(0)]
    for step in (1, 2, 3):
        SampleRecorder(tmp_path, decode=decode, samples_per_step=1, first_step=step).record(
            step, groups, advantages_of(groups)
        )

    SampleRecorder(tmp_path, decode=decode, samples_per_step=1, first_step=2)

    assert [path.stem for path in sample_files(tmp_path)] == ["step-000001"]


def test_recorder_writes_half_a_surrogate_pair(tmp_path):
    group = make_group(0, size=1)
    odd = make_trajectory("a", "\ud83d", version=0, reward=RewardResult(value=0.0, outcome="wrong"))

    _, entries = record(tmp_path, [replace(group, trajectories=(odd,))], count=1)

    assert entries[0]["completion"] == "\ud83d"


def test_groups_round_trip_exactly(tmp_path):
    rng = random.Random(5)
    groups = [make_group(i, version=i, rng=rng) for i in range(3)]
    groups[0] = replace(groups[0], prompt=replace(groups[0].prompt, columns={"level": 3, "tags": ["a", "ü"]}))
    groups[1] = replace(
        groups[1], trajectories=tuple(replace(t, reward=None) for t in groups[1].trajectories)
    )
    began = (Message(role="system", content="Play."), Message(role="user", content="Begin."))
    tools = ({"type": "function", "function": {"name": "look", "parameters": {}}},)
    episodes = tuple(replace(t, opening=began, tools=tools, is_episode=True) for t in groups[2].trajectories)
    groups[2] = replace(groups[2], trajectories=episodes)

    save_groups(tmp_path / "groups" / "step-000001.jsonl.gz", groups)

    assert load_groups(tmp_path / "groups" / "step-000001.jsonl.gz") == groups


@pytest.mark.parametrize("value", [(1, 2), {1: "a"}, object()])
def test_save_groups_refuses_columns_it_would_change(tmp_path, value):
    group = make_group(0)
    group = replace(group, prompt=replace(group.prompt, columns={"odd": value}))

    with pytest.raises(DataError, match="odd"):
        save_groups(tmp_path / "g.jsonl.gz", [group])


def test_sample_line_is_one_short_line():
    group = make_group(0)
    reward = RewardResult(value=None, outcome="timeout")
    long = make_trajectory("p", "x\ny " * 500, version=0, reward=reward)

    line = sample_line(group.prompt, long, width=80)

    assert "\n" not in line
    assert len(line) < 110
    assert "not gradable" in line


def test_saved_groups_come_back_with_routing_and_kept_sets(tmp_path):
    group = make_group(0)
    one = group.trajectories[0]
    length = len(one.segments[0].token_ids)
    routing = np.arange(length * 6, dtype=np.int16).reshape(length, 2, 3) - 1
    kept = tuple(np.arange(t, dtype=np.int32) for t in range(length))
    segment = replace(one.segments[0], routing=routing, kept=kept)
    group = replace(group, trajectories=(replace(one, segments=(segment,)), *group.trajectories[1:]))
    save_groups(tmp_path / "g.jsonl.gz", [group])
    (loaded,) = load_groups(tmp_path / "g.jsonl.gz")
    assert loaded == group
    found = loaded.trajectories[0].segments[0]
    assert found.routing.dtype == np.int16
    assert np.array_equal(found.routing, routing)
    assert [(ids.dtype, ids.tolist()) for ids in found.kept] == [(np.int32, ids.tolist()) for ids in kept]
    assert loaded.trajectories[1].segments[0].routing is None
