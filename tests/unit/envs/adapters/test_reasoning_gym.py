"""The package itself: every generator's own answers, blanks, attacks."""

import contextlib
import signal
from pathlib import Path

import pytest

from envs.adapters.reasoning_gym import GRAMMARS, REFUSED, ReasoningGym, demonstrations, rows, verify
from rlhf.errors import DataError, EpisodeError
from rlhf.types import Message, Segment, Trajectory, Turn
from tests.unit.envs.adapters.episodes import play
from tests.unit.envs.playing import Episode, prompt_of

pytest.importorskip("reasoning_gym", reason="the extra `content` is not installed")

from reasoning_gym.factory import DATASETS

GENERATORS = sorted(set(DATASETS) - set(REFUSED))
TELL_NO_ANSWER = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
PAYS_FOR_A_BLANK = {"countdown", "fraction_simplification", "sentence_reordering", "puzzle24"}


def scored(row, text, folder, **options):
    with Episode(ReasoningGym(**options), row, folder) as episode:
        assert episode.say(text).terminated
        return episode.score()


@pytest.mark.parametrize("name", GENERATORS)
def test_own_answer_is_right_and_nothing_is_wrong(tmp_path, name):
    for row in rows(seed=3, size=2, name=name):
        assert scored(row, "", tmp_path)["score"] == 0
        for garbage in ("\x00", "9" * 5000, "[[", "{'a':", "x" * 100_000):
            assert scored(row, garbage, tmp_path)["score"] == 0
        assert ("reference" in row) == (name not in TELL_NO_ANSWER)
        if "reference" in row:
            assert scored(row, row["reference"], tmp_path) == {"score": 1.0, "raw": 1.0}


@contextlib.contextmanager
def seconds(number):
    def late(*_):
        raise AssertionError("took too long")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(number)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", GENERATORS)
def test_answer_is_never_run_as_code_nor_a_number_without_end(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (row,) = rows(seed=3, size=1, name=name)
    attacks = (
        "__import__('pathlib').Path('ran').touch()",
        "__import__('os').system('touch ran')",
        "[c for c in ().__class__.__base__.__subclasses__()] and __import__('os').mkdir('ran')",
        "open('ran', 'w')",
        "9**9**9**9",
        "(9**99)**99**9",
        "((((9**99)**99)**99)**99)**99",
        "factorial(99999999)",
        "99999999!",
        "[0]*10**10",
        "[0 for a in 'aaaaaaaaa' for b in 'aaaaaaaaa']",
        "(" * 5000,
    )
    with seconds(20):
        for attack in attacks:
            assert scored(row, attack, tmp_path)["score"] == 0
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", sorted(GRAMMARS))
def test_guard_lets_every_answer_of_the_generator_through(tmp_path, name):
    for row in rows(seed=5, size=10, name=name):
        assert scored(row, row["reference"], tmp_path)["score"] == 1


@pytest.mark.parametrize("name", sorted(PAYS_FOR_A_BLANK))
def test_partial_credit_is_paid_only_where_it_is_asked_for(tmp_path, name):
    (row,) = rows(seed=3, size=1, name=name)
    strict = scored(row, "", tmp_path)
    assert strict["score"] == 0 < strict["raw"]
    assert scored(row, "", tmp_path, threshold=0.0)["score"] == strict["raw"]


def test_answer_may_stand_in_a_tag(tmp_path):
    (row,) = rows(seed=3, size=1, name="gcd")
    answer = row["reference"]
    for text, score in [
        (f"<answer>0</answer> no, <answer> {answer} </answer>.", 1),
        (answer, 0),
        (f"<answer>{answer}", 0),
        (f"{answer}</answer>", 0),
    ]:
        assert scored(row, text, tmp_path, tag="answer")["score"] == score


def test_the_reward_says_what_the_environment_says():
    (row,) = rows(seed=3, size=1, name="gcd")
    for text, outcome in [(row["reference"], "ok"), ("0", "wrong"), ("", "wrong")]:
        turn = Turn(message=Message(role="assistant", content=text), segment=0, start=0, stop=1)
        segment = Segment(token_ids=(1,), loss_mask=(True,), rollout_logprobs=(0.0,), versions=(0,))
        trajectory = Trajectory(segments=(segment,), turns=(turn,), stop="stop", sample_index=0, seed=0)
        result = verify(prompt_of(row), trajectory)
        assert (result.value, result.outcome) == (float(outcome == "ok"), outcome)


def test_splits_share_nothing_whatever_the_seed():
    kwargs = {"name": "basic_arithmetic", "max_terms": 2, "max_digits": 1, "allow_negation": False}
    train = [row["prompt"] for row in rows(seed=1, size=100, split="train", **kwargs)]
    heldout = [row["prompt"] for row in rows(seed=2, size=15, split="heldout", **kwargs)]
    assert len(set(train)) == 100
    assert not set(train) & set(heldout)
    assert train == [row["prompt"] for row in rows(seed=1, size=100, split="train", **kwargs)]
    with pytest.raises(DataError, match="distinct tasks"):
        rows(size=500, split="heldout", **kwargs)


def test_demonstrations_are_right_but_for_the_careless():
    kwargs = {"name": "gcd", "size": 400}
    assert all(row["completion"] == row["reference"] for row in demonstrations(**kwargs))
    right = sum(row["completion"] == row["reference"] for row in demonstrations(careless=0.5, **kwargs))
    assert 200 < right < 360
    with pytest.raises(DataError, match="no answers"):
        demonstrations(name="rush_hour", size=1)


def test_what_cannot_be_drawn_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no generator 'sums', expected one of .*chain_sum"):
        rows(name="sums")
    for name in REFUSED:
        with pytest.raises(DataError, match="cannot be used"):
            rows(name=name)
    with pytest.raises(DataError, match="refuses the settings"):
        rows(name="gcd", wrong=1)
    with pytest.raises(DataError, match="refuses the settings"):
        rows(name="gcd", min_numbers=-1)
    for column in (None, "gcd", {"name": "gcd"}):
        with pytest.raises(DataError, match="expected what `rows`"):
            scored({"prompt": "?", "reasoning_gym": column}, "1", tmp_path)
    (row,) = rows(name="gcd", size=1)
    with pytest.raises(EpisodeError, match="another version"):
        scored(row | {"prompt": "another"}, "1", tmp_path)


def test_task_is_played_by_the_runner(tmp_path):
    (row,) = rows(seed=3, size=1, name="gcd")
    for i, (text, value) in enumerate([(row["reference"], 1.0), ("none", 0.0)]):
        folder = tmp_path / str(i)
        (found,) = play("envs.adapters.reasoning_gym:ReasoningGym", row, folder, write=lambda _, t=text: t)
        assert (found.stop, found.reward.value, found.error) == ("env_done", value, "")
