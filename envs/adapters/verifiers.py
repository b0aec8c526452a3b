"""Environments of the package `verifiers`, played by the package itself, in an interpreter of its own.

    train: {generator: "envs.adapters.verifiers:rows", kwargs: &its {id: my_env, python: venv/bin/python}}
    environment: {use: "envs.adapters.verifiers:verifiers_environment", kwargs: *its}

It is told where the policy answers and asks it over HTTP; what is sampled is recorded here token by token, and its
rubric's reward is the score. Its line 0.1 is spoken (`load_environment`), whose pins are not ours: make a virtual
environment, install `verifiers==0.1.14` and the environment into it, and name its interpreter.
"""

import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rlhf.episodes.program import Endpoint, Finished, ProgramEnvironment, clean_environment
from rlhf.errors import ConfigError, DataError, EpisodeError
from rlhf.interfaces import Context

_PROGRAM = Path(__file__).with_name("verifiers_program.py")
_RESULT = "verifiers.json"
_TAIL = 2000
_STARTED_IN = os.getcwd()
"""What relative paths are relative to: an episode has a folder of its own."""
_LIST_S = 600.0
"""Longest wait for the tasks of an environment."""


def rows(
    seed: int = 0,
    size: int = 1000,
    *,
    id: str,  # noqa: A002 -- the package's own name
    python: str,
    split: Literal["train", "eval"] = "train",
    **options: Any,
) -> list[dict[str, Any]]:
    """Rows {id, prompt, reference, verifiers} of the environment's own tasks, shuffled by `seed`; at most `size`.

    `options` are those of Verifiers. DataError when the environment cannot be loaded.
    """
    played = Verifiers(id=id, python=python, **options)
    with tempfile.TemporaryDirectory() as folder:
        found = _listed(played, folder, {"split": split, "seed": seed, "size": size})
    for index, task in enumerate(found):
        if not task.get("prompt"):
            raise DataError(f"rows: task {index} of verifiers' {id!r} has no prompt, only {sorted(task)}.")
    return [
        {
            "id": f"{id}-{split}-{task.get('example_id', index)}",
            "prompt": task["prompt"],
            "verifiers": task,
            **({"reference": task["answer"]} if isinstance(task.get("answer"), str) else {}),
        }
        for index, task in enumerate(found)
    ]


class Verifiers:
    """The environment that `load_environment(id, **args)` gives in the interpreter `python`.

    `path`: a folder with its module, where that is not installed there. A rollout that fails but for a limit of ours
    is an error, never its reward of 0; so is one whose rubric raised, unless it `forgives`: then that part is 0, as
    the package has it.
    """

    def __init__(
        self,
        *,
        id: str,  # noqa: A002 -- the package's own name
        python: str,
        args: Mapping[str, Any] | None = None,
        path: str | None = None,
        forgives: bool = False,
    ) -> None:
        self._forgives = forgives
        # Not resolved: a virtual environment's interpreter is a link, and found by its own place.
        self.python = os.path.join(_STARTED_IN, os.path.expanduser(python))
        if not os.access(self.python, os.X_OK):
            raise ConfigError(
                f"kwargs.python: {python!r} is no program; expected the interpreter that has verifiers."
            )
        told: dict[str, Any] = {"id": id, "args": dict(args or {})}
        told |= {"path": None if path is None else os.path.join(_STARTED_IN, path)}
        self.told = json.dumps(told)
        self._program = ProgramEnvironment(
            [self.python, _PROGRAM.name, "play", self.told, _RESULT],
            score=self.score,
            files={_PROGRAM.name: _PROGRAM},
            columns=["verifiers"],
        )

    async def play(self, endpoint: Endpoint, context: Context) -> Finished:
        """One rollout of the package."""
        return await self._program.play(endpoint, context)

    def score(self, context: Context) -> dict[str, float]:
        """Its reward and metrics; 0 where time ended it. EpisodeError for a rollout that failed."""
        finished: Finished = context.state
        try:
            result = json.loads(Path(context.folder, _RESULT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            if finished.exit_code is None:
                return {"score": 0.0}
            raise EpisodeError(
                f"verifiers left no reward (exit code {finished.exit_code}): {finished.stderr[-_TAIL:]}"
            ) from None
        if result["raised"] and not self._forgives:
            raise EpisodeError(f"verifiers' rubric failed: {result['raised'][:_TAIL]}")
        if result["error"] and finished.ended is None:
            raise EpisodeError(f"verifiers' rollout failed: {result['error'][:_TAIL]}")
        reward = result["reward"]
        if not isinstance(reward, int | float) or not math.isfinite(reward):
            raise EpisodeError(f"verifiers' reward is {reward!r:.80}, expected a number")
        metrics = {f"verifiers_{name}": float(value) for name, value in result["metrics"].items()}
        return {**metrics, "score": float(reward)}


def verifiers_environment(**options: Any) -> Verifiers:
    """For recipes: Verifiers with these options."""
    return Verifiers(**options)


def warm_up(**options: Any) -> None:
    """Refuse at the start what no episode could use."""
    Verifiers(**options)


def _listed(played: Verifiers, folder: str, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    # Copied, as for an episode: beside this module, `import verifiers` would find this module.
    shutil.copy(_PROGRAM, folder)
    command = [played.python, _PROGRAM.name, "list", played.told, _RESULT, json.dumps(asked)]
    environment = clean_environment(folder)
    try:
        ended = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=_LIST_S
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"rows: verifiers did not list its tasks within {_LIST_S:g} s") from error
    if ended.returncode:
        raise DataError(f"rows: the tasks of verifiers cannot be had: {ended.stderr[-_TAIL:]}")
    found: list[dict[str, Any]] = json.loads(Path(folder, _RESULT).read_text(encoding="utf-8"))
    return found
