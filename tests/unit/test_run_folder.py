import json

import pytest
import yaml

from rlhf.config.schema import Recipe
from rlhf.errors import CheckpointError, ConfigError
from rlhf.run_folder import RunFolder, environment


def recipe(run_dir, **sections) -> Recipe:
    values = {
        "name": "a",
        "run_dir": str(run_dir),
        "model": {"path": "x"},
        "task": {"train": {"file": "a"}, "rewards": [{"use": "a:b"}]},
    }
    return Recipe.model_validate(values | sections)


def write_checkpoint(folder: RunFolder, step: int) -> None:
    with folder.new_checkpoint(step) as draft:
        (draft / "state.json").write_text(str(step))


def test_opening_writes_recipe_and_environment(tmp_path):
    asked = recipe(tmp_path / "run", seed=3)
    folder = RunFolder.open(asked, fresh=False)
    assert Recipe.model_validate(yaml.safe_load((folder.path / "config.yaml").read_text())) == asked
    recorded = json.loads((folder.path / "environment.json").read_text())
    assert recorded.keys() == environment().keys()
    assert sorted(p.name for p in folder.path.iterdir()) == [".lock", "config.yaml", "environment.json"]


def test_default_folder_is_named_after_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = recipe("unused").model_copy(update={"run_dir": None})
    assert RunFolder.open(asked, fresh=False).path == tmp_path.resolve() / "runs/a"


def test_checkpoint_appears_whole_or_not_at_all(tmp_path):
    folder = RunFolder.open(recipe(tmp_path), fresh=False)

    def crash() -> None:
        with folder.new_checkpoint(2) as draft:
            (draft / "half").write_text("")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        crash()
    assert folder.checkpoints() == []
    write_checkpoint(folder, 2)
    (found,) = folder.checkpoints()
    assert found.name == "step-000002"
    assert [p.name for p in found.iterdir()] == ["state.json"]
    assert list(found.parent.iterdir()) == [found]


def test_draft_of_a_crash_is_swept_when_the_run_is_reopened(tmp_path):
    folder = RunFolder.open(recipe(tmp_path), fresh=False)
    write_checkpoint(folder, 1)
    (tmp_path / "checkpoints/draft-000002").mkdir()
    again = RunFolder.open(recipe(tmp_path), fresh=False)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
    assert again.checkpoints() == folder.checkpoints()


def test_checkpoint_written_twice_holds_the_second(tmp_path):
    folder = RunFolder.open(recipe(tmp_path), fresh=False)
    with folder.new_checkpoint(1) as draft:
        (draft / "old").write_text("")
    write_checkpoint(folder, 1)
    assert [p.name for p in folder.checkpoints()[0].iterdir()] == ["state.json"]


def test_checkpoints_are_ordered_by_step_and_pruned_oldest_first(tmp_path):
    folder = RunFolder.open(recipe(tmp_path), fresh=False)
    for step in (100, 9, 1000, 20):
        write_checkpoint(folder, step)
    assert [p.name for p in folder.checkpoints()] == [f"step-{s:06d}" for s in (9, 20, 100, 1000)]
    folder.prune(2)
    assert [p.name for p in folder.checkpoints()] == ["step-000100", "step-001000"]
    folder.prune(5)
    assert len(folder.checkpoints()) == 2


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"seed": 1}, "seed is 0 there and 1 now"),
        ({"model": {"path": "y"}}, "model.path is 'x' there and 'y' now"),
        ({"sampling": {"max_tokens": 9}}, "sampling.max_tokens is 1024 there and 9 now"),
        ({"algorithm": {"name": "dr_grpo"}}, "algorithm.name is 'grpo' there and 'dr_grpo' now"),
        (
            {"task": {"train": {"file": "a"}, "rewards": [{"use": "a:b", "weight": 2}]}},
            "task.rewards.0.weight is 1.0 there and 2.0 now",
        ),
        (
            {"task": {"train": {"file": "a"}, "rewards": [{"use": "a:b"}], "system_prompt": "Think."}},
            "task.system_prompt is None there and 'Think.' now",
        ),
    ],
)
def test_checkpoints_of_another_recipe_are_refused_by_key(tmp_path, changed, says):
    write_checkpoint(RunFolder.open(recipe(tmp_path), fresh=False), 1)
    with pytest.raises(CheckpointError, match="holds checkpoints of another run") as raised:
        RunFolder.open(recipe(tmp_path, **changed), fresh=False)
    assert says in str(raised.value)
    assert "--fresh" in str(raised.value)


@pytest.mark.parametrize(
    "changed",
    [
        {"schedule": {"num_steps": 500}},
        {"learner": {"num_ranks": 2}},
        {"engine": {"num_engines": 2}},
        {"checkpoint": {"keep": 5}},
        {"eval": {"every": 3}},
    ],
)
def test_what_may_change_between_runs_may_change(tmp_path, changed):
    write_checkpoint(RunFolder.open(recipe(tmp_path), fresh=False), 1)
    assert len(RunFolder.open(recipe(tmp_path, **changed), fresh=False).checkpoints()) == 1


def test_folder_without_checkpoints_may_be_taken_over(tmp_path):
    RunFolder.open(recipe(tmp_path), fresh=False)
    assert RunFolder.open(recipe(tmp_path, seed=9), fresh=False).path == tmp_path


def test_fresh_deletes_a_run_and_only_a_run(tmp_path):
    folder = RunFolder.open(recipe(tmp_path / "run"), fresh=False)
    write_checkpoint(folder, 1)
    assert RunFolder.open(recipe(tmp_path / "run", seed=1), fresh=True).checkpoints() == []
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes").write_text("")
    with pytest.raises(ConfigError, match="--fresh will not delete it"):
        RunFolder.open(recipe(tmp_path / "other"), fresh=True)
    assert (tmp_path / "other/notes").exists()


def test_fresh_accepts_an_empty_or_absent_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent"):
        assert RunFolder.open(recipe(tmp_path / name), fresh=True).path.is_dir()


@pytest.mark.parametrize("place", ["/proc/run", "file/run"])
def test_unwritable_folder_names_the_key(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run_dir: cannot write to .*Name another folder"):
        RunFolder.open(recipe(tmp_path / place), fresh=False)
