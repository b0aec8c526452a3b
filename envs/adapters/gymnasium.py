"""Gymnasium's environments as text: what is observed is written out, what the model writes becomes an action.

    train: {generator: "envs.adapters.gymnasium:rows", kwargs: {prompt: "Reach G. Say left, down, right or up."}}
    environment:
      use: "envs.adapters.gymnasium:Gymnasium"
      kwargs: {id: FrozenLake-v1, kwargs: {is_slippery: false}, actions: {left: 0, down: 1, right: 2, up: 3}}

Reads any row with a `prompt`, which the first observation is added to, and perhaps a `seed`: one for a whole group.
"""

import importlib
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from rlhf.errors import ConfigError, DataError, DependencyError, EpisodeError, LoadError
from rlhf.interfaces import Context
from rlhf.types import Message, Prompt, Step

ToText = Callable[[Any, Any], str]
"""(observation, the Gymnasium environment) -> what the model reads."""
ToAction = Callable[[str], Any]
"""What the model wrote -> an action. ValueError with a message for the model where it is none."""

_COLOURS = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")
_SPAN = re.compile(r"\x1b\[([\d;]+)m(.*?)\x1b\[0?m", re.DOTALL)
_CODE = re.compile(r"\x1b\[[\d;]*m")


def rows(seed: int = 0, size: int = 1000, *, prompt: str) -> list[dict[str, Any]]:
    """Rows {id, prompt, seed}, whose seeds begin the environment: the same for all samples of a row."""
    rng = random.Random(seed)
    return [{"id": f"{seed}-{i}", "prompt": prompt, "seed": rng.getrandbits(31)} for i in range(size)]


class Gymnasium:
    """The environment `id`, made with `kwargs`. Its rewards are those of the turns; its time limit truncates.

    The model's whole turn is an action: a name in `actions`, in any case; what `text_to_action` makes of it; or, by
    default, the number of a discrete one. What is no action is answered with what is, and costs the turn alone.
    `obs_to_text` writes observations; by default the environment's own `ansi` picture does, or Python's repr. Both
    functions are given as `module:attribute`.
    """

    def __init__(
        self,
        id: str,  # noqa: A002 -- Gymnasium's own name
        *,
        kwargs: Mapping[str, Any] | None = None,
        actions: Mapping[str, Any] | None = None,
        text_to_action: str | ToAction | None = None,
        obs_to_text: str | ToText | None = None,
    ) -> None:
        if actions is not None and text_to_action is not None:
            raise ConfigError("Gymnasium: kwargs has both actions and text_to_action, expected one of them.")
        self._environment = _make(id, dict(kwargs or {}), needs_ansi=obs_to_text is None)
        self._actions = {str(name).strip().casefold(): action for name, action in (actions or {}).items()}
        self._to_action: ToAction = _load(text_to_action, "text_to_action") or self._read
        self._to_text: ToText = _load(obs_to_text, "obs_to_text") or observed
        self._num_steps = self._num_refused = 0
        self._return = 0.0

    def reset(self, prompt: Prompt, context: Context) -> tuple[Message, ...]:
        """The prompt's messages, the first observation added to the last."""
        seed = prompt.columns.get("seed", context.rng.getrandbits(31))
        if not isinstance(seed, int) or seed < 0:
            raise DataError(
                f"row {prompt.id}: its column `seed` is {seed!r:.80}, expected a number from 0 on."
            )
        observation, _ = self._environment.reset(seed=seed)
        self._log(context)
        *before, last = prompt.messages
        text = self._to_text(observation, self._environment)
        return (*before, replace(last, content=f"{last.content}\n{text}"))

    def step(self, action: Message, context: Context) -> Step:
        """What is observed after the action."""
        try:
            chosen = self._to_action(action.content)
            if not self._environment.action_space.contains(chosen):
                raise ValueError(self._expected(action.content))
        except ValueError as error:
            self._num_refused += 1
            self._log(context)
            return Step(messages=(_user(str(error)),), is_invalid=True)
        observation, reward, terminated, truncated, _ = self._environment.step(chosen)
        self._num_steps += 1
        self._return += float(reward)
        self._log(context)
        return Step(
            messages=(_user(self._to_text(observation, self._environment)),),
            reward=float(reward),
            terminated=bool(terminated),
            truncated=bool(truncated),
        )

    def close(self) -> None:
        """The environment's own."""
        self._environment.close()

    def _log(self, context: Context) -> None:
        context.log(steps=self._num_steps, refused=self._num_refused, returned=self._return)

    def _read(self, text: str) -> Any:
        word = text.strip().casefold()
        if self._actions:
            if word not in self._actions:
                raise ValueError(self._expected(text))
            return self._actions[word]
        first = getattr(self._environment.action_space, "start", None)
        if first is None or not re.fullmatch(r"-?\d{1,9}", word, re.ASCII):
            raise ValueError(self._expected(text))
        return int(word)

    def _expected(self, text: str) -> str:
        space = self._environment.action_space
        named = ", ".join(self._actions)
        if not named and hasattr(space, "start"):
            named = f"a number from {space.start} to {space.start + space.n - 1}"
        return f"{text.strip()[:40]!r} is no action; expected {named or space}"


