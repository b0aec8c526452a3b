"""`report.html` of an alignment run: pictures before and after, retention beside taste, what was preferred."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rlhf.retrieval import PartialOrder
from rlhf.run_folder import replace_file
from rlhf.telemetry.live import clock
from rlhf.telemetry.report import merge_steps
from rlhf.telemetry.sinks import read_metrics
from rlhf.vision.charts import line_chart
from rlhf.vision.orders import ordered_places, read_orders
from rlhf.vision.pictures import Pictures
from rlhf.vision.report import page, table
from rlhf.vision.run import SHOWN_IMAGES, SHOWN_QUERIES

_ABILITIES = (
    "precision",
    "zero_shot",
    "recall_1",
    "recall_10",
    "image_recall_1",
    "image_recall_10",
    "ndcg",
    "diversity",
)
_PAIRS = 6
"""Pairs shown of a list."""


def write_alignment_report(run_dir: Path) -> Path:
    """From metrics.jsonl, evaluations/, orders/ and pictures/; what is missing is left out."""
    lines = merge_steps(read_metrics(run_dir))
    evaluations = [json.loads(file.read_text()) for file in sorted((run_dir / "evaluations").glob("*.json"))]
    pictures = Pictures(run_dir / "pictures")
    parts = [_status(lines), *_warnings(lines), *_measured(lines)]
    if evaluations:
        parts += [
            "<h2>Held-out queries, before and after</h2>",
            *_grids(evaluations[0], evaluations[-1], pictures),
        ]
    parts += [*_lists(run_dir, pictures), *_training(lines)]
    config = run_dir / "config.yaml"
    if config.is_file():
        parts.append(
            f"<details><summary>config.yaml</summary><pre>{escape(config.read_text())}</pre></details>"
        )
    file = run_dir / "report.html"
    replace_file(file, page(run_dir.name, parts))
    return file


def _status(lines: Sequence[Mapping[str, Any]]) -> str:
    if not lines:
        return "<p>Nothing was logged yet.</p>"
    spent = sum(line.get("time/step_s") or 0.0 for line in lines)
    return f"<p>Step {lines[-1]['step']}; steps took {clock(spent)}.</p>"


def _warnings(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    alarmed = [line["step"] for line in lines if line.get("eval/hacking_alarm")]
    if not alarmed:
        return []
    steps = ", ".join(map(str, alarmed))
    return [
        f"<p class=bad>Step {steps}: the judges' score has risen over three evaluations while taste or precision fell. "
        "Look at the pictures below.</p>"
    ]


def _measured(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Taste, and what it cost: a chart each, and the numbers."""
    evaluated = [line for line in lines if line.get("eval/judge_score") is not None]
    if not evaluated:
        return []
    steps = [float(line["step"]) for line in evaluated]

    def series(*names: str) -> dict[str, list[float | None]]:
        found = {name: [line.get(f"eval/{name}") for line in evaluated] for name in names}
        return {name: values for name, values in found.items() if any(v is not None for v in values)}

    kept = series("precision", "zero_shot", "recall_10")
    parts = ["<h2>Taste and retention</h2>", "<div class=charts>"]
    band = [[v for v in values if v is not None] for values in series("taste_low", "taste_high").values()]
    is_whole = len(band) == 2 and all(len(values) == len(steps) for values in band)
    parts.append(
        line_chart(
            steps,
            series("taste", "judge_score"),
            title="taste of the first images",
            band=band if is_whole else (),
        )
    )
    if kept:
        parts.append(line_chart(steps, kept, title="what must be kept"))
    parts.append("</div>")
    first, last = evaluated[0], evaluated[-1]
    names = [f"eval/{name}" for name in ("taste", "judge_score", *_ABILITIES)]
    names += sorted(name for name in first if name.startswith("eval/judge/"))
    rows = [
        {
            "": name.removeprefix("eval/"),
            f"step {first['step']}": f"{first[name]:.3f}",
            f"step {last['step']}": f"{last[name]:.3f}",
            "change": f"{last[name] - first[name]:+.3f}",
        }
        for name in names
        if first.get(name) is not None and last.get(name) is not None
    ]
    return [*parts, table(rows)]


