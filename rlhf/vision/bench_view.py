"""The bench as a person sees it: a progress bar, the table, the gates."""

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rlhf.config.alignment_bench import BenchRecipe
from rlhf.telemetry.live import LiveView
from rlhf.telemetry.logs import TERMINAL, logged_to
from rlhf.vision.bench_report import run_bench
from rlhf.vision.bench_table import Gate, Row, lines, ranked_against_pairs
from rlhf.vision.report import write_bench_report

_WIDTH = 120
_SHORT = {
    "precision": "P",
    "zero_shot": "zs",
    "recall_1": "R@1",
    "recall_10": "R@10",
    "image_recall_1": "iR@1",
    "image_recall_10": "iR@10",
    "ndcg": "NDCG",
    "diversity": "div",
}
"""Column of the table -> its head: what is kept must fit beside what is gained."""


def show_bench(config: BenchRecipe, folder: Path) -> int:
    """Run it; the exit code is 1 where a gate was missed."""
    with logged_to(folder), LiveView({"bench": config.name}) as view:
        rows, verdicts = run_bench(config, folder, view.phase)
    # A table whose cells are cut says nothing: where the terminal is narrow, or none, lines run over its edge.
    console = TERMINAL if TERMINAL.width >= _WIDTH else Console(stderr=True, width=_WIDTH)
    for table in (*bench_tables(rows, config), gates_table(verdicts)):
        console.print(table)
    for line in ranked_against_pairs({row.name: row for row in rows}):
        console.print(line)
    console.print(f"report: {write_bench_report(folder)}")
    return 0 if all(gate.passed for gate in verdicts) else 1


def bench_tables(rows: list[Row], config: BenchRecipe) -> tuple[Table, Table]:
    """What every row retrieves and keeps, with its 95 % interval over queries; and what it takes."""
    printed = lines(rows)
    costs = ("row", *[name for name in printed[0] if name not in _SHORT and name not in ("row", "taste")])
    title = f"{config.name}: test queries, first {config.test.top_k} images, {config.seeds} seeds"
    found = _table(rows, printed, ("row", "taste", *_SHORT), title=title)
    found.caption = ", ".join(f"{short} {name}" for name, short in _SHORT.items() if short != name)
    return found, _table(rows, printed, costs, title="against the pre-trained model, and what it takes")


def _table(rows: list[Row], printed: list[dict[str, str]], names: Sequence[str], *, title: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    for name in names:
        left = name in ("row", "calls", "settings")
        table.add_column(
            _SHORT.get(name, name), justify="left" if left else "right", no_wrap=name != "settings"
        )
    kind = ""
    for row, line in zip(rows, printed, strict=True):
        if kind and row.kind != kind:
            table.add_section()
        kind = row.kind
        table.add_row(*(line[name] for name in names))
    return table


def gates_table(verdicts: list[Gate]) -> Table:
    """What was demanded and what was found."""
    table = Table(title="gates, frozen before the test split was opened", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("", "gate", "demanded", "found"):
        table.add_column(name)
    for gate in verdicts:
        table.add_row("passed" if gate.passed else "MISSED", gate.name, gate.demand, gate.found)
    return table
