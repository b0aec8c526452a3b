"""A SQLite database that holds no more than its limits and reaches nothing else: for SQL that a model wrote."""

import itertools
import math
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import DataError

Row = tuple[Any, ...]
HEAP_BYTES = 256 << 20
"""What all databases of one process may hold in memory."""
_VALUE_BYTES = 1_000_000
_STATEMENT_CHARACTERS = 100_000
_OPCODES = 1_000
"""Between two looks at the clock."""
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: _VALUE_BYTES,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: _STATEMENT_CHARACTERS,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 100,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 50,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 20,
}
_READS = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
)
_NEVER = frozenset(
    {
        sqlite3.SQLITE_ATTACH,
        sqlite3.SQLITE_DETACH,
        sqlite3.SQLITE_PRAGMA,
        sqlite3.SQLITE_CREATE_VTABLE,
        sqlite3.SQLITE_DROP_VTABLE,
    }
)
_FUNCTIONS = frozenset({"load_extension", "fts3_tokenizer", "writefile", "readfile", "edit"})


class QueryError(Exception):
    """A statement that failed, was not allowed, or took too long; the text is for the model."""


@dataclass(frozen=True, slots=True)
class Table:
    """What a statement returned."""

    columns: tuple[str, ...]
    rows: list[Row]
    is_cut: bool
    """There are more rows than were asked for."""


State = Mapping[tuple[str, str], Table]
"""(type, name) -> what it holds."""


class Database:
    """In memory, made of a script or a copy of a file; or the file itself, if it is only read.

    Being in memory, it is kept by a checkpoint of the process. `is_writable` is about `run` alone.
    """

    def __init__(
        self, *, script: str = "", file: str | Path | None = None, is_writable: bool = False
    ) -> None:
        self._connection = _open(file, is_writable=is_writable)
        try:
            self._connection.executescript(script)
        except sqlite3.Error as error:
            self._connection.close()
            raise DataError(f"the database's script failed: {error}. It begins {script[:200]!r}.") from error
        # A model may write what is no UTF-8.
        self._connection.text_factory = lambda data: data.decode(errors="replace")
        self._allowed = None if is_writable else _READS
        self._connection.execute(f"PRAGMA hard_heap_limit = {HEAP_BYTES}")
        for limit, value in _LIMITS.items():
            self._connection.setlimit(limit, value)
        self._connection.set_authorizer(self._authorize)

    def run(self, sql: str, *, seconds: float, max_rows: int) -> Table:
        """Run one statement. QueryError says why it could not be, and nothing of it stays."""
        with self._guarded(seconds):
            cursor = self._connection.execute(sql)
            columns = tuple(column[0] for column in cursor.description or ())
            rows = cursor.fetchmany(max_rows + 1)
            cursor.close()
            return Table(columns, rows[:max_rows], len(rows) > max_rows)

    def schema(self) -> str:
        """The statements that made its tables, views and triggers."""
        found = self._own("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid")
        return ";\n".join(row[0] for row in found)

    def state(self, *, seconds: float, max_rows: int) -> State:
        """Every table and, of what else there is, its definition. QueryError when a table has more rows."""
        with self._guarded(seconds):
            found = self._own(
                "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite~_%' ESCAPE '~'"
            )
            return {(kind, name): self._content(kind, name, sql, max_rows) for kind, name, sql in found}

    def _content(self, kind: str, name: str, sql: str | None, max_rows: int) -> Table:
        if kind != "table":
            return Table((str(sql),), [], False)
        quoted = name.replace('"', '""')
        cursor = self._connection.execute(f'SELECT * FROM "{quoted}"')
        rows = cursor.fetchmany(max_rows + 1)
        if len(rows) > max_rows:
            raise QueryError(f"table {name} has more than {max_rows} rows")
        return Table(tuple(column[0] for column in cursor.description), rows, False)

    def close(self) -> None:
        """Free its memory."""
        self._connection.close()

    def _own(self, sql: str) -> list[Row]:
        return self._connection.execute(sql).fetchall()

    def _authorize(self, action: int, _first: str | None, second: str | None, *_: str | None) -> int:
        is_refused = (
            action in _NEVER
            or (self._allowed is not None and action not in self._allowed)
            or (action == sqlite3.SQLITE_FUNCTION and str(second).lower() in _FUNCTIONS)
        )
        return sqlite3.SQLITE_DENY if is_refused else sqlite3.SQLITE_OK

    @contextmanager
    def _guarded(self, seconds: float) -> Iterator[None]:
        """Whatever SQLite makes of a model's statements or tables is a QueryError, in time."""
        ends = time.monotonic() + seconds
        self._connection.set_progress_handler(lambda: time.monotonic() > ends, _OPCODES)
        try:
            yield
        except (sqlite3.Error, sqlite3.Warning, ValueError, MemoryError) as error:
            is_late = isinstance(error, sqlite3.OperationalError) and "interrupted" in str(error)
            reason = f"the statement took longer than {seconds:g} s" if is_late else str(error)
            raise QueryError(reason or type(error).__name__) from error
        finally:
            self._connection.set_progress_handler(None, 0)


