"""Evaluation inside a run: what is asked, what is written, and when judges are taken to be gamed."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf.retrieval import Embedded
from rlhf.telemetry.sinks import ListSink
from rlhf.vision.evaluate import embedded, known, measure
from rlhf.vision.measures import bootstrap
from rlhf.vision.pictures import Pictures
from rlhf.vision.run import HeldOut
from rlhf.vision.teaching import Panel
from tests.retrievers import Brightness
from tests.unit.vision.facts import heldout, random_vectors

WEIGHTS = {"brightness": 2.0, "red": -1.0}


@dataclass
class Pool:
    """Random vectors, one for each name: other ones for each seed."""

    seed: int = 0

    async def embed(self, texts: Sequence[str], images: Sequence[str], *, on_done=None) -> Embedded:
        if on_done is not None:
            on_done(1, 1)
        return Embedded(texts=self._vectors(texts), images=self._vectors(images), version=self.seed)

    def _vectors(self, names: Sequence[str]) -> np.ndarray:
        return np.stack(
            [random_vectors(8, seed=crc32(f"{self.seed} {name}".encode())).numpy() for name in names]
        )


@dataclass
class Judges:
    """Two judges of the held-out gallery."""

    asked: list[tuple[str, str]] = field(default_factory=list)

    async def scores(self, of: str, query: str, ids: Sequence[str]) -> dict[str, tuple[float, ...]]:
        self.asked.append((of, query))
        panel = Panel(
            judges={name: Brightness() for name in WEIGHTS}, weights=WEIGHTS, gallery=heldout().gallery
        )
        return panel.scores(query, ids)


def held(folder: Path, **changes: object) -> HeldOut:
    values = {
        "heldout": heldout(), "pool": Pool(), "judges": Judges(), "weights": WEIGHTS, "top_k": 7,
        "folder": folder / "evaluations", "reference": folder / "reference" / "heldout.safetensors",
        "pictures": Pictures(folder / "pictures"),
    }  # fmt: skip
    return HeldOut(**(values | changes))


def measured(of: HeldOut, step: int) -> dict[str, float]:
    return asyncio.run(of.measured(step, lambda *_: None))


def test_evaluation_measures_what_the_engines_embed(tmp_path):
    found = held(tmp_path)
    metrics = measured(found, 3)
    wanted = known(heldout(), random_vectors(len(heldout().gallery.ids()), 8)).wanted
    vectors = asyncio.run(Pool().embed(wanted.texts, wanted.images))
    matrix = load_file(found.reference)["matrix"]
    facts = known(heldout(), matrix)
    assert matrix.numpy() == pytest.approx(vectors.images[: len(matrix)])
    parts = embedded(facts, torch.from_numpy(vectors.texts), torch.from_numpy(vectors.images))
    expected = measure(facts, parts, top_k=7)
    assert {name: metrics[f"eval/{name}"] for name in expected} == pytest.approx(
        {name: float(values.mean()) for name, values in expected.items()}
    )
    assert (metrics["eval/taste_low"], metrics["eval/taste_high"]) == bootstrap(expected["taste"])
    assert metrics["eval/judge_score"] == pytest.approx(metrics["eval/judge/brightness"])
    assert found.judges.asked == [("heldout", query.text) for query in heldout().queries]
    ListSink().log(3, metrics)


def test_evaluation_leaves_rows_and_pictures_for_the_report(tmp_path):
    found = held(tmp_path)
    metrics = measured(found, 3)
    left = json.loads((tmp_path / "evaluations" / "step-000003.json").read_text())
    assert [row["query"] for row in left["rows"]] == [query.text for query in heldout().queries]
    for row in left["rows"]:
        assert len(row["items"]) == len(set(row["items"])) == len(row["taste"]) == 7
        assert row["taste"] == heldout().truth.taste(row["items"])
        assert row["judges"].keys() == WEIGHTS.keys()
        uris = [found.pictures.uri(name) is not None for name in row["items"]]
        assert uris[:5] == [True] * 5
    assert left["metrics"]["taste"] == metrics["eval/taste"]


def test_diversity_is_by_the_embeddings_of_the_first_evaluation(tmp_path):
    first = held(tmp_path)
    measured(first, 0)
    before = first.reference.stat().st_mtime_ns
    resumed = held(tmp_path, pool=Pool(seed=1))
    found = measured(resumed, 5)
    assert first.reference.stat().st_mtime_ns == before
    other = held(tmp_path / "other", pool=Pool(seed=1))
    assert found["eval/diversity"] != measured(other, 5)["eval/diversity"]
    save_file(load_file(other.reference), first.reference)
    assert measured(held(tmp_path, pool=Pool(seed=1)), 5) == measured(other, 5)


def test_evaluation_without_a_truth_says_nothing_of_taste(tmp_path):
    found = measured(held(tmp_path, heldout=replace(heldout(), truth=None)), 0)
    assert not [name for name in found if name.startswith(("eval/taste", "eval/ndcg"))]
    assert {"eval/judge_score", "eval/zero_shot", "eval/recall_10", "eval/diversity"} <= found.keys()
    rows = json.loads((tmp_path / "evaluations" / "step-000000.json").read_text())["rows"]
    assert all("taste" not in row for row in rows)


def history(*changes: str) -> list[dict[str, float]]:
    """Evaluations whose letters say what each step did: J, T, P rise; j, t, p fall; what is not named stays."""
    found = [{"judge_score": 0.0, "taste": 0.0, "precision": 0.0}]
    names = {"j": "judge_score", "t": "taste", "p": "precision"}
    for change in changes:
        last = dict(found[-1])
        for letter in change:
            last[names[letter.lower()]] += 1.0 if letter.isupper() else -1.0
        found.append(last)
    return found


@pytest.mark.parametrize(
    ("changes", "alarm"),
    [
        ((), False),
        (("Jt", "Jt"), False),
        (("Jt", "Jt", "Jt"), True),
        (("Jp", "Jp", "Jp"), True),
        (("Jt", "Jp", "JtP"), True),
        (("JTp", "JtP", "JTp"), True),
        (("Jt", "Jt", "J"), False),
        (("Jt", "Jt", "JTP"), False),
        (("Jt", "Jt", "jt"), False),
        (("t", "t", "t"), False),
        (("J", "J", "J"), False),
        (("jt", "Jt", "Jt", "Jt"), True),
        (("Jt", "Jt", "Jt", "JT"), False),
        (("Jt", "Jt", "JT", "Jt", "Jt"), False),
        (("Jt", "Jt", "JT", "Jt", "Jt", "Jt"), True),
    ],
)
def test_judges_are_gamed_where_three_evaluations_in_a_row_say_so(tmp_path, changes, alarm):
    assert held(tmp_path, history=history(*changes)).is_hacked() is alarm


def test_alarm_without_a_truth_looks_at_precision(tmp_path):
    for changes, alarm in ((("Jp",) * 3, True), (("J",) * 3, False)):
        unseen = [{name: v for name, v in one.items() if name != "taste"} for one in history(*changes)]
        assert held(tmp_path, history=unseen).is_hacked() is alarm


def test_alarm_is_raised_by_the_evaluation_that_completes_it(tmp_path):
    rising = [
        {"judge_score": -3.0 + i, "taste": 9.0 - i, "precision": 1.0, "hacking_alarm": 0.0} for i in range(3)
    ]
    found = held(tmp_path, history=rising)
    assert measured(found, 3)["eval/hacking_alarm"] == 1.0
    assert [one["hacking_alarm"] for one in found.history] == [0.0, 0.0, 0.0, 1.0]
    assert measured(held(tmp_path, history=rising[:2]), 3)["eval/hacking_alarm"] == 0.0
