"""The main loop: roll out, pack, update, publish. Start reading here.

One loop is synchronous (max_staleness 0), one-step-off (1) and asynchronous (k): the buffer's admission slots
decide how far generation runs ahead (rollout/buffer.py). `Run` holds the assembled parts (run.py, build.py).
"""

import asyncio
import contextlib
import logging

from rlhf.data.packing import pack, split_minibatches
from rlhf.run import Run

logger = logging.getLogger(__name__)


async def train(run: Run) -> None:
    """Run every step that is left. Weights of step k are version k; all waits have deadlines."""
    schedule, clock = run.recipe.schedule, run.clock
    await run.sync.publish(run.state.step)
    await run.evaluate(first=True)
    producer = asyncio.create_task(run.producer.run(), name="rollout producer")
    try:
        while run.state.step < schedule.num_steps:
            with clock.time("rollout_wait_s"):
                groups = await run.buffer.take()
            async with run.placement.training():
                with clock.time("pack_s"):
                    batch = pack(groups)
                with clock.time("logprobs_s"):
                    for annotate in run.annotators:
                        batch = await annotate(batch)
                batch = run.algorithm.add_advantages(batch)
                minibatches = [
                    run.algorithm.add_loss_weights(part)
                    for part in split_minibatches(batch, schedule.minibatches, seed=run.minibatch_seed())
                ]
                with clock.time("update_s"):
                    update = await run.learner.update(minibatches, run.algorithm.loss)
            with clock.time("sync_s"):
                synced = await run.sync.publish(run.state.step + 1)
            run.advance(groups)
            await run.evaluate()
            run.log(groups, batch, {**update.values, **synced})
            await run.checkpoint()
            run.buffer.release()
    finally:
        producer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await producer
