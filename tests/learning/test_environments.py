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


def rise(steps: list[dict[str, Any]]) -> float:
    shares = column(steps, "rollout/reward_mean")
    return sum(shares[-3:]) / 3 - sum(shares[:3]) / 3


def records(folder: Path, *, step: int) -> dict[tuple[int, int], Any]:
    """All that was trained on in a step: the segments by group and sample."""
    samples = read_samples(sample_files(folder / "run")[step - 1])
    return {(s["group"], s["sample_index"]): (s["stop"], s["reward"], s["segments"]) for s in samples}


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """(folder, metrics by step) of a synchronous run."""
    pytest.importorskip("vllm")
    folder = tmp_path_factory.mktemp("native")
    return folder, played(folder, schedule={"num_steps": 30})


def test_episodes_are_learned_synchronously_and_their_tokens_agree_with_the_engine(
    native: tuple[Path, list[dict[str, Any]]],
) -> None:
    _, steps = native
    assert rise(steps) > 0.2
    assert max(column(steps, "mismatch/logprob_gap_max")) < 1e-4
    assert max(column(steps, "env/turns_max")) == 2
    assert max(column(steps, "env/dropped_tokens")) == 0
    assert min(column(steps, "env/cached_share")) > 0.3


def test_plain_openai_script_is_trained_as_its_conversation_is_natively(
    native: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """A script without an import of ours; its first step's records, all of them, are the native run's."""
    folder, native_steps = native
    steps = played(tmp_path, environment=SCRIPT, schedule={"num_steps": 12})
    print(column(native_steps, "rollout/reward_mean"), column(steps, "rollout/reward_mean"))
    print(
        column(steps, "env/cached_share"), column(steps, "time/step_s"), column(native_steps, "time/step_s")
    )
    for step in range(1, 13):
        a, b = records(tmp_path, step=step), records(folder, step=step)
        print(
            step,
            sum(a[k] == b[k] for k in a),
            sum([x["token_ids"] for x in a[k][2]] == [x["token_ids"] for x in b[k][2]] for k in a),
            len(a),
            len(b),
        )