def observed(observation: Any, environment: Any) -> str:
    """The environment's picture in text, or else the observation as Python writes it."""
    if environment.render_mode != "ansi":
        return repr(observation)
    picture = environment.render()
    if not isinstance(picture, str):
        raise EpisodeError(f"{environment.spec.id}: render() gave {picture!r:.80}, expected a text")
    return uncoloured(picture).strip("\n")


def blackjack(observation: Any, environment: Any) -> str:  # noqa: ARG001 -- a ToText
    """Blackjack-v1: the sum, the dealer's card, whether there is a usable ace."""
    mine, dealer, has_ace = observation
    return f"you have {mine}{', an ace counted as 11' if has_ace else ''}; the dealer shows {dealer}"


def taxi(observation: Any, environment: Any) -> str:
    """Taxi-v4: where everybody is, by row and column from 0, beside the map."""
    row, column, passenger, target = environment.unwrapped.decode(observation)
    places = [f"{name} (row {r}, column {c})" for name, (r, c) in zip("RGYB", _TAXI_PLACES, strict=True)]
    where = "in the taxi" if passenger == len(places) else f"at {places[passenger]}"
    drawn = f"{_CODE.sub('', environment.render()).strip()}\n" if environment.render_mode == "ansi" else ""
    return f"{drawn}taxi: row {row}, column {column}; passenger: {where}; destination: {places[target]}"


_TAXI_PLACES = ((0, 0), (0, 4), (4, 0), (4, 3))


def uncoloured(picture: str) -> str:
    """Text without a terminal's colours, which are told: `[x]` is highlighted, `(blue x)` is written in blue."""

    def told(span: re.Match[str]) -> str:
        codes = [int(code) for code in span[1].split(";") if code]
        if any(40 <= code <= 47 for code in codes):
            return f"[{span[2]}]"
        colours = [_COLOURS[code - 30] for code in codes if 30 <= code <= 37]
        return f"({colours[0]} {span[2]})" if colours else span[2]

    return _CODE.sub("", _SPAN.sub(told, picture))


def warm_up(**kwargs: Any) -> None:
    """Import what is needed before the first deadline runs, and refuse at the start what no episode could use."""
    Gymnasium(**kwargs).close()


def _make(name: str, kwargs: dict[str, Any], *, needs_ansi: bool) -> Any:
    gymnasium = _package()
    try:
        spec = gymnasium.spec(name)
        if needs_ansi and "render_mode" not in kwargs and _draws_text(gymnasium, spec):
            kwargs["render_mode"] = "ansi"
        return gymnasium.make(name, disable_env_checker=True, **kwargs)
    except (gymnasium.error.Error, TypeError, ImportError) as error:
        raise ConfigError(f"Gymnasium: {name!r} cannot be made with {kwargs}: {error}") from error


def _draws_text(gymnasium: Any, spec: Any) -> bool:
    entry = spec.entry_point
    kind = gymnasium.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
    return "ansi" in getattr(kind, "metadata", {}).get("render_modes", ())


def _package() -> Any:
    try:
        import gymnasium
    except ImportError as error:
        raise DependencyError(
            "this environment needs the package `gymnasium`: install the extra `content` "
            "(pip install 'rlhf-loop[content]')."
        ) from error
    return gymnasium


def _load(named: str | Callable[..., Any] | None, key: str) -> Any:
    if not isinstance(named, str):
        return named
    module, _, attribute = named.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise LoadError(
            f"kwargs.{key}: {named!r} cannot be loaded ({error}); expected module:attribute of a function."
        ) from error


def _user(text: str) -> Message:
    return Message(role="user", content=text)
