"""A module of environments that end in every way, most of them badly."""

import os

SLEEP = f"4242.{os.getpid()}"
"""Seconds, by which the processes of this run are known."""
MODULE = '''
import asyncio, os, signal, subprocess, threading, time
from rlhf.episodes.program import ProgramEnvironment
from rlhf.interfaces import EpisodeOver
from rlhf.types import Message, Step

class Counts:
    """Two turns, half a point each, one for the end."""
    def reset(self, prompt, context):
        self.turns = 0
    def step(self, action, context):
        self.turns += 1
        if self.turns == 2:
            return Step(terminated=True, reward=0.5)
        return Step(messages=(Message(role="user", content="more"),), reward=0.5)
    def score(self, context):
        return 1.0

class Talks(Counts):
    def step(self, action, context):
        return Step(messages=(Message(role="user", content="more"),))

class TalksUngraded(Talks):
    def score(self, context): return None

class CutsShort(Counts):
    def step(self, action, context):
        step = super().step(action, context)
        return Step(truncated=True, reward=0.5) if step.terminated else step

class EndsUnread(Counts):
    def step(self, action, context): return Step(terminated=True, is_invalid=True)

class Marks(Counts):
    def reset(self, prompt, context):
        super().reset(prompt, context)
        self.mark, self.hangs = prompt.columns["marks"] + "/closed", prompt.columns.get("hangs")
        if prompt.columns["fails_in"] == "reset": raise KeyError("lost")
    def step(self, action, context):
        if self.context_fails(context, "step"): raise KeyError("lost")
        return super().step(action, context)
    def score(self, context):
        if self.context_fails(context, "score"): raise KeyError("lost")
        return 1.0
    def close(self):
        open(self.mark, "x").close()
        if self.hangs: time.sleep(600)
        raise OSError("nor can it be closed")
    def context_fails(self, context, where):
        return context.prompt.columns["fails_in"] == where

class HangsInReset(Counts):
    def reset(self, prompt, context): time.sleep(600)

class HangsInStep(Counts):
    def step(self, action, context):
        step = super().step(action, context)
        if self.turns == 2:
            subprocess.Popen(["sleep", "4242"])
            subprocess.Popen(["sleep", "4242"], start_new_session=True)
            time.sleep(600)
        return step

class HangsInStepWithThreads(HangsInStep):
    def reset(self, prompt, context):
        super().reset(prompt, context)
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()

class HangsInScore(Counts):
    def score(self, context): time.sleep(600)

class ClaimsToScore(Counts):
    """Says that its score has begun, which may take for ever, and that its step is over."""
    def step(self, action, context):
        files = (n for n in range(3, 64) if os.path.exists(f"/proc/self/fd/{n}"))
        line = next(n for n in files if os.readlink(f"/proc/self/fd/{n}").startswith("socket"))
        os.write(line, b'{"do": "enter", "phase": 98, "name": "score", "limit_s": 1e9}\\n')
        os.write(line, b'{"do": "leave", "phase": 98}\\n{"do": "leave", "phase": 1}\\n')
        time.sleep(600)

class HangsBetween(Counts):
    async def step(self, action, context):
        await asyncio.sleep(600)

class Raises(Counts):
    def step(self, action, context): raise KeyError("lost")

class RaisesInReset(Counts):
    def reset(self, prompt, context): raise SystemExit(3)

class RaisesInScore(Counts):
    def score(self, context): return 1 / 0

class RaisesOnce(Counts):
    def reset(self, prompt, context):
        super().reset(prompt, context)
        mark = f"{prompt.columns['marks']}/{context.rng.random()}"
        if not os.path.exists(mark):
            open(mark, "w").close()
            raise OSError("not yet")

class Dies(Counts):
    def step(self, action, context): os.kill(os.getpid(), signal.SIGKILL)

class Exits(Counts):
    def step(self, action, context): os._exit(0)

class EatsMemory(Counts):
    def step(self, action, context): return bytearray(1 << 34)

class ScoresNan(Counts):
    def score(self, context): return float("nan")

class ScoresNothing(Counts):
    def score(self, context): return None

class SaysNothing(Counts):
    def step(self, action, context): return Step()

class SpeaksForTheModel(Counts):
    def step(self, action, context): return Step(messages=(Message(role="assistant", content="x"),))

class ReturnsNoStep(Counts):
    def step(self, action, context): return "more"

async def answers(prompt, model, context):
    first = await model(*prompt.messages)
    other = await model.fork()
    await other(Message(role="user", content="and"))
    return float(first.content == "ok")

class OwnsItsLoop:
    async def play(self, prompt, model, context):
        return float((await model(*prompt.messages)).content == "ok")

class LosesAndHangs:
    async def play(self, prompt, model, context): raise KeyError("lost")
    def close(self): time.sleep(600)

async def scores_itself(prompt, model, context):
    try:
        await model(*prompt.messages)
    except EpisodeOver as over:
        return float(over.last.content == "ok")

ASKS = """
import json, os, urllib.request
told = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"}
body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "q"}]}).encode()
request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, told)
print(json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"])
"""

class RunsAProgram:
    async def play(self, endpoint, context):
        return await ProgramEnvironment(["python", "-c", ASKS], score=None).play(endpoint, context)
    def score(self, context):
        return float(context.state.stdout.strip() == "ok")
    def close(self):
        raise OSError("cannot be closed")

async def asks_for_ever(prompt, model, context):
    while True:
        await model(Message(role="user", content="more"))

async def blocks(prompt, model, context):
    time.sleep(600)
'''