def _grids(before: Mapping[str, Any], after: Mapping[str, Any], pictures: Pictures) -> list[str]:
    """The first images of each query, by the start and by what it became."""
    parts = []
    later = {row["query"]: row for row in after["rows"]}
    both = [(old, later[old["query"]]) for old in before["rows"] if old["query"] in later]
    for old, new in both[:SHOWN_QUERIES]:
        parts.append(f"<h3>{escape(old['query'])}</h3><div class=pair>")
        parts += [_strip(name, row, pictures) for name, row in (("before", old), ("after", new))]
        parts.append("</div>")
    return parts


def _strip(name: str, row: Mapping[str, Any], pictures: Pictures) -> str:
    shown = []
    for place, image in enumerate(row["items"][:SHOWN_IMAGES]):
        said = [f"{judge} {scores[place]:.2f}" for judge, scores in row.get("judges", {}).items()]
        said += [f"taste {row['taste'][place]:.2f}"] if "taste" in row else []
        shown.append(_figure(image, said, pictures))
    return f"<div><div class=label>{name}</div><div class=row>{''.join(shown)}</div></div>"


def _figure(image: str, said: Sequence[str], pictures: Pictures) -> str:
    uri = pictures.uri(image)
    drawn = f'<img src="{uri}" alt="{escape(image)}">' if uri else f"<code>{escape(image)}</code>"
    under = "<br>".join(escape(line) for line in said)
    return f"<figure title='{escape(image)}'>{drawn}<figcaption>{under}</figcaption></figure>"


def _lists(run_dir: Path, pictures: Pictures) -> list[str]:
    """The newest list whose pictures were kept, as the teachers see it, and pairs of it."""
    for file in sorted((run_dir / "orders").glob("step-*.jsonl"), reverse=True):
        orders = [one for one in read_orders(file) if all(pictures.uri(image) for image in one.items)]
        if orders:
            break
    else:
        return []
    order = orders[0]
    u, v = order.shape
    parts = [
        f"<h2>What was preferred, step {int(file.stem.removeprefix('step-'))}</h2>",
        f"<p>{escape(order.query)}: {u} rows from what answers the query best to worst, {v} images of each from the "
        "judges' best to worst.</p>",
    ]
    for row in range(u):
        cells = [
            _figure(order.items[place], _teachers(order, place), pictures)
            for place in range(row * v, row * v + v)
        ]
        parts.append(f"<div class=row>{''.join(cells)}</div>")
    pairs = order.pairs or tuple(ordered_places(u, v))
    parts.append(
        f"<h3>{min(_PAIRS, len(pairs))} of its {len(pairs)} pairs, the better one first</h3><div class=row>"
    )
    step = max(1, len(pairs) // _PAIRS)
    for better, worse in pairs[::step][:_PAIRS]:
        both = "".join(_figure(order.items[p], _teachers(order, p), pictures) for p in (better, worse))
        parts.append(f"<div class='row versus'>{both}</div>")
    return [*parts, "</div>"]


def _teachers(order: PartialOrder, place: int) -> list[str]:
    return [f"{name} {scores[place]:.2f}" for name, scores in order.teacher.items()]


def _training(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """How the loss went."""
    wanted = ("update/list_loss", "update/replay_loss", "update/order_accuracy", "update/score_shift")
    trained = [line for line in lines if line.get("update/list_loss") is not None]
    if len(trained) < 2:
        return []
    steps = [float(line["step"]) for line in trained]
    charts = [
        line_chart(steps, {name: [line.get(name) for line in trained]}, title=name)
        for name in wanted
        if any(line.get(name) is not None for line in trained)
    ]
    return ["<h2>Training</h2><div class=charts>", *charts, "</div>"]
