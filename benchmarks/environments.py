"""Many episodes at once, with a scripted model: start-up, turns a second, memory of an episode, cost by length.

`python benchmarks/environments.py [--episodes 200] [--turns 8] [--only pace]`
"""

import argparse
import asyncio
import functools
import statistics
import tempfile
import time
from pathlib import Path

import psutil

from rlhf.config.environment import EnvironmentConfig, EpisodeLimits
from rlhf.data.characters import write_character_tokenizer
from rlhf.episodes.chat import ChatRenderer
from rlhf.episodes.conversation import Dialect
from rlhf.episodes.host import EnvironmentHost
from rlhf.episodes.parsing import parse
from rlhf.episodes.render import Renderer
from rlhf.episodes.runner import EpisodeRunner
from rlhf.episodes.zygote import LoadEnvironment
from rlhf.interfaces import GenerateRequest
from rlhf.types import Completion, Message, Prompt, Sampling

ROOT = Path(__file__).parents[1]
MODULE = '''
from rlhf.types import Message, Step

class Talk:
    """So many turns, each answered with 100 characters; all episodes wait for each other before the first."""
    keeps_checkpoints = {keeps}
    def __init__(self, turns): self.left = turns
    def reset(self, prompt, context): pass
    def step(self, action, context):
        self.left -= 1
        return Step(messages=(Message(role="user", content="x" * 100),), terminated=self.left == 0)
'''


MODEL_S = 0.05
"""Of a turn, where the pace of episodes is told."""
HANGING = '''
import time
from rlhf.types import Message, Step

class Some:
    """Twenty turns; every third episode hangs in each of its own, and is killed and goes on from before."""
    keeps_checkpoints = True
    def reset(self, prompt, context):
        self.turns, self.hangs = 0, prompt.columns["hangs"]
    def step(self, action, context):
        self.turns += 1
        if self.hangs:
            if "echo" not in context.checkpoint():
                with context.phase("echo", 1.0):
                    time.sleep(600)
        return Step(messages=(Message(role="user", content="x" * 100),), terminated=self.turns == 20)
'''


class Scripted:
    """Answers ten tokens at once; holds everybody until `size` have asked, and then measures."""

    def __init__(self, chat: ChatRenderer, size: int, *, delay_s: float = 0.0) -> None:
        text = list(chat.tokenizer.encode("123456789", add_special_tokens=False))
        self._ids = (*text, chat.stop_token_ids[0])
        self._size = size
        self._delay_s = delay_s
        self._waiting = 0
        self._go = asyncio.Event()
        self.live_at = 0.0
        self.memory_mb = 0.0
        self.num_turns = 0

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """One turn."""
        self._waiting += 1
        self.num_turns += 1
        if self._waiting == self._size:
            self.live_at = time.perf_counter()
            self.memory_mb = _private_mb()
            self._go.set()
        await self._go.wait()
        await asyncio.sleep(self._delay_s)
        count = len(self._ids)
        return [
            Completion(
                token_ids=self._ids, logprobs=(-1.0,) * count, versions=(0,) * count, finish_reason="stop"
            )
            for _ in request.seeds
        ]


def _private_mb() -> float:
    """Unshared memory of all processes below this one."""
    found = 0
    for process in psutil.Process().children(recursive=True):
        try:
            found += process.memory_full_info().uss
        except psutil.Error:
            continue
    return found / 2**20


async def measure(folder: Path, chat: ChatRenderer, *, episodes: int, turns: int, keeps: bool) -> list[float]:
    """[start-up s, turns per second, MB per episode] of so many episodes at once."""
    (folder / "talk.py").write_text(MODULE.format(keeps=not keeps))
    limits = EpisodeLimits(max_turns=turns, max_tokens=1_000_000)
    config = EnvironmentConfig(use="talk:Talk", limits=limits, max_live=episodes)
    host = EnvironmentHost(LoadEnvironment(use=config.use, kwargs={"turns": turns}, code_dir=str(folder)))
    engine = Scripted(chat, episodes)
    dialect = Dialect(chat=chat, parse=functools.partial(parse, syntax="none"))
    runner = EpisodeRunner(engine, host, dialect=dialect, config=config)
    try:
        await host.start()
        began = time.perf_counter()
        prompt = Prompt(id="p", messages=(Message(role="user", content="begin"),))
        done = await runner(prompt, seeds=range(episodes), sampling=Sampling(max_tokens=32))
        ended = time.perf_counter()
    finally:
        await runner.close()
        await host.close()
    assert all(t.stop == "env_done" for t in done), {t.error for t in done}
    return [
        engine.live_at - began,
        (engine.num_turns - episodes) / (ended - engine.live_at),
        engine.memory_mb / episodes,
    ]


