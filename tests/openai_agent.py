"""An agent that knows nothing of this project: the openai client, one tool, a loop."""

import json
import os

from openai import OpenAI

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "The sum of two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    },
}
client = OpenAI()
with open(os.environ["TASK_FILE"]) as file:
    messages = json.load(file)["messages"]
while True:
    answer = client.chat.completions.create(model="gpt", messages=messages, tools=[TOOL]).choices[0].message
    messages.append(answer)
    for call in answer.tool_calls or []:
        total = sum(json.loads(call.function.arguments).values())
        messages.append({"role": "tool", "tool_call_id": call.id, "content": str(total)})
    if not answer.tool_calls:
        break
with open("answer.txt", "w") as file:
    file.write(answer.content)
