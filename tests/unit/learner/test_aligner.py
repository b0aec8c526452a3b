"""Retrieval alignment: ranks, micro-batches and the order of lists change nothing; checkpoints and exports hold."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlhf.config.algorithm import LoraConfig
from rlhf.config.vision import FreezeConfig
from rlhf.data.dual_encoder import texts_of
from rlhf.errors import CheckpointError, ConfigError, DataError, LearnerError, ModelError
from rlhf.learner.aligner import Aligner, RankPlace
from rlhf.learner.retrieval import build_retrieval_model
from rlhf.vision.batches import Replay
from tests.retrievers import Squares, tiny_dual_encoder
from tests.unit.algorithms import alignment_reference as slow
from tests.unit.learner.aligners import (
    IMAGES,
    break_last_rank,
    broken_pixels,
    gradients,
    plan,
    run_two,
    shares,
    slow_embeddings,
    train,
)
from tests.unit.learner.ranks import Ranks
from tests.unit.vision.recipes import TEXTS, captions, orders, recipe

LISTS = {
    "rp_pl": {"name": "rp_pl"},
    "rp_dpo": {"name": "rp_dpo", "label_smoothing": 0.1},
    "dpo": {"name": "dpo", "replay_coef": 0.5},
    "grpo": {"name": "grpo", "kl_coef": 0.3},
    "sft": {"name": "sft"},
    "none": {"name": "none"},
}
each_kind = pytest.mark.parametrize("kind", ["clip", "siglip"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("encoders")
    return {kind: tiny_dual_encoder(root / kind, kind=kind) for kind in ("clip", "siglip")}


def relative_gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    gap = math.sqrt(sum(float((found[n] - expected[n]).square().sum()) for n in expected))
    return gap / math.sqrt(sum(float(g.square().sum()) for g in expected.values()))


def assert_same_run(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["step"] == expected["step"]
    for one, two in zip(found["metrics"], expected["metrics"], strict=True):
        assert one == pytest.approx(two, rel=1e-5, abs=1e-6)
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, rtol=0, atol=1e-6, msg=name)


@each_kind
@pytest.mark.parametrize("loss", ["rp_pl", "sft"])
def test_two_steps_of_two_ranks_equal_those_of_one(
    place: RankPlace, two_ranks: Ranks, folders, kind: str, loss: str
) -> None:
    what = recipe(loss=LISTS[loss])
    # Of a gradient that is rounding alone (the bias of keys cancels in attention) AdamW's usual eps makes whole steps.
    of = plan(folders[kind], what, eps=1e-3)
    one = train(place, of, what, [0, 1])
    for two in two_ranks.run(run_two, of, what, {"steps": [0, 1], "most": 7}):
        assert_same_run(two, one)
    start = load_file(Path(folders[kind]) / "model.safetensors")
    assert max(float((w - start[n]).abs().max()) for n, w in one["weights"].items()) > 1e-4


@pytest.mark.parametrize("loss", LISTS)
def test_gradient_of_two_ranks_equals_one(place: RankPlace, two_ranks: Ranks, folders, loss: str) -> None:
    what = recipe(loss=LISTS[loss], schedule={"queries_per_step": 6, "replay_per_step": 12})
    of = plan(folders["clip"], what, smoothing=0.1)
    one = gradients(place, of, what, 512)["gradients"]
    for most in (6, 13):
        for two in two_ranks.run(gradients, of, what, most):
            assert relative_gap(two["gradients"], one) < 1e-5


@pytest.mark.parametrize("loss", ["rp_pl", "grpo"])
@pytest.mark.parametrize("most", [6, 13])
def test_microbatches_of_any_size_change_nothing(place: RankPlace, folders, loss: str, most: int) -> None:
    what = recipe(loss=LISTS[loss], schedule={"queries_per_step": 5, "replay_per_step": 8})
    of = plan(folders["clip"], what)
    one, split = gradients(place, of, what, 512), gradients(place, of, what, most)
    assert (one["batches"], split["batches"]) == (2, 1 + (5 if most == 6 else 3))
    assert relative_gap(split["gradients"], one["gradients"]) < 1e-5
    for name, expected in one["sums"].items():
        torch.testing.assert_close(split["sums"][name], expected, rtol=1e-6, atol=1e-6)


@each_kind
def test_checkpointed_activations_change_nothing(place: RankPlace, folders, kind: str) -> None:
    what = recipe()
    one = gradients(place, plan(folders[kind], what), what, 512)["gradients"]
    found = gradients(place, plan(folders[kind], what, activation_checkpointing=True), what, 512)["gradients"]
    assert relative_gap(found, one) < 1e-5


def test_the_order_of_lists_changes_nothing(place: RankPlace, folders) -> None:
    what = recipe(schedule={"queries_per_step": 5, "replay_per_step": 8})
    of, lists = plan(folders["clip"], what), orders(5, tied=[1, 3])
    one = gradients(place, of, what, 13, lists)["gradients"]
    other = gradients(place, of, what, 13, [lists[i] for i in (3, 0, 4, 1, 2)])["gradients"]
    assert relative_gap(other, one) < 1e-5


def test_a_rank_without_lists_takes_part(place: RankPlace, two_ranks: Ranks, folders) -> None:
    what = recipe(loss={"name": "rp_pl", "replay_coef": 0})
    of = plan(folders["clip"], what)
    one = gradients(place, of, what, 512, orders(1))["gradients"]
    found = two_ranks.run(gradients, of, what, 512, orders(1))
    assert found[1]["sums"] == {}
    for two in found:
        assert relative_gap(two["gradients"], one) < 1e-5


def test_loss_and_metrics_are_those_of_the_formulas(place: RankPlace, folders) -> None:
    what = recipe(loss={"name": "rp_pl", "replay_coef": 0.5})
    aligner = Aligner(plan(folders["clip"], what, smoothing=0.1), place)
    values = aligner.update([shares(what, 0, ranks=1, most=13)[0]]).values
    texts, images, scale = slow_embeddings(folders["clip"], TEXTS, list(Squares().ids()))
    text_of = dict(zip(TEXTS, texts.double(), strict=True))
    image_of = dict(zip(Squares().ids(), images.double(), strict=True))
    losses, moved = [], []
    for order in orders(4, seed=0):
        scores = [scale * float(text_of[order.query] @ image_of[item]) for item in order.items]
        ratios = [s - r for s, r in zip(scores, order.ref_scores, strict=True)]
        losses.append(slow.rp_pl(ratios, slow.lines(2, 3)))
        moved.append(sum(map(abs, ratios)) / 6)
    replay = Replay(captions(), per_step=8, seed=1).at(0)
    matching = slow.nce(
        [text_of[text].tolist() for _, text in replay],
        [image_of[image].tolist() for image, _ in replay],
        [TEXTS.index(text) for _, text in replay],
        scale=scale,
        smoothing=0.1,
    )
    assert values["update/list_loss"] == pytest.approx(sum(losses) / 4, rel=1e-5)
    assert values["update/score_shift"] == pytest.approx(sum(moved) / 4, rel=1e-5)
    assert values["update/replay_loss"] == pytest.approx(sum(matching) / 8, rel=1e-5)


@pytest.mark.parametrize("frozen", ["vision", "text"])
@each_kind
def test_a_frozen_tower_does_not_move(place: RankPlace, folders, kind: str, frozen: str) -> None:
    what = recipe()
    saved = load_file(Path(folders[kind]) / "model.safetensors")
    of = plan(folders[kind], what, freeze=FreezeConfig(**{frozen: True}), lr=1e-2)
    found = train(place, of, what, [0, 1])["weights"]
    prefixes = {
        "vision": ("vision_model.", "visual_projection."),
        "text": ("text_model.", "text_projection."),
    }
    for name, weight in found.items():
        assert torch.equal(weight, saved[name]) == name.startswith(prefixes[frozen]), name


def test_freezing_everything_is_refused(place: RankPlace, folders) -> None:
    with pytest.raises(ConfigError, match=r"^model.freeze leaves nothing to train: unfreeze vision or text"):
        Aligner(plan(folders["clip"], freeze=FreezeConfig(vision=True, text=True)), place)


@each_kind
def test_the_scale_never_moves_and_is_no_weight_of_an_update(place: RankPlace, folders, kind: str) -> None:
    what = recipe()
    found = train(place, plan(folders[kind], what, lr=1e-1), what, [0, 1, 2])
    saved = load_file(Path(folders[kind]) / "model.safetensors")
    assert found["scale"] == pytest.approx(float(saved["logit_scale"].exp()), rel=1e-6)
    assert found["weights"].keys() == saved.keys() - {"logit_scale", "logit_bias"}
    assert not any("logit" in name for name in found["state"])


@each_kind
def test_lora_trains_adapters_alone_and_two_ranks_equal_one(
    place: RankPlace, two_ranks: Ranks, folders, kind: str
) -> None:
    what = recipe()
    of = plan(folders[kind], what, lora=LoraConfig(rank=2))
    one = gradients(place, of, what, 512)["gradients"]
    assert one
    assert all(".lora_" in name for name in one)
    # The adapters, random but for their zeros, are those of rank 0.
    found = two_ranks.run(gradients, of, what, 13)
    for two in found:
        assert relative_gap(two["gradients"], one) < 1e-5


@each_kind
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["full", "lora"])
def test_export_loads_in_transformers_with_the_same_embeddings(
    place: RankPlace, folders, tmp_path: Path, kind: str, lora
) -> None:
    what = recipe()
    aligner = Aligner(plan(folders[kind], what, lora=lora, lr=1e-2), place)
    before = aligner.embed(TEXTS, IMAGES)
    aligner.update([shares(what, step, ranks=1, most=512)[0] for step in (0, 1)])
    texts, images = aligner.embed(TEXTS, IMAGES)
    aligner.export(str(tmp_path / "out"))
    found_texts, found_images, scale = slow_embeddings(tmp_path / "out", TEXTS, IMAGES)
    torch.testing.assert_close(found_texts, texts, rtol=0, atol=1e-6)
    torch.testing.assert_close(found_images, images, rtol=0, atol=1e-6)
    assert scale == pytest.approx(aligner.scale, rel=1e-6)
    assert (texts - before[0]).abs().max() > 1e-3
    assert (images - before[1]).abs().max() > 1e-3
    shapes = {name: t.shape for name, t in load_file(Path(folders[kind]) / "model.safetensors").items()}
    assert {n: t.shape for n, t in load_file(tmp_path / "out" / "model.safetensors").items()} == shapes


@pytest.mark.parametrize("targets", [("token_embedding",), ("patch_embedding",)])
def test_lora_on_embeddings_is_refused(place: RankPlace, folders, targets) -> None:
    with pytest.raises(ModelError, match=r"model\.lora\.targets names the embeddings"):
        Aligner(plan(folders["clip"], lora=LoraConfig(rank=2, targets=targets)), place)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["full", "lora"])
def test_resumed_run_equals_one_never_stopped_bit_for_bit(
    place: RankPlace, folders, tmp_path: Path, lora
) -> None:
    what = recipe()
    of = plan(folders["clip"], what, lora=lora, lr_schedule="cosine", warmup_steps=2)
    whole_run = train(place, of, what, [0, 1, 2, 3])
    train(place, of, what, [0, 1], save=str(tmp_path / "half"))
    resumed = train(place, of, what, [2, 3], load=str(tmp_path / "half"))
    assert resumed["step"] == 4
    assert resumed["metrics"] == whole_run["metrics"][2:]
    for name, tensor in whole_run["state"].items():
        assert torch.equal(resumed["state"][name], tensor), name


def test_checkpoint_moves_between_two_ranks_and_one(
    place: RankPlace, two_ranks: Ranks, folders, tmp_path: Path
) -> None:
    what, folder = recipe(), str(tmp_path / "by_two")
    of = plan(folders["clip"], what)
    written = two_ranks.run(run_two, of, what, {"steps": [0, 1], "save": folder})[0]
    read = train(place, of, what, [], load=folder)
    assert read["step"] == 2
    assert all(torch.equal(read["state"][n], t) for n, t in written["state"].items())
    torch.testing.assert_close(read["images"], written["images"], rtol=0, atol=1e-6)


def test_checkpoint_of_another_model_is_refused_by_name(place: RankPlace, folders, tmp_path: Path) -> None:
    aligner = Aligner(plan(folders["siglip"]), place)
    aligner.save(str(tmp_path / "last"))
    aligner.close()
    with pytest.raises(CheckpointError, match="another model"):
        Aligner(plan(folders["clip"]), place).load(str(tmp_path / "last"))


def test_pixels_that_are_no_numbers_stop_the_step_and_change_nothing(place: RankPlace, folders) -> None:
    what = recipe()
    aligner = Aligner(plan(folders["clip"], what), place)
    aligner.update([shares(what, 0, ranks=1, most=512)[0]])
    before = {name: w.clone() for name, w in aligner.weights()}
    state = {name: t.clone() for name, t in aligner.policy.state().items()}
    good, aligner.pixels = aligner.pixels, broken_pixels()
    with pytest.raises(LearnerError, match="learner, optimizer step 1: the gradient norm is nan"):
        aligner.update([shares(what, 1, ranks=1, most=512)[0]])
    assert aligner.policy.step == 1
    assert all(torch.equal(w, before[name]) for name, w in aligner.weights())
    assert all(torch.equal(t, state[name]) for name, t in aligner.policy.state().items())
    aligner.pixels = good
    values = aligner.update([shares(what, 1, ranks=1, most=512)[0]]).values
    assert math.isfinite(values["update/grad_norm"])


def test_no_number_on_one_rank_stops_all_ranks(two_ranks: Ranks, folders) -> None:
    what = recipe()
    for message, is_unchanged in two_ranks.run(break_last_rank, plan(folders["clip"], what), what):
        assert "the gradient norm is nan" in message
        assert is_unchanged


@each_kind
def test_embeddings_are_those_of_transformers_and_do_not_depend_on_company(
    place: RankPlace, folders, kind: str
) -> None:
    aligner = Aligner(plan(folders[kind], per_pass=6), place)
    texts, images = aligner.embed(TEXTS, IMAGES)
    found_texts, found_images, _ = slow_embeddings(folders[kind], TEXTS, IMAGES)
    torch.testing.assert_close(texts, found_texts, rtol=0, atol=1e-6)
    torch.testing.assert_close(images, found_images, rtol=0, atol=1e-6)
    alone, one_image = aligner.embed(TEXTS[3:4], IMAGES[5:6])
    torch.testing.assert_close(alone[0], texts[3], rtol=0, atol=1e-6)
    torch.testing.assert_close(one_image[0], images[5], rtol=0, atol=1e-6)
    assert aligner.embed((), IMAGES[:2])[0].shape == (0, 64)
    assert aligner.embed(TEXTS[:2], ())[1].shape == (0, 64)
    assert [found.shape for found in aligner.embed((), ())] == [(0, 64), (0, 64)]
    probe = aligner.probe(aligner.texts.ids(TEXTS[:2]), [[name] for name in IMAGES[:3]])
    torch.testing.assert_close(torch.tensor(probe), torch.cat([texts[:2], images[:3]]), rtol=0, atol=1e-6)


def test_a_text_that_does_not_fit_is_refused_not_cut(folders) -> None:
    model = build_retrieval_model(plan(folders["clip"]).model, on_meta=True).model
    texts = texts_of(folders["clip"], model.config)
    longest = " ".join(["red"] * 14)
    assert len(texts.ids([longest])[0]) == 16
    with pytest.raises(DataError, match=r"has 17 tokens but the model reads 16 at most"):
        texts.ids(["a red square", longest + " red"])


@each_kind
def test_texts_of_siglip_are_filled_up_and_those_of_clip_masked(folders, kind: str) -> None:
    config = SimpleNamespace(model_type=kind, text_config=SimpleNamespace(max_position_embeddings=16))
    rows, mask = (found := texts_of(folders[kind], config)).batch(found.ids(["red", "a pale red square"]))
    assert rows.shape == ((2, 6) if kind == "clip" else (2, 16))
    assert mask.sum(1).tolist() == ([3, 6] if kind == "clip" else [16, 16])


def test_a_model_that_is_no_dual_encoder_of_ours_is_refused(
    place: RankPlace, folders, tmp_path: Path
) -> None:
    for kind in ("siglip2", "bert"):
        (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}"}}')
        with pytest.raises(ModelError, match=f"'{kind}' is no dual encoder .*expected one of clip, siglip"):
            build_retrieval_model(plan(tmp_path).model, on_meta=True)
    with pytest.raises(ModelError, match="model cannot be read"):
        build_retrieval_model(plan(tmp_path / "nowhere").model, on_meta=True)
