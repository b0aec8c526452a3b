"""`rlhf check` of a recipe of retrieval alignment: what it names is loaded, and judges are shown lists of images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from PIL.Image import Image

from rlhf.check.report import Checking, Finding, Report, num_of
from rlhf.config.alignment import AlignmentRecipe, PluginConfig, VisionEvalConfig
from rlhf.config.alignment_bench import BenchRecipe
from rlhf.config.schema import ModelConfig
from rlhf.data.dual_encoder import read_retrieval_config, texts_of
from rlhf.errors import DataError, RlhfError
from rlhf.pipeline.alignment_lists import Lists, say_lists
from rlhf.retrieval import Gallery, Judge, Rephraser, RetrievalQuery, Truth
from rlhf.vision.batches import Caption
from rlhf.vision.judging import OrderConsistent
from rlhf.vision.materials import (
    load_captions,
    load_gallery,
    load_plugin,
    load_queries,
    load_replay,
    refuse_overlap,
)
from rlhf.vision.orders import read_orders

UNUSABLE = "cannot be used"
NUM_QUERIES = 2
"""Queries whose lists are judged without --rows."""
_NUM_PICTURES, _NUM_REPHRASED, _NUM_ROW = 8, 4, 5
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Attempts:
    """Tries what a recipe names, part by part: one that fails is a finding and hides no other."""

    report: Report

    def __call__(self, key: str, work: Callable[[], T]) -> T | None:
        """What `work` gives. None where it fails, and where the server that it asks cannot be reached: that is said."""
        try:
            return work()
        except (ConnectionError, TimeoutError) as error:
            self.report.say(key, f"loaded, not asked: {error}")
        except (RlhfError, OSError) as error:
            said = str(error) if str(error).startswith(key) else f"{key}: {error}"
            self.report.findings.append(Finding(kind=UNUSABLE, row="", reason=said))
        return None


def check_alignment(recipe: AlignmentRecipe, checking: Checking) -> None:
    """Everything but the model's weights. In a thread without an event loop: judges may need one of their own."""
    report = checking.report
    report.recipe = report.recipe or recipe.name
    report.say("recipe", "valid")
    attempt = Attempts(report)
    least = recipe.orders.num_items
    gallery = attempt(
        "data.gallery", lambda: load_gallery(recipe.data.gallery, least=least, key="data.gallery")
    )
    queries = attempt("data.queries", lambda: load_queries(recipe.data.queries, key="data.queries")) or []
    replay = attempt("data.replay", lambda: load_replay(recipe)) or []
    _check_gallery(gallery, "data.gallery", attempt)
    _check_queries(queries, gallery, "data.queries", attempt)
    _check_captions(replay, gallery, "data.replay", attempt)
    if recipe.pretrain is not None:
        config = recipe.pretrain.captions
        taught = attempt("pretrain.captions", lambda: load_captions(config, key="pretrain.captions"))
        _check_captions(taught or [], gallery, "pretrain.captions", attempt)
    texts = [query.text for query in queries] + _rephrased(recipe, queries, attempt)
    texts += [text for _, text in replay]
    judges = {name: judge for name in recipe.judges if (judge := _judge(recipe, name, attempt)) is not None}
    _check_eval(recipe.eval, queries, attempt)
    _check_model(recipe.model, texts, attempt)
    if recipe.orders.path is not None:
        _check_stored(Path(recipe.orders.path), gallery, attempt)
    if gallery is not None and queries:
        chosen = _spread(queries, checking.num_rows or NUM_QUERIES)
        lists = Lists(recipe=recipe, gallery=gallery, queries=chosen, judges=judges)
        say_lists(lists, report, attempt)


def check_bench(config: BenchRecipe, checking: Checking) -> None:
    """What every row of a bench shares, and what it is chosen and measured on."""
    report = checking.report
    report.recipe = config.name
    with report.part("alignment", "what all rows share, with validation as eval"):
        check_alignment(config.alignment.model_copy(update={"eval": config.validation}), checking)
    with report.part("test", "as eval"):
        attempt = Attempts(report)
        trained = attempt(
            "data.queries", lambda: load_queries(config.alignment.data.queries, key="data.queries")
        )
        _check_eval(config.test, trained or [], attempt)
        if config.pair_judge is not None:
            pair_judge = config.pair_judge
            attempt("pair_judge", lambda: _check_pair_judge(pair_judge, config.test, report))


