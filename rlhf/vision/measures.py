"""What is measured of a retriever: taste and relevance of the first k, and the ability that alignment may cost.

Every measure is one number per query, caption or picture, so that intervals can be taken over them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RETENTION = ("precision", "zero_shot", "recall_10")
"""What alignment must keep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a way of retrieving gives to each query: places in the gallery [q, k], best first."""

    places: Tensor
    taste: Tensor
    """[q, k] of the images at `places`."""
    relevant: Tensor
    """[q, k] bool."""


def answers_of(places: Tensor, *, taste: Tensor, relevant: Tensor) -> Answers:
    """Look up what is retrieved: `taste` [n] of the gallery, `relevant` [q, n] bool."""
    return Answers(places=places, taste=taste[places], relevant=relevant.gather(1, places))


def answer_measures(
    answers: Answers, *, taste: Tensor, relevant: Tensor, reference: Tensor
) -> dict[str, Tensor]:
    """{measure: [q]} of the first k: taste, precision, ndcg (gain relevance x taste), diversity.

    `taste` [n] and `relevant` [q, n] are of the gallery, the gain is taken from the lowest taste there; `reference`
    [n, d] are embeddings that stay the same, so that diversity cannot move with the space.
    """
    k = answers.places.shape[1]
    discounts = 1 / torch.log2(torch.arange(2, k + 2, dtype=taste.dtype))
    floor = taste.min()
    gains = (answers.taste - floor) * answers.relevant
    ideal = ((taste - floor)[None] * relevant).topk(k, dim=1).values
    best = (ideal * discounts).sum(1)
    pictures = reference[answers.places]
    distances = 1 - pictures @ pictures.transpose(1, 2)
    return {
        "taste": answers.taste.mean(1),
        "precision": answers.relevant.to(taste.dtype).mean(1),
        "ndcg": torch.where(
            best > 0, (gains * discounts).sum(1) / best.clamp(min=1e-9), torch.zeros_like(best)
        ),
        "diversity": distances.sum((1, 2)) / max(k * (k - 1), 1),
    }


def zero_shot(images: Tensor, classes: Tensor, labels: Sequence[int]) -> Tensor:
    """[n]: 1 where the nearest class text is the picture's own."""
    return ((images @ classes.T).argmax(1) == torch.tensor(labels)).float()


def caption_recalls(
    texts: Tensor, images: Tensor, keys: Sequence[str], *, among: int | None = None
) -> dict[str, Tensor]:
    """{measure: [c]} both ways; a picture with the very same caption is as good as the caption's own.

    Searched in parts of equal size, `among` at most: a large set narrows the interval and leaves the task as hard as
    it is.
    """
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    own = torch.tensor([number[key] for key in keys])
    parts: dict[str, list[Tensor]] = {}
    for part in torch.arange(len(keys)).tensor_split(math.ceil(len(keys) / (among or len(keys)))):
        similar = texts[part] @ images[part].T
        for name, scores in (("recall", similar), ("image_recall", similar.T)):
            order = scores.topk(min(10, scores.shape[1]), dim=1).indices
            hits = own[part][order] == own[part][:, None]
            parts.setdefault(f"{name}_1", []).append(hits[:, 0].float())
            parts.setdefault(f"{name}_10", []).append(hits.any(1).float())
    return {name: torch.cat(found) for name, found in parts.items()}


def bootstrap(values: Tensor, *, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """95 % interval of the mean of `values` [.., q], resampled over the last axis; other axes (seeds) are averaged."""
    per_query = values.reshape(-1, values.shape[-1]).mean(0)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(per_query), (draws, len(per_query)), generator=generator)
    means = per_query[drawn].mean(1).sort().values
    return float(means[int(0.025 * draws)]), float(means[int(0.975 * draws) - 1])


def means(measured: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean of each."""
    return {name: float(values.mean()) for name, values in measured.items()}
