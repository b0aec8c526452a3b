"""vLLM's own readers of tool calls, by the names that its option --tool-call-parser takes."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.errors import ConfigError

_LOG = logging.getLogger(__name__)


class VllmCalls:
    """One of vLLM's tool parsers. ConfigError for a name it does not have, or a tokenizer that it does not fit.

    What it cannot read, it takes for text: unlike here, a model is not told that its call was malformed.
    """

    def __init__(self, name: str, *, tokenizer: Any) -> None:
        self._name = name
        self._tokenizer = tokenizer
        self._class = _parser_class(name)
        # They log a trace for every malformed call: here that is the model's affair.
        logging.getLogger("vllm.tool_parsers").setLevel(logging.CRITICAL)
        self._made((), "the model's tokenizer does not fit it")

    def read(self, text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[tuple[str, str]]]:
        """(what is no call, (name, arguments as JSON text) of each call). Never raises for what a model wrote."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        parser = self._made(tools, "a tool's schema is not one that it takes")
        request = ChatCompletionRequest(
            model="policy", messages=[{"role": "user", "content": ""}], tools=[dict(tool) for tool in tools]
        )
        try:
            found = parser.extract_tool_calls(text, request)
        except Exception as error:  # noqa: BLE001
            # Some of these parsers raise on malformed text; which errors, none of them says.
            _LOG.debug("vLLM's parser %s raised on %.200r: %r", self._name, text, error)
            return text, []
        calls = [(call.function.name, call.function.arguments) for call in found.tool_calls or ()]
        return found.content or "", calls

    def _made(self, tools: Sequence[Mapping[str, Any]], what: str) -> Any:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionToolsParam

        try:
            return self._class(self._tokenizer, [ChatCompletionToolsParam(**tool) for tool in tools])
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"task.environment.tool_syntax is 'vllm:{self._name}', but {what}: {error}. "
                "Name another parser, or a syntax of our own."
            ) from error


def _parser_class(name: str) -> Any:
    try:
        from vllm.tool_parsers import ToolParserManager
    except ImportError as error:
        raise ConfigError(
            f"task.environment.tool_syntax is 'vllm:{name}', but vLLM is not installed here: {error}. "
            "Install it (`rlhf doctor` says how), or name a syntax of our own."
        ) from error
    try:
        return ToolParserManager.get_tool_parser(name)
    except KeyError as error:
        known = sorted({*ToolParserManager.tool_parsers, *ToolParserManager.lazy_parsers})
        raise ConfigError(
            f"task.environment.tool_syntax is 'vllm:{name}', expected one of vLLM's parsers: {', '.join(known)}."
        ) from error
