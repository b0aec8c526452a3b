import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from rlhf.episodes.render import Renderer
from rlhf.stages.scoring_template import scoring_template
from rlhf.types import Message, Prompt
from tests.chat_tokenizers import FAMILIES, save_tokenizer
from tests.tiny import save_tiny

MESSAGES = (Message(role="user", content='what is "1+1"?\n'), Message(role="assistant", content="2"))
ANSWER = "<think>one\nand one</think>'2'"


def spelled(renderer, messages, answer):
    """Ids as a server makes them of a conversation that ends with the answer."""
    tokenizer = AutoTokenizer.from_pretrained(renderer.model_folder)
    conversation = [
        *({"role": m.role, "content": m.content} for m in messages),
        {"role": "assistant", "content": answer},
    ]
    text = tokenizer.apply_chat_template(
        conversation, chat_template=scoring_template(renderer), tokenize=False, add_generation_prompt=False
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def learned(renderer, messages, answer):
    """Ids as a reward model learns from them."""
    prompt = Prompt(id="p", messages=tuple(messages))
    return [*renderer.encode_prompt(prompt), *renderer.encode_completion(answer, where="test")]


@pytest.mark.parametrize("system", [None, "Be 'brief', \"plain\"\\n and {{ open }}: ä 😀."])
@pytest.mark.parametrize("family", ["qwen3", "qwen2.5", "llama3.2", "deepseek_v3"])
def test_chats_are_spelled_as_they_were_learned(tmp_path, family, system):
    folder = save_tokenizer(tmp_path, FAMILIES[family])
    renderer = Renderer(model_folder=str(folder), system_prompt=system)
    own = Message(role="system", content="My own.")
    asked = [MESSAGES[:1], (*MESSAGES, MESSAGES[0]), (own, MESSAGES[0])]
    for messages in asked:
        # Texts, as this tokenizer of GPT-2's kind merges a line break with what follows it.
        found, expected = (
            renderer.tokenizer.decode(ids)
            for ids in (spelled(renderer, messages, ANSWER), learned(renderer, messages, ANSWER))
        )
        assert found == expected


def test_plain_templates_are_spelled_as_they_were_learned(tmp_path):
    folder = str(save_tiny(tmp_path))
    for template in ("{prompt}", "Question: '{prompt}'\nAnswer:"):
        renderer = Renderer(model_folder=folder, template=template)
        message = Message(role="user", content="1+1=")
        assert spelled(renderer, [message], "2") == learned(renderer, [message], "2")


def test_a_beginning_that_the_tokenizer_adds_is_written(tmp_path):
    folder = save_tokenizer(tmp_path, FAMILIES["llama3.2"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bos = "<|begin_of_text|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(folder)
    renderer = Renderer(model_folder=str(folder), template="Question: {prompt} Answer:")
    found = learned(renderer, MESSAGES[:1], ANSWER)
    assert found[0] == tokenizer.bos_token_id
    assert spelled(renderer, MESSAGES[:1], ANSWER) == found
