"""One evaluation of a retriever: embed the held-out set, retrieve, measure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.errors import DataError
from rlhf.vision.materials import EvalSet
from rlhf.vision.measures import answer_measures, answers_of, caption_recalls, zero_shot

Embed = Callable[[Sequence[str], Sequence[str]], tuple[Tensor, Tensor]]
"""(texts, image ids) -> embeddings [q, d] and [i, d]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Everything that an evaluation embeds, in this order."""

    texts: tuple[str, ...]
    images: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a held-out set, looked up once."""

    heldout: EvalSet
    taste: Tensor
    """[n] of the gallery."""
    relevant: Tensor
    """[q, n] bool."""
    reference: Tensor
    """[n, d] embeddings of the gallery by the pre-trained model: the yardstick of diversity."""

    @property
    def wanted(self) -> Wanted:
        """What an evaluation embeds."""
        heldout = self.heldout
        pictured = [image for images in heldout.classes.values() for image in images]
        return Wanted(
            texts=(
                *(q.text for q in heldout.queries),
                *(text for _, text in heldout.captions),
                *heldout.classes,
            ),
            images=(*heldout.gallery.ids(), *(image for image, _ in heldout.captions), *pictured),
        )


def known(heldout: EvalSet, reference: Tensor) -> Facts:
    """Ask the truth. Without one, taste is 0 and relevance that of the queries' own lists."""
    ids = heldout.gallery.ids()
    taste = torch.zeros(len(ids)) if heldout.truth is None else torch.tensor(heldout.truth.taste(ids))
    rows = []
    for query in heldout.queries:
        if heldout.truth is not None:
            rows.append(torch.tensor(heldout.truth.relevant(query, ids), dtype=torch.bool))
        else:
            wanted = set(query.relevant or ())
            rows.append(torch.tensor([name in wanted for name in ids], dtype=torch.bool))
    if not torch.isfinite(taste).all():
        raise DataError("eval.truth gives a taste that is not finite.")
    return Facts(heldout=heldout, taste=taste.float(), relevant=torch.stack(rows), reference=reference)


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """`Wanted`, embedded."""

    queries: Tensor
    gallery: Tensor
    caption_texts: Tensor
    caption_images: Tensor
    class_texts: Tensor
    class_images: Tensor


def embedded(facts: Facts, texts: Tensor, images: Tensor) -> Embeddings:
    """Cut what was embedded for `facts.wanted` into its parts."""
    q, c, n = len(facts.heldout.queries), len(facts.heldout.captions), len(facts.taste)
    return Embeddings(
        queries=texts[:q],
        gallery=images[:n],
        caption_texts=texts[q : q + c],
        caption_images=images[n : n + c],
        class_texts=texts[q + c :],
        class_images=images[n + c :],
    )


def measure(facts: Facts, found: Embeddings, *, top_k: int) -> dict[str, Tensor]:
    """{measure: one number per query, caption or picture}."""
    places = (found.queries @ found.gallery.T).topk(top_k, dim=1).indices
    return measure_places(facts, places) | abilities(facts, found)


def measure_places(facts: Facts, places: Tensor) -> dict[str, Tensor]:
    """Of what was retrieved [q, k], however it was."""
    answers = answers_of(places, taste=facts.taste, relevant=facts.relevant)
    return answer_measures(answers, taste=facts.taste, relevant=facts.relevant, reference=facts.reference)


def abilities(facts: Facts, found: Embeddings) -> dict[str, Tensor]:
    """What a retriever could do before it was aligned: name pictures, find those of captions and back."""
    heldout = facts.heldout
    measured: dict[str, Tensor] = {}
    if heldout.classes:
        labels = [place for place, images in enumerate(heldout.classes.values()) for _ in images]
        measured["zero_shot"] = zero_shot(found.class_images, found.class_texts, labels)
    if heldout.captions:
        keys = [text for _, text in heldout.captions]
        measured |= caption_recalls(
            found.caption_texts, found.caption_images, keys, among=heldout.recall_among
        )
    return measured
