"""Guided image codes in the learner: against one pass per token, against the engine, over ranks and micro-batches."""

from dataclasses import replace

import pytest
import torch

from rlhf.algorithms.correction import k3
from rlhf.batch import Batch
from rlhf.config.algorithm import CriticConfig
from rlhf.config.schema import EngineConfig
from rlhf.data.packing import pack
from rlhf.engines.hf import HfEngine
from rlhf.engines.settings import EngineSettings
from rlhf.episodes.ledger import TokenLedger
from rlhf.errors import DataError, LearnerError
from rlhf.learner.attention import PACKED
from rlhf.learner.forward import PackedPolicy, prepare, score_tokens
from rlhf.learner.fsdp import RankPlace
from rlhf.types import Message, Prompt, RewardResult, Trajectory, TrajectoryGroup
from rlhf.weight_sync.files import read_weights
from tests.drawing import RULE, UNGUIDED, distributions, drawing_request
from tests.tiny import save_tiny, tiny_model
from tests.unit.engines.test_hf import generate
from tests.unit.learner.ranks import Ranks, critic_gradients, example_batch, gradients, plan
from tests.unit.learner.test_forward import gradient
from tests.unit.learner.test_fsdp import relative_gap


def trajectory(request, completion, index: int) -> Trajectory:
    ledger = TokenLedger()
    segment = ledger.open(request.prompt_token_ids)
    message = Message(role="assistant", content="")
    ledger.append(segment, completion, seen=request.prompt_token_ids, message=message)
    segments, turns, _ = ledger.finish()
    return Trajectory(
        segments=segments,
        turns=turns,
        stop=completion.finish_reason,
        sample_index=index,
        seed=0,
        temperature=request.sampling.temperature,
        seal=ledger.seal,
        reward=RewardResult(value=0.0),
    )


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("model"))
    settings = EngineSettings(
        model=str(folder),
        config=EngineConfig(),
        device="cpu",
        dtype="float32",
        max_model_len=128,
        kept_limit=20,
    )
    return HfEngine(settings, read=read_weights)


def sampled(engine, **options) -> Batch:
    """Three groups from the engine: an image that is asked for, one that the model may begin, another temperature."""
    options = {"stop_token_ids": (), "max_tokens": 20} | options
    asked = [
        drawing_request(0, **options),
        drawing_request(1, is_begun=False, samples=16, **options),
        drawing_request(2, length=9, temperature=0.8, **options),
    ]
    groups = []
    for index, (one, found) in enumerate(zip(asked, generate(engine, asked), strict=True)):
        rows = tuple(trajectory(one, completion, i) for i, completion in enumerate(found))
        prompt = Prompt(id=str(index), messages=(Message(role="user", content="x"),))
        groups.append(TrajectoryGroup(index=index, prompt=prompt, trajectories=rows))
    return pack(groups)


def drawn_batch() -> Batch:
    """Rows with codes at their ends, some of them in what is shared, and rows of text alone."""
    batch = example_batch()
    ends = batch.row_lengths()[batch.segment_ids] - batch.positions
    has_image = (batch.segment_ids % 3 != 2) & (batch.row_lengths() > 9)[batch.segment_ids]
    mask = has_image & (ends <= 7) & (ends > 2) & batch.loss_mask
    tokens = torch.where(mask, RULE.first_id + batch.tokens % RULE.num_codes, batch.tokens % 79)
    tokens = torch.where(has_image & (ends == 8), RULE.begin_id, tokens)
    assert mask.any()
    return replace(batch, tokens=tokens, code_mask=mask, image_codes=RULE)


def scores(batch, model=None, *, chunk=7):
    model = model or tiny_model()
    model.set_attn_implementation(PACKED)
    return score_tokens(PackedPolicy(model, chunk), batch, "gradient")


def test_scores_and_entropy_are_those_of_one_pass_per_token() -> None:
    batch, model = drawn_batch(), tiny_model()
    with torch.no_grad():
        found = scores(batch)
    assert found.entropy is not None
    for row in range(batch.num_rows):
        places = torch.nonzero(batch.segment_ids == row).flatten()
        ids, kinds = batch.tokens[places].tolist(), batch.code_mask[places].tolist()
        p = distributions(model, ids, kinds, RULE)
        for t, place in enumerate(places.tolist()):
            if batch.loss_mask[place] and t > 0:
                assert float(found.logprobs[place]) == pytest.approx(p[t, ids[t]].log().item(), abs=1e-5)
                known = p[t][p[t] > 0]
                assert float(found.entropy[place]) == pytest.approx(
                    -(known * known.log()).sum().item(), abs=1e-5
                )


