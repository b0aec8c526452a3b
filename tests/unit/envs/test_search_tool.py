"""BM25 against its formula, an index that processes share, and a search that answers questions."""

import json
import math
import multiprocessing
import os
import random
import time
from collections import Counter

import pytest

from envs.search_index import K1, SUFFIX, B, SearchIndex, build, shared_index, words
from envs.search_tool import SearchTool, warm_up
from rlhf.errors import DataError
from tests.unit.envs.playing import Episode

DOCUMENTS = [
    {"id": "1", "title": "Whales", "text": "The blue whale is the largest animal. It eats krill."},
    {"id": "2", "title": "Foxes", "text": "The quick red fox jumps over the lazy dog."},
    {"id": "x/3", "text": "Krill live in the sea, and the sea is blue."},
    {"id": 4, "title": "", "text": "Überraschung in Zürich"},
    {"id": "5", "title": "Empty", "text": ""},
]
ROW = {"prompt": "What eats krill?", "reference": '["blue whale", "the blue whale"]'}


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in DOCUMENTS))
    return path


@pytest.fixture
def episode(corpus, tmp_path):
    with Episode(SearchTool(corpus=str(corpus)), ROW, tmp_path) as found:
        yield found


def bm25(query, documents):
    """By the book, document by document."""
    texts = [words(f"{row.get('title', '')} {row['text']}") for row in documents]
    mean = sum(map(len, texts)) / len(texts)
    scores = []
    for text in texts:
        score = 0.0
        for word in set(words(query)):
            found = sum(word in other for other in texts)
            idf = math.log(1 + (len(texts) - found + 0.5) / (found + 0.5))
            times = Counter(text)[word]
            score += idf * times / (times + K1 * (1 - B + B * len(text) / mean))
        scores.append(score)
    return scores


def test_scores_are_those_of_the_formula(tmp_path):
    rng = random.Random(1)
    vocabulary = [f"w{i}" for i in range(40)]
    rows = [
        {"id": f"d{i}", "text": " ".join(rng.choices(vocabulary, k=rng.randint(0, 30)))} for i in range(200)
    ]
    path = tmp_path / "random.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    index = SearchIndex(path)
    for _ in range(20):
        query = " ".join(rng.choices([*vocabulary, "unknown"], k=4))
        expected = bm25(query, rows)
        found = index.search(query, 200)
        assert len(found) == sum(score > 0 for score in expected)
        order = sorted(range(200), key=lambda i: (-round(expected[i], 5), i))[:10]
        assert [round(d.score, 4) for d in found[:10]] == [round(expected[i], 4) for i in order]
        assert all(abs(d.score - expected[int(d.id[1:])]) < 1e-5 for d in found)


def test_search_and_open_show_documents(episode):
    found = episode.call("search", query="who eats KRILL?", k=2)
    assert found.startswith("[1] Whales\nThe blue whale")
    assert "[x/3] Krill live" in found
    assert episode.call("open", id="x/3") == "[x/3] Krill live in the sea, and the sea is blue."
    assert "Zürich" in episode.call("search", query="zürich")
    assert episode.call("open", id="4").startswith("[4]")
    episode.say("<answer>Blue whale</answer>")
    assert episode.score() == 1
    assert episode.context.scalars == {"searches": 2}


@pytest.mark.parametrize(
    ("answer", "score"), [("<answer>fox</answer>", 0), ("", 0), ("<answer></answer>", 0)]
)
def test_wrong_answer_scores_nothing(episode, answer, score):
    episode.say(answer)
    assert episode.score() == score


def test_answer_may_be_graded_by_words(corpus, tmp_path):
    with Episode(SearchTool(corpus=str(corpus), grade="rewards.search_answers:f1"), ROW, tmp_path) as episode:
        episode.say("<answer>blue fish</answer>")
        assert episode.score() == 0.5


@pytest.mark.parametrize("query", ["", "?!", "\x00", "\ud800", "x" * 1_000_000, "krill " * 100_000])
def test_garbage_is_searched_for_in_time(episode, query):
    began = time.monotonic()
    assert len(episode.call("search", query=query, k=10**9)) < 10_000
    assert "KeyError" in episode.call("open", id=query)
    assert episode.call("search", query="krill", k=0) == "nothing found"
    assert episode.call("search", query="krill", k=-5) == "nothing found"
    assert time.monotonic() - began < 60


def test_ten_megabytes_are_cut(tmp_path):
    path = tmp_path / "large.jsonl"
    path.write_text(json.dumps({"id": "1", "text": "krill " * 2_000_000}) + "\n")
    with Episode(SearchTool(corpus=str(path)), ROW, tmp_path) as episode:
        assert len(episode.call("search", query="krill")) < 600
        assert len(episode.call("open", id="1")) < 8100


def test_index_is_made_once_and_anew_when_the_corpus_changes(corpus):
    folder = build(corpus)
    assert folder.name == corpus.name + SUFFIX
    stamp = (folder / "stamp.json").stat().st_mtime_ns
    build(corpus)
    assert (folder / "stamp.json").stat().st_mtime_ns == stamp
    with corpus.open("a") as file:
        file.write(json.dumps({"id": "6", "text": "new words"}) + "\n")
    assert SearchIndex(corpus).search("new", 1)[0].id == "6"
    assert sorted(path.name for path in corpus.parent.iterdir()) == [corpus.name, folder.name]


def test_many_processes_that_begin_at_once_build_one_index(corpus):
    def search():
        os._exit(0 if SearchIndex(corpus).search("fox", 1)[0].id == "2" else 1)

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=search) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 6
    assert len(list(corpus.parent.iterdir())) == 2


def test_index_is_mapped_and_shared_by_forks(corpus):
    warm_up()
    warm_up(corpus=str(corpus), max_characters=100)
    index = shared_index(str(corpus), None)
    assert index is shared_index(str(corpus), None)
    assert all(type(values).__name__ == "memmap" for values in index._arrays.values())
    assert len(index) == len(DOCUMENTS)


def test_index_may_lie_elsewhere(corpus, tmp_path):
    folder = tmp_path / "indexes" / "one"
    with Episode(SearchTool(corpus=str(corpus), index=str(folder)), ROW, tmp_path) as episode:
        assert "krill" in episode.call("search", query="krill")
    assert (folder / "stamp.json").is_file()
    assert not corpus.with_name(corpus.name + SUFFIX).exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        ("[]\n", ":1:"),
        ('{"id": "1", "text": "a"}\n{"id": "2"}\n', ":2:"),
        ('{"id": "1", "text": 3}\n', ":1:"),
        ("nonsense\n", ":1:"),
        ('{"id": "1", "text": "a"}\n{"id": "1", "text": "b"}\n', "twice"),
    ],
)
def test_unusable_corpus_is_named(tmp_path, text, expected):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=expected):
        SearchIndex(path)
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(DataError, match="no corpus"):
        SearchIndex(tmp_path / "none.jsonl")