def is_same_table(found: Table, expected: Table, *, is_ordered: bool) -> bool:
    """Whether the rows are equal, in any order unless they are ordered; names of columns do not count."""
    if found.is_cut or expected.is_cut or len(found.columns) != len(expected.columns):
        return False
    return same_rows(found.rows, expected.rows, is_ordered=is_ordered)


def same_rows(found: Sequence[Row], expected: Sequence[Row], *, is_ordered: bool) -> bool:
    """Whether the rows are equal, floats to nine digits, each as often."""
    if len(found) != len(expected):
        return False
    left, right = ([tuple(map(_value, row)) for row in rows] for rows in (found, expected))
    return left == right if is_ordered else Counter(left) == Counter(right)


def has_order(sql: str) -> bool:
    """Whether the outermost SELECT has an ORDER BY."""
    depth, outer = 0, []
    for token in _tokens(sql):
        depth += (token == "(") - (token == ")")
        if depth == 0:
            outer.append(token)
    return any(pair == ("order", "by") for pair in itertools.pairwise(outer))


def _tokens(sql: str) -> Iterator[str]:
    """Words and parentheses in lower case, without comments, strings and quoted names."""
    i = 0
    while i < len(sql):
        character = sql[i]
        if sql.startswith("--", i):
            i = _after(sql, "\n", i)
        elif sql.startswith("/*", i):
            i = _after(sql, "*/", i + 2)
        elif character in "'\"`[":
            i = _after(sql, "]" if character == "[" else character, i + 1)
            yield "''"
        elif character.isalnum() or character == "_":
            end = i
            while end < len(sql) and (sql[end].isalnum() or sql[end] == "_"):
                end += 1
            yield sql[i:end].lower()
            i = end
        else:
            if character in "()":
                yield character
            i += 1


def _after(text: str, mark: str, start: int) -> int:
    found = text.find(mark, start)
    return len(text) if found < 0 else found + len(mark)


def _value(value: Any) -> Any:
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.9g}")
    return value


def _open(file: str | Path | None, *, is_writable: bool) -> sqlite3.Connection:
    if file is None:
        return sqlite3.connect(":memory:", isolation_level=None)
    path = Path(file).resolve()
    if not path.is_file():
        raise DataError(f"there is no database {str(file)!r} (looked in {Path.cwd()}).")
    # Immutable: no locks and no journal, so that 200 processes and their forks may read it at once.
    source = sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
    try:
        source.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.Error as error:
        source.close()
        raise DataError(f"{str(file)!r} is no SQLite database: {error}.") from error
    if not is_writable:
        return source
    copy = sqlite3.connect(":memory:", isolation_level=None)
    source.backup(copy)
    source.close()
    return copy
