"""A checkpoint continues the run bit for bit, at any number of ranks, and knows its model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.config.algorithm import CriticConfig, LoraConfig
from rlhf.config.schema import ModelConfig
from rlhf.errors import CheckpointError
from rlhf.learner.fsdp import FsdpLearner, RankPlace
from rlhf.learner.model import weight_specs
from tests.tiny import DEEPSEEK, MIXTRAL, MOE, save_tiny, tiny_config
from tests.unit.learner.ranks import Ranks, example_batch, plan, policy_gradient, train

LORA = ModelConfig(config=tiny_config(), dtype="float32", lora=LoraConfig(rank=4))
CRITIC = CriticConfig(lr=1e-2, lr_schedule="linear", warmup_steps=3)


SCHEDULED = plan(lr_schedule="cosine", warmup_steps=2)
FP8 = plan(optimizer_state="fp8")


@pytest.mark.parametrize(
    "what",
    [
        SCHEDULED,
        replace(SCHEDULED, model=LORA),
        replace(SCHEDULED, critic=CRITIC),
        replace(SCHEDULED, model=LORA, critic=CRITIC.model_copy(update={"lora": LoraConfig(rank=2)})),
        replace(SCHEDULED, needs_reference=True, reference_resets=True),
        replace(FP8, critic=CRITIC),
    ],
    ids=["full", "lora", "critic", "lora critic", "reset reference", "fp8 critic"],
)
def test_resumed_run_equals_one_never_stopped_bit_for_bit(place: RankPlace, tmp_path: Path, what) -> None:
    whole_run = train(place, what, [0, 1, 2, 3])
    train(place, what, [0, 1], save=str(tmp_path / "half"))
    resumed = train(place, what, [2, 3], load=str(tmp_path / "half"))
    assert resumed["step"] == 4
    assert resumed["state"].keys() == whole_run["state"].keys()
    assert resumed["metrics"] == whole_run["metrics"][2:]
    for name, tensor in whole_run["state"].items():
        assert torch.equal(resumed["state"][name], tensor), name
    assert torch.equal(resumed["rng"], whole_run["rng"])


FULL_HOUSE = replace(plan(), critic=CRITIC, needs_reference=True, reference_resets=True)


@pytest.mark.parametrize(
    "what",
    [plan(), FULL_HOUSE, replace(FP8, critic=CRITIC)],
    ids=["policy", "critic and reference", "fp8 critic"],
)
def test_checkpoint_moves_between_two_ranks_and_one(
    place: RankPlace, two_ranks: Ranks, tmp_path: Path, what
) -> None:
    first, second = str(tmp_path / "by_two"), str(tmp_path / "by_one")
    written = two_ranks.run(train, what, [0, 1], None, first)[0]["state"]
    read = train(place, what, [], first, second)
    back = two_ranks.run(train, what, [], second)
    for state in (read["state"], back[0]["state"], back[1]["state"]):
        assert state.keys() == written.keys()
        assert all(torch.equal(state[name], written[name]) for name in written)
    assert read["step"] == back[0]["step"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["by_one", "by_two"]


@pytest.mark.parametrize(
    ("written", "loading", "reason"),
    [
        (replace(plan(), critic=CRITIC), plan(), "it holds a critic, this run has none"),
        (plan(), replace(plan(), critic=CRITIC), "it holds no critic, this run has one"),
        (plan(), replace(FULL_HOUSE, critic=None), "it holds no reference that is reset"),
        (FULL_HOUSE, replace(plan(), critic=CRITIC, needs_reference=True), "it holds a reference that is"),
        (plan(), FP8, "it holds no narrow optimizer state"),
        (FP8, plan(), "it holds a narrow optimizer state, this run has none"),
    ],
    ids=["critic given", "critic missing", "reference missing", "reference given", "float32", "fp8"],
)
def test_checkpoint_of_another_algorithm_is_refused(
    place: RankPlace, tmp_path: Path, written, loading, reason: str
) -> None:
    learner = FsdpLearner(written, place)
    learner.save(str(tmp_path / "last"))
    learner.close()
    with pytest.raises(CheckpointError, match=f"another algorithm: {reason}"):
        FsdpLearner(loading, place).load(str(tmp_path / "last"))


def test_critic_of_another_size_is_refused_by_name(place: RankPlace, tmp_path: Path) -> None:
    learner = FsdpLearner(replace(plan(), critic=CRITIC), place)
    learner.save(str(tmp_path / "last"))
    learner.close()
    adapted = replace(plan(), critic=CRITIC.model_copy(update={"lora": LoraConfig(rank=2)}))
    with pytest.raises(CheckpointError, match=r"another model: critic\.decoder\..* is missing"):
        FsdpLearner(adapted, place).load(str(tmp_path / "last"))


def test_load_after_scoring_is_not_hidden_by_gathered_copies(place: RankPlace, tmp_path: Path) -> None:
    learner = FsdpLearner(plan(), place)
    batch = example_batch()
    (before,) = learner.logprobs([batch])
    learner.save(str(tmp_path / "start"))
    learner.update([[batch]], policy_gradient)
    learner.logprobs([batch])
    learner.load(str(tmp_path / "start"))
    assert torch.equal(learner.logprobs([batch])[0], before)


def test_checkpoint_of_another_model_is_refused_by_name(place: RankPlace, tmp_path: Path) -> None:
    learner = FsdpLearner(plan(), place)
    learner.save(str(tmp_path / "small"))
    learner.close()
    other = ModelConfig(config=tiny_config(hidden_size=96, num_hidden_layers=3), dtype="float32")
    with pytest.raises(
        CheckpointError, match=r"another model: .*has shape \[96, 64\], this model has \[96, 96\]"
    ):
        FsdpLearner(plan(other), place).load(str(tmp_path / "small"))


def test_unfinished_checkpoint_is_refused(place: RankPlace, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="never finished"):
        FsdpLearner(plan(), place).load(str(tmp_path))


def test_save_replaces_an_older_checkpoint_and_leaves_nothing_beside_it(
    place: RankPlace, tmp_path: Path
) -> None:
    learner = FsdpLearner(plan(), place)
    for _ in range(2):
        learner.save(str(tmp_path / "last"))
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_save_into_a_file_raises_checkpoint_error(place: RankPlace, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(CheckpointError, match="could not be written"):
        FsdpLearner(plan(), place).save(str(tmp_path / "taken" / "last"))


def adapters(changes: dict[str, object]) -> LoraConfig:
    """On every linear layer, but not on fused experts."""
    return LoraConfig(rank=4, targets=("o_proj",) if changes else "all-linear")


@pytest.mark.parametrize("changes", [{}, MOE, MIXTRAL, DEEPSEEK], ids=["dense", "moe", "mixtral", "deepseek"])
@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_export_loads_in_transformers_with_the_same_logprobs(
    place: RankPlace, tmp_path: Path, adapted: bool, changes
) -> None:
    lora = adapters(changes) if adapted else None
    source = save_tiny(tmp_path / "source", **changes)
    learner = FsdpLearner(plan(ModelConfig(path=str(source), dtype="float32", lora=lora)), place)
    learner.update([[example_batch()]], policy_gradient)
    learner.export(str(tmp_path / "out"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = list(range(5, 25))
    log_p = torch.log_softmax(model(input_ids=torch.tensor([tokens])).logits[0], -1)
    expected = log_p[:-1].gather(1, torch.tensor(tokens)[1:, None])[:, 0]
    assert learner.probe([tokens])[0] == pytest.approx(expected.tolist(), abs=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode("a b") == AutoTokenizer.from_pretrained(
        source
    ).encode("a b")


@pytest.mark.parametrize("changes", [{}, MOE, MIXTRAL, DEEPSEEK], ids=["dense", "moe", "mixtral", "deepseek"])
def test_weights_carry_the_names_that_transformers_saves(place: RankPlace, tmp_path: Path, changes) -> None:
    from safetensors.torch import load_file

    source = save_tiny(tmp_path / "source", **changes)
    saved = load_file(source / "model.safetensors")
    for lora in (None, adapters(changes)):
        learner = FsdpLearner(plan(ModelConfig(path=str(source), dtype="float32", lora=lora)), place)
        found = dict(learner.weights())
        assert found.keys() == saved.keys()
        assert all(torch.equal(found[name], saved[name]) for name in saved)
        announced = [(n, t.dtype, t.shape) for n, t in weight_specs(learner.policy.module, torch.float32)]
        assert announced == [(n, t.dtype, t.shape) for n, t in learner.weights()]
        learner.close()
