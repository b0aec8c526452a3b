"""The example of docs/environments.md and the README, as it stands there."""

import asyncio
import functools
import json
import re
from pathlib import Path

import yaml

from rlhf.config.task import TaskConfig
from rlhf.data.prompts import load_prompts
from rlhf.episodes.chat import ChatRenderer
from rlhf.episodes.conversation import Dialect
from rlhf.episodes.host import EnvironmentHost
from rlhf.episodes.ledger import check_record
from rlhf.episodes.parsing import parse
from rlhf.episodes.render import Renderer
from rlhf.episodes.runner import EpisodeRunner
from rlhf.episodes.zygote import LoadEnvironment
from rlhf.types import Completion, Sampling

ROOT = Path(__file__).parents[3]
PYTHON = re.compile(r"```python\n# my_env\.py\n(.*?)```\n+```yaml\n(.*?)```", re.DOTALL)


class Says:
    """An engine whose turns are these, whichever episode asks."""

    def __init__(self, renderer, texts):
        self._renderer = renderer
        self._texts = iter(texts)

    async def generate(self, request):
        ids = self._renderer.encode_completion(next(self._texts), where="test")
        zeros = (0,) * len(ids)
        return [Completion(token_ids=ids, logprobs=(-1.0,) * len(ids), versions=zeros, finish_reason="stop")]


def test_example_of_the_docs_is_short_is_the_readme_s_and_plays(tmp_path, characters):
    code, config = PYTHON.search((ROOT / "docs/environments.md").read_text()).groups()
    assert PYTHON.search((ROOT / "README.md").read_text()).groups() == (code, config)
    assert len(code.splitlines()) <= 20
    (tmp_path / "my_env.py").write_text(code)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "count down from 3", "start": 3}))
    written = yaml.safe_load(config)["task"]
    written["train"]["file"] = str(tmp_path / "rows.jsonl")
    task = TaskConfig.model_validate(written)
    (prompt,) = load_prompts(task.train, key="task.train", require_reference=task.needs_reference)

    won = asyncio.run(play(task, prompt, tmp_path, says=["3", "2", "1"], characters=characters))
    assert (won.stop, won.reward.value) == ("env_done", 4.0)
    assert won.reward.parts == {"turns": 3.0, "score": 1.0, "left": 0.0}
    lost = asyncio.run(play(task, prompt, tmp_path, says=["3", "1"], characters=characters))
    assert (lost.stop, lost.reward.value, lost.reward.parts["left"]) == ("env_done", 1.0, 2.0)


async def play(task, prompt, folder, *, says, characters):
    renderer = Renderer(model_folder=characters, chat_template=str(ROOT / "recipes/cpu/chat.jinja"))
    dialect = Dialect(chat=ChatRenderer(renderer), parse=functools.partial(parse, syntax="none"))
    host = EnvironmentHost(LoadEnvironment(use=task.environment.use, code_dir=str(folder)))
    runner = EpisodeRunner(Says(renderer, says), host, dialect=dialect, config=task.environment)
    sampling = Sampling(max_tokens=8, stop_token_ids=renderer.stop_token_ids)
    try:
        await host.start()
        (trajectory,) = await runner(prompt, seeds=[0], sampling=sampling)
    finally:
        await runner.close()
        await host.close()
    check_record(trajectory)
    return trajectory
