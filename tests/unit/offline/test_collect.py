import asyncio
import json

import pytest

from rlhf.errors import CheckpointError, DataError
from rlhf.offline.collect import CollectPlan, collect, is_collected, read_collected, take_over
from rlhf.rollout.group import sample_seed
from rlhf.types import RewardResult, Sampling
from tests.fakes import make_prompt, make_trajectory, run_virtually

SAMPLING = Sampling(max_tokens=8)


async def roll_out(prompt, *, seeds, sampling):
    await asyncio.sleep(seeds[0] % 5)
    return [
        make_trajectory(text=f"{prompt.id} {seed}", reward=None, sample_index=i)
        for i, seed in enumerate(seeds)
    ]


class Grader:
    """Right is what ends in an even digit, ungradable what ends in 7; counts the groups it grades."""

    def __init__(self, fails_at: int = -1) -> None:
        self.graded: list[str] = []
        self.fails_at = fails_at

    async def score(self, group):
        await asyncio.sleep(1)
        if len(self.graded) == self.fails_at:
            raise RuntimeError("killed")
        self.graded.append(group.prompt.id)
        return [self._grade(t.completion[-1]) for t in group.trajectories]

    def _grade(self, last):
        if last == "7":
            return RewardResult(value=None, outcome="not_applicable")
        return RewardResult(value=float(int(last) % 2 == 0), parts={"task": float(int(last) % 2 == 0)})


def plan(num_prompts=7, **changes):
    settings = {"prompts": [make_prompt(i, level=i) for i in range(num_prompts)], "sampling": SAMPLING}
    return CollectPlan(**(settings | {"samples_per_prompt": 4, "prompts_per_chunk": 3} | changes))


def run(folder, grader=None, progress=None, **changes):
    run_virtually(collect(roll_out, grader or Grader(), plan(**changes), folder, progress=progress))
    return list(read_collected(folder))


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.json*"))}


def test_collect_writes_every_prompt_in_order_with_its_graded_samples(tmp_path):
    found = run(tmp_path, seed=5)
    assert [c.prompt for c in found] == plan().prompts
    assert sorted(path.name for path in tmp_path.glob("*-*")) == [f"chunk-00000{i}.jsonl" for i in range(3)]
    for one in found:
        for index, sample in enumerate(one.samples):
            seed = sample_seed(5, one.prompt.id, index, 0)
            expected = None if seed % 10 == 7 else float(seed % 2 == 0)
            assert (sample.index, sample.completion, sample.reward) == (
                index,
                f"{one.prompt.id} {seed}",
                expected,
            )
            assert sample.is_correct == (expected == 1.0)
            assert (sample.stop, sample.num_tokens) == ("stop", 3)


@pytest.mark.parametrize("in_flight", [1, 3])
def test_collect_resumes_without_grading_anything_twice(tmp_path, in_flight):
    expected = run(tmp_path / "whole", chunks_in_flight=in_flight)
    for fails_at in range(7):
        folder, first, second = tmp_path / str(fails_at), Grader(fails_at), Grader()
        with pytest.raises(RuntimeError, match="killed"):
            run(folder, first, chunks_in_flight=in_flight)
        with pytest.raises(DataError, match="no complete collection"):
            read_collected(folder)
        assert run(folder, second, chunks_in_flight=in_flight) == expected
        assert sorted(first.graded + second.graded) == sorted(prompt.id for prompt in plan().prompts)
        assert files(folder) == files(tmp_path / "whole")


def test_equal_collection_is_taken_over_as_far_as_it_is_there(tmp_path):
    expected = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "part", Grader(fails_at=5))
    take_over(plan(), tmp_path / "whole", tmp_path / "deep" / "one")
    assert is_collected(plan(), tmp_path / "deep" / "one")
    assert files(tmp_path / "deep" / "one") == files(tmp_path / "whole")
    grader = Grader()
    take_over(plan(), tmp_path / "part", tmp_path / "two")
    assert run(tmp_path / "two", grader) == expected
    # The chunks of three that were whole are not graded again.
    assert len(grader.graded) == 4


