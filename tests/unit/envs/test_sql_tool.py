"""A database that a model can ask and change, and nothing else."""

import sqlite3
import time

import pytest

from envs.sql_database import Database, QueryError, has_order, same_rows
from envs.sql_tool import SqlChange, SqlQuery
from rlhf.errors import DataError
from tests.unit.envs.playing import Episode

SCRIPT = """
CREATE TABLE city (name TEXT, country TEXT, people INTEGER);
INSERT INTO city VALUES ('Bern', 'CH', 133), ('Basel', 'CH', 177), ('Lyon', 'FR', 520), ('Nowhere', NULL, NULL);
"""
OTHER = (
    "CREATE TABLE city (name TEXT, country TEXT, people INTEGER); INSERT INTO city VALUES ('Rome', 'IT', 1);"
)
ROW = {
    "prompt": "How many people live in each country?",
    "database": SCRIPT,
    "reference": "SELECT country, SUM(people) FROM city GROUP BY country",
}
FOREVER = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT "


@pytest.fixture
def episode(tmp_path):
    with Episode(SqlQuery(seconds=0.5), ROW, tmp_path) as found:
        yield found


def test_database_is_shown_and_asked(episode):
    assert "CREATE TABLE city" in episode.call("schema")
    assert episode.call("query", sql="SELECT name, people FROM city WHERE people > 150") == (
        "name | people\nBasel | 177\nLyon | 520"
    )
    assert episode.call("query", sql="SELECT * FROM city WHERE 0") == "name | country | people\n(no rows)"
    assert "QueryError: no such table" in episode.call("query", sql="SELECT * FROM town")


@pytest.mark.parametrize(
    ("sql", "score"),
    [
        (ROW["reference"], 1),
        (
            "SELECT country AS c, TOTAL(people) FROM city GROUP BY 1 HAVING country NOTNULL UNION SELECT NULL, NULL",
            1,
        ),
        ("SELECT country, SUM(people) FROM city GROUP BY country ORDER BY 2 DESC;", 1),
        ("SELECT country, SUM(people) + 1 FROM city GROUP BY country", 0),
        ("SELECT SUM(people), country FROM city GROUP BY country", 0),
        ("SELECT country, SUM(people), 1 FROM city GROUP BY country", 0),
        ("SELECT 1 WHERE 0", 0),
    ],
)
def test_submitted_query_is_judged_by_its_rows(episode, sql, score):
    assert episode.call("submit", sql=sql) == "submitted"
    assert episode.score() == score


def test_order_counts_where_the_reference_has_one(tmp_path):
    row = ROW | {"reference": "SELECT name FROM city WHERE people ORDER BY people"}
    for direction, score in (("", 1), (" DESC", 0)):
        with Episode(SqlQuery(), row, tmp_path) as episode:
            episode.call("submit", sql=f"SELECT name FROM city WHERE people ORDER BY people{direction}")
            assert episode.score() == score


def test_answer_by_heart_fails_on_a_hidden_database(tmp_path):
    row = ROW | {"hidden_databases": [OTHER]}
    by_heart = "SELECT 'CH', 310 UNION SELECT 'FR', 520 UNION SELECT NULL, NULL"
    for sql, score in ((by_heart, 0), (ROW["reference"], 1)):
        with Episode(SqlQuery(), row, tmp_path) as episode:
            assert "Rome" not in episode.call("query", sql="SELECT * FROM city")
            assert episode.call("submit", sql=sql) == "submitted"
            assert episode.score() == score


def test_nothing_submitted_scores_nothing(episode):
    assert episode.score() == 0
    assert "QueryError" in episode.call("submit", sql="DELETE FROM city")
    assert episode.score() == 0


