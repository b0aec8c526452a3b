"""What a recipe names is loaded and checked before anything starts; every refusal names its key."""

from pathlib import Path
from typing import Any

import pytest

from rlhf.config.alignment import AlignmentRecipe
from rlhf.errors import DataError, LoadError
from rlhf.vision.materials import load_data, load_judges, load_rephraser
from tests.retrievers import Squares
from tests.unit.vision.recipes import HERE, captions, queries, recipe

PLUGINS = """
from rlhf.retrieval import RetrievalQuery

class Held:
    version = "h"
    def __init__(self, number=12, repeat=False):
        self.names = [f"h{i}" for i in range(number)] + ["h0"] * repeat
    def ids(self):
        return self.names
    def load(self, ids):
        raise AssertionError("nothing is loaded here")

class Sharp:
    version = "1"
    def __init__(self, name="sharp"):
        self.name = name
    def score(self, images, queries=None):
        return [0.0] * len(images)

class Words:
    version = "1"
    def rephrase(self, queries):
        return [q + " sharp" for q in queries]

def asked(*texts):
    return [RetrievalQuery(id=f"h{i}", text=text) for i, text in enumerate(texts)]

def other(): return asked("a teal square")
def none(): return []
def blank(): return asked("a red square", " ")
def twice(): return [RetrievalQuery(id="x", text=t) for t in ("red", "blue")]
def strings(): return ["a red square"]
def overlap(): return asked("a teal square", "a dark red square")
def nameless(): return [("red-dark-0", "red"), ("red-dark-1", "  ")]
def triples(): return [("red-dark-0", "red", 1)]
def classes(): return {"a teal square": ["h1"]}
number = 5
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("plugins") / "plugins.py"
    file.write_text(PLUGINS)
    return file


def use(plugins: Path, attribute: str, **kwargs: Any) -> dict[str, Any]:
    return {"use": f"{plugins}:{attribute}", "kwargs": kwargs}


def with_data(plugins: Path, **keys: Any) -> AlignmentRecipe:
    return recipe(data={key: use(plugins, name) for key, name in keys.items()})


def with_eval(plugins: Path, **keys: Any) -> AlignmentRecipe:
    given = {"gallery": use(plugins, "Held"), "queries": use(plugins, "other")} | keys
    return recipe(eval={"every": 5, "top_k": 10, **given})


def test_a_recipe_gives_its_gallery_queries_and_captions():
    data = load_data(recipe())
    assert data.gallery == Squares()
    assert data.queries == queries()
    assert data.replay == captions()
    assert data.heldout is None


def test_what_is_held_out_is_loaded_whole(plugins: Path):
    what = with_eval(
        plugins,
        truth=use(plugins, "Sharp"),
        captions={"use": f"{HERE}:captions"},
        classes=use(plugins, "classes"),
    )
    held = load_data(what).heldout
    assert len(held.gallery.ids()) == 12
    assert [query.text for query in held.queries] == ["a teal square"]
    assert held.truth.name == "sharp"
    assert held.captions == captions()
    assert held.classes == {"a teal square": ["h1"]}


def test_without_evaluations_nothing_held_out_is_loaded(plugins: Path):
    what = with_eval(plugins, gallery=use(plugins, "nowhere"))
    assert (
        load_data(what.model_copy(update={"eval": what.eval.model_copy(update={"every": 0})})).heldout is None
    )


def test_judges_and_the_rephraser_are_called_with_their_kwargs(plugins: Path):
    what = recipe(
        judges={"one": use(plugins, "Sharp"), "two": use(plugins, "Sharp", name="soft")},
        rephraser=use(plugins, "Words"),
    )
    assert {key: judge.name for key, judge in load_judges(what).items()} == {"one": "sharp", "two": "soft"}
    assert load_rephraser(what).rephrase(["red"]) == ["red sharp"]
    assert load_rephraser(recipe()) is None
    assert load_judges(recipe()) == {}


@pytest.mark.parametrize(
    ("attribute", "says"),
    [
        ("none", r"data\.queries: .*none gives no queries"),
        ("blank", r"data\.queries: query 'h1' has no text"),
        ("twice", r"data\.queries: two queries have the id 'x'; ids must be unique"),
        ("strings", r"data\.queries: .*strings gives a str, expected rlhf\.retrieval\.RetrievalQuery"),
    ],
)
def test_queries_that_cannot_be_used_are_refused(plugins: Path, attribute: str, says: str):
    with pytest.raises(DataError, match=says):
        load_data(with_data(plugins, queries=attribute))


@pytest.mark.parametrize(
    ("attribute", "says"),
    [
        ("none", r"data\.replay: no pairs at all"),
        ("nameless", r"data\.replay: image 'red-dark-1' has an empty caption"),
        ("triples", r"data\.replay: .*triples gives .*expected \(image id, text\) pairs"),
    ],
)
def test_captions_that_cannot_be_used_are_refused(plugins: Path, attribute: str, says: str):
    with pytest.raises(DataError, match=says):
        load_data(with_data(plugins, replay=attribute))


def test_fewer_captions_than_a_step_takes_are_refused():
    few = {"use": f"{HERE}:captions", "kwargs": {"number": 7}}
    says = r"data\.replay gives 7 pairs but schedule\.replay_per_step is 8"
    with pytest.raises(DataError, match=says):
        load_data(recipe(data={"replay": few}))
    assert len(load_data(recipe(data={"replay": few}, loss={"replay_coef": 0})).replay) == 7


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"number": 5}, r"data\.gallery: it has 5 images, 0 of them twice; expected 6 or more, each once"),
        ({"number": 9, "repeat": True}, r"data\.gallery: it has 10 images, 1 of them twice"),
    ],
)
def test_galleries_that_are_too_small_or_repeat_are_refused(plugins: Path, kwargs: dict[str, Any], says: str):
    with pytest.raises(DataError, match=says):
        load_data(recipe(data={"gallery": use(plugins, "Held", **kwargs)}))


def test_a_held_out_gallery_smaller_than_what_is_measured_is_refused(plugins: Path):
    with pytest.raises(
        DataError, match=r"eval\.gallery: it has 9 images, 0 of them twice; expected 10 or more"
    ):
        load_data(with_eval(plugins, gallery=use(plugins, "Held", number=9)))


def test_queries_that_are_trained_on_and_measured_are_refused(plugins: Path):
    with pytest.raises(
        DataError, match=r"1 queries stand in data\.queries and in eval\.queries.*'a dark red square'"
    ):
        load_data(with_eval(plugins, queries=use(plugins, "overlap")))


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("queries", r"eval\.queries: .*none gives no queries"),
        ("captions", r"eval\.captions: no pairs at all"),
    ],
)
def test_empty_held_out_data_is_refused(plugins: Path, key: str, says: str):
    with pytest.raises(DataError, match=says):
        load_data(with_eval(plugins, **{key: use(plugins, "none")}))


def test_arguments_that_a_plugin_does_not_take_are_named(plugins: Path):
    with pytest.raises(DataError, match=r"data\.gallery: .*Held cannot be called with kwargs .*'size': 3"):
        load_data(recipe(data={"gallery": use(plugins, "Held", size=3)}))
    with pytest.raises(DataError, match=r"judges\.one: .*cannot be called"):
        load_judges(recipe(judges={"one": use(plugins, "Sharp", colour=1)}))
    with pytest.raises(DataError, match=r"rephraser: .*cannot be called"):
        load_rephraser(recipe(rephraser=use(plugins, "Words", colour=1)))


@pytest.mark.parametrize(
    ("attribute", "says"),
    [
        ("Heldd", r"data\.gallery\.use: .*Did you mean .*Held"),
        ("number", r"data\.gallery\.use: .*is a int, expected a"),
    ],
)
def test_plugins_that_are_not_there_are_named(plugins: Path, attribute: str, says: str):
    with pytest.raises(LoadError, match=says):
        load_data(with_data(plugins, gallery=attribute))