def test_other_collection_is_left_where_it_is(tmp_path):
    run(tmp_path / "whole")
    take_over(plan(seed=1), tmp_path / "whole", tmp_path / "other")
    take_over(plan(), tmp_path / "nowhere", tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "begun", Grader(fails_at=0))
    before = files(tmp_path / "begun")
    take_over(plan(), tmp_path / "whole", tmp_path / "begun")
    assert files(tmp_path / "begun") == before


def test_collect_takes_prompts_at_most_a_chunk_ahead(tmp_path):
    handed_out = []

    class Prompts:
        def __iter__(self):
            for prompt in plan().prompts:
                handed_out.append(prompt.id)
                yield prompt

    seen = []
    run(tmp_path, prompts=Prompts(), progress=lambda p: seen.append((len(handed_out) - 7, p.prompts_done)))
    assert max(out - done for out, done in seen) < 6
    assert seen[-1] == (7, 7)


def test_collect_forgets_before_each_chunk_where_they_go_one_by_one(tmp_path):
    forgotten = []

    async def forget():
        forgotten.append(len(list(tmp_path.glob("chunk-*"))))

    run(tmp_path, forget=forget)
    assert forgotten == [0, 1, 2]


def test_collect_tells_how_far_it_is(tmp_path):
    seen = []
    found = run(tmp_path, progress=seen.append)
    correct, gradable = sum(c.num_correct for c in found), sum(c.num_gradable for c in found)
    assert [p.prompts_done for p in seen] == list(range(1, 8))
    assert {p.num_prompts for p in seen} == {7}
    assert seen[-1].correct_share == pytest.approx(correct / gradable)
    assert seen[-1].samples_per_s > 0
    again = []
    run(tmp_path, progress=again.append)
    assert [p.prompts_done for p in again] == [3, 6, 7]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed is 0 there and 1 now"),
        ({"samples_per_prompt": 5}, "collect.samples_per_prompt is 4 there and 5 now"),
        ({"sampling": Sampling(max_tokens=9)}, "sampling.max_tokens is 8 there and 9 now"),
        ({"num_prompts": 8}, "prompts.number is 7 there and 8 now"),
        ({"prompts": [make_prompt(i, level=0) for i in range(7)]}, "prompts.digest is"),
        ({"identity": {"model": "b"}}, "model is None there and 'b' now"),
    ],
)
def test_collect_refuses_a_folder_of_other_settings(tmp_path, changes, named):
    run(tmp_path)
    with pytest.raises(CheckpointError, match=named):
        run(tmp_path, **changes)


def test_collect_grades_again_what_could_not_be_graded_before_a_stop(tmp_path):
    class Broken(Grader):
        async def score(self, group):
            results = await super().score(group)
            return [RewardResult(value=None, outcome="timeout"), *results[1:]]

    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path, Broken(fails_at=2))
    second = Grader()
    found = run(tmp_path, second)
    assert len(second.graded) == 7
    assert all(s.outcome != "timeout" for c in found for s in c.samples)


def test_a_torn_line_of_the_journal_is_not_read(tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path, Grader(2))
    journal = tmp_path / "grades-000000.jsonl"
    whole = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(whole[:-1]) + whole[-1][:40])
    second = Grader()
    run(tmp_path, second)
    assert json.loads(whole[0])["results"]
    assert len(second.graded) == 6


def test_a_sample_that_only_filters_speak_of_could_not_be_graded(tmp_path):
    class Filtered(Grader):
        def _grade(self, last):
            return RewardResult(value=0.0, parts={"m.f": 1.0})

    found = run(tmp_path, Filtered(), filters=frozenset({"m.f"}))
    assert {(s.reward, s.outcome, s.is_correct) for c in found for s in c.samples} == {
        (None, "not_applicable", False)
    }
