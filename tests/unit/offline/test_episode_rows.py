"""Episodes of a real environment process, collected and selected: their rows have the tokens that were played."""

import asyncio
import functools
import json

from rlhf.config.environment import EnvironmentConfig
from rlhf.config.reject import SelectConfig
from rlhf.config.task import SourceConfig
from rlhf.data.prompts import load_prompts
from rlhf.data.selection import Rules
from rlhf.episodes.chat import ChatRenderer
from rlhf.episodes.conversation import Dialect
from rlhf.episodes.demonstration import demonstration_ids
from rlhf.episodes.endpoint_wire import read_messages
from rlhf.episodes.host import EnvironmentHost
from rlhf.episodes.parsing import parse
from rlhf.episodes.render import Renderer
from rlhf.episodes.runner import EpisodeRunner
from rlhf.episodes.zygote import LoadEnvironment
from rlhf.offline.collect import CollectPlan, collect
from rlhf.offline.selected import write_selected
from rlhf.types import Completion, Message, Prompt, RewardResult, Sampling
from tests.chat_tokenizers import FAMILIES, save_tokenizer

MODULE = """
from rlhf.episodes.tool_environment import ToolEnvironment

def double(number: int) -> str:
    "Twice the number."
    return str(2 * number)

tools = ToolEnvironment([double], score=lambda: 1.0)
"""
CALL = '<tool_call>\n{"name": "double", "arguments": {"number": 4}}\n</tool_call>'


class Script:
    """Calls the tool, then answers; by its seed with or without words before the call."""

    def __init__(self, chat):
        self._chat = chat

    async def generate(self, request):
        text = self._chat.text(request.prompt_token_ids)
        is_first = "<|im_start|>assistant" not in text.removesuffix("<|im_start|>assistant\n")
        ids = [
            self._ids(f"Let me see.\n{CALL}" if is_first else f"it is {seed % 7}") for seed in request.seeds
        ]
        return [
            Completion(token_ids=i, logprobs=(0.0,) * len(i), versions=(0,) * len(i), finish_reason="stop")
            for i in ids
        ]

    def _ids(self, said):
        return (*self._chat.tokenizer.encode(said, add_special_tokens=False), self._chat.stop_token_ids[0])


class OwnScore:
    """The environment's score as the whole reward."""

    async def score(self, group):
        return [
            RewardResult(value=t.reward.value, parts={"environment": t.reward.value})
            for t in group.trajectories
        ]


def test_rows_of_episodes_are_learned_as_they_were_played(tmp_path):
    (tmp_path / "doubling.py").write_text(MODULE)
    chat = ChatRenderer(Renderer(model_folder=str(save_tokenizer(tmp_path / "model", FAMILIES["qwen2.5"]))))
    prompts = [Prompt(id=f"p{i}", messages=(Message(role="user", content=f"q{i}"),)) for i in range(2)]
    plan = CollectPlan(prompts=prompts, sampling=Sampling(max_tokens=500), samples_per_prompt=3)
    played = {}

    async def run():
        config = EnvironmentConfig(use=f"{tmp_path}/doubling.py:tools", retries=0)
        host = EnvironmentHost(LoadEnvironment(use=config.use))
        await host.start()
        try:
            dialect = Dialect(chat=chat, parse=functools.partial(parse, syntax="hermes"))
            runner = EpisodeRunner(Script(chat), host, dialect=dialect, config=config)

            async def roll_out(prompt, *, seeds, sampling):
                found = await runner(prompt, seeds=seeds, sampling=sampling)
                played.update({f"{prompt.id}#{t.sample_index}": t.segments for t in found})
                return found

            await collect(roll_out, OwnScore(), plan, tmp_path / "collected")
        finally:
            await host.close()

    asyncio.run(run())
    select = SelectConfig(per_prompt=None, deduplicate=None)
    metrics = write_selected(tmp_path / "collected", Rules(config=select), tmp_path)
    assert metrics["reject/kept"] == 6
    rows = load_prompts(
        SourceConfig(file=str(tmp_path / "rows.jsonl")), key="sft.source", require_reference=False
    )
    assert [row.id for row in rows] == [f"p{i}#{j}" for i in range(2) for j in range(3)]
    for row in rows:
        (segment,) = played[row.id]
        messages = read_messages(row.columns["messages"])
        assert [m.role for m in messages] == ["user", "assistant", "tool", "assistant"]
        assert json.dumps(row.columns["tools"]).count("double") >= 1
        ids, is_learned = demonstration_ids(chat, messages, row.columns["tools"])
        assert tuple(ids) == segment.token_ids
        assert tuple(is_learned) == segment.loss_mask
