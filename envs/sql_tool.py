"""A SQLite database for every episode, to be asked or changed.

Reads rows with the columns
- `database`: a script (CREATE, INSERT, ...) that makes the database, or `database_file`: a SQLite file, looked for in
  `folder`. It is read where it lies; to be changed, it is copied into memory for each episode;
- `reference`: the right SQL. For `SqlQuery` one query, whose rows are compared with those of the query that the model
  submitted, in any order unless it has an ORDER BY. For `SqlChange` one or more statements: the state that they bring
  the database into is compared with the one that the model left;
- `hidden_databases` (optional, `SqlQuery`): more scripts with the same tables and other rows. The submitted query must
  be right on each, so that an answer that only repeats what was seen is not.

A statement is ended at `seconds`; it cannot attach, load or write anything outside its database.
"""

import re
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envs.sql_database import Database, QueryError, State, Table, has_order, is_same_table, same_rows
from rlhf.errors import DataError
from rlhf.interfaces import Context
from rlhf.types import Prompt

MAX_COMPARED_ROWS = 100_000
_CELL_CHARACTERS = 200


class _SqlTools:
    """A database and what may be done with it."""

    is_writable = False

    def __init__(self, *, folder: str = ".", seconds: float = 5.0, max_rows: int = 50) -> None:
        self._folder = folder
        self._seconds = seconds
        self._max_rows = max_rows
        self._database: Database | None = None

    def reset(self, prompt: Prompt, context: Context) -> None:  # noqa: ARG002 -- the protocol's
        """The prompt's own messages. DataError for a row whose database cannot be made."""
        if not prompt.reference:
            raise DataError(f"row {prompt.id}: `reference` is {prompt.reference!r}, expected the right SQL.")
        self._database = self._make(prompt.columns)

    def schema(self) -> str:
        """Show the statements that made the tables."""
        return self._own.schema()

    def query(self, sql: str) -> str:
        """Run one SQL statement (SQLite) and show its rows.

        Args:
            sql: the statement
        """
        return _shown(self._own.run(sql, seconds=self._seconds, max_rows=self._max_rows))

    def close(self) -> None:
        """Free the database."""
        if self._database is not None:
            self._database.close()

    @property
    def _own(self) -> Database:
        assert self._database is not None
        return self._database

    def _make(self, columns: Mapping[str, Any]) -> Database:
        script, name = columns.get("database"), columns.get("database_file")
        if (script is None) == (name is None):
            raise DataError(
                f"expected one of the columns `database` (a script) and `database_file`, found {sorted(columns)}."
            )
        if name is None:
            return Database(script=str(script), is_writable=self.is_writable)
        return Database(file=Path(self._folder) / str(name), is_writable=self.is_writable)


class SqlQuery(_SqlTools):
    """Tools `schema`, `query` (read only), `submit`. Scores 1 when the submitted query is right, else 0."""

    _submitted: str | None = None

    def submit(self, sql: str) -> str:
        """Give the query that answers the question; the last one counts.

        Args:
            sql: one SELECT statement
        """
        self._own.run(sql, seconds=self._seconds, max_rows=1)
        self._submitted = sql
        return "submitted"

    def score(self, context: Context) -> float:
        """Whether the rows are right, on every database. DataError when the reference cannot be run."""
        right = str(context.prompt.reference)
        scripts = context.prompt.columns.get("hidden_databases") or ()
        context.log(submitted=float(self._submitted is not None))
        return float(self._is_right(self._own, right) and all(self._is_right_on(s, right) for s in scripts))

    def _is_right_on(self, script: str, right: str) -> bool:
        database = Database(script=script)
        try:
            return self._is_right(database, right)
        finally:
            database.close()

    def _is_right(self, database: Database, right: str) -> bool:
        expected = self._reference_rows(database, right)
        try:
            found = database.run(self._submitted or "", seconds=self._seconds, max_rows=MAX_COMPARED_ROWS)
        except QueryError:
            return False
        return is_same_table(found, expected, is_ordered=has_order(right))

    def _reference_rows(self, database: Database, right: str) -> Table:
        try:
            table = database.run(right, seconds=4 * self._seconds, max_rows=MAX_COMPARED_ROWS)
        except QueryError as error:
            raise _unusable(right, str(error)) from error
        if table.is_cut or not table.columns:
            raise _unusable(right, f"it gives no rows, or more than {MAX_COMPARED_ROWS}")
        return table


class SqlChange(_SqlTools):
    """Tools `schema`, `query` (which may write). Scores 1 when the database was left in the right state, else 0."""

    is_writable = True

    def score(self, context: Context) -> float:
        """Whether all tables hold the right rows. DataError when the reference cannot be run."""
        expected = self._right_state(context.prompt.columns, str(context.prompt.reference))
        try:
            found = self._own.state(seconds=4 * self._seconds, max_rows=MAX_COMPARED_ROWS)
        except QueryError:
            return 0.0
        return float(
            found.keys() == expected.keys()
            and all(
                found[key].columns == table.columns
                and same_rows(found[key].rows, table.rows, is_ordered=False)
                for key, table in expected.items()
            )
        )

    def _right_state(self, columns: Mapping[str, Any], right: str) -> State:
        database = self._make(columns)
        try:
            for statement in _statements(right):
                database.run(statement, seconds=4 * self._seconds, max_rows=1)
            return database.state(seconds=4 * self._seconds, max_rows=MAX_COMPARED_ROWS)
        except QueryError as error:
            raise _unusable(right, str(error)) from error
        finally:
            database.close()


def _unusable(reference: str, reason: str) -> DataError:
    return DataError(f"the reference cannot be used: {reason}. It reads {reference[:200]!r}.")


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
