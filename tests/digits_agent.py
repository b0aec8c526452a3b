"""tests.toy_environment.Digits as a program that knows nothing of this project: two turns, scored by their digits."""

import json
import os

from openai import OpenAI

with open(os.environ["TASK_FILE"]) as file:
    history = json.load(file)["messages"]
shares = []
with OpenAI() as client:
    for _ in range(2):
        answer = client.chat.completions.create(model="any", messages=history).choices[0]
        if answer.finish_reason == "length":
            break
        text = answer.message.content
        shares.append(sum(c.isdigit() for c in text) / max(len(text), 1))
        history += [answer.message, {"role": "user", "content": "more"}]
share = sum(shares) / 2
with open("score.json", "w") as file:
    json.dump({"score": share, "digits": share}, file)
