"""`report.html` of a pipeline: its stages, their curves and one table of scores, in one file without scripts."""

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from rlhf.pipeline.summary import (
    PAIRS,
    Curve,
    Finished,
    columns_of,
    curves_of,
    finished_stages,
    preferences_of,
    scores_of,
)
from rlhf.telemetry.live import clock, is_number

_WIDTH, _HEIGHT, _MARGIN = 360, 150, 34
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
table.plain { border-collapse: collapse; width: 100%; font-size: 14px; }
.plain th, .plain td { text-align: left; padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); }
.plain td { vertical-align: top; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; } .curves { display: flex; flex-wrap: wrap; gap: 14px; }
svg text { font-size: 11px; fill: var(--text); }
"""


def write_pipeline_report(folder: Path) -> Path:
    """Write `report.html` into a pipeline's folder from what its stages left, and return its path."""
    stages = finished_stages(folder)
    done = sum(stage.result is not None for stage in stages)
    sections = [
        _section("Stages", _stages(stages, folder)),
        _section("Scores", _scores(stages)),
        *_preferences(stages),
        *(_section(stage.name, _of_stage(stage)) for stage in stages if stage.result is not None),
    ]
    css = (files("rlhf.telemetry") / "assets" / "report.css").read_text(encoding="utf-8")
    title = escape(folder.absolute().name)
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<style>{css}{_STYLE}</style></head><body><header class='top'><div class='wrap top-row'><div class='brand'>"
        f"<h1>{title}</h1><span class='pill'>{done} of {len(stages)} stages done</span></div></div></header>"
        f"<main class='wrap'>{''.join(sections)}</main></body></html>\n"
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _section(title: str, body: str) -> str:
    head = f"<div class='section-head'><h2>{escape(title)}</h2></div>"
    return f"<section>{head}<div class='card scroll'>{body}</div></section>"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the cells are HTML already."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table class='plain'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _stages(stages: Sequence[Finished], folder: Path) -> str:
    rows = []
    for stage in stages:
        time = "not done" if stage.result is None else clock(stage.result.seconds)
        where = ""
        if stage.folder is not None:
            path = stage.folder.relative_to(folder).as_posix()
            page = f"{path}/report.html" if (stage.folder / "report.html").is_file() else path
            where = f"<a href='{escape(page)}'>{escape(path)}</a>"
        needs = ", ".join(stage.needs)
        rows.append((f"<b>{escape(stage.name)}</b>", escape(stage.kind), escape(needs), escape(time), where))
    return _table(("stage", "kind", "needs", "time", "folder"), rows)


def _scores(stages: list[Finished]) -> str:
    scores = scores_of(stages)
    if not scores:
        return "<p>No stage has measured a model yet.</p>"
    return _named_rows("model", scores) + "<p>Means over problems with their 95 % intervals.</p>"


def _preferences(stages: list[Finished]) -> list[str]:
    """A section where any stage learned from pairs."""
    rows = preferences_of(stages)
    explained = f"<p>{escape(PAIRS[0].upper() + PAIRS[1:])}.</p>"
    return [_section("Preferences", _named_rows("stage", rows) + explained)] if rows else []


def _named_rows(first: str, rows: Mapping[str, Mapping[str, object]]) -> str:
    columns = columns_of(rows)
    cells = [
        [f"<b>{escape(name)}</b>", *(escape(str(row.get(column, ""))) for column in columns)]
        for name, row in rows.items()
    ]
    return _table((first, *columns), cells)


def _of_stage(stage: Finished) -> str:
    curves = "".join(_plot(curve) for curve in curves_of(stage))
    if curves:
        return f"<div class='curves'>{curves}</div>"
    assert stage.result is not None
    if stage.kind == "eval":
        return "<p>Its scores stand in the table above.</p>"
    rows = [(escape(name), f"{value:g}") for name, value in stage.result.metrics.items() if is_number(value)]
    return _table(("count", ""), rows)


def _plot(curve: Curve) -> str:
    """A line through the points, with the ends of both axes as numbers."""
    steps, values = zip(*curve.points, strict=True)
    left, right, low, high = min(steps), max(steps), min(values), max(values)
    wide, tall = (right - left) or 1.0, (high - low) or 1.0

    def place(step: float, value: float) -> str:
        x = _MARGIN + (step - left) / wide * (_WIDTH - _MARGIN - 10)
        y = _HEIGHT - 24 - (value - low) / tall * (_HEIGHT - 50)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(place(step, value) for step, value in curve.points)
    label = f"{curve.title}: {values[0]:.3g} at step {steps[0]:g}, {values[-1]:.3g} at step {steps[-1]:g}"
    texts = (
        (0, 14, label),
        (0, 32, f"{high:.3g}"),
        (0, _HEIGHT - 22, f"{low:.3g}"),
        (_MARGIN, _HEIGHT - 6, f"{left:g}"),
        (_WIDTH - 34, _HEIGHT - 6, f"{right:g}"),
    )
    written = "".join(f"<text x='{x}' y='{y}'>{escape(text)}</text>" for x, y, text in texts)
    return (
        f"<svg width='{_WIDTH}' height='{_HEIGHT}' role='img' aria-label='{escape(label, quote=True)}'>"
        f"<polyline points='{line}' fill='none' stroke='var(--c1)' stroke-width='2'/>{written}</svg>"
    )
