"""How what `task.environment.use` names is played, by what it is."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

from rlhf.episodes.tool_environment import environment_of
from rlhf.errors import EpisodeError

Kind = Literal["object", "function"]
Loaded = tuple[Callable[[], Any], Kind]
"""What makes an episode's environment, and how it is played."""


def describe(loaded: Any, kwargs: Mapping[str, Any]) -> Loaded:
    """How an environment is made for each episode, and how it is played. EpisodeError for what is none.

    A method `play` (prompt, model, context) owns its loop as a function does, (endpoint, context) runs a program.
    In a class with `reset` and without `step` it is one of the tools.
    """
    if inspect.isclass(loaded):
        _check_call(loaded, **kwargs)
        return _of_class(loaded, kwargs)
    if hasattr(loaded, "step") or hasattr(loaded, "play"):
        if kwargs:
            raise EpisodeError(
                f"it is an object already, so that kwargs {sorted(kwargs)} would do nothing: remove them"
            )
        # Forked for every episode: each has its own.
        return lambda: loaded, "function" if _owns_loop(loaded) else "object"
    if inspect.iscoroutinefunction(loaded):
        _check_call(loaded, None, None, None, **kwargs)
        return lambda: lambda prompt, model, context: loaded(prompt, model, context, **kwargs), "function"
    if callable(loaded):
        _check_call(loaded, **kwargs)
        return lambda: loaded(**kwargs), "object"
    raise EpisodeError(
        f"{loaded!r:.100} is no environment: expected a class, an async function, or an object with step or play"
    )


def _of_class(kind: type, kwargs: Mapping[str, Any]) -> Loaded:
    if not hasattr(kind, "step") and hasattr(kind, "reset"):
        return lambda: environment_of(kind, kwargs), "object"
    if not (hasattr(kind, "step") or hasattr(kind, "play")):
        raise EpisodeError(f"class {kind.__name__} is no environment: it has none of reset, step and play")
    return lambda: kind(**kwargs), "function" if _owns_loop(kind) else "object"


def _owns_loop(played: Any) -> bool:
    if hasattr(played, "step"):
        return False
    return len([name for name in inspect.signature(played.play).parameters if name != "self"]) > 2


def _check_call(loaded: Any, *given: Any, **kwargs: Any) -> None:
    """Refuse at the start what every episode would fail in."""
    try:
        signature = inspect.signature(loaded)
    except ValueError:
        return
    try:
        signature.bind(*given, **kwargs)
    except TypeError as error:
        raise EpisodeError(
            f"{loaded!r:.100} cannot be called with kwargs {sorted(kwargs)}: {error}; it takes {signature}"
        ) from None
