"""The main loop: roll out, pack, update, publish. Start reading here.

One loop is synchronous (max_staleness 0), one-step-off (1) and asynchronous (k): the buffer's admission slots
decide how far generation runs ahead (rollout/buffer.py). `Run` holds the assembled parts (run.py, build.py).
Retrieval alignment is the same loop over other groups: lists of images in place of trajectories (vision/run.py).
"""

import asyncio
import contextlib

from rlhf.run import Driven, G, T


async def train(run: Driven[G, T]) -> None:
    """Run every step that is left. Weights of step k are version k; all waits have deadlines."""
    clock = run.clock
    await run.sync.publish(run.state.step)
    await run.evaluate(first=True)
    producer = asyncio.create_task(run.producer.run(), name="rollout producer")
    try:
        while run.state.step < run.num_steps:
            with clock.time("rollout_wait_s"):
                groups = await run.buffer.take()
            async with run.placement.training():
                with clock.time("pack_s"):
                    batch = run.pack(groups)
                with clock.time("logprobs_s"):
                    batch = await run.annotate(batch)
                with clock.time("update_s"):
                    updated = await run.update(batch)
            with clock.time("sync_s"):
                synced = await run.sync.publish(run.state.step + 1)
            run.advance(groups)
            await run.evaluate()
            run.log(groups, batch, {**updated, **synced})
            await run.checkpoint()
            run.buffer.release()
    finally:
        producer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await producer
