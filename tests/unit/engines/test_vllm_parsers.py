import json

import pytest

from rlhf.engines.vllm_parsers import VllmCalls
from rlhf.episodes.parsing import parser_of
from rlhf.episodes.render import Renderer
from rlhf.errors import ConfigError
from tests.chat_tokenizers import family_of, save_tokenizer
from tests.tool_calls import FORMS, MALFORMED, TOOLS, UNUSUAL, block, meant, written

pytest.importorskip("vllm", reason="vLLM is not installed")
# Importing vLLM takes about seven seconds.
pytestmark = pytest.mark.slow
THEIRS = {
    "hermes": ("hermes", "qwen3"),
    "qwen_xml": ("qwen3_xml", "qwen3_6"),
    "glm4": ("glm45", "glm4moe"),
    "llama3": ("llama3_json", "llama3_1"),
    "deepseek_v3": ("deepseek_v3", "deepseekv3"),
    "deepseek_v31": ("deepseek_v31", "deepseekv3"),
    "deepseek_v32": ("deepseek_v32", "deepseekv3"),
}
GOOD = [{"q": "naïve 漢字 {a}\nb", "n": 3}, {"q": "x"}]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    def load(template):
        folder = save_tokenizer(tmp_path_factory.mktemp(template), family_of(template))
        return Renderer(model_folder=str(folder)).tokenizer

    return {template: load(template) for template in {template for _, template in THEIRS.values()}}


@pytest.fixture(scope="module")
def both(tokenizers):
    """form -> (our parser, vLLM's)."""
    return {
        form: (parser_of(FORMS[form]), parser_of(f"vllm:{name}", tokenizer=tokenizers[template]))
        for form, (name, template) in THEIRS.items()
    }


def called(message):
    return [(call.name, meant(call), call.error) for call in message.tool_calls]


@pytest.mark.parametrize("form", THEIRS)
def test_ours_and_vllms_agree_on_well_written_calls(both, form):
    ours, theirs = both[form]
    for calls in ([], GOOD[:1], GOOD):
        text = "<think>hm</think>" + (
            block(form, [written(form, "look", c) for c in calls]) if calls else "Done."
        )
        found = theirs(text, tools=TOOLS)
        assert called(found) == [("look", call, None) for call in calls]
        assert (called(found), found.content, found.reasoning) == (
            called(ours(text, tools=TOOLS)),
            "" if calls else "Done.",
            "hm",
        )


@pytest.mark.parametrize("form", THEIRS)
def test_without_tools_vllms_parser_is_not_asked(both, form):
    text = block(form, [written(form, "look", GOOD[0])])
    assert both[form][1](text).content == text.strip()


def told(message):
    """What the model would see of a malformed call."""
    if not message.tool_calls:
        return "taken for text"
    return ", ".join(
        call.error or f"{call.name}({json.dumps(call.arguments)})" for call in message.tool_calls
    )


def test_malformed_calls_by_ours_and_by_vllms(both):
    ours, theirs = both["hermes"]
    print()  # noqa: T201
    for kind, (body, *_) in {**MALFORMED, **UNUSUAL}.items():
        text = f"so <tool_call>{body}</tool_call>"
        mine, other = ours(text, tools=TOOLS), theirs(text, tools=TOOLS)
        print(f"{kind:36} ours: {told(mine):28} vLLM: {told(other)}")  # noqa: T201
        # Where vLLM reads a call, so do we, and the same one; we tell the model of the others.
        assert len(mine.tool_calls) == 1
        if kind == "a key twice":
            continue  # It takes the last; we ask for one.
        if other.tool_calls and other.tool_calls[0].error is None:
            assert called(mine) == called(other)


@pytest.mark.parametrize("form", THEIRS)
def test_vllms_parsers_never_raise(both, form):
    text = block(form, [written(form, "look", call) for call in GOOD])
    print()  # noqa: T201
    for share in (0.3, 0.6, 0.8, 0.95):
        cut = text[: int(share * len(text))]
        mine, other = (parse(cut, tools=TOOLS) for parse in both[form])
        print(f"{form:14} cut at {share:.0%}: ours: {told(mine)} | vLLM: {told(other)}")  # noqa: T201


def test_parser_that_vllm_does_not_have_is_refused(tokenizers):
    with pytest.raises(
        ConfigError, match=r"tool_syntax is 'vllm:hermez', expected one of vLLM's parsers: .*hermes"
    ):
        VllmCalls("hermez", tokenizer=tokenizers["qwen3"])


def test_parser_that_the_tokenizer_does_not_fit_is_refused(tokenizers):
    with pytest.raises(ConfigError, match="'vllm:deepseek_v3', but the model's tokenizer does not fit it"):
        VllmCalls("deepseek_v3", tokenizer=tokenizers["qwen3"])