def _check_pair_judge(config: PluginConfig, shown: VisionEvalConfig, report: Report) -> None:
    """One comparison, asked in both orders."""
    judge = OrderConsistent(load_plugin(config, key="pair_judge"))
    if shown.gallery is None or shown.queries is None:
        return
    gallery = load_gallery(shown.gallery, least=2 * _NUM_ROW, key="eval.gallery")
    query, ids = load_queries(shown.queries, key="eval.queries")[0], gallery.ids()
    rows = ids[:_NUM_ROW], ids[_NUM_ROW : 2 * _NUM_ROW]
    verdict = judge.compare(query.text, gallery.load(rows[0]), gallery.load(rows[1]))
    report.say("pair_judge", f"of two rows of {_NUM_ROW} images for {query.text!r} it says {verdict!r}")


def _judge(recipe: AlignmentRecipe, name: str, attempt: Attempts) -> Judge | None:
    key = f"judges.{name}"
    return attempt(key, lambda: load_plugin(recipe.judges[name], key=key))


def _check_gallery(gallery: Gallery | None, key: str, attempt: Attempts) -> None:
    if gallery is None:
        return
    ids = gallery.ids()
    pictures = attempt(key, lambda: _pictures(gallery, _spread(ids, _NUM_PICTURES)))
    if pictures is not None:
        sizes = sorted({picture.size for picture in pictures}, key=lambda size: (size[0] * size[1], size))
        shown = " to ".join(f"{width} x {height}" for width, height in dict.fromkeys((sizes[0], sizes[-1])))
        text = f"{num_of(len(ids), 'image')}; {len(pictures)} looked at are {shown} pixels"
        attempt.report.say(key, text, images=len(ids))


def _pictures(gallery: Gallery, ids: Sequence[str]) -> list[Image]:
    """DataError where it gives something else than a picture in RGB for each."""
    found = gallery.load(ids)
    kinds = [item.mode if isinstance(item, Image) else type(item).__name__ for item in found]
    if len(found) != len(ids) or set(kinds) != {"RGB"}:
        raise DataError(
            f"load gave {len(found)} of {sorted(set(kinds))} for {len(ids)} ids, expected RGB pictures."
        )
    return found


def _check_queries(
    queries: Sequence[RetrievalQuery], gallery: Gallery | None, key: str, attempt: Attempts
) -> None:
    if not queries:
        return
    known = set(gallery.ids()) if gallery is not None else None
    named = [(query, name) for query in queries for name in query.relevant or ()]
    unknown = [] if known is None else [(query, name) for query, name in named if name not in known]
    if unknown:
        query, name = unknown[0]
        reason = f"{key}: {len(unknown)} relevant images are not in the gallery, such as {name!r} of {query.text!r}"
        attempt.report.findings.append(Finding(kind=UNUSABLE, row="", reason=reason))
    what = "query" if len(queries) == 1 else "queries"
    attempt.report.say(key, f"{len(queries)} {what}, such as {queries[0].text!r}", queries=len(queries))


def _check_captions(pairs: Sequence[Caption], gallery: Gallery | None, key: str, attempt: Attempts) -> None:
    if not pairs:
        return
    if gallery is not None:
        shown = [name for name, _ in _spread(pairs, _NUM_PICTURES)]
        if attempt(key, lambda: _pictures(gallery, shown)) is None:
            return
    name, text = pairs[0]
    attempt.report.say(
        key, f"{num_of(len(pairs), 'caption')}, such as {text!r} of {name}", captions=len(pairs)
    )


def _rephrased(recipe: AlignmentRecipe, queries: Sequence[RetrievalQuery], attempt: Attempts) -> list[str]:
    config, asked = recipe.rephraser, [query.text for query in _spread(queries, _NUM_REPHRASED)]
    if config is None:
        return []
    rephraser: Rephraser | None = attempt("rephraser", lambda: load_plugin(config, key="rephraser"))
    if rephraser is None or not asked:
        return []
    texts = attempt("rephraser", lambda: list(rephraser.rephrase(asked)))
    if texts is None:
        return []
    if len(texts) != len(asked) or not all(isinstance(text, str) and text.strip() for text in texts):
        reason = f"rephraser: it gave {texts!r:.200} for {asked!r:.200}, expected one text for each"
        attempt.report.findings.append(Finding(kind=UNUSABLE, row="", reason=reason))
        return []
    attempt.report.say(
        "rephraser", f"{asked[0]!r} becomes {texts[0]!r}", texts=dict(zip(asked, texts, strict=True))
    )
    return texts


