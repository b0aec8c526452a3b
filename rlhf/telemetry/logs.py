"""Logging for the command line: facts to the terminal, everything to `run.log`, third parties quiet."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

TERMINAL = Console(stderr=True)
"""The one console: the live view and the log share it, so that log lines appear above the view."""

FILE_ONLY = {"file_only": True}
"""`extra=FILE_ONLY` keeps a record out of the terminal (the live view already shows it)."""

_QUIET = (
    "accelerate",
    "asyncio",
    "datasets",
    "filelock",
    "fsspec",
    "httpcore",
    "httpx",
    "huggingface_hub",
    "peft",
    "ray",
    "torch",
    "transformers",
    "trl",
    "urllib3",
    "vllm",
    "wandb",
)


def configure_logging(*, verbose: bool = False) -> None:
    """Send INFO (or DEBUG) of this package and warnings of all others to the terminal."""
    terminal = _terminal()
    terminal.setLevel(logging.DEBUG if verbose else logging.INFO)
    terminal.addFilter(lambda record: not record.__dict__.get("file_only", False))
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.handlers[:] = [terminal]
    logging.getLogger("rlhf").setLevel(logging.DEBUG if verbose else logging.INFO)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    # Python warnings of libraries are for the file: they say nothing a user of this command can act on.
    terminal.addFilter(lambda record: record.name != "py.warnings")


def log_to_folder(run_dir: Path) -> logging.Handler:
    """Also append everything to `run.log` in the run folder; returns what was attached, for its `close`."""
    run_dir.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(run_dir / "run.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    return handler


@contextlib.contextmanager
def logged_to(folder: Path) -> Iterator[None]:
    """Also append everything to `run.log` in the folder until the block ends."""
    attached = log_to_folder(folder)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(attached)
        attached.close()


def _terminal() -> logging.Handler:
    if TERMINAL.is_terminal:
        return RichHandler(
            console=TERMINAL, show_path=False, show_level=False, markup=False, log_time_format="%H:%M:%S"
        )
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    return handler
