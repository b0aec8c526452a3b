"""The verdicts as a page."""

from pathlib import PurePath

from tests.mutations.trial import Verdict


def rows(verdicts: list[Verdict]) -> list[tuple[str, str, str, str]]:
    """(bug, file, caught by, seconds) of each."""
    return [
        (v.mutation.name, PurePath(v.mutation.file).name, _caught_by(v), f"{v.seconds:.0f}") for v in verdicts
    ]


def markdown(verdicts: list[Verdict]) -> str:
    """The page docs/mutations.md."""
    equivalent = [v for v in verdicts if v.mutation.equivalent]
    bugs = [v for v in verdicts if not v.mutation.equivalent]
    caught = sum(v.caught_by is not None for v in bugs)
    lines = [
        "# Planted bugs and the tests that catch them",
        "",
        "Written by `python -m tests.mutations --write`: each change below is made in a copy of the checkout, and",
        "the tests of that file run up to the first that fails. A bug is another entry in `tests/mutations/planted`;",
        "`tests/mutations/test_table.py` keeps the table in step with the code.",
        "",
        f"**{len(verdicts)} changes planted: {len(bugs)} bugs, {caught} of them caught; "
        f"{len(equivalent)} provably equivalent programs, which no test can tell apart.**",
        "",
        "| bug | file | caught by | s |",
        "|---|---|---|---|",
        *(f"| {' | '.join(_escaped(cell) for cell in row)} |" for row in rows(bugs)),
        "",
        "## Equivalent programs",
        "",
        "| change | file | why nothing changes |",
        "|---|---|---|",
        *(
            f"| {_escaped(v.mutation.name)} | {PurePath(v.mutation.file).name} | "
            f"{_escaped(v.mutation.equivalent or '')} |"
            for v in equivalent
        ),
    ]
    return "\n".join(lines) + "\n"


def _caught_by(verdict: Verdict) -> str:
    if verdict.problem:
        return "no verdict"
    if verdict.caught_by is None:
        return "equivalent" if verdict.mutation.equivalent else "SURVIVED"
    return verdict.caught_by.rpartition("/")[2].replace(".py::", ": ")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
