"""Image codes on the reference engine: what they are drawn from, against one pass per token."""

import pytest
import torch

from rlhf.config.schema import EngineConfig
from rlhf.engines.drawing import Drawing, mixed
from rlhf.engines.hf import HfEngine, processed_logprobs
from rlhf.engines.settings import EngineSettings
from rlhf.engines.vllm_params import sampling_params
from rlhf.errors import EngineError
from rlhf.types import Sampling
from rlhf.weight_sync.files import read_weights
from tests.drawing import RULE, UNGUIDED, distributions, drawing_request, is_code_by_loop
from tests.tiny import save_tiny, tiny_model
from tests.unit.engines.test_hf import generate, request


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("model"))
    settings = EngineSettings(
        model=str(folder),
        config=EngineConfig(max_sequences=5),
        device="cpu",
        dtype="float32",
        max_model_len=128,
    )
    return HfEngine(settings, read=read_weights)


@pytest.mark.parametrize("rule", [RULE, UNGUIDED])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_of_the_guided_distribution_over_the_tokens_kind(engine, rule, temperature):
    asked = [
        drawing_request(0, rule=rule, temperature=temperature),
        drawing_request(1, is_begun=False, rule=rule, temperature=temperature, stop_token_ids=()),
    ]
    for one, group in zip(asked, generate(engine, asked), strict=True):
        for completion in group:
            ids = [*one.prompt_token_ids, *completion.token_ids]
            given = len(one.prompt_token_ids)
            kinds = is_code_by_loop(ids, given, rule)
            spans = [range(start, stop) for start, stop in completion.drawn.spans]
            assert [any(t in span for span in spans) for t in range(len(ids) - given)] == kinds[given:]
            expected = distributions(tiny_model(), ids, kinds, rule, temperature=temperature)
            chosen = [expected[t, ids[t]].log().item() for t in range(given, len(ids))]
            assert completion.logprobs == pytest.approx(chosen, abs=1e-4)


def test_an_image_that_the_model_begins_is_whole_and_text_follows(engine):
    one = drawing_request(3, samples=40, is_begun=False, max_tokens=40, stop_token_ids=())
    (group,) = generate(engine, [one])
    spans = [(c, span) for c in group for span in c.drawn.spans]
    assert spans
    for completion, (start, stop) in spans:
        assert completion.token_ids[start - 1] == RULE.begin_id
        assert stop - start == RULE.num_tokens or stop == len(completion.token_ids)
    codes = sum(RULE.is_code(token) for c in group for token in c.token_ids)
    assert codes == sum(stop - start for _, (start, stop) in spans)


def test_guidance_changes_the_draw_and_a_scale_of_one_has_no_null_rows(engine):
    def drawn(rule):
        (group,) = generate(engine, [drawing_request(0, rule=rule)])
        return [c.token_ids[: RULE.num_tokens] for c in group]

    assert drawn(RULE) != drawn(UNGUIDED)


def test_tokens_do_not_depend_on_rows_beside_them(engine):
    asked = [drawing_request(i, is_begun=i % 2 == 0, length=6 + i % 2) for i in range(4)] + [
        request(9, length=7)
    ]
    together = generate(engine, asked)
    alone = [generate(engine, [one])[0] for one in asked]
    assert [[c.token_ids for c in g] for g in together] == [[c.token_ids for c in g] for g in alone]
    assert together[4][0].drawn is None


@pytest.mark.parametrize("is_begun", [True, False])
def test_a_distribution_sums_to_one_over_its_kind_and_is_zero_elsewhere(is_begun):
    drawing = Drawing(RULE, is_begun=is_begun)
    logits = torch.randn(96, generator=torch.Generator().manual_seed(0))
    p = processed_logprobs(drawing.of_kind(logits), Sampling(max_tokens=1, temperature=0.8)).exp()
    inside = [token for token in range(96) if RULE.is_code(token) == is_begun]
    assert float(p[inside].sum()) == pytest.approx(1, abs=1e-6)
    assert all(float(p[token]) == 0 for token in range(96) if token not in inside)


def test_mixed_logits_are_the_formula_for_codes_and_the_rows_own_for_text():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    found = mixed(logits, [Drawing(RULE, is_begun=True), Drawing(RULE, is_begun=False)])
    for token in range(6):
        c, u = float(logits[0, token]), float(logits[2, token])
        assert float(found[0, token]) == pytest.approx(u + 2.5 * (c - u), abs=1e-5)
    assert torch.equal(found[1], logits[1])


def test_vllm_is_not_asked_for_codes():
    with pytest.raises(EngineError, match=r"set engine\.kind: hf"):
        sampling_params(drawing_request().sampling, 0)


@pytest.mark.parametrize(("ids", "what"), [((5, 80, 6), "holds image codes"), ((5, 79, 6), "goes on after")])
def test_prompts_with_images_are_refused(engine, ids, what):
    one = drawing_request()
    with pytest.raises(EngineError, match=what):
        generate(engine, [type(one)(prompt_token_ids=ids, sampling=one.sampling, seeds=(1,))])
