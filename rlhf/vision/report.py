"""`report.html` of a bench or of an alignment run: one file that needs no network."""

import json
from html import escape
from pathlib import Path

from rlhf.run_folder import replace_file
from rlhf.vision.charts import frontier_chart

_STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;color:#1a1a1a;"
    "background:#fff}table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .6rem;text-align:right;"
    "border-bottom:1px solid #ddd;white-space:nowrap}td:first-child,th:first-child{text-align:left}.bad{color:#b00020;"
    "font-weight:600}.words td,.words th{text-align:left;white-space:normal}.wide{overflow-x:auto}"
    "figure{margin:1rem 0}.row{display:flex;gap:.3rem;align-items:flex-end;"
    "flex-wrap:wrap}.row img{width:56px;height:56px;image-rendering:pixelated}.row figcaption{font-size:11px;"
    "text-align:center;color:#555}.row figure{margin:0}h3{margin:.8rem 0 .2rem}.pair{display:flex;gap:2.5rem;"
    "flex-wrap:wrap}.label{font-size:12px;color:#555}.charts{display:flex;flex-wrap:wrap;gap:1rem}.versus{border:1px "
    "solid #ddd;border-radius:4px;padding:.4rem;margin-right:.6rem}pre{overflow-x:auto;font-size:12px}"
)


def page(title: str, parts: list[str]) -> str:
    """A whole document."""
    body = "\n".join(parts)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1>\n{body}</html>"
    )


def table(rows: list[dict[str, str]], *, words: bool = False) -> str:
    """Rows of one set of columns, of numbers or of words."""
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in row.values()) + "</tr>" for row in rows
    )
    kind = " class=words" if words else ""
    return f"<div class=wide><table{kind}><tr>{head}</tr>{body}</table></div>"


def write_bench_report(folder: Path) -> Path:
    """From `bench.json`."""
    found = json.loads((folder / "bench.json").read_text())
    gates = [
        {
            "": "passed" if gate["passed"] else "MISSED",
            "gate": gate["name"],
            "demanded": gate["demand"],
            "found": gate["found"],
        }
        for gate in found["gates"]
    ]
    parts = [
        "<p>Taste is people's score of the first images, which no judge in training sees. Settings were chosen on "
        "validation queries among those that hold retention; the test split was opened once.</p>",
        frontier_chart(found["frontier"]),
        "<h2>Test queries</h2>",
        table(found["table"]),
        "<h2>Gates</h2>",
        table(gates, words=True),
        "<h2>Ranked lists against pairs</h2>",
        *(f"<p>{escape(line)}</p>" for line in found["ranked_against_pairs"]),
    ]
    file = folder / "report.html"
    replace_file(file, page(found["name"], parts))
    return file
