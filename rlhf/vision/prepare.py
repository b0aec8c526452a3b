"""The model folder (made, pre-trained or found) and all checked inputs of an alignment run."""

import json
from collections.abc import Sequence
from pathlib import Path

from rlhf.cluster.launch import device_for
from rlhf.config.alignment import AlignmentRecipe
from rlhf.errors import DataError
from rlhf.retrieval import Rephraser, RetrievalQuery
from rlhf.run_folder import RunFolder, replace_file
from rlhf.telemetry.live import LiveView
from rlhf.vision.build import AlignmentMaterials
from rlhf.vision.materials import load_captions, load_data, load_judges, load_queries, load_rephraser
from rlhf.vision.model_folder import prepare_dual_encoder
from rlhf.vision.pretrain import pretrain


def gather(recipe: AlignmentRecipe, folder: RunFolder, view: LiveView) -> AlignmentMaterials:
    """Load everything that the recipe names, and pre-train where it asks for it."""
    view.phase("loading galleries, queries and judges")
    data = load_data(recipe)
    judges = load_judges(recipe)
    rephraser = load_rephraser(recipe)
    rephrased = _rephrased(data.queries, rephraser, folder.path / "rephrased.json")
    view.phase("preparing the model")
    return AlignmentMaterials(
        recipe=recipe,
        folder=folder,
        model=_model(recipe, folder, view, list(rephrased.values())),
        data=data,
        judges=judges,
        rephraser=rephraser,
        rephrased=rephrased,
        device=device_for(recipe.placement),
    )


def _model(recipe: AlignmentRecipe, folder: RunFolder, view: LiveView, rephrased: Sequence[str]) -> str:
    texts = [*words_of(recipe), *rephrased]
    start = prepare_dual_encoder(recipe.model, folder.path / "start", texts=texts, seed=recipe.seed)
    if recipe.pretrain is None:
        return start
    return pretrain(
        recipe,
        start,
        folder.path / "pretrained",
        lambda done, total, loss: view.phase(f"pre-training · loss {loss:.2f}", done, total),
    )


def words_of(recipe: AlignmentRecipe) -> list[str]:
    """Queries and captions: with what the rephraser adds, all that a tokenizer of whole words must know."""
    if recipe.model.config is None:
        return []
    texts = [query.text for query in load_queries(recipe.data.queries, key="data.queries")]
    configs = {"data.replay": recipe.data.replay, "eval.captions": recipe.eval.captions}
    if recipe.pretrain is not None:
        configs["pretrain.captions"] = recipe.pretrain.captions
    for key, config in configs.items():
        texts += [text for _, text in load_captions(config, key=key)]
    return texts


def _rephrased(queries: Sequence[RetrievalQuery], rephraser: Rephraser | None, file: Path) -> dict[str, str]:
    """What the rephraser made of every query: asked once, then read from the run folder."""
    if rephraser is None:
        return {query.id: query.rephrased or query.text for query in queries}
    plain = [query.text for query in queries]
    asked = {"version": rephraser.version, "queries": plain}
    if file.is_file() and (found := json.loads(file.read_text()))["asked"] == asked:
        texts = found["texts"]
    else:
        texts = list(rephraser.rephrase(plain))
        if len(texts) != len(plain) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise DataError(
                f"rephraser {rephraser.version!r} gave {len(texts)} texts for {len(plain)} queries, or an empty one: "
                "one text for each is expected."
            )
        replace_file(file, json.dumps({"asked": asked, "texts": texts}))
    return {query.id: text for query, text in zip(queries, texts, strict=True)}
