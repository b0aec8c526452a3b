"""What a query costs where the gallery is embedded already: milliseconds of one thread, measured query by query."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rlhf.config.schema import ModelConfig
from rlhf.data.dual_encoder import load_dual_encoder, read_retrieval_config, texts_of
from rlhf.vision.evaluate import Facts
from rlhf.vision.teaching import Panel
from rlhf.vision.untrained import reordered


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryCost:
    """Milliseconds of the middle query."""

    one_pass: float
    """Embed the words, find the first images."""
    kept: Mapping[int, float]
    """By depth: put so many first images in the order of scores that were kept."""
    live: Mapping[int, float]
    """The same by judges that look at them now."""

    def told(self, depth: int | None = None) -> str:
        """For the table: one pass, or a cascade with kept scores and with live ones."""
        if depth is None:
            return f"{self.one_pass:.2f}"
        return f"{self.one_pass + self.kept[depth]:.2f} ({self.one_pass + self.live[depth]:.2f} live)"


def query_cost(model: str, facts: Facts, panel: Panel, depths: Sequence[int], *, top_k: int) -> QueryCost:
    """Measure it on the held-out queries, one at a time, as a service answers them. `model` is a folder."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cosines = _cosines_by(model, facts)
        texts = [query.text for query in facts.heldout.queries]
        rows = [cosines(text) for text in texts]
        ids = facts.heldout.gallery.ids()

        def cascade(depth: int, judges: Callable[[], Panel]) -> float:
            return _middle(
                lambda place: reordered(
                    ids, texts[place], rows[place].topk(min(depth, len(rows[place]))).indices, judges()
                ),
                len(texts),
            )

        return QueryCost(
            one_pass=_middle(lambda place: cosines(texts[place]).topk(top_k), len(texts)),
            kept={depth: cascade(depth, lambda: panel) for depth in depths},
            live={depth: cascade(depth, lambda: _forgetful(panel)) for depth in depths},
        )
    finally:
        torch.set_num_threads(threads)


def _cosines_by(model: str, facts: Facts) -> Callable[[str], Tensor]:
    config = ModelConfig(path=model)
    network = load_dual_encoder(config, on_meta=False).eval()
    tokens = texts_of(model, read_retrieval_config(config))

    def cosines(text: str) -> Tensor:
        with torch.inference_mode():
            ids, mask = tokens.batch(tokens.ids([text]))
            found = network.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
            return facts.reference @ normalize(found[0], dim=-1)

    return cosines


def _forgetful(panel: Panel) -> Panel:
    return Panel(judges=panel.judges, weights=panel.weights, gallery=panel.gallery)


def _middle(answer: Callable[[int], object], count: int) -> float:
    """Milliseconds; the first round warms up."""
    for place in range(count):
        answer(place)
    spent = []
    for place in range(count):
        started = time.perf_counter()
        answer(place)
        spent.append(1000 * (time.perf_counter() - started))
    return statistics.median(spent)
