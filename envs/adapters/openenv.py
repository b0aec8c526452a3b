"""Environments behind a server of OpenEnv, by its WebSocket protocol; the package itself is not needed here.

    environment: {use: "envs.adapters.openenv:OpenEnv", kwargs: {url: "http://127.0.0.1:8000", action: message}}

Reads any row with a `prompt`, which the first observation is added to, and perhaps a `seed`: one for a whole group.
An episode holds one session: start the server with `max_concurrent_envs` of at least `max_live`.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from envs.adapters.process import AdapterProcess
from rlhf.errors import ConfigError, EpisodeError
from rlhf.interfaces import Context
from rlhf.types import Message, Prompt, Step

_PROGRAM = Path(__file__).with_name("openenv_program.py")
_REFUSED = "VALIDATION_ERROR"
"""The server's code for an action that is none: the model's fault. Every other one is the environment's."""


class OpenEnv:
    """A session with the server at `url`, whose rewards are those of the turns.

    The model's whole turn is the field `action` of the action, beside those of `fixed`; none: it is the action itself,
    written as JSON. `observation` is the field that the model is shown; none: all of them, as JSON.
    """

    def __init__(
        self,
        *,
        url: str,
        action: str | None = "message",
        fixed: Mapping[str, Any] | None = None,
        observation: str | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"kwargs.url: {url!r}, expected one that begins with http:// or https://.")
        self._url = url
        self._action = action
        self._fixed = dict(fixed or {})
        self._shown = observation
        self._session: AdapterProcess | None = None

    def reset(self, prompt: Prompt, context: Context) -> tuple[Message, ...]:
        """The prompt's messages, the first observation added to the last. EpisodeError when there is no session."""
        # Isolated: beside it stand modules with the names of packages.
        self._session = AdapterProcess(
            [sys.executable, "-I", str(_PROGRAM), self._url], folder=context.folder
        )
        seed = prompt.columns.get("seed", context.rng.getrandbits(31))
        try:
            told = self._ask({"type": "reset", "data": {"seed": seed}}, timeout_s=context.limits.setup_s)
        except EpisodeError:
            self.close()
            raise
        *before, last = prompt.messages
        return (*before, replace(last, content=f"{last.content}\n{self._text(told['observation'])}"))

    def step(self, action: Message, context: Context) -> Step:
        """What is observed after the action."""
        try:
            chosen = self._fixed | (
                json.loads(action.content) if self._action is None else {self._action: action.content}
            )
        except (ValueError, TypeError, RecursionError) as error:
            return _refused(f"expected a JSON object: {error}")
        told = self._ask({"type": "step", "data": chosen}, timeout_s=context.limits.step_s)
        if "refused" in told:
            return _refused(told["refused"])
        return Step(
            messages=(Message(role="user", content=self._text(told["observation"])),),
            reward=float(told.get("reward") or 0.0),
            terminated=bool(told.get("done")),
        )

    def close(self) -> None:
        """Ends the session."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _ask(self, message: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
        assert self._session is not None
        answer = self._session.ask({"send": message}, timeout_s=timeout_s)
        if "failed" in answer:
            raise EpisodeError(f"the OpenEnv server at {self._url} gave no answer: {answer['failed']}")
        kind, told = answer["got"].get("type"), answer["got"].get("data", {})
        if kind == "error" and told.get("code") == _REFUSED and message["type"] == "step":
            return {"refused": str(told.get("message"))}
        if kind != "observation" or "observation" not in told:
            raise EpisodeError(f"the OpenEnv server at {self._url} answered {answer['got']!r:.500}")
        return dict(told)

    def _text(self, observation: Mapping[str, Any]) -> str:
        if self._shown is None:
            return json.dumps(observation, ensure_ascii=False)
        if self._shown not in observation:
            raise EpisodeError(
                f"kwargs.observation: the server's observation has no {self._shown!r}, only {sorted(observation)}"
            )
        return str(observation[self._shown])


def warm_up(**kwargs: Any) -> None:
    """Refuse at the start what no episode could use."""
    OpenEnv(**kwargs)


def _refused(why: str) -> Step:
    text = f"that is no action: {why[:400]}"
    return Step(messages=(Message(role="user", content=text),), is_invalid=True)
