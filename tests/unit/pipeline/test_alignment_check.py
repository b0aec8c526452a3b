"""`rlhf check` of recipes of retrieval alignment: what is wrong is named with its key, and hides nothing else."""

import asyncio
import json
from pathlib import Path

import pytest
import yaml

from rlhf.pipeline.checking import check_file
from tests.cli.command import ROOT
from tests.retrievers import alignment_recipe, tiny_dual_encoder
from tests.unit.check.checking import Checked

HERE = "tests.retrievers"
PLUGINS = """
from PIL import Image
from rlhf.errors import DataError
from rlhf.retrieval import RetrievalQuery
from tests.retrievers import Squares

class Mood:
    name, version, calls = "mood", "1", 0
    def score(self, images, queries=None):
        self.calls += 1
        return [float(self.calls + i) for i in range(len(images))]

class Bounded:
    name, version, range = "bounded", "1", (0.0, 1.0)
    def score(self, images, queries=None):
        return [float(image.getpixel((0, 0))[0]) for image in images]

class Same:
    name, version = "same", "1"
    def score(self, images, queries=None):
        return [3.0] * len(images)

class Away:
    name, version = "away", "1"
    def score(self, images, queries=None):
        raise ConnectionError("http://127.0.0.1:9/v1: refused")

class Blank:
    version = "1"
    def rephrase(self, queries):
        return [" "] * len(queries)

class Far:
    version = "1"
    def rephrase(self, queries):
        raise TimeoutError("http://127.0.0.1:9/v1 did not answer within 5 s")

class Grey(Squares):
    def load(self, ids):
        return [image.convert("L") for image in super().load(ids)]

class Broken(Squares):
    def load(self, ids):
        raise DataError(f"image {ids[0]!r} cannot be read")

class Lost:
    def relevant(self, query, ids):
        return [False] * len(ids)
    def taste(self, ids):
        return [0.5] * len(ids)

def unknown():
    return [RetrievalQuery(id="x", text="a red square", relevant=("nowhere",))]

def long():
    return [RetrievalQuery(id="x", text="a red square " * 20)]

def blind_captions():
    return [("red-dark-0", " ")]
"""


