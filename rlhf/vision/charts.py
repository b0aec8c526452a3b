"""Charts as SVG: the frontier of taste and retention, and lines over steps."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_COLOURS = ("#1b6ca8", "#c0392b", "#2e8b57", "#8e44ad", "#d68910", "#d6278f", "#5d6d7e", "#a04000")
_MARKED_UP_TO = 30
"""Points of a line that are drawn as dots, too."""
_WIDTH, _HEIGHT, _MARGIN = 640, 380, 56


def frontier_chart(
    points: Sequence[Mapping[str, Any]], *, across: str = "zero_shot", up: str = "taste"
) -> str:
    """Every setting that was tried: `up` against `across`. Hollow: it lost more of an ability than was allowed."""
    xs, ys = ([float(point[name]) for point in points] for name in (across, up))
    place_x = _scale(xs, _MARGIN, _WIDTH - 150)
    place_y = _scale(ys, _HEIGHT - _MARGIN, 20)
    rows = list(dict.fromkeys(str(point["row"]) for point in points))
    colours = {row: _COLOURS[i % len(_COLOURS)] for i, row in enumerate(rows)}
    drawn = [_axes(xs, ys, across, up)]
    for point, x, y in zip(points, xs, ys, strict=True):
        colour = colours[str(point["row"])]
        fill = colour if point.get("keeps", True) else "none"
        title = escape(", ".join(f"{key} {value}" for key, value in point.items()))
        drawn.append(
            f'<circle cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="5" fill="{fill}" stroke="{colour}" '
            f'stroke-width="2"><title>{title}</title></circle>'
        )
    for i, row in enumerate(rows):
        y = 30 + 20 * i
        drawn.append(
            f'<circle cx="{_WIDTH - 130}" cy="{y}" r="5" fill="{colours[row]}"/>'
            f'<text x="{_WIDTH - 118}" y="{y + 4}" font-size="12">{escape(row)}</text>'
        )
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" '
        f'aria-label="{escape(up)} against {escape(across)}">{"".join(drawn)}</svg>'
        f"<figcaption>Validation: {escape(up)} "
        f"against {escape(across)}, one point per setting. Hollow points lost more of an ability than was allowed."
        "</figcaption></figure>"
    )


def _scale(values: Sequence[float], start: float, stop: float) -> Any:
    low, high = min(values), max(values)
    room = (high - low) * 0.05 or 1e-6
    low, high = low - room, high + room
    return lambda value: start + (value - low) / (high - low) * (stop - start)


def _axes(xs: Sequence[float], ys: Sequence[float], across: str, up: str) -> str:
    bottom, right = _HEIGHT - _MARGIN, _WIDTH - 150
    parts = [
        f'<path d="M{_MARGIN} 20V{bottom}H{right}" fill="none" stroke="#888"/>',
        f'<text x="{(_MARGIN + right) / 2}" y="{_HEIGHT - 12}" text-anchor="middle" font-size="13">'
        f"{escape(across)}</text>",
        f'<text x="16" y="{bottom / 2}" font-size="13" transform="rotate(-90 16 {bottom / 2})" '
        f'text-anchor="middle">{escape(up)}</text>',
    ]
    place_x, place_y = _scale(xs, _MARGIN, right), _scale(ys, bottom, 20)
    for i in range(5):
        x = min(xs) + (max(xs) - min(xs)) * i / 4
        y = min(ys) + (max(ys) - min(ys)) * i / 4
        parts.append(
            f'<text x="{place_x(x):.1f}" y="{bottom + 16}" font-size="11" text-anchor="middle">{x:.2f}</text>'
        )
        parts.append(
            f'<text x="{_MARGIN - 6}" y="{place_y(y) + 4:.1f}" font-size="11" text-anchor="end">{y:.2f}</text>'
        )
    return "".join(parts)


def line_chart(
    steps: Sequence[float],
    series: Mapping[str, Sequence[float | None]],
    *,
    title: str,
    band: Sequence[Sequence[float]] = (),
) -> str:
    """Each series over the steps; `band` is (lower, upper) of an interval. A value that is missing leaves a gap."""
    width, height = 520, 260
    values = [y for ys in (*series.values(), *band) for y in ys if y is not None]
    if not values:
        return ""
    place_x = _scale(steps, _MARGIN, width - 20)
    place_y = _scale(values, height - 36, 16)
    drawn = [_frame(steps, values, width=width, height=height)]
    if band:
        low, high = band
        outline = [*zip(steps, low, strict=True), *reversed(list(zip(steps, high, strict=True)))]
        points = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in outline)
        drawn.append(f'<polygon points="{points}" fill="{_COLOURS[0]}" opacity="0.15"/>')
    for place, (name, ys) in enumerate(series.items()):
        colour = _COLOURS[place % len(_COLOURS)]
        marked = [(x, y) for x, y in zip(steps, ys, strict=True) if y is not None]
        points = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in marked)
        drawn.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(marked) <= _MARKED_UP_TO:
            drawn += [
                f'<circle cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="3" fill="{colour}">'
                f"<title>{escape(name)} {y:.4g} at step {x:g}</title></circle>"
                for x, y in marked
            ]
    keys = " ".join(
        f'<span style="color:{_COLOURS[place % len(_COLOURS)]}">&#9632; {escape(name)}</span>'
        for place, name in enumerate(series)
    )
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{escape(title)}">'
        f"{''.join(drawn)}</svg><figcaption>{escape(title)}: {keys}</figcaption></figure>"
    )


def _frame(xs: Sequence[float], ys: Sequence[float], *, width: int, height: int) -> str:
    bottom, right = height - 36, width - 20
    place_x, place_y = _scale(xs, _MARGIN, right), _scale(ys, bottom, 16)
    parts = [f'<path d="M{_MARGIN} 16V{bottom}H{right}" fill="none" stroke="#888"/>']
    for share in (0.0, 0.5, 1.0):
        x = min(xs) + (max(xs) - min(xs)) * share
        y = min(ys) + (max(ys) - min(ys)) * share
        parts.append(
            f'<text x="{place_x(x):.1f}" y="{bottom + 16}" font-size="11" text-anchor="middle">{x:g}</text>'
            f'<text x="{_MARGIN - 6}" y="{place_y(y) + 4:.1f}" font-size="11" text-anchor="end">{y:.3g}</text>'
        )
    return "".join(parts)
