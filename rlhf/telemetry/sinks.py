"""Where metrics go. Every sink has `log(step, metrics)` and `close()`."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rlhf.errors import DependencyError
from rlhf.telemetry.metrics import declared

if TYPE_CHECKING:
    from rlhf.config.alignment import AlignmentRecipe
    from rlhf.config.schema import Recipe

METRICS_FILE = "metrics.jsonl"


class Sink(Protocol):
    """A destination of metrics."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of one step."""

    def close(self) -> None:
        """Flush and let go."""


class JsonlSink:
    """`metrics.jsonl` in the run folder: one JSON object per step, on disk as soon as `log` returns.

    `first_step` is the first step this process will log: lines at or after it, left by a crashed
    process, are cut, so that no step appears twice (0 starts a fresh file).
    NaN and infinity become null and are counted, in the line and in `num_nonfinite`.
    """

    def __init__(self, run_dir: Path, *, first_step: int = 0) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / METRICS_FILE
        _cut(path, first_step)
        self._file = path.open("a", encoding="utf-8")
        self.num_nonfinite = 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line. Raises AssertionError for an undeclared name."""
        line: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
        for name, value in metrics.items():
            declared(name)
            line[name] = value if math.isfinite(value) else None
        nonfinite = sum(not math.isfinite(value) for value in metrics.values())
        if nonfinite:
            line["nonfinite"] = nonfinite
            self.num_nonfinite += nonfinite
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class ListSink:
    """Keeps everything in memory: `lines` is [(step, metrics)]."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Remember the metrics. Raises AssertionError for an undeclared name."""
        for name in metrics:
            declared(name)
        self.lines.append((step, dict(metrics)))

    def close(self) -> None:
        """Nothing to let go."""


class TensorBoardSink:
    """TensorBoard event files in `<run folder>/tensorboard`."""

    def __init__(self, run_dir: Path, *, first_step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise missing_package("tensorboard") from error
        # purge_step hides what a crashed process wrote at or after the first step.
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one scalar per metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WandbSink:
    """A Weights & Biases run, resumed under the same id when the run folder is resumed."""

    def __init__(self, run_dir: Path, *, project: str, name: str, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise missing_package("wandb") from error
        self._run = wandb.init(
            project=project,
            name=name,
            id=_wandb_id(run_dir),
            resume="allow",
            dir=str(run_dir),
            config=dict(config),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of a step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def open_sinks(recipe: "Recipe | AlignmentRecipe", run_dir: Path, *, first_step: int) -> list[Sink]:
    """`metrics.jsonl` and the trackers that `telemetry.sinks` names. DependencyError for one that is not installed."""
    sinks: list[Sink] = [JsonlSink(run_dir, first_step=first_step)]
    for kind in recipe.telemetry.sinks:
        match kind:
            case "tensorboard":
                sinks.append(TensorBoardSink(run_dir, first_step=first_step))
            case "wandb":
                config = recipe.model_dump(mode="json")
                sinks.append(
                    WandbSink(run_dir, project=recipe.telemetry.project, name=recipe.name, config=config)
                )
    return sinks


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, in order; an unfinished last line (a crash while writing) is left out."""
    path = run_dir / METRICS_FILE
    if not path.is_file():
        return []
    complete = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in complete if line.strip()]


def _cut(path: Path, first_step: int) -> None:
    kept = [line for line in read_metrics(path.parent) if line["step"] < first_step]
    draft = path.with_suffix(".draft")
    draft.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    os.replace(draft, path)


def _wandb_id(run_dir: Path) -> str:
    path = run_dir / "wandb_id"
    if not path.is_file():
        path.write_text(os.urandom(6).hex())
    return path.read_text().strip()


def missing_package(package: str) -> DependencyError:
    """The error of a sink whose package is not installed."""
    return DependencyError(
        f"telemetry.sinks names a sink that needs {package!r}, which is not installed. "
        "Install this project with its `trackers` extra, or take the sink out of telemetry.sinks."
    )
