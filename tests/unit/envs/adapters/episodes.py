"""Plays an adapter's environment through EpisodeRunner: real processes, a scripted model."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlhf.config.environment import EnvironmentConfig, EpisodeLimits
from rlhf.episodes.host import EnvironmentHost
from rlhf.episodes.ledger import check_record
from rlhf.episodes.runner import EpisodeRunner
from rlhf.episodes.zygote import LoadEnvironment
from rlhf.types import Message, Prompt, Sampling, Trajectory
from tests.endpoints import TextEngine, make_dialect

ROOT = Path(__file__).parents[4]


def play(
    use: str,
    row: Mapping[str, Any],
    folder: Path,
    *,
    write: Callable[[str], str],
    samples: int = 1,
    kwargs: Mapping[str, Any] | None = None,
    **limits: Any,
) -> list[Trajectory]:
    """`write` gives the model's turn for the text of its context."""
    columns = dict(row)
    asked, identity = columns.pop("prompt"), columns.pop("id", "1")
    reference = columns.pop("reference", None)
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    prompt = Prompt(
        id=identity, messages=tuple(Message(**m) for m in messages), reference=reference, columns=columns
    )
    dialect = make_dialect(folder / "model", "qwen2.5")
    config = EnvironmentConfig(
        use=use, kwargs=dict(kwargs or {}), retries=0, limits=EpisodeLimits(**{"episode_s": 60, **limits})
    )
    load = LoadEnvironment(use=use, kwargs=config.kwargs, code_dir=str(ROOT))
    sampling = Sampling(max_tokens=200, stop_token_ids=dialect.chat.stop_token_ids)

    async def episodes() -> list[Trajectory]:
        host = EnvironmentHost(load)
        runner = EpisodeRunner(TextEngine(dialect, write), host, dialect=dialect, config=config)
        try:
            await host.start()
            return await runner(prompt, seeds=range(samples), sampling=sampling)
        finally:
            await runner.close()
            await host.close()

    found = asyncio.run(episodes())
    for trajectory in found:
        check_record(trajectory)
    return found