@pytest.mark.parametrize("kind", [SqlQuery, SqlChange])
@pytest.mark.parametrize(
    "sql",
    [
        "ATTACH 'stolen.db' AS s",
        "ATTACH ':memory:' AS s",
        "DETACH main",
        "PRAGMA writable_schema = 1",
        "SELECT * FROM pragma_database_list",
        "SELECT load_extension('libc.so.6')",
        "SELECT fts3_tokenizer('simple')",
        "SELECT readfile('/etc/passwd')",
        "SELECT writefile('stolen', 'x')",
        "VACUUM INTO 'stolen.db'",
        "CREATE VIRTUAL TABLE v USING fts5(a)",
        "UPDATE sqlite_master SET sql = ''",
        "SELECT 1; DROP TABLE city",
        "SELECT zeroblob(1000000000)",
        "SELECT hex(zeroblob(900000))",
        FOREVER + "count(*) FROM c",
        FOREVER + "x FROM c ORDER BY x DESC",
        FOREVER + "group_concat(hex(randomblob(1000))) FROM c",
        "SELECT * FROM city WHERE name LIKE '" + "%a" * 500 + "'",
        "SELECT " + "(" * 5000 + "1" + ")" * 5000,
        "SELECT '" + "x" * 2_000_000 + "'",
        "garbage \x00",
        "SELECT '\ud800'",
    ],
)
def test_statement_that_reaches_too_far_is_an_error_in_time(tmp_path, monkeypatch, kind, sql):
    monkeypatch.chdir(tmp_path)
    with Episode(kind(seconds=0.3), ROW, tmp_path) as episode:
        began = time.monotonic()
        assert "QueryError: " in episode.call("query", sql=sql)
        assert time.monotonic() - began < 60
        # The short limit is for this one, too: a stalled machine may use it up.
        names = (episode.call("query", sql="SELECT name FROM city") for _ in range(5))
        assert any("Lyon" in found for found in names)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "sql", ["DELETE FROM city", "CREATE TABLE t(x)", "CREATE TEMP TABLE t(x)", "BEGIN", "DROP TABLE city"]
)
def test_questions_do_not_write(episode, sql):
    assert "QueryError: not authorized" in episode.call("query", sql=sql)


def test_endless_rows_and_ten_megabytes_are_cut(episode):
    found = episode.call("query", sql=FOREVER + "x FROM c")
    assert found.endswith("(only the first 50 rows)")
    found = episode.call("query", sql=FOREVER + "hex(zeroblob(100000)) FROM c")
    assert len(found) < 50 * 300
    assert "é" in episode.call("query", sql="SELECT 'é', x'00ff', NULL, 1.5")
    assert "\ufffd" in episode.call("query", sql="SELECT CAST(x'ff' AS TEXT)")


CHANGE = ROW | {
    "reference": "UPDATE city SET people = 134 WHERE name = 'Bern'; DELETE FROM city WHERE country IS NULL;"
}


@pytest.mark.parametrize(
    ("statements", "score"),
    [
        (
            [
                "DELETE FROM city WHERE people IS NULL",
                "UPDATE city SET people = people + 1 WHERE people = 133",
            ],
            1,
        ),
        (["BEGIN", CHANGE["reference"].split(";")[1], CHANGE["reference"].split(";")[0], "COMMIT"], 1),
        ([], 0),
        (["DELETE FROM city WHERE people IS NULL", "UPDATE city SET people = 134"], 0),
        ([*CHANGE["reference"].split(";")[:2], "INSERT INTO city VALUES ('Bern', 'CH', 134)"], 0),
        ([*CHANGE["reference"].split(";")[:2], "CREATE TABLE note (x)"], 0),
        ([*CHANGE["reference"].split(";")[:2], "CREATE VIEW note AS SELECT 1"], 0),
        (["ALTER TABLE city RENAME TO c", "CREATE VIEW city AS SELECT 'Bern', 'CH', 134"], 0),
        (["DROP TABLE city"], 0),
        (["UPDATE city SET name = CAST(x'ff' AS TEXT)"], 0),
        (["ALTER TABLE city ADD COLUMN bad GENERATED ALWAYS AS (abs(-9223372036854775807 - rowid))"], 0),
        (['CREATE TABLE "a""b" ("x""y")'], 0),
    ],
)
def test_state_of_the_database_is_judged(tmp_path, statements, score):
    with Episode(SqlChange(), CHANGE, tmp_path) as episode:
        for statement in statements:
            episode.call("query", sql=statement)
        assert episode.score() == score


