"""What the finished stages of a pipeline say of themselves: scores of models, curves of training, counts."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from rlhf.config.references import references_in
from rlhf.errors import ConfigError
from rlhf.pipeline.manifest import Manifest
from rlhf.pipeline.opened import PIPELINE_FILE
from rlhf.pipeline.result import Result, read_result
from rlhf.telemetry.live import clock
from rlhf.telemetry.sinks import read_metrics

HELD_OUT = "task.heldout accuracy"
PAIRS = "held-out pairs whose chosen is ahead [95 % interval], and lengths of the training pairs"
_TRAINERS = ("sft", "dpo", "reward_model")
_OF_PAIRS = {
    "accuracy before": "preference/accuracy_before",
    "accuracy after": "preference/accuracy_after",
    "by implicit reward": "preference/accuracy_reward",
    "chosen shorter": "preference/accuracy_chosen_shorter",
    "chosen longer": "preference/accuracy_chosen_longer",
    "the longer one wins": "length/longer_wins",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 0 if abs(self.value) >= 10 else 3
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points (step, value) of something that a stage measured while it trained."""

    title: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A stage of a pipeline's folder; `result` is None as long as it is not done."""

    name: str
    kind: str
    needs: tuple[str, ...]
    folder: Path | None
    result: Result | None


def finished_stages(folder: Path) -> list[Finished]:
    """The stages of the pipeline that was last run in `folder`, in running order."""
    try:
        stages = yaml.safe_load((folder / PIPELINE_FILE).read_text(encoding="utf-8"))["stages"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(f"{str(folder / PIPELINE_FILE)!r} cannot be read: {error}") from error
    manifest = Manifest.read(folder)
    found = []
    for name, values in stages.items():
        where = folder / manifest.present[name] if name in manifest.present else None
        needs = tuple(dict.fromkeys(reference.stage for _, reference in references_in(values)))
        result = None if where is None else read_result(where)
        found.append(Finished(name=name, kind=values["kind"], needs=needs, folder=where, result=result))
    return found


def scores_of(stages: list[Finished]) -> dict[str, dict[str, Score]]:
    """Model -> `set figure` -> score, from all evaluations; of RL also its held-out accuracy before and after."""
    rows: dict[str, dict[str, Score]] = {}
    for stage in stages:
        if stage.result is None or stage.folder is None:
            continue
        for model, column, score in [*_of_training(stage), *_of_evaluation(stage)]:
            row = rows.setdefault(model, {})
            # Two evaluations may measure one model on sets of one name, otherwise sampled.
            row[f"{stage.name}: {column}" if column in row else column] = score
    return rows


def preferences_of(stages: list[Finished]) -> dict[str, dict[str, str]]:
    """Stage -> column -> text, of the stages that learned from pairs: held-out accuracy, and the finding on lengths."""
    rows: dict[str, dict[str, str]] = {}
    for stage in stages:
        if stage.result is None or "length/is_biased" not in stage.result.metrics:
            continue
        metrics = stage.result.metrics
        scores = {column: _score(metrics, name) for column, name in _OF_PAIRS.items()}
        rows[stage.name] = {column: str(score) for column, score in scores.items() if score is not None}
        rows[stage.name]["lengths"] = "biased" if metrics["length/is_biased"] else "not biased"
    return rows


def columns_of(rows: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Every column that a row has, in their order."""
    return list(dict.fromkeys(column for row in rows.values() for column in row))


def curves_of(stage: Finished) -> list[Curve]:
    """What is drawn of a stage that trained."""
    if stage.folder is None:
        return []
    kind = next((k for k in _TRAINERS if (stage.folder / "model" / f"{k}_metrics.jsonl").is_file()), None)
    if kind is not None:
        text = (stage.folder / "model" / f"{kind}_metrics.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        wanted = {"loss": "loss", "accuracy": "accuracy"}
    else:
        lines = read_metrics(stage.folder)
        wanted = {"held-out accuracy": "eval/accuracy", "reward": "rollout/reward_mean"}
    curves = [Curve(title=title, points=_points(lines, name)) for title, name in wanted.items()]
    return [curve for curve in curves if len(curve.points) > 1]


def closing_tables(stages: list[Finished]) -> list[Table]:
    """What every model scored, and what the stages that learned from pairs found; a table without rows is left out."""
    scores = {
        model: {column: str(score) for column, score in row.items() if is_main(column)}
        for model, row in scores_of(stages).items()
    }
    tables = {
        ("means over problems [95 % interval]", "model"): scores,
        (PAIRS, "stage"): preferences_of(stages),
    }
    return [_table(title, first, rows) for (title, first), rows in tables.items() if rows]


def _table(title: str, first: str, rows: Mapping[str, Mapping[str, str]]) -> Table:
    table = Table(title=title, title_justify="left")
    columns = columns_of(rows)
    for heading in (first, *columns):
        table.add_column(heading)
    for name, row in rows.items():
        table.add_row(name, *(row.get(column, "") for column in columns))
    return table


def times_line(stages: list[Finished]) -> str:
    """How long each stage took, in one line."""
    return ", ".join(f"{s.name} {clock(s.result.seconds)}" for s in stages if s.result is not None)


def is_main(column: str) -> bool:
    """Whether a column stands in the terminal's table, too: what is right, what can be read, parts of the reward."""
    figure = column.rpartition(" ")[2]
    return figure in ("accuracy", "format") or figure.startswith("reward/")


def _of_training(stage: Finished) -> Iterator[tuple[str, str, Score]]:
    assert stage.result is not None
    for when, model in (("before", f"{stage.name} (before)"), ("after", stage.name)):
        score = _score(stage.result.metrics, f"{when}/eval/accuracy")
        if score is not None:
            yield model, HELD_OUT, score


def _score(metrics: Mapping[str, float], name: str) -> Score | None:
    if name not in metrics:
        return None
    value = metrics[name]
    return Score(value=value, low=metrics.get(f"{name}_low", value), high=metrics.get(f"{name}_high", value))


def _of_evaluation(stage: Finished) -> Iterator[tuple[str, str, Score]]:
    assert stage.folder is not None
    file = stage.folder / "eval.json"
    if not file.is_file():
        return
    models: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["models"]
    for model, measured in models.items():
        row = stage.name if len(models) == 1 else model
        for name, scores in measured["sets"].items():
            for figure, values in scores["figures"].items():
                score = Score(value=values["value"], low=values["low"], high=values["high"])
                yield row, f"{name} {figure}", score


def _points(lines: list[dict[str, Any]], name: str) -> tuple[tuple[float, float], ...]:
    return tuple((line["step"], line[name]) for line in lines if line.get(name) is not None)
