"""Which errors of a reward deserve another try, and when. Loaded in the reward workers."""

import builtins
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.errors import LoadError
from rlhf.importing import load_object

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """Errors of the classes `on` are tried again up to `times` times."""

    on: tuple[type[Exception], ...] = ()
    times: int = 0

    def pause(self, failures: int, *, left_s: float) -> float | None:
        """Seconds to wait after so many failures, doubling each time; None where no try is left, or no time."""
        pause_s = min(_FIRST_PAUSE_S * 2 ** (failures - 1), _LONGEST_PAUSE_S)
        return pause_s if failures <= self.times and pause_s < left_s else None


def bind_retries(on: Sequence[str], times: int, *, key: str) -> Retries:
    """The exceptions that `on` names. LoadError for a name that is none, or that would match every error."""
    return Retries(on=tuple(_exception(name, key=f"{key}.retries.on") for name in on), times=times)


def _exception(name: str, *, key: str) -> type[Exception]:
    found = _find(name, key=key)
    if not (isinstance(found, type) and issubclass(found, BaseException)):
        raise LoadError(
            f"{key}: found {name!r}, expected an exception: a builtin such as ConnectionError, a dotted name such "
            "as http.client.HTTPException, or file.py:attribute."
        )
    if found is BaseException or found is Exception or not issubclass(found, Exception):
        raise LoadError(
            f"{key}: found {name!r}, which is every error or the end of the process. Name the errors that pass by "
            "themselves, such as ConnectionError: a mistake in the reward stays one however often it is tried."
        )
    return found


def _find(name: str, *, key: str) -> Any:
    if ":" in name:
        return load_object(name, key=key)
    module, _, attribute = name.rpartition(".")
    if not module:
        return getattr(builtins, name, None)
    try:
        return getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise LoadError(f"{key}: found {name!r}, but {module!r} cannot be imported: {error}") from error
