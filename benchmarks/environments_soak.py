"""Thousands of short episodes with tools, programs at the endpoint and failures: what there is before and after.

`python benchmarks/environments_soak.py --episodes 5000` prints a line per tenth of them. Nothing in it may grow.
"""

import argparse
import asyncio
import functools
import gc
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from rlhf.config.environment import EnvironmentConfig, EpisodeLimits
from rlhf.data.characters import write_character_tokenizer
from rlhf.episodes.chat import ChatRenderer
from rlhf.episodes.conversation import Conversation, Dialect
from rlhf.episodes.host import EnvironmentHost
from rlhf.episodes.ledger import TokenLedger, check_record
from rlhf.episodes.parsing import parse
from rlhf.episodes.render import Renderer
from rlhf.episodes.runner import EpisodeRunner
from rlhf.episodes.zygote import LoadEnvironment
from rlhf.interfaces import GenerateRequest
from rlhf.types import Completion, Message, Prompt, Sampling

ROOT = Path(__file__).parents[1]
MODULE = '''
import asyncio, json, os, subprocess, time, urllib.request
from rlhf.episodes.program import ProgramEnvironment
from rlhf.episodes.tool_environment import ToolEnvironment

class Box:
    """Tools of the five kinds that an episode may meet."""
    def __init__(self):
        self.items = []
    def put(self, item: str) -> str:
        """Keep it, here and in a file."""
        self.items.append(item)
        open(f"{os.getcwd()}/{len(self.items)}", "w").write(item * 1000)
        return " ".join(self.items)
    def raises(self) -> str:
        raise KeyError("lost")
    def starts(self) -> str:
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        return subprocess.run(["echo", "said"], capture_output=True, text=True).stdout
    def hangs(self) -> str:
        time.sleep(600)
        return ""
    def dies(self) -> str:
        os._exit(0)

tools = ToolEnvironment([Box], score=lambda context: float(len(context.messages)))

async def agent(prompt, endpoint):
    def ask():
        body = {"model": "m", "messages": [{"role": "user", "content": prompt.messages[0].content}]}
        headers = {"Authorization": f"Bearer {endpoint.api_key}", "Content-Type": "application/json"}
        url = f"{endpoint.base_url}/chat/completions"
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)) as answer:
            return json.load(answer)
    for _ in range(2):
        await asyncio.to_thread(ask)

program = ProgramEnvironment(agent, score=lambda context: 1.0)
'''
CALLS = {
    "put": '{"name": "put", "arguments": {"item": "a"}}',
    "raises": '{"name": "raises", "arguments": {}}',
    "starts": '{"name": "starts", "arguments": {}}',
    "hangs": '{"name": "hangs", "arguments": {}}',
    "dies": '{"name": "dies", "arguments": {}}',
}
MIXTURE = (*["put"] * 10, "program", "program", "program", "program", "raises", "raises", "starts", "starts")
RARE = {"hangs": 50, "dies": 50}
"""One in so many."""


@dataclass(frozen=True)
class State:
    """What there is after a number of episodes, none running."""

    episodes: int
    episodes_per_s: float
    runner_mb: float
    environments_mb: float
    runner_descriptors: int
    environments_descriptors: int
    processes: int
    zombies: int
    tasks: int
    ledgers: int
    """Ledgers and conversations that are still referred to."""
    files: int
    unexpected: int
    """Endings other than the episode's own."""


class Scripted:
    """Calls the tool that the question names, twice, then ends."""

    def __init__(self, chat: ChatRenderer) -> None:
        self._chat = chat

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """One turn."""
        text = self._chat.text(request.prompt_token_ids)
        name = next((name for name in CALLS if f"use {name}" in text), "")
        is_first = text.count("<tool_call>") < 2
        said = f"<tool_call>\n{CALLS[name]}\n</tool_call>" if name and is_first else "done"
        ids = (*self._chat.tokenizer.encode(said, add_special_tokens=False), self._chat.stop_token_ids[0])
        count = len(ids)
        return [
            Completion(token_ids=ids, logprobs=(-1.0,) * count, versions=(0,) * count, finish_reason="stop")
            for _ in request.seeds
        ]


