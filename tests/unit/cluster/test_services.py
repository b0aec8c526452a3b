import asyncio
import logging
import os
import signal
from pathlib import Path

import psutil
import pytest

from rlhf.cluster.launch import ray_session
from rlhf.config.loading import resolved_yaml
from rlhf.config.schema import PlacementConfig, Recipe
from rlhf.errors import ConfigError, ModelError
from rlhf.execute import preflight
from rlhf.materials import service_bundles, serviced
from rlhf.processes import open_graders
from rlhf.types import TrajectoryGroup
from tests.fakes import make_prompt, make_trajectory
from tests.tiny import save_tiny_classifier

ROOT = Path(__file__).parents[3]


def recipe(model: str, url: str = "service://rm", **service: object) -> Recipe:
    endpoint = {"url": url, "model": "rm"}
    reward = {"use": "rewards.reward_model:ServedScorer", "limit_s": 60, "kwargs": {"endpoint": endpoint}}
    return Recipe.model_validate(
        {
            "name": "service://rm",
            "model": {"path": model, "dtype": "float32"},
            "task": {"train": {"file": "a"}, "rewards": [reward], "reward_workers": 1},
            "services": {"rm": {"model": model, **service}, "unused": {"model": "nowhere"}},
            "placement": {"kind": "colocated"},
            "timeouts": {"start_s": 400},
        }
    )


def answered(*texts: str) -> TrajectoryGroup:
    trajectories = tuple(make_trajectory(text=text, sample_index=i) for i, text in enumerate(texts))
    return TrajectoryGroup(index=0, prompt=make_prompt(), trajectories=trajectories)


def test_a_name_that_no_service_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"services has no .rms.: did you mean .rm."):
        recipe("x", url="service://rms/v1")


def test_a_service_takes_a_gpu_where_the_run_has_some_and_only_if_it_is_named() -> None:
    chosen = recipe("x", threads=2)
    assert service_bundles(chosen, "cpu") == [{"CPU": 2.0, "GPU": 0.0}]
    assert service_bundles(chosen, "cuda") == [{"CPU": 2.0, "GPU": 1.0}]
    assert service_bundles(recipe("x", gpus=0), "cuda") == [{"CPU": 1.0, "GPU": 0.0}]


def test_what_only_vllm_takes_is_refused_beside_the_small_server(tmp_path: Path) -> None:
    save_tiny_classifier(tmp_path)
    with pytest.raises(ConfigError, match=r"services\.rm: args .* but its engine is hf"):
        serviced(recipe(str(tmp_path), args={"max_num_seqs": 4}), "cpu")
    with pytest.raises(ModelError, match=r"services\.rm\.model: there is no folder"):
        serviced(recipe("./nowhere"), "cpu")


@pytest.mark.slow
def test_a_run_serves_its_reward_model_and_says_when_it_dies(tmp_path: Path, caplog) -> None:
    chosen = recipe(str(save_tiny_classifier(tmp_path)), dtype="float32")
    written = resolved_yaml(chosen)

    async def work() -> tuple[list, list]:
        await preflight(chosen, code_dir=ROOT)
        with ray_session(PlacementConfig(num_cpus=2), code_dir=ROOT):
            async with open_graders(chosen, code_dir=ROOT) as graders:
                before = await graders.reward.score(answered("2", "17"))
                servers = [p for p in psutil.process_iter() if _serves(p, str(tmp_path))]
                for server in servers:
                    os.kill(server.pid, signal.SIGKILL)
                while "was killed by SIGKILL" not in caplog.text:
                    await asyncio.sleep(0.1)
                return before, await graders.reward.score(answered("2", "17"))

    with caplog.at_level(logging.ERROR):
        before, after = asyncio.run(asyncio.wait_for(work(), 800))
    assert len({result.value for result in before}) == 2
    assert None not in {result.value for result in before}
    assert [result.value for result in after] == [None, None]
    assert all("ConnectionError" in str(result.detail) for result in after)
    assert "service 'rm' (hf, " in caplog.text
    assert "service://rm" in written
    assert resolved_yaml(chosen) == written


def _serves(process: psutil.Process, folder: str) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return "rlhf.services.launch" in command and any(folder in part for part in command)
