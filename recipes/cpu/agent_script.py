"""Guess a number: an agent that knows OpenAI's client and nothing of who trains it. Run by agent_script.yaml."""

import json
import os

from openai import OpenAI

MAX_GUESSES = 8

with open(os.environ["TASK_FILE"]) as file:
    task = json.load(file)
number, history = int(task["columns"]["reference"]), task["messages"]
score = 0.0
with OpenAI() as client:  # told by OPENAI_BASE_URL and OPENAI_API_KEY
    for turn in range(MAX_GUESSES):
        answer = client.chat.completions.create(model="any", messages=history).choices[0].message
        guess = answer.content.strip()
        if guess == str(number):
            score = 1.0 - turn / MAX_GUESSES
            break
        reply = "no" if not guess.isdecimal() else "higher" if int(guess) < number else "lower"
        history += [answer, {"role": "user", "content": reply}]
with open("score.json", "w") as file:
    json.dump({"score": score, "guesses": turn + 1, "found": score > 0}, file)