class Stage:
    """Both environments, each with its process and runner."""

    def __init__(self, folder: Path, *, live: int) -> None:
        (folder / "soak.py").write_text(MODULE)
        write_character_tokenizer(folder, vocabulary_size=128)
        template = str(ROOT / "recipes/cpu/chat.jinja")
        chat = ChatRenderer(Renderer(model_folder=str(folder), chat_template=template))
        dialect = Dialect(chat=chat, parse=functools.partial(parse, syntax="hermes"))
        limits = EpisodeLimits(tool_s=1.0, max_tokens=8000)
        self.hosts, self._runners = [], {}
        for name in ("tools", "program"):
            config = EnvironmentConfig(use=f"soak:{name}", limits=limits, max_live=live, retries=0)
            host = EnvironmentHost(LoadEnvironment(use=config.use, code_dir=str(folder)))
            self.hosts.append(host)
            self._runners[name] = EpisodeRunner(Scripted(chat), host, dialect=dialect, config=config)

    async def play(self, number: int) -> str:
        """Play one episode; how it ended, if not as it should."""
        way = MIXTURE[number % len(MIXTURE)]
        way = next((name for name, rate in RARE.items() if number % rate == len(name)), way)
        prompt = Prompt(id=str(number), messages=(Message(role="user", content=f"use {way}"),))
        runner = self._runners["program" if way == "program" else "tools"]
        (trajectory,) = await runner(prompt, seeds=[number], sampling=Sampling(max_tokens=200))
        check_record(trajectory)
        expected = "env_error" if way == "dies" else "stop"
        return "" if trajectory.stop == expected else f"{way}: {trajectory.stop} {trajectory.error}"

    async def close(self) -> None:
        """End both."""
        for runner in self._runners.values():
            await runner.close()
        for host in self.hosts:
            await host.close()


async def soak(stage: Stage, *, episodes: int, live: int, parts: int = 10) -> AsyncIterator[State]:
    """Play the mixture; the state before the first episode and after each part."""
    for host in stage.hosts:
        await host.start()
    await asyncio.gather(*(stage.play(number) for number in range(live)))
    before = len(_files())
    yield await _state(0, 0.0, Counter(), before)
    part = max(1, episodes // parts)
    for first in range(0, episodes, part):
        began = time.monotonic()
        odd: Counter[str] = Counter()
        numbers = iter(range(first, first + part))

        async def player(numbers: object = numbers, odd: Counter[str] = odd) -> None:
            for number in numbers:  # type: ignore[attr-defined]
                if found := await stage.play(number):
                    odd[found] += 1

        await asyncio.gather(*(player() for _ in range(live)))
        yield await _state(first + part, part / (time.monotonic() - began), odd, before)


def _files() -> list[Path]:
    folder = Path(tempfile.gettempdir())
    ours = [top for host in psutil.Process().children() for top in folder.glob(f"rlhf-episodes-{host.pid}-*")]
    return [path for top in ours for path in (top, *top.iterdir())]


async def _state(episodes: int, episodes_per_s: float, odd: Counter[str], files_before: int) -> State:
    await asyncio.sleep(0.5)
    gc.collect()
    for found, count in odd.items():
        _say(f"    {count} {found}")
    me = psutil.Process()
    below = me.children(recursive=True)
    return State(
        episodes=episodes,
        episodes_per_s=round(episodes_per_s, 1),
        runner_mb=round(me.memory_full_info().uss / 2**20, 1),
        environments_mb=round(sum(process.memory_full_info().uss for process in below) / 2**20, 1),
        runner_descriptors=me.num_fds(),
        environments_descriptors=sum(process.num_fds() for process in below),
        processes=len(below),
        zombies=sum(process.status() == psutil.STATUS_ZOMBIE for process in below),
        tasks=len(asyncio.all_tasks()),
        ledgers=sum(type(one) in (TokenLedger, Conversation) for one in gc.get_objects()),
        files=len(_files()) - files_before,
        unexpected=sum(odd.values()),
    )


async def _print(episodes: int, live: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        stage = Stage(Path(name), live=live)
        try:
            async for state in soak(stage, episodes=episodes, live=live):
                figures = asdict(state)
                if not state.episodes:
                    _say(" | ".join(figures))
                _say(" | ".join(map(str, figures.values())))
        finally:
            await stage.close()


def main() -> None:
    """Play the episodes and print what there is after every tenth of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=5000)
    parser.add_argument("--live", type=int, default=200)
    arguments = parser.parse_args()
    asyncio.run(_print(arguments.episodes, arguments.live))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
