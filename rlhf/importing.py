"""Load what a recipe names: `module:attribute`, or `path/to/file.py:attribute`."""

import importlib
import importlib.util
import sys
import zlib
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhf.errors import LoadError


def load_object(spec: str, *, key: str) -> Any:
    """Return the object that `spec` names.

    `key` is the recipe key it came from, named in every error.
    Raises LoadError when the module, the file or the attribute does not exist.
    """
    module_name, _, attribute = spec.rpartition(":")
    if not module_name or not attribute:
        raise LoadError(
            f"{key}: found {spec!r}, expected 'module:attribute' or 'file.py:attribute', "
            "for example 'rewards.math_answer:grade'."
        )
    module = _module(module_name, key)
    if not hasattr(module, attribute):
        names = [name for name in vars(module) if not name.startswith("_")]
        near = get_close_matches(attribute, names, n=1)
        hint = f" Did you mean {module_name}:{near[0]}?" if near else ""
        raise LoadError(f"{key}: module {module_name!r} has no attribute {attribute!r}.{hint}")
    return getattr(module, attribute)


def load_function(spec: str, *, key: str) -> Callable[..., Any]:
    """As `load_object`, and it must be callable."""
    loaded = load_object(spec, key=key)
    if not callable(loaded):
        raise LoadError(f"{key}: {spec!r} is a {type(loaded).__name__}, expected a function or class.")
    return loaded  # type: ignore[no-any-return]


def warm_up_of(spec: str, loaded: Any, *, key: str) -> Callable[..., Any] | None:
    """`warm_up` of the module that `spec` names, else of the one that `loaded` comes from; None without one."""
    source = sys.modules.get(getattr(loaded, "__module__", ""))
    for module in (_module(spec.rpartition(":")[0], key), source):
        if callable(found := getattr(module, "warm_up", None)):
            return found  # type: ignore[no-any-return]
    return None


def _module(name: str, key: str) -> ModuleType:
    return _load_file(name, key) if name.endswith(".py") else _load_module(name, key)


def _load_module(name: str, key: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name != error.name and not name.startswith(error.name + "."):
            raise LoadError(
                f"{key}: importing {name!r} failed: it needs {error.name!r}, which is not installed."
            ) from error
        raise LoadError(
            f"{key}: there is no module {name!r} on the path. Run from the folder that holds it, "
            "or pass that folder with --code-dir."
        ) from error
    except Exception as error:
        raise LoadError(f"{key}: importing {name!r} failed: {type(error).__name__}: {error}") from error


def _load_file(path: str, key: str) -> ModuleType:
    file = Path(path).resolve()
    if not file.is_file():
        raise LoadError(f"{key}: there is no file {path!r} (looked in {Path.cwd()}).")
    # The same name in every process, so that what is pickled in one is found in another.
    name = f"rlhf_user_{file.stem}_{zlib.crc32(str(file).encode()):08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise LoadError(f"{key}: {path!r} cannot be loaded: {type(error).__name__}: {error}") from error
    return module
