"""The chat template of a reward model: it spells a conversation as the pairs were spelled that it learned from."""

from rlhf.episodes.render import CHAT, SLOT, Renderer

FILE = "chat_template.jinja"
"""Where transformers and vLLM look for a folder's chat template."""
_ANSWER = (
    "{%- set answer = messages[-1]['content'] -%}"
    "{{- answer if answer is string else answer | map(attribute='text') | join -}}"
)


def scoring_template(renderer: Renderer) -> str:
    """A Jinja template whose last message is the answer.

    What comes before is asked as RL asks it, with the opening of the answer; behind the answer stands the eos token and
    nothing else. Chat templates often end a turn with a line break: the score would be read from there.
    """
    end = renderer.tokenizer.convert_ids_to_tokens(renderer.stop_token_ids[0])
    asked = _chat(renderer) if renderer.template == CHAT else _plain(renderer)
    return f"{asked}{_ANSWER}{{{{- {end!r} -}}}}"


def _plain(renderer: Renderer) -> str:
    before, after = renderer.template.split(SLOT)
    tokenizer = renderer.tokenizer
    bare = len(tokenizer.encode("", add_special_tokens=False))
    start = "".join(tokenizer.convert_ids_to_tokens(tokenizer.encode("")[bare:]))
    return f"{{{{- {start + before!r} + messages[0]['content'] + {after!r} -}}}}"


def _chat(renderer: Renderer) -> str:
    """The template as a macro, asked for the messages before the answer."""
    text = renderer.chat_template_text or renderer.tokenizer.chat_template
    system = ""
    if renderer.system_prompt is not None:
        message = f"[{{'role': 'system', 'content': {renderer.system_prompt!r}}}]"
        system = (
            f"{{%- if asked[0]['role'] != 'system' -%}}{{%- set asked = {message} + asked -%}}{{%- endif -%}}"
        )
    return (
        f"{{%- macro prompt(messages, add_generation_prompt) %}}{text.removesuffix(chr(10))}{{% endmacro -%}}"
        f"{{%- set asked = messages[:-1] -%}}{system}{{{{- prompt(asked, true) -}}}}"
    )
