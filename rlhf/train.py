"""The main loop: roll out, pack, update, publish. Start reading here.

One loop is synchronous (max_staleness 0), one-step-off (1) and asynchronous (k): the buffer's admission slots
decide how far generation runs ahead (rollout/buffer.py). `Run` holds the assembled parts (run.py, build.py).
"""

import asyncio
import contextlib
import logging

from rlhf.data.packing import split_minibatches
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
                    batch = run.pack(groups)
                with clock.time("logprobs_s"):
                    for annotate in run.annotators:
                        batch = await annotate(batch)
                algorithm = run.current_algorithm()
                batch = algorithm.add_advantages(batch)
                minibatches = [
                    algorithm.add_loss_weights(part, seed=seed)
                    for seed in run.minibatch_seeds()
                    for part in split_minibatches(batch, schedule.minibatches, seed=seed)
                ]
                with clock.time("update_s"):
                    updated = await run.update(minibatches, algorithm)
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
