"""`rlhf play`: a person takes the model's place in a recipe's environment, or in a question with one answer."""

import asyncio
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf.config.schema import Recipe
from rlhf.episodes.conversation import Dialect
from rlhf.episodes.host import EnvironmentHost
from rlhf.episodes.ledger import check_record
from rlhf.episodes.render import Renderer
from rlhf.episodes.runner import EpisodeRunner, SingleTurn
from rlhf.errors import ConfigError, EpisodeError
from rlhf.interfaces import GenerateRequest, RolloutFunction
from rlhf.materials import dialect_for, load_environment, load_task, renderer_for, worker_settings
from rlhf.rollout.scoring import RewardPool
from rlhf.stages.model_folder import prepare_model_folder
from rlhf.types import Completion, Prompt, Sampling, Segment, Trajectory, TrajectoryGroup


class Person:
    """An interfaces.RolloutEngine that shows what is new in the context and reads the turn from standard input."""

    def __init__(self, renderer: Renderer, console: Console) -> None:
        self._renderer = renderer
        self._console = console
        self._shown: tuple[int, ...] = ()

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """One turn, typed: a line, or several that end in a backslash. The end of the input ends the episode."""
        context = request.prompt_token_ids
        known = len(self._shown) if context[: len(self._shown)] == self._shown else 0
        self._console.print(Text("".join(self._renderer.pieces(context[known:])), style="dim"))
        text = await asyncio.to_thread(_read_turn)
        ids = self._renderer.encode_completion(text, where="what you typed")[: request.sampling.max_tokens]
        is_whole = ids[-1] in request.sampling.stop_token_ids
        self._shown = (*context, *ids)
        completion = Completion(
            token_ids=ids,
            logprobs=(0.0,) * len(ids),
            versions=(0,) * len(ids),
            finish_reason="stop" if is_whole else "length",
        )
        return [completion] * len(request.seeds)


async def play(recipe: Recipe, *, code_dir: Path, row: int) -> int:
    """Play one row of task.train and show its tokens, masks and rewards; the exit code."""
    console = Console(file=sys.stdout, highlight=False)
    train, _ = load_task(recipe)
    if row >= len(train):
        raise ConfigError(
            f"--row is {row}, but task.train has {len(train)} rows: give 0 to {len(train) - 1}."
        )
    with tempfile.TemporaryDirectory() as scratch:
        folder = prepare_model_folder(recipe.model, f"{scratch}/model", seed=recipe.seed)
        renderer = renderer_for(recipe, folder)
        pool = RewardPool(
            recipe.task.rewards, num_workers=1, code_dir=str(code_dir), settings=worker_settings(recipe)
        )
        host: EnvironmentHost | None = None
        try:
            if recipe.task.environment is not None:
                host = EnvironmentHost(load_environment(recipe, code_dir))
                await host.start()
            rollout = _rollout(recipe, renderer, host, console)
            group = await _episode(recipe, renderer, rollout, pool, train[row])
        finally:
            await pool.close()
            if host is not None:
                await host.close()
    _show(console, group.trajectories[0], renderer)
    return 0


def _rollout(
    recipe: Recipe, renderer: Renderer, host: EnvironmentHost | None, console: Console
) -> RolloutFunction:
    person = Person(renderer, console)
    if recipe.task.environment is None or host is None:
        return SingleTurn(person, renderer=renderer)
    dialect: Dialect = dialect_for(recipe.task.environment, renderer)
    # People think longer than models.
    limits = recipe.task.environment.limits.model_copy(update={"episode_s": 86_400.0})
    config = recipe.task.environment.model_copy(update={"limits": limits, "retries": 0})
    return EpisodeRunner(person, host, dialect=dialect, config=config)


async def _episode(
    recipe: Recipe, renderer: Renderer, rollout: RolloutFunction, pool: RewardPool, prompt: Prompt
) -> TrajectoryGroup:
    sampling = Sampling(max_tokens=recipe.sampling.max_tokens, stop_token_ids=renderer.stop_token_ids)
    (trajectory,) = await rollout(prompt, seeds=[recipe.seed], sampling=sampling)
    check_record(trajectory)
    group = TrajectoryGroup(index=0, prompt=prompt, trajectories=(trajectory,))
    (reward,) = await pool.score(group)
    return replace(group, trajectories=(replace(trajectory, reward=reward),))


def _read_turn() -> str:
    lines: list[str] = []
    while True:
        sys.stdout.write("> " if not lines else ". ")
        sys.stdout.flush()
        line = sys.stdin.readline()
        if not line:
            raise EpisodeError("the input ended before the episode did")
        line = line.rstrip("\n")
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])


def _show(console: Console, trajectory: Trajectory, renderer: Renderer) -> None:
    for number, segment in enumerate(trajectory.segments):
        share = f"{segment.num_sampled} of {len(segment.token_ids)} tokens sampled"
        console.rule(f"segment {number} ({segment.reason}): {share}, in green", style="dim")
        console.print(Text.assemble(*_pieces(segment, renderer)))
    console.rule(style="dim")
    table = Table("", "", show_header=False)
    table.add_row("stop", f"{trajectory.stop} ({trajectory.status})")
    reward = trajectory.reward
    if reward is not None:
        table.add_row("reward", "not gradable" if reward.value is None else f"{reward.value:g}")
        table.add_row("outcome", reward.outcome)
        for name, value in reward.parts.items():
            table.add_row(f"  {name}", f"{value:g}")
        for name, detail in reward.detail.items():
            table.add_row(f"  {name}", str(detail))
    for name, scalar in trajectory.scalars.items():
        table.add_row(f"  {name}", f"{scalar:g}")
    for turn, number in ((t, n) for n, t in enumerate(trajectory.turns) if t.reward):
        table.add_row(f"  turn {number}", f"{turn.reward:g}")
    if trajectory.error:
        table.add_row("error", trajectory.error)
    console.print(table)


def _pieces(segment: Segment, renderer: Renderer) -> Iterator[tuple[str, str]]:
    pieces = renderer.pieces(segment.token_ids)
    for piece, is_sampled in zip(pieces, segment.loss_mask, strict=True):
        yield piece, "bold green" if is_sampled else "dim"