@pytest.fixture
def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Check the small recipe of tests/retrievers.py with overrides; `plugins.py:` stands for the plugins above."""
    file = alignment_recipe(tmp_path)[0]
    plugins = tmp_path / "plugins.py"
    plugins.write_text(PLUGINS)
    monkeypatch.syspath_prepend(str(ROOT))

    def run(*overrides: str, num_rows: int | None = None) -> Checked:
        found = tmp_path / "found.json"
        written = [override.replace("plugins.py:", f"{plugins}:") for override in overrides]
        code = asyncio.run(check_file(Path(file), written, code_dir=ROOT, num_rows=num_rows, json_file=found))
        return Checked(code=code, found=json.loads(found.read_text()))

    return run


def test_a_sound_recipe_passes_and_shows_scores_and_a_list(checked):
    found = checked()
    assert (found.code, found.found["recipe"], found.found["findings"]) == (0, "squares", [])
    assert found.says("data.gallery") == "64 images; 8 looked at are 16 x 16 pixels"
    assert "2 queries, such as 'a red square'" in found.says("data.queries")
    assert "12 images: " in found.says("judges.brightness")
    assert "no range stated" in found.says("judges.brightness")
    facts = found.found["facts"]
    assert set(facts["judges.brightness"]["scores"]) == {"a red square", "a green square"}
    order = facts["list"]["order"]
    assert order["shape"] == [2, 3]
    taste = order["teacher"]["taste"]
    assert taste[:3] == sorted(taste[:3], reverse=True)
    assert taste[3:] == sorted(taste[3:], reverse=True)
    assert found.says("list").count("row ") == 2


def test_as_many_queries_are_judged_as_rows_are_asked_for(checked):
    assert "6 images: " in checked(num_rows=1).says("judges.brightness")


def test_a_judge_that_gives_nan_is_named_and_hides_no_other(checked):
    found = checked(
        f"judges={{bad: {{use: '{HERE}:Brightness', kwargs: {{is_broken: true}}}}, good: {{use: '{HERE}:Brightness'}}}}"
    )
    (reason,) = found.reasons("cannot be used")
    assert found.code == 1
    assert reason.startswith("judges.bad: judge 'brightness' scored image '")
    assert "with nan, expected a finite number" in reason
    assert "12 images" in found.says("judges.good")
    assert "judges.bad" not in found.found["facts"]
    assert "2 rows" in found.says("list")


def test_a_folder_that_is_not_there_is_named_by_its_key(checked):
    folder = "{use: 'rewards.vision_readers:FolderGallery', kwargs: {folder: nowhere/photos}}"
    found = checked(f"data.gallery={folder}", f"eval.gallery={folder}")
    assert found.code == 1
    assert [reason.partition(": ")[0] for reason in found.reasons("cannot be used")] == [
        "data.gallery",
        "eval.gallery",
    ]
    assert "'nowhere/photos' is not a folder" in found.reasons("cannot be used")[0]
    assert "64 captions" in found.says("data.replay")
    assert "list" not in found.found["facts"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("judges={b: {use: 'plugins.py:Bounded'}}", r"judges.b: judge 'bounded' scored"),
        ("judges={b: {use: 'plugins.py:Bounde'}}", "judges.b.use: "),
        ("data.gallery={use: 'plugins.py:Grey'}", "data.gallery: load gave 8 of ['L'] for 8 ids"),
        ("data.gallery={use: 'plugins.py:Broken'}", "data.gallery: image 'red-dark-0' cannot be read"),
        (
            "data.queries={use: 'plugins.py:unknown'}",
            "data.queries: 1 relevant images are not in the gallery, such as 'nowhere' of 'a red square'",
        ),
        (
            "data.replay={use: 'plugins.py:blind_captions'}",
            "data.replay: image 'red-dark-0' has an empty caption",
        ),
        (
            "eval.queries={use: 'tests.retrievers:colour_queries'}",
            "2 queries stand in data.queries and in eval.queries",
        ),
        (
            "eval.truth={use: 'plugins.py:Lost'}",
            "eval.truth: no image of eval.gallery is relevant to 'a blue square'",
        ),
        ("rephraser={use: 'plugins.py:Blank'}", "rephraser: it gave [' ', ' '] for"),
        ("orders.path=nowhere.jsonl", "orders.path: 'nowhere.jsonl' cannot be read"),
        ("orders.gallery_share=0.05", "data.gallery: 64 images, of which a visit sees the share 0.05"),
        ("model={path: ./nowhere}", "model.path: ./nowhere is not a folder here (expected its folder)"),
    ],
)
def test_what_cannot_be_used_is_an_error_that_says_why(checked, override, says):
    found = checked(override)
    assert found.code == 1
    assert any(says in reason for reason in found.reasons("cannot be used")), found.found["findings"]


def test_a_judge_and_a_rephraser_out_of_reach_are_said_in_one_line_each(checked):
    found = checked("judges.away={use: 'plugins.py:Away'}", "rephraser={use: 'plugins.py:Far'}")
    assert (found.code, found.found["findings"]) == (0, [])
    assert found.says("judges.away") == "loaded, not asked: http://127.0.0.1:9/v1: refused"
    assert found.says("rephraser").startswith("loaded, not asked: http://127.0.0.1:9/v1 did not answer")
    assert "2 rows" in found.says("list")


def test_where_no_judge_has_answered_the_list_is_by_relevance_alone(checked):
    found = checked("judges={away: {use: 'plugins.py:Away'}}")
    assert found.code == 0
    assert found.says("list").startswith("no judge has answered: by relevance alone | of 'a red square'")
    assert set(found.found["facts"]["list"]["order"]["pairs"][0]) == {0, 3}
    assert "3 pairs" in found.says("list")


def test_judges_that_prefer_nothing_or_change_their_mind_are_warnings(checked):
    found = checked("judges={same: {use: 'plugins.py:Same'}, mood: {use: 'plugins.py:Mood'}}")
    assert found.code == 0
    assert found.warned == {
        "judge without taste": ["judges.same: every image has the score 3, so that it prefers none"],
        "judge does not repeat itself": found.reasons("judge does not repeat itself"),
    }
    assert (
        "judges.mood: asked again in the opposite order" in found.reasons("judge does not repeat itself")[0]
    )


def test_a_recipe_that_measures_no_retention_is_a_warning(checked):
    found = checked("eval.captions=null")
    assert found.code == 0
    assert list(found.warned) == ["retention"]


def test_texts_are_counted_where_the_model_is_a_folder(checked, tmp_path):
    model = tiny_dual_encoder(tmp_path / "model")
    sound = checked(f"model={{path: '{model}'}}")
    assert sound.code == 0
    assert "it reads 16 tokens, the longest text has" in sound.says("model")
    long = checked(f"model={{path: '{model}'}}", "data.queries={use: 'plugins.py:long'}")
    assert long.code == 1
    assert "has 62 tokens but the model reads 16 at most" in long.reasons("cannot be used")[0]


def test_a_model_of_the_hub_is_not_fetched(checked):
    found = checked("model={path: openai/clip-vit-base-patch32}")
    assert found.code == 0
    assert "is not a folder here (a hub name is fetched by train)" in found.says("model")


def test_a_bench_is_checked_with_both_of_its_splits(checked, tmp_path):
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    classes = {"use": "tests.unit.vision.benches:classes", "kwargs": {"number": 2}}
    split = recipe.pop("eval") | {"every": 1, "classes": classes}
    bench = {
        "name": "bench",
        "alignment": recipe,
        "rows": {"rp_pl": {}},
        "validation": split,
        "test": {**split, "truth": {"use": f"{tmp_path}/plugins.py:Lost"}},
    }
    file = tmp_path / "bench.yaml"
    file.write_text(yaml.safe_dump(bench))
    found = tmp_path / "bench.json"
    assert asyncio.run(check_file(file, [], code_dir=ROOT, json_file=found)) == 1
    said = json.loads(found.read_text())
    assert said["recipe"] == "bench"
    assert [(one["where"], one["kind"]) for one in said["findings"]] == [("test", "cannot be used")]
    assert "alignment: list" in said["facts"]
