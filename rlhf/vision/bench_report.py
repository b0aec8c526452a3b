"""One bench from beginning to end, and what is left of it: `bench.json`, `report.html`, a table on the terminal."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from rlhf.config.alignment_bench import BenchRecipe
from rlhf.retrieval import PairJudge
from rlhf.run_folder import replace_file
from rlhf.vision.bench import (
    Choice,
    Prepared,
    Progress,
    choose,
    final_jobs,
    freeze,
    mean_of,
    prepare,
    pretrained,
    run_all,
    tune,
)
from rlhf.vision.bench_runs import Done, embed_with, facts_of
from rlhf.vision.bench_table import Gate, Row, gates, lines, ranked_against_pairs, stacked
from rlhf.vision.evaluate import Facts, measure_places
from rlhf.vision.judging import OrderConsistent
from rlhf.vision.materials import load_eval, load_judges, load_plugin, load_rephraser
from rlhf.vision.query_cost import query_cost
from rlhf.vision.teaching import Panel
from rlhf.vision.untrained import untrained_rows

_SHOWN = 5
"""Images of each row that a pair judge sees."""


def run_bench(config: BenchRecipe, folder: Path, progress: Progress) -> tuple[list[Row], list[Gate]]:
    """Everything. The test split is opened after `frozen.json` is written."""
    prepared = prepare(config, folder, progress)
    tuned = tune(config, prepared, progress)
    chosen = choose(tuned)
    jobs = final_jobs(config, prepared, chosen)
    freeze(prepared, config, chosen, on_test=[job for row in jobs.values() for job in row])
    done = run_all(
        prepared.bench,
        [job for row in jobs.values() for job in row],
        config,
        "judging on the test split",
        progress,
    )
    results = {row: [done[job.key] for job in of_row] for row, of_row in jobs.items()}
    base = pretrained(prepared, on="test")
    rows = _rows(config, prepared, chosen, results, base)
    verdicts = gates({row.name: row for row in rows}, config)
    frontier = _frontier(prepared, tuned)
    said = ranked_against_pairs({row.name: row for row in rows})
    replace_file(
        folder / "bench.json",
        json.dumps(
            {
                "name": config.name,
                "table": lines(rows),
                "gates": [
                    {"name": g.name, "demand": g.demand, "found": g.found, "passed": g.passed}
                    for g in verdicts
                ],
                "ranked_against_pairs": said,
                "frontier": frontier,
            },
            indent=1,
        ),
    )
    return rows, verdicts


def _frontier(prepared: Prepared, tuned: Mapping[str, list[tuple[Choice, Done]]]) -> list[dict[str, object]]:
    """Every setting that was tried, on validation: taste against what was kept."""
    base = pretrained(prepared, on="validation")
    points: list[dict[str, object]] = [
        {
            "row": "pre-trained",
            **{name: mean_of(base, name) for name in ("taste", "precision", "zero_shot", "recall_10")},
        }
    ]
    for row, tried in tuned.items():
        for choice, result in tried:
            found = {name: mean_of(result, name) for name in ("taste", "precision", "zero_shot", "recall_10")}
            points.append({"row": row, **found, "lr": choice.lr, **choice.loss, "keeps": choice.keeps})
    return points


def _rows(
    config: BenchRecipe,
    prepared: Prepared,
    chosen: Mapping[str, Choice],
    results: Mapping[str, list[Done]],
    base: Done,
) -> list[Row]:
    recipe = prepared.bench.recipe
    heldout = load_eval(config.test)
    assert heldout is not None, "the schema demands gallery and queries of the test split"
    facts = facts_of(recipe, heldout)
    rephraser = load_rephraser(recipe)
    plain = [query.text for query in heldout.queries]
    rephrased = plain if rephraser is None else list(rephraser.rephrase(plain))
    texts, _, _ = embed_with(recipe, heldout.gallery, [*plain, *rephrased], [])
    panel = Panel(
        judges=load_judges(recipe),
        weights={n: c.weight for n, c in recipe.judges.items()},
        gallery=heldout.gallery,
    )
    before = texts[: len(plain)], texts[len(plain) :]
    cost = query_cost(str(recipe.model.path), facts, panel, config.cascade, top_k=config.test.top_k)
    compare = _Comparison(config, facts, torch.tensor(base.places))
    rows = []
    for name, found in untrained_rows(facts, before, panel, config.cascade, top_k=config.test.top_k).items():
        measures = {key: values[None] for key, values in measure_places(facts, found.places).items()}
        if name == "pre-trained":
            measures = stacked([base.measures])
        verdicts = compare.verdicts([found.places])
        rows.append(
            Row(
                name=name,
                kind="untrained",
                measures=measures,
                query_ms="-" if name == "oracle" else cost.told(found.depth),
                calls=found.calls,
                verdicts=verdicts,
            )
        )
    for name, done in results.items():
        choice = chosen.get(name)
        rows.append(
            Row(
                name=name,
                kind="trained" if choice is not None else "control",
                measures=stacked([one.measures for one in done]),
                query_ms=cost.told(),
                cpu_s=sum(one.cpu_s for one in done) / len(done),
                verdicts=compare.verdicts([torch.tensor(one.places) for one in done]),
                settings="" if choice is None else _settings(choice),
                keeps=choice is None or choice.keeps,
            )
        )
    return rows


def _settings(choice: Choice) -> str:
    loss = choice.loss
    parts = [f"lr {choice.lr:g}", f"replay {loss['replay_coef']}"]
    parts += [f"{name} {loss[key]}" for key, name in (("beta", "beta"), ("kl_coef", "kl")) if key in loss]
    return ", ".join(parts) + ("" if choice.keeps else "; none kept retention on validation")


class _Comparison:
    """First images of a row beside the pre-trained model's, judged both ways round."""

    def __init__(self, config: BenchRecipe, facts: Facts, base: torch.Tensor) -> None:
        self._judge: PairJudge | None = None
        if config.pair_judge is not None:
            self._judge = OrderConsistent(load_plugin(config.pair_judge, key="pair_judge"))
        self._facts, self._base = facts, base

    def verdicts(self, places: list[torch.Tensor]) -> tuple[float, float, float] | None:
        """Shares (won, similar, lost) over seeds and queries; None without a judge."""
        if self._judge is None:
            return None
        gallery = self._facts.heldout.gallery
        ids = gallery.ids()
        counts = {"a": 0, "tie": 0, "b": 0}
        for of_seed in places:
            for query, own, before in zip(self._facts.heldout.queries, of_seed, self._base, strict=True):
                row_a, row_b = ([ids[p] for p in row[:_SHOWN].tolist()] for row in (own, before))
                counts[self._judge.compare(query.text, gallery.load(row_a), gallery.load(row_b))] += 1
        total = sum(counts.values())
        return counts["a"] / total, counts["tie"] / total, counts["b"] / total