def test_memory_of_a_database_is_bounded(tmp_path):
    with Episode(SqlChange(seconds=5), CHANGE, tmp_path) as episode:
        found = episode.call("query", sql="CREATE TABLE big AS " + FOREVER + "zeroblob(500000) FROM c")
        assert "QueryError: MemoryError" in found
        assert episode.call("query", sql="SELECT count(*) FROM city") == "count(*)\n4"


def test_file_is_read_where_it_lies_and_copied_to_be_changed(tmp_path):
    path = tmp_path / "cities.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(SCRIPT)
    connection.close()
    before = path.read_bytes()
    row = {key: value for key, value in CHANGE.items() if key != "database"} | {"database_file": path.name}
    with Episode(SqlChange(folder=str(tmp_path)), row, tmp_path) as episode:
        for statement in CHANGE["reference"].split(";"):
            episode.call("query", sql=statement)
        assert episode.score() == 1
    with Episode(SqlQuery(folder=str(tmp_path)), row | {"reference": ROW["reference"]}, tmp_path) as episode:
        assert "not authorized" in episode.call("query", sql="DELETE FROM city")
        episode.call("submit", sql=ROW["reference"])
        assert episode.score() == 1
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"reference": None}, "reference"),
        ({"database": None}, "database_file"),
        ({"database_file": "none.sqlite"}, "expected one of"),
        ({"database": None, "database_file": "none.sqlite"}, "no database"),
        ({"database": "CREATE TABLE ("}, "script failed"),
    ],
)
def test_unusable_row_is_named(tmp_path, change, expected):
    with pytest.raises(DataError, match=expected), Episode(SqlQuery(), ROW | change, tmp_path):
        pass


def test_no_database_is_named(tmp_path):
    (tmp_path / "text").write_text("no database" * 100)
    with pytest.raises(DataError, match="no SQLite"):
        Database(file=tmp_path / "text")


@pytest.mark.parametrize("kind", [SqlQuery, SqlChange])
def test_broken_reference_is_no_score(tmp_path, kind):
    with Episode(kind(), ROW | {"reference": "SELECT * FROM nothing"}, tmp_path) as episode:
        episode.call("query", sql="SELECT 1")
        with pytest.raises(DataError, match="reference"):
            episode.score()


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("select a from t order\n  by a limit 3", True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a)", False),
        ("SELECT row_number() OVER (ORDER BY a) FROM t", False),
        ("SELECT 'order by' FROM t -- order by\n", False),
        ('SELECT "order" by_ FROM t /* order by */', False),
        ("WITH x AS (SELECT 1 ORDER BY 1) SELECT * FROM x", False),
        ("SELECT 'it''s (' FROM t ORDER BY 1", True),
    ],
)
def test_order_of_the_outermost_query_is_found(sql, expected):
    assert has_order(sql) is expected


def test_rows_are_equal_to_nine_digits_and_as_often():
    assert same_rows([(0.1 + 0.2,), (1,)], [(1.0,), (0.3,)], is_ordered=False)
    assert not same_rows([(1,), (1,), (2,)], [(1,), (2,), (2,)], is_ordered=False)
    assert not same_rows([("1",)], [(1,)], is_ordered=False)


def test_failed_statement_leaves_nothing(tmp_path):
    database = Database(script=SCRIPT, is_writable=True)
    with pytest.raises(QueryError, match="longer than"):
        database.run("INSERT INTO city " + FOREVER + "x, x, x FROM c", seconds=0.2, max_rows=1)
    assert database.run("SELECT count(*) FROM city", seconds=1, max_rows=1).rows == [(4,)]
    database.close()
