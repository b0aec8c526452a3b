"""Plants every bug of the table in a copy of the checkout and says which tests notice.

python -m tests.mutations [--only PART] [--jobs N] [--write]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.mutations.mutation import Mutation, StaleMutationError
from tests.mutations.report import markdown, rows
from tests.mutations.table import MUTATIONS
from tests.mutations.trial import ROOT, Verdict, checkout_copy, try_all

PAGE = ROOT / "docs/mutations.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every bug was caught and every equivalent was not; 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("--only", default="", help="run those with this in their name or file")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time (default 2)")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    options = parser.parse_args(arguments)
    console = Console(soft_wrap=True)
    chosen = [m for m in MUTATIONS if options.only in m.name or options.only in m.file]
    if not chosen:
        parser.error(f"no planted bug has {options.only!r} in its name or file")
    if options.write and options.only:
        parser.error("--write writes the whole table: leave --only out")
    if stale := _stale(chosen):
        console.print(*stale, sep="\n", markup=False)
        return 1
    if not _passes_without_bugs(chosen, console):
        return 1
    found = _tried(chosen, console, jobs=options.jobs)
    table = Table("bug", "file", "caught by", "s")
    for row in rows(found):
        table.add_row(*row)
    console.print(table)
    if options.write:
        PAGE.write_text(markdown(found), encoding="utf-8")
    failures = [verdict for verdict in found if verdict.is_failure]
    for verdict in failures:
        console.print(f"FAILED {_outcome(verdict)}", markup=False, style="red")
    console.print(f"{len(found)} tried, {len(failures)} not as they should be")
    return int(bool(failures))


def _stale(mutations: list[Mutation]) -> list[str]:
    stale = []
    for mutation in mutations:
        try:
            mutation.applied(Path(ROOT, mutation.file).read_text(encoding="utf-8"))
        except StaleMutationError as error:
            stale.append(str(error))
    return stale


def _passes_without_bugs(mutations: list[Mutation], console: Console) -> bool:
    """Otherwise every mutant would be caught by the test that fails anyway."""
    tests = tuple(dict.fromkeys(test for mutation in mutations for test in mutation.tests))
    with checkout_copy() as copy, console.status(f"{len(tests)} test files without any bug"):
        code, output, _ = copy.run_tests(tests)
    if code:
        console.print(output, markup=False)
        console.print("The tests fail without any bug: nothing was planted.", style="red")
    return code == 0


def _tried(mutations: list[Mutation], console: Console, *, jobs: int) -> list[Verdict]:
    found: dict[str, Verdict] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("mutants", total=len(mutations))
        for verdict in try_all(mutations, jobs=jobs):
            found[verdict.mutation.name] = verdict
            progress.console.print(_outcome(verdict), markup=False, style="red" if verdict.is_failure else "")
            progress.advance(task)
    return [found[mutation.name] for mutation in mutations]


def _outcome(verdict: Verdict) -> str:
    state = verdict.problem or verdict.caught_by or "survived"
    if verdict.mutation.equivalent and not verdict.is_failure:
        state = "equivalent"
    return f"{verdict.mutation.name} ({verdict.mutation.file}): {state} {verdict.reason} [{verdict.seconds:.1f} s]"


if __name__ == "__main__":
    sys.exit(main())
