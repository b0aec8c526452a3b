"""A run folder of alignment as a real run leaves it, made by hand."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlhf.telemetry.sinks import JsonlSink
from rlhf.vision.orders import write_orders
from rlhf.vision.pictures import Pictures
from tests.retrievers import Squares
from tests.unit.vision.recipes import orders, recipe

STEPS = (0, 2, 4)
IDS = tuple(Squares().ids())


def evaluation(step: int) -> dict[str, float]:
    """Taste and the judges rise, retention falls."""
    return {
        "eval/taste": 0.25 + step / 16, "eval/taste_low": 0.2 + step / 16, "eval/taste_high": 0.3 + step / 16,
        "eval/judge_score": 100.0 + step, "eval/judge/brightness": 100.0 + step, "eval/precision": 0.75 - step / 32,
        "eval/zero_shot": 0.5, "eval/recall_1": 0.5, "eval/recall_10": 0.875, "eval/image_recall_1": 0.5,
        "eval/image_recall_10": 0.875, "eval/ndcg": 0.5, "eval/diversity": 0.25, "eval/hacking_alarm": 0.0,
    }  # fmt: skip


def training(step: int) -> dict[str, float]:
    """Of one step."""
    return {
        "update/list_loss": 2.0 / step, "update/replay_loss": 1.0, "update/order_accuracy": 0.5,
        "update/score_shift": 0.0, "time/step_s": 30.0,
    }  # fmt: skip


def write_metrics(folder: Path, lines: Sequence[tuple[int, Mapping[str, float]]]) -> None:
    """`metrics.jsonl`, as the sink of a run writes it."""
    sink = JsonlSink(folder)
    for step, metrics in lines:
        sink.log(step, metrics)
    sink.close()


def metrics_of_a_run() -> list[tuple[int, dict[str, float]]]:
    """Four steps, evaluated before, amid and after."""
    trained = [(step, training(step)) for step in range(1, 5)]
    return [(0, evaluation(0)), *((s, m | (evaluation(s) if s in STEPS else {})) for s, m in trained)]


def evaluated(step: int, queries: Sequence[str] = ("red", "blue")) -> dict[str, Any]:
    """What `evaluations/step-N.json` holds: other images at each step."""
    rows = [
        {
            "query": f"a {query} square",
            "items": list(IDS[step + 8 * place : step + 8 * place + 6]),
            "judges": {"brightness": [100.0 + step + i / 8 for i in range(6)]},
            "taste": [float(step) / 4] * 6,
        }
        for place, query in enumerate(queries)
    ]
    return {"metrics": {}, "rows": rows}


def write_evaluation(folder: Path, step: int, found: Mapping[str, Any]) -> None:
    """`evaluations/step-N.json`."""
    (folder / "evaluations").mkdir(parents=True, exist_ok=True)
    (folder / "evaluations" / f"step-{step:06d}.json").write_text(json.dumps(found))


def write_alignment_run(folder: Path) -> Path:
    """Everything that a report reads."""
    write_metrics(folder, metrics_of_a_run())
    kept = Pictures(folder / "pictures")
    for step in STEPS:
        write_evaluation(folder, step, evaluated(step))
        kept.keep(Squares(), [name for row in evaluated(step)["rows"] for name in row["items"]])
    for step in (1, 3, 4):
        of_step = orders(2, seed=step)
        write_orders(folder / "orders" / f"step-{step:06d}.jsonl", of_step)
        if step < 4:
            kept.keep(Squares(), [name for order in of_step for name in order.items])
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe().model_dump(mode="json"), sort_keys=False))
    return folder
