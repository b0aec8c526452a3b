"""`report.html` of an evaluation: figures, curves over k, tables and samples in one file that needs no network."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from rlhf.telemetry.report import embed_json

_SCRIPTS = ("dom.js", "evaluation.js")
_BUDGET = 1_200_000
"""Characters of JSON that samples may take in the page; all chosen ones are in samples.jsonl."""
_TEXT = 8_000
"""Longest text of a sample in the page."""


def write_eval_report(folder: Path) -> Path:
    """Write `report.html` into the folder from its eval.json, samples.jsonl and whatever describes it."""
    path = folder / "report.html"
    assets = files("rlhf.telemetry") / "assets"
    page = (assets / "evaluation.html").read_text(encoding="utf-8")
    scripts = "\n".join((assets / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    page = page.replace("/*STYLE*/", (assets / "report.css").read_text(encoding="utf-8"))
    page = page.replace("/*SCRIPT*/", scripts)
    # The data goes in last: model text that looks like a placeholder must stay text.
    path.write_text(page.replace("/*DATA*/", embed_json(eval_report_data(folder))), encoding="utf-8")
    return path


def eval_report_data(folder: Path) -> dict[str, Any]:
    """Everything the page shows, ready for JSON."""
    found = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
    lines = _read(folder / "samples.jsonl").splitlines()
    environment = _read(folder / "environment.json")
    return {
        "title": found["name"],
        "results": [
            {"model": model, "path": measured["model"], "set": name, "curves": _curves(scores), **scores}
            for model, measured in found["models"].items()
            for name, scores in measured["sets"].items()
        ],
        "samples": {"total": len(lines), "rows": _embedded([json.loads(line) for line in lines])},
        "config": next(
            filter(None, (_read(folder / name) for name in ("evaluation.yaml", "stage.yaml"))), ""
        ),
        "environment": json.loads(environment or "{}").get("packages", {}),
    }


def _curves(scores: Mapping[str, Any]) -> dict[str, list[list[float]]]:
    """Kind -> points (k, value, low, high), rising in k."""
    curves: dict[str, list[list[float]]] = {}
    for name, figure in scores["figures"].items():
        kind, mark, k = name.partition("@") if "@" in name else name.partition("^")
        if k.isdecimal():
            point = [int(k), figure["value"], figure["low"], figure["high"]]
            curves.setdefault(f"{kind}{mark}k", []).append(point)
    return {kind: sorted(points) for kind, points in curves.items()}


def _embedded(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """As many as fit, evenly spaced, each with its texts cut."""
    rows = [_cut(sample) for sample in samples]
    sizes = [len(json.dumps(row, ensure_ascii=False)) for row in rows]
    if sum(sizes) <= _BUDGET:
        return rows
    fits = max(1, int(len(rows) * _BUDGET / sum(sizes)))
    return [rows[i * len(rows) // fits] for i in range(fits)]


def _cut(sample: Mapping[str, Any]) -> dict[str, Any]:
    def short(text: str) -> str:
        return text if len(text) <= _TEXT else f"{text[: _TEXT // 2]}\n[...]\n{text[-_TEXT // 2 :]}"

    turns = [{**turn, "text": short(turn["text"])} for turn in sample["turns"]]
    texts = {"prompt": short(sample["prompt"]), "completion": short(sample["completion"])}
    return {**sample, **texts, "turns": turns}


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
