"""Episodes of several turns are learned, synchronously and asynchronously; from scores by chance nothing is."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf.telemetry.recording import read_samples, sample_files
from tests.toy import ROOT, column, metrics, toy_recipe, train

pytestmark = pytest.mark.slow
SCRIPT = {
    "use": "envs.script:script_environment",
    "kwargs": {"script": str(ROOT / "tests/digits_agent.py")},
}
SAMPLES = 64
"""Of a step: all of them are recorded."""
LEARNER = {"lr": 1e-2, "microbatch_tokens": 2048}
QUICK = {"schedule": {"num_steps": 14}, "learner": LEARNER}


def played(
    folder: Path, *, shuffled: bool = False, environment: dict[str, Any] | None = None, **sections: Any
) -> list[dict[str, Any]]:
    recipe = toy_recipe(
        folder,
        sampling={"max_prompt_tokens": 64, "max_tokens": 12},
        telemetry={"samples_per_step": SAMPLES},
        **sections,
    )
    raw = yaml.safe_load(recipe.read_text())
    raw["model"]["chat_template"] = str(ROOT / "recipes/cpu/chat.jinja")
    raw["task"] |= {"rewards": [], "template": "chat", "needs_reference": False}
    digits = {"use": f"{ROOT / 'tests/toy_environment.py'}:Digits", "kwargs": {"shuffled": shuffled}}
    raw["task"]["environment"] = (environment or digits) | {"limits": {"max_tokens": 128, "max_turns": 3}}
    raw["eval"] = {"every": 0}
    recipe.write_text(yaml.safe_dump(raw))
    code, output = train(recipe, "checkpoint.every=0")
    assert code == 0, output
    return metrics(folder / "run")


def rise(steps: list[dict[str, Any]], name: str = "env/log/digits") -> float:
    shares = column(steps, name)
    return sum(shares[-3:]) / 3 - sum(shares[:3]) / 3


def records(folder: Path, step: int) -> dict[tuple[int, int], tuple[Any, list[float]]]:
    """(what was sampled and how it was graded, log-probabilities) by group and sample."""
    found = {}
    for sample in read_samples(sample_files(folder / "run")[step - 1]):
        segments = sample["segments"]
        logprobs = [value for segment in segments for value in segment.pop("rollout_logprobs")]
        # A program that ends says nothing of why.
        stop = {"env_done": "stop"}.get(sample["stop"], sample["stop"])
        record = (sample["prompt_id"], sample["completion"], sample["reward"], stop, segments)
        found[sample["group"], sample["sample_index"]] = record, logprobs
    return found


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """(folder, metrics by step) of a synchronous run."""
    pytest.importorskip("vllm")
    folder = tmp_path_factory.mktemp("native")
    return folder, played(folder, **QUICK)


def test_episodes_are_learned_synchronously_and_their_tokens_agree_with_the_engine(
    native: tuple[Path, list[dict[str, Any]]],
) -> None:
    _, steps = native
    assert rise(steps) > 0.2
    assert max(column(steps, "mismatch/logprob_gap_max")) < 1e-4
    assert max(column(steps, "buffer/staleness_max")) == 0
    assert sum(column(steps, "time/overlap_share")[2:-2]) == 0
    assert max(column(steps, "env/turns_max")) == 2
    assert max(column(steps, "env/dropped_tokens")) == 0
    assert min(column(steps, "env/cached_share")) > 0.3


def test_plain_openai_script_is_trained_as_its_conversation_is_natively(
    native: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """A script without an import of ours: what it is trained on is, step by step, what the native run is."""
    pytest.importorskip("openai")
    folder, native_steps = native
    steps = played(tmp_path, environment=SCRIPT, **QUICK)
    assert rise(steps, "rollout/reward_mean") > 0.2
    assert max(column(steps, "mismatch/logprob_gap_max")) < 1e-4
    for step in range(1, 6):
        of_script, of_native = records(tmp_path, step), records(folder, step)
        assert len(of_script) == SAMPLES
        assert of_script.keys() == of_native.keys()
        for key, (record, logprobs) in of_script.items():
            assert (record, logprobs) == of_native[key]
    assert max(column(steps[:5], "env/turns_max")) == 2
    first = column(native_steps, "rollout/reward_mean")[:5]
    assert column(steps, "rollout/reward_mean")[:5] == pytest.approx(first, abs=1e-6)


def test_episodes_are_learned_asynchronously(tmp_path: Path) -> None:
    steps = played(
        tmp_path,
        schedule={"num_steps": 36, "max_staleness": 3},
        learner={**LEARNER, "lr": 5e-3},
        engine={"kind": "hf"},
    )
    assert rise(steps) > 0.2
    assert 0 < max(column(steps, "buffer/staleness_max")) <= 3


def test_scores_by_chance_teach_nothing(tmp_path: Path) -> None:
    steps = played(tmp_path, shuffled=True, engine={"kind": "hf"}, **QUICK)
    assert rise(steps) < 0.1
