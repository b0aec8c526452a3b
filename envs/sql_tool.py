"""A SQLite database for every episode, to be asked or changed.

Reads rows with the columns
- `reference`: the right SQL. One query, whose rows are compared with those of the query that the model submitted; or,
  with `writable`, one or more statements that bring the database into the right state;
- `database`: a script (CREATE, INSERT, ...) that makes the database, or `database_file`: a SQLite file, looked for in
  `folder`. A file is read where it lies; with `writable`, each episode has a copy in memory;
- `hidden_databases` (optional): more scripts with the same tables and other rows. The submitted query must be right on
  each, so that an answer that only repeats what was seen is not.

A statement is ended at `seconds`; it cannot attach, load or write anything outside its database.
"""

import re
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envs.sql_database import Database, QueryError, Table, has_order, is_same_table, same_rows
from rlhf.errors import DataError
from rlhf.interfaces import Context
from rlhf.types import Prompt

MAX_COMPARED_ROWS = 100_000
_CELL_CHARACTERS = 200


class SqlTool:
    """Tools `schema`, `query` and, unless the database is `writable`, `submit`. Scores 1 or 0."""

    def __init__(
        self, *, writable: bool = False, folder: str = ".", seconds: float = 5.0, max_rows: int = 50
    ) -> None:
        self._is_writable = writable
        self._folder = folder
        self._seconds = seconds
        self._max_rows = max_rows
        self._database: Database | None = None
        self._submitted: str | None = None

    def reset(self, prompt: Prompt, context: Context) -> None:  # noqa: ARG002 -- the protocol's
        """The prompt's own messages. DataError for a row whose database cannot be made."""
        if not prompt.reference:
            raise DataError(f"row {prompt.id}: `reference` is {prompt.reference!r}, expected the right SQL.")
        self._database = self._make(prompt.columns)

    def schema(self) -> str:
        """Show the statements that made the tables."""
        return self._open.schema()

    def query(self, sql: str) -> str:
        """Run one SQL statement (SQLite) and show its rows.

        Args:
            sql: the statement
        """
        return _shown(self._open.run(sql, seconds=self._seconds, max_rows=self._max_rows))

    def submit(self, sql: str) -> str:
        """Give the query that answers the question; the last one counts.

        Args:
            sql: one SELECT statement
        """
        if self._is_writable:
            raise QueryError("there is nothing to submit: the state of the database is the answer")
        self._open.run(sql, seconds=self._seconds, max_rows=1)
        self._submitted = sql
        return "submitted"

    def score(self, context: Context) -> float:
        """Whether the submitted query, or the state of the database, is the right one. DataError: the row is not."""
        columns, right = context.prompt.columns, str(context.prompt.reference)
        if self._is_writable:
            return float(self._is_right_state(columns, right))
        if self._submitted is None:
            return 0.0
        scripts = columns.get("hidden_databases") or ()
        return float(
            self._is_right_query(self._open, right)
            and all(self._is_right_on(script, right) for script in scripts)
        )

    def close(self) -> None:
        """Free the database."""
        if self._database is not None:
            self._database.close()

    @property
    def _open(self) -> Database:
        assert self._database is not None
        return self._database

    def _make(self, columns: Mapping[str, Any]) -> Database:
        script, name = columns.get("database"), columns.get("database_file")
        if (script is None) == (name is None):
            raise DataError(
                f"expected one of the columns `database` (a script) and `database_file`, found {sorted(columns)}."
            )
        if name is None:
            return Database(script=str(script), is_writable=self._is_writable)
        return Database(file=Path(self._folder) / str(name), is_writable=self._is_writable)

    def _is_right_on(self, script: str, right: str) -> bool:
        database = Database(script=script)
        try:
            return self._is_right_query(database, right)
        finally:
            database.close()

    def _is_right_query(self, database: Database, right: str) -> bool:
        expected = self._reference_rows(database, right)
        try:
            assert self._submitted is not None
            found = database.run(self._submitted, seconds=self._seconds, max_rows=MAX_COMPARED_ROWS)
        except QueryError:
            return False
        return is_same_table(found, expected, is_ordered=has_order(right))

    def _reference_rows(self, database: Database, right: str) -> Table:
        try:
            table = database.run(right, seconds=4 * self._seconds, max_rows=MAX_COMPARED_ROWS)
        except QueryError as error:
            raise DataError(f"the reference cannot be run: {error}: {right[:200]!r}") from error
        if table.is_cut:
            raise DataError(f"the reference gives more than {MAX_COMPARED_ROWS} rows: {right[:200]!r}")
        return table

    def _is_right_state(self, columns: Mapping[str, Any], right: str) -> bool:
        database = self._make(columns)
        try:
            for statement in _statements(right):
                database.run(statement, seconds=4 * self._seconds, max_rows=1)
            expected = database.state(seconds=4 * self._seconds, max_rows=MAX_COMPARED_ROWS)
        except QueryError as error:
            raise DataError(f"the reference cannot be run: {error}: {right[:200]!r}") from error
        finally:
            database.close()
        try:
            found = self._open.state(seconds=4 * self._seconds, max_rows=MAX_COMPARED_ROWS)
        except QueryError:
            return False
        return found.keys() == expected.keys() and all(
            found[key].columns == table.columns and same_rows(found[key].rows, table.rows, is_ordered=False)
            for key, table in expected.items()
        )


def _statements(script: str) -> list[str]:
    """The statements of a script; also where a semicolon stands in a text or a trigger."""
    found, pending = [], ""
    for piece in re.split(r"(?<=;)", script):
        pending += piece
        if sqlite3.complete_statement(pending):
            found.append(pending)
            pending = ""
    return [statement for statement in [*found, pending] if statement.strip(" \t\r\n;")]


def _shown(table: Table) -> str:
    if not table.columns:
        return "done"
    lines = [" | ".join(map(_cell, row)) for row in (table.columns, *table.rows)]
    if table.is_cut:
        lines.append(f"(only the first {len(table.rows)} rows)")
    return "\n".join(lines) if table.rows else f"{lines[0]}\n(no rows)"


def _cell(value: Any) -> str:
    if isinstance(value, bytes):
        return f"x'{value[:20].hex()}'"
    text = "NULL" if value is None else str(value)
    return text if len(text) <= _CELL_CHARACTERS else f"{text[:_CELL_CHARACTERS]}..."
