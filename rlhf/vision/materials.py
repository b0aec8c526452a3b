"""Everything a recipe of alignment names, loaded and checked before anything starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.config.alignment import AlignmentRecipe, JudgeConfig, PluginConfig, VisionEvalConfig
from rlhf.errors import DataError
from rlhf.importing import load_function
from rlhf.retrieval import Gallery, Judge, Rephraser, RetrievalQuery, Truth
from rlhf.vision.batches import Caption


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSet:
    """Held-out queries and images, and what is known of them."""

    gallery: Gallery
    queries: Sequence[RetrievalQuery]
    truth: Truth | None
    captions: Sequence[Caption]
    classes: Mapping[str, Sequence[str]]
    recall_among: int | None = None
    """Most captions that a recall searches at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignmentData:
    """What a run learns from and is measured on."""

    gallery: Gallery
    queries: Sequence[RetrievalQuery]
    replay: Sequence[Caption]
    heldout: EvalSet | None


def load_plugin(config: PluginConfig | JudgeConfig, *, key: str) -> Any:
    """The object: what `use` names, called with `kwargs`. DataError for arguments that it does not take."""
    made = load_function(config.use, key=f"{key}.use")
    try:
        return made(**config.kwargs)
    except TypeError as error:
        raise DataError(
            f"{key}: {config.use} cannot be called with kwargs {config.kwargs}: {error}"
        ) from error


def load_judges(recipe: AlignmentRecipe) -> dict[str, Judge]:
    """By name."""
    return {name: load_plugin(config, key=f"judges.{name}") for name, config in recipe.judges.items()}


def load_data(recipe: AlignmentRecipe) -> AlignmentData:
    """Galleries, queries and captions. Raises DataError for what is empty, has two of one id, or overlaps."""
    gallery = load_gallery(recipe.data.gallery, least=recipe.orders.num_items, key="data.gallery")
    queries = load_queries(recipe.data.queries, key="data.queries")
    replay = load_replay(recipe)
    heldout = load_eval(recipe.eval)
    if heldout is not None:
        refuse_overlap(queries, heldout.queries)
    return AlignmentData(gallery=gallery, queries=queries, replay=replay, heldout=heldout)


def load_gallery(config: PluginConfig, *, least: int, key: str) -> Gallery:
    """The gallery. DataError for one with fewer than `least` images, or with one twice."""
    gallery: Gallery = load_plugin(config, key=key)
    ids = gallery.ids()
    if len(ids) < least or len(set(ids)) < len(ids):
        twice = len(ids) - len(set(ids))
        raise DataError(
            f"{key}: it has {len(ids)} images, {twice} of them twice; expected {least} or more, each once."
        )
    return gallery


def load_replay(recipe: AlignmentRecipe) -> list[Caption]:
    """The pairs of `data.replay`. DataError for fewer than a step takes."""
    replay = load_captions(recipe.data.replay, key="data.replay")
    if recipe.loss.replay_coef > 0 and len(replay) < recipe.schedule.replay_per_step:
        raise DataError(
            f"data.replay gives {len(replay)} pairs but schedule.replay_per_step is {recipe.schedule.replay_per_step}: "
            "lower it, or give more."
        )
    return replay


def load_queries(config: PluginConfig, *, key: str) -> list[RetrievalQuery]:
    """The queries. DataError for none, and for two with one id."""
    queries: list[RetrievalQuery] = list(load_plugin(config, key=key))
    seen: set[str] = set()
    for query in queries:
        if not isinstance(query, RetrievalQuery):
            raise DataError(
                f"{key}: {config.use} gives a {type(query).__name__}, expected rlhf.retrieval.RetrievalQuery."
            )
        if not query.text.strip():
            raise DataError(f"{key}: query {query.id!r} has no text.")
        if query.id in seen:
            raise DataError(f"{key}: two queries have the id {query.id!r}; ids must be unique.")
        seen.add(query.id)
    if not queries:
        raise DataError(f"{key}: {config.use} gives no queries.")
    return queries


def load_captions(config: PluginConfig | None, *, key: str) -> list[Caption]:
    """(image id, text) pairs; none without a config."""
    if config is None:
        return []
    given = load_plugin(config, key=key)
    try:
        found = [(str(image), str(text)) for image, text in given]
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{key}: {config.use} gives something else ({error}), expected (image id, text) pairs."
        ) from None
    empty = next((image for image, text in found if not text.strip()), None)
    if empty is not None or not found:
        raise DataError(
            f"{key}: {'image ' + repr(empty) + ' has an empty caption' if found else 'no pairs at all'}."
        )
    return found


def load_eval(config: VisionEvalConfig) -> EvalSet | None:
    """What `eval` names; None without a gallery or queries."""
    if config.every == 0 or config.gallery is None or config.queries is None:
        return None
    return EvalSet(
        gallery=load_gallery(config.gallery, least=config.top_k, key="eval.gallery"),
        queries=load_queries(config.queries, key="eval.queries"),
        truth=None if config.truth is None else load_plugin(config.truth, key="eval.truth"),
        captions=load_captions(config.captions, key="eval.captions"),
        classes={} if config.classes is None else load_plugin(config.classes, key="eval.classes"),
        recall_among=config.recall_among,
    )


def refuse_overlap(train: Sequence[RetrievalQuery], heldout: Sequence[RetrievalQuery]) -> None:
    """Raises DataError for a text that is a query of both."""
    both = {query.text for query in train} & {query.text for query in heldout}
    if both:
        raise DataError(
            f"{len(both)} queries stand in data.queries and in eval.queries, such as {min(both)!r}: what is trained "
            "on measures nothing. Take them out of one."
        )


def load_rephraser(recipe: AlignmentRecipe) -> Rephraser | None:
    """None: the plain query is the only one."""
    if recipe.rephraser is None:
        return None
    found: Rephraser = load_plugin(recipe.rephraser, key="rephraser")
    return found