async def pace(folder: Path, chat: ChatRenderer, *, healthy: int, hanging: int) -> float:
    """Mean seconds of a healthy episode while as many others hang, are killed and go on."""
    (folder / "some.py").write_text(HANGING)
    limits = EpisodeLimits(max_turns=30, max_tokens=1_000_000)
    config = EnvironmentConfig(use="some:Some", limits=limits, max_live=healthy + hanging)
    host = EnvironmentHost(LoadEnvironment(use=config.use, code_dir=str(folder)))
    dialect = Dialect(chat=chat, parse=functools.partial(parse, syntax="none"))
    runner = EpisodeRunner(Scripted(chat, 1, delay_s=MODEL_S), host, dialect=dialect, config=config)

    async def one(*, hangs: bool) -> float:
        columns = {"hangs": hangs}
        prompt = Prompt(id="p", messages=(Message(role="user", content="begin"),), columns=columns)
        began = time.perf_counter()
        (found,) = await runner(prompt, seeds=[0], sampling=Sampling(max_tokens=32))
        assert found.stop == "env_done", found.error
        return time.perf_counter() - began

    try:
        await host.start()
        others = [asyncio.create_task(one(hangs=True)) for _ in range(hanging)]
        # They hang by now.
        await asyncio.sleep(0.5)
        mean_s = statistics.fmean(await asyncio.gather(*(one(hangs=False) for _ in range(healthy))))
        await asyncio.gather(*others)
        return mean_s
    finally:
        await runner.close()
        await host.close()


def _print_pace(folder: Path, chat: ChatRenderer, *, episodes: int) -> None:
    # One after the other, in turn: a shared machine changes its pace.
    alone, beside = [], []
    for _ in range(3):
        alone.append(asyncio.run(pace(folder, chat, healthy=episodes, hanging=0)))
        beside.append(asyncio.run(pace(folder, chat, healthy=episodes, hanging=episodes // 2)))
    times = [statistics.median(found) for found in (alone, beside)]
    print(
        f"{episodes} episodes of 20 turns at once, {1000 * MODEL_S:.0f} ms a turn of the model's, seconds of one:"
    )
    print(
        f"{times[0]:.2f} alone, {times[1]:.2f} beside {episodes // 2} that hang in every turn and are killed after 1 s:"
    )
    print(f"{times[1] / times[0]:.2f} times\n")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--only", choices=("pace",), default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_character_tokenizer(folder, vocabulary_size=128)
        template = str(ROOT / "recipes/cpu/chat.jinja")
        chat = ChatRenderer(Renderer(model_folder=name, chat_template=template))
        _print_pace(folder, chat, episodes=40)
        if given.only:
            return
        print(f"{given.episodes} episodes live at once, {given.turns} turns each")
        print("checkpoint   all live after   turns/s   MB an episode")
        for keeps in (True, False):
            row = asyncio.run(measure(folder, chat, episodes=given.episodes, turns=given.turns, keeps=keeps))
            print(f"{'yes' if keeps else 'no':10}   {row[0]:12.2f} s   {row[1]:7.0f}   {row[2]:8.1f}")
        print("\nturns   ms a turn (20 episodes at once, 110 tokens a turn, with checkpoints)")
        for turns in (4, 16, 64, 256):
            row = asyncio.run(measure(folder, chat, episodes=20, turns=turns, keeps=True))
            print(f"{turns:5}   {1000 / row[1]:8.2f}")


if __name__ == "__main__":
    main()