def test_gradient_runs_through_both_passes_and_equals_autograd_on_padded_rows() -> None:
    batch, model = drawn_batch(), tiny_model()
    weights = torch.linspace(-1, 1, batch.num_tokens)
    model.set_attn_implementation("sdpa")
    total = torch.zeros(())
    codes = torch.arange(96)
    is_code_id = (codes >= RULE.first_id) & (codes < RULE.stop_id)
    for row in range(batch.num_rows):
        places = torch.nonzero(batch.segment_ids == row).flatten()
        ids, mask = batch.tokens[places], batch.code_mask[places]
        c = model(ids[None]).logits[0]
        u = model(torch.where(mask | (ids == RULE.begin_id), ids, RULE.null_id)[None]).logits[0]
        z = torch.where(mask[1:, None], u[:-1] + RULE.guidance * (c[:-1] - u[:-1]), c[:-1])
        z = z.masked_fill(is_code_id[None] != mask[1:, None], -torch.inf)
        logprobs = z.log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        trained = batch.loss_mask[places][1:]
        total = total + (weights[places][1:] * logprobs)[trained].sum()
    expected = gradient(model, total)
    gap = gradient(model, (weights * scores(batch, model).logprobs).sum()) - expected
    assert gap.norm() < 1e-5 * expected.norm()


def test_learner_scores_what_the_engine_sampled_and_the_row_alone_does_not(engine) -> None:
    batch = sampled(engine)
    assert batch.code_mask is not None
    assert 12 * RULE.num_tokens < int(batch.code_mask.sum()) < int(batch.loss_mask.sum())
    guided = scores(batch).logprobs.detach() - batch.rollout_logprobs
    assert guided[batch.loss_mask].abs().max() < 1e-4
    # What code trains that forgets the guidance: fresh weights, and another distribution.
    alone = scores(replace(batch, image_codes=UNGUIDED)).logprobs.detach() - batch.rollout_logprobs
    assert k3(alone[batch.code_mask]).mean() > 1e4 * k3(guided[batch.code_mask]).mean().clamp(min=1e-8)
    assert alone[batch.loss_mask & ~batch.code_mask].abs().max() < 1e-4


def test_kept_sets_are_of_the_guided_distribution(engine) -> None:
    batch = sampled(engine, top_p=0.7, kept_limit=20)
    assert batch.kept_ids is not None
    gap = scores(batch).logprobs.detach() - batch.rollout_logprobs
    assert gap[batch.loss_mask].abs().max() < 1e-4


def test_a_scale_of_one_scores_rows_alone() -> None:
    batch = replace(drawn_batch(), image_codes=UNGUIDED)
    assert prepare(batch).null_before is None
    assert batch.num_computed == 1
    assert prepare(drawn_batch(), guided=False).tokens.numel() == prepare(batch).tokens.numel()


def test_null_rows_share_their_beginnings_and_stay_within_twice_the_tokens() -> None:
    batch = drawn_batch()
    rows = prepare(replace(batch, image_codes=UNGUIDED)).tokens.numel()
    assert rows < prepare(batch).tokens.numel() <= 2 * rows


def test_gradient_depends_on_neither_ranks_nor_budget(place: RankPlace, two_ranks: Ranks) -> None:
    what, batch = replace(plan(), entropy="gradient"), drawn_batch()
    one = gradients(place, what, batch, 10_000)
    assert relative_gap(gradients(replace(place, port=place.port + 1), what, batch, 31), one) < 1e-5
    for two in two_ranks.run(gradients, what, batch, 60):
        assert relative_gap(two, one) < 1e-5
    text = gradients(replace(place, port=place.port + 2), what, replace(batch, image_codes=UNGUIDED), 10_000)
    assert relative_gap(text, one) > 0.05


def test_critic_reads_rows_alone(place: RankPlace) -> None:
    what, batch = replace(plan(), critic=CriticConfig()), drawn_batch()
    one = critic_gradients(place, what, batch, 10_000)
    plain = replace(batch, image_codes=None, code_mask=None)
    assert (
        relative_gap(critic_gradients(replace(place, port=place.port + 1), what, plain, 10_000), one) < 1e-6
    )


def test_recorded_experts_are_refused_with_guidance() -> None:
    batch = drawn_batch()
    with pytest.raises(LearnerError, match="recorded experts"):
        prepare(replace(batch, routing=torch.zeros(batch.num_tokens, 2, 2, dtype=torch.int16)))


def test_rows_drawn_by_two_rules_are_refused(engine) -> None:
    groups = []
    for index, rule in enumerate((RULE, UNGUIDED)):
        one = drawing_request(index, rule=rule, samples=1)
        (found,) = generate(engine, [one])
        prompt = Prompt(id=str(index), messages=(Message(role="user", content="x"),))
        rows = (trajectory(one, found[0], 0),)
        groups.append(TrajectoryGroup(index=index, prompt=prompt, trajectories=rows))
    with pytest.raises(DataError, match=r"2 rules for image codes.*sampling\.image_codes"):
        pack(groups)