def _check_eval(config: VisionEvalConfig, trained: Sequence[RetrievalQuery], attempt: Attempts) -> None:
    """What `eval` names; where it is not used a line says so."""
    if config.every == 0 or config.gallery is None or config.queries is None:
        attempt.report.say("eval", "no gallery and queries: nothing is measured")
        return
    least, plugin, asked = config.top_k, config.gallery, config.queries
    gallery = attempt("eval.gallery", lambda: load_gallery(plugin, least=least, key="eval.gallery"))
    queries = attempt("eval.queries", lambda: load_queries(asked, key="eval.queries")) or []
    _check_gallery(gallery, "eval.gallery", attempt)
    _check_queries(queries, gallery, "eval.queries", attempt)
    attempt("eval.queries", lambda: refuse_overlap(trained, queries))
    captions = attempt("eval.captions", lambda: load_captions(config.captions, key="eval.captions")) or []
    _check_captions(captions, gallery, "eval.captions", attempt)
    if config.classes is not None:
        classes = config.classes
        found = attempt("eval.classes", lambda: dict(load_plugin(classes, key="eval.classes"))) or {}
        _check_classes(found, gallery, attempt)
    if config.truth is not None and gallery is not None:
        truth = config.truth
        attempt("eval.truth", partial(_check_truth, truth, gallery, queries, attempt.report))
    if config.captions is None and config.classes is None:
        reason = (
            "eval has neither captions nor classes: what alignment costs in retrieval ability is not measured"
        )
        attempt.report.findings.append(Finding(kind="retention", row="", reason=reason, is_fatal=False))


def _check_classes(classes: Mapping[str, Sequence[str]], gallery: Gallery | None, attempt: Attempts) -> None:
    named = [name for names in classes.values() for name in names]
    if gallery is None or not classes:
        return
    if attempt("eval.classes", lambda: _pictures(gallery, _spread(named, _NUM_PICTURES))) is not None:
        attempt.report.say(
            "eval.classes", f"{len(named)} images of {len(classes)} classes", classes=len(classes)
        )


def _check_truth(config: Any, gallery: Gallery, queries: Sequence[RetrievalQuery], report: Report) -> None:
    """Taste of every image, relevance for some queries; DataError for what measures nothing."""
    truth: Truth = load_plugin(config, key="eval.truth")
    ids = list(gallery.ids())
    taste = [float(value) for value in truth.taste(ids)]
    if len(taste) != len(ids) or not all(abs(value) < float("inf") for value in taste):
        raise DataError(
            f"eval.truth: {len(taste)} tastes of {len(ids)} images, expected a finite one for each."
        )
    asked = _spread(queries, _NUM_PICTURES)
    counts = {query.text: sum(truth.relevant(query, ids)) for query in asked}
    empty = [text for text, count in counts.items() if not count]
    if empty:
        raise DataError(
            f"eval.truth: no image of eval.gallery is relevant to {empty[0]!r}: paths are ids of it."
        )
    report.say(
        "eval.truth", f"taste {min(taste):.3g} to {max(taste):.3g}; relevant images of queries: {counts}"
    )


def _check_model(model: ModelConfig, texts: Sequence[str], attempt: Attempts) -> None:
    """Count the texts' tokens, where the tokenizer is on this machine."""
    if model.path is None:
        attempt.report.say("model", "initialised at random: texts were not counted")
        return
    path = str(model.path)
    if not Path(path).is_dir():
        is_hub = path.count("/") <= 1 and not path.startswith((".", "~", "/"))
        what = "a hub name is fetched by train" if is_hub else "expected its folder"
        text = f"{path} is not a folder here ({what}): texts were not counted"
        attempt.report.say("model", text)
        if not is_hub:
            attempt.report.findings.append(Finding(kind=UNUSABLE, row="", reason=f"model.path: {text}"))
        return

    def longest() -> tuple[int, int]:
        reader = texts_of(path, read_retrieval_config(model))
        return max(map(len, reader.ids(list(dict.fromkeys(texts)))), default=0), reader.max_tokens

    if (counted := attempt("model", longest)) is not None:
        text = f"{path}: it reads {counted[1]} tokens, the longest text has {counted[0]}"
        attempt.report.say("model", text, longest=counted[0])


def _check_stored(path: Path, gallery: Gallery | None, attempt: Attempts) -> None:
    """The lists of `orders.path`; whether this model made them is known when it is loaded."""
    orders = attempt("orders.path", lambda: read_orders(path))
    if orders is None:
        return
    known = set() if gallery is None else set(gallery.ids())
    lost = [(order.query, name) for order in orders for name in order.items if known and name not in known]
    if lost:
        reason = f"orders.path: {len(lost)} images are not in data.gallery, such as {lost[0][1]!r} of {lost[0][0]!r}"
        attempt.report.findings.append(Finding(kind=UNUSABLE, row="", reason=reason))
    attempt.report.say("orders.path", num_of(len(orders), "list"), lists=len(orders))


def _spread(items: Sequence[T], number: int) -> list[T]:
    """Some of them, from the first on at equal distances."""
    step = max(len(items) / number, 1)
    return [items[int(place * step)] for place in range(min(number, len(items)))]
