"""Tool calls as model families write them, well and badly."""

import json

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Look it up.",
            "parameters": {
                "type": "object",
                "properties": {"q": {"type": "string"}, "n": {"type": "integer"}},
            },
        },
    }
]


def written(syntax, name, arguments):
    """A call as the family writes it."""
    body = json.dumps(arguments, ensure_ascii=False)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in arguments.items()}
    match syntax:
        case "hermes":
            return f'<tool_call>\n{{"name": "{name}", "arguments": {body}}}\n</tool_call>'
        case "qwen_xml":
            inside = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in texts.items())
            return f"<tool_call>\n<function={name}>\n{inside}</function>\n</tool_call>"
        case "glm4":
            inside = "".join(
                f"<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>\n" for k, v in texts.items()
            )
            return f"<tool_call>{name}\n{inside}</tool_call>"
        case "llama3":
            return f'{{"name": "{name}", "parameters": {body}}}'
        case "mistral" | "mistral_array":
            one = f'[{{"name": "{name}", "arguments": {body}}}]'
            return "[TOOL_CALLS]" + (one if syntax == "mistral_array" else f"{name}[ARGS]{body}")
        case "deepseek_v3":
            return (
                f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{body}\n```<｜tool▁call▁end｜>"
            )
        case "deepseek_v31":
            return f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{body}<｜tool▁call▁end｜>"
        case "deepseek_v32":
            inside = "".join(
                f'<｜DSML｜parameter name="{k}" string="{str(isinstance(arguments[k], str)).lower()}">{v}'
                "</｜DSML｜parameter>\n"
                for k, v in texts.items()
            )
            return f'<｜DSML｜invoke name="{name}">\n{inside}</｜DSML｜invoke>\n'
        case "pythonic":
            return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
    raise AssertionError(syntax)


def block(syntax, calls):
    """Several calls of a turn."""
    match syntax:
        case "deepseek_v3" | "deepseek_v31":
            return f"<｜tool▁calls▁begin｜>{''.join(calls)}<｜tool▁calls▁end｜>"
        case "deepseek_v32":
            return f"<｜DSML｜function_calls>\n{''.join(calls)}</｜DSML｜function_calls>"
        case "llama3":
            return "; ".join(calls)
        case "pythonic":
            return f"[{', '.join(calls)}]"
    return "\n".join(calls)


def meant(call):
    """A call's arguments; texts without a type as what they are in JSON, where they are some."""
    if not call.is_text:
        return call.arguments
    return {key: _read(text) for key, text in call.arguments.items()}


def _read(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


FORMS = {
    "hermes": "hermes",
    "qwen_xml": "qwen_xml",
    "glm4": "glm4",
    "llama3": "llama3",
    "mistral": "mistral",
    "mistral_array": "mistral",
    "deepseek_v3": "deepseek_v3",
    "deepseek_v31": "deepseek_v3",
    "deepseek_v32": "deepseek_v3",
    "pythonic": "pythonic",
}
STRING_FORMS = [form for form in FORMS if form not in ("qwen_xml", "glm4", "deepseek_v32")]
"""Those that write arguments as JSON or Python does, in quotes."""


MALFORMED = {
    "brace not closed": ('{"name": "look", "arguments": {"q": "x"}', "invalid_json"),
    "comma at the end": ('{"name": "look", "arguments": {"q": "x",}}', "invalid_json"),
    "single quotes": ("{'name': 'look', 'arguments': {}}", "invalid_json"),
    "bare keys": ('{name: "look", arguments: {}}', "invalid_json"),
    "literals of Python": ('{"name": "look", "arguments": {"q": None}}', "invalid_json"),
    "not a number": ('{"name": "look", "arguments": {"n": NaN}}', "invalid_json"),
    "infinity": ('{"name": "look", "arguments": {"n": -Infinity}}', "invalid_json"),
    "a comment": ('{"name": "look", /* why */ "arguments": {}}', "invalid_json"),
    "a raw line break in a string": ('{"name": "look", "arguments": {"q": "a\nb"}}', "invalid_json"),
    "cut in a string": ('{"name": "look", "arguments": {"q": "half', "invalid_json"),
    "cut in an escape": ('{"name": "look", "arguments": {"q": "\\u12', "invalid_json"),
    "words after it": ('{"name": "look", "arguments": {}} and so on', "invalid_json"),
    "two objects": ('{"name": "look", "arguments": {}}{"name": "look", "arguments": {}}', "invalid_json"),
    "fence": ('```json\n{"name": "look", "arguments": {}}\n```', "invalid_json"),
    "a key twice": ('{"name": "look", "arguments": {"q": 1, "q": 2}}', "invalid_json"),
    "very deep": ('{"name": "look", "arguments": ' + '{"a":' * 100_000, "invalid_json"),
    "nothing": ("", "invalid_json"),
    "words": ("look up x", "invalid_json"),
    "an array": ('[{"name": "look"}]', "not_an_object"),
    "a number": ("7", "not_an_object"),
    "arguments are a list": ('{"name": "look", "arguments": ["x"]}', "not_an_object"),
    "arguments are null": ('{"name": "look", "arguments": null}', "not_an_object"),
    "arguments are words": ('{"name": "look", "arguments": "x"}', "invalid_json"),
    "arguments are a number in a string": ('{"name": "look", "arguments": "7"}', "not_an_object"),
}
UNUSUAL = {
    "no arguments": ('{"name": "look"}', ("look", {})),
    "no name": ('{"arguments": {"q": "x"}}', ("", {"q": "x"})),
    "name is a number": ('{"name": 7, "arguments": {}}', ("", {})),
    "empty object": ("{}", ("", {})),
    "arguments are JSON in a string": ('{"name": "look", "arguments": "{\\"q\\": 1}"}', ("look", {"q": 1})),
    "parameters": ('{"name": "look", "parameters": {"q": "x"}}', ("look", {"q": "x"})),
    "as the API has it": ('{"function": {"name": "look", "arguments": "{}"}}', ("look", {})),
    "function is the name": ('{"type": "function", "function": "look"}', ("look", {})),
}
