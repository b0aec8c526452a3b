"""One vLLM engine in this process (its core runs in a child): submission, versions, pauses, weight updates.

A scheduler pause has two users: a submission holds it while it adds its requests, so that the first step sees
them all, and an update or a sleep holds it while it lasts. `_gate` keeps them apart.
"""

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf.config.schema import EngineConfig
from rlhf.engines.kept import check_limit, num_reported
from rlhf.engines.precision import precision_arguments
from rlhf.engines.settings import EngineSettings
from rlhf.engines.vllm_images import image_arguments, show, shown_again
from rlhf.engines.vllm_outputs import completion, prompt_logprobs
from rlhf.engines.vllm_params import sampling_params
from rlhf.engines.vllm_sockets import removed_sockets
from rlhf.errors import DependencyError, EngineError, SyncError
from rlhf.interfaces import GenerateRequest
from rlhf.types import Completion

_CPU_KV_CACHE_MB = 512
_CPU_BLOCK_TOKENS = 32
_RECORDER = "rlhf.engines.recorder.RoutingRecorder"
_VLLM_TRANSFERS = ("nccl", "ipc")


def engine_environment(config: EngineConfig, device: str, *, record_routing: bool = False) -> dict[str, str]:
    """Environment that a process needs before it imports vLLM; children inherit it."""
    environment = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    if record_routing:
        environment["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    if device == "cuda":
        # CUDA IPC handles cross to the engine core as pickles.
        return environment | {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
    environment |= {
        "OMP_NUM_THREADS": str(config.threads),
        # A waiting thread that spins takes the core of the learner beside it.
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    if config.tensor_parallel == 1:
        # The worker lives inside the engine core: one process and one hop per step less.
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return environment


def engine_arguments(settings: EngineSettings) -> dict[str, Any]:
    """Keyword arguments of vLLM's AsyncEngineArgs for `settings`; `engine.args` has the last word."""
    config = settings.config
    arguments: dict[str, Any] = {
        "model": settings.model,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "dtype": settings.dtype,
        "seed": settings.seed,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": config.max_sequences,
        "tensor_parallel_size": config.tensor_parallel,
        "enforce_eager": not config.compile,
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
        # In a placement group vLLM would choose Ray, and refuse a bundle with all its GPUs.
        "distributed_executor_backend": "mp" if config.tensor_parallel > 1 else "uni",
        "trust_remote_code": settings.trust_remote_code,
    } | precision_arguments(config)
    if settings.record_routing:
        arguments["worker_extension_cls"] = _RECORDER
    if settings.kept_limit:
        arguments["max_logprobs"] = settings.kept_limit + 1
    if settings.device == "cpu":
        arguments |= {
            "kv_cache_memory_bytes": (config.kv_cache_mb or _CPU_KV_CACHE_MB) << 20,
            "block_size": _CPU_BLOCK_TOKENS,
            # A seeded request whose prefill is split dies: the CPU generator cannot step back (vLLM 0.32).
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(settings.max_model_len, 4096),
        }
    else:
        arguments |= {"gpu_memory_utilization": config.gpu_memory_fraction, "enable_sleep_mode": True}
        if config.kv_cache_mb is not None:
            arguments["kv_cache_memory_bytes"] = config.kv_cache_mb << 20
    return arguments | image_arguments(settings) | config.args


class VllmEngine:
    """interfaces.RolloutEngine's work on one engine, plus the engine side of weight updates."""

    def __init__(self, llm: Any, settings: EngineSettings) -> None:
        self._llm = llm
        self._settings = settings
        self._gate = asyncio.Lock()
        self._holds: set[str] = set()
        self._asleep = False
        self._ids = itertools.count()
        self._version = 0
        self._incoming: int | None = None
        self._routing_shape: tuple[int, ...] = ()
        self._collecting: set[asyncio.Task[tuple[int, list[Completion]]]] = set()

    @classmethod
    async def start(cls, settings: EngineSettings) -> "VllmEngine":
        """Load the model and start the engine core. Takes 10 s and more."""
        with removed_sockets():
            engine = cls(_launch(settings), settings)
            # Once it has answered, both ways to the core are open.
            await engine._llm.update_weight_version("0")
        if settings.record_routing:
            await engine._start_recording()
        return engine

    async def _start_recording(self) -> None:
        try:
            self._routing_shape = (await self._llm.collective_rpc("start_routing_record"))[0]
        # As in _rpc: a bare Exception that carries only the message.
        except Exception as error:
            await self.close()
            raise EngineError(
                f"sampling.keep_routing is true, but vLLM's choice of experts in {self._settings.model} cannot be "
                f"recorded: {error}. Set sampling.keep_routing: false, or engine.kind: hf."
            ) from error

    async def generate_many(
        self, requests: Sequence[GenerateRequest]
    ) -> AsyncIterator[tuple[int, list[Completion]]]:
        """Yield (index of the request, one Completion per seed) as each request finishes.

        On an idle engine all requests enter the scheduler before its next step, in order: there the same call gives
        the same tokens and bitwise the same log-probabilities. Waits while weights are being updated.
        """
        streams = await self._submit(requests)
        tasks = [
            asyncio.create_task(self._collect(index, request, group))
            for index, (request, group) in enumerate(zip(requests, streams, strict=True))
        ]
        self._collecting.update(tasks)
        try:
            for finished in asyncio.as_completed(tasks):
                yield await finished
        except asyncio.CancelledError:
            if self._llm is not None:
                raise
        finally:
            self._collecting.difference_update(tasks)
            cut = [group for task, group in zip(tasks, streams, strict=True) if not task.done()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._llm is not None and cut:
                left = [stream.request_id for group in cut for stream in group]
                await self._llm.abort(left, internal=True)
                await self._forget_routing(left)

    async def _submit(self, requests: Sequence[GenerateRequest]) -> list[list[Any]]:
        async with self._gate:
            if self._collecting:
                # What they run beside is chance already, and a pause for every turn of an episode costs more than it.
                return [await self._add(request) for request in requests]
            await self._stop_scheduler()
            try:
                return [await self._add(request) for request in requests]
            finally:
                await self._llm.resume_generation()

    async def _add(self, request: GenerateRequest) -> list[Any]:
        check_limit(request.sampling, most=self._settings.kept_limit)
        num_logprobs = num_reported(request.sampling, self._llm.model_config.get_vocab_size())
        prompt = await self._prompt(request.prompt_token_ids, request.images)
        streams = []
        for seed in request.seeds:
            params = sampling_params(request.sampling, seed, num_logprobs=num_logprobs)
            streams.append(await self._enqueue(prompt, params))
            if request.images and len(streams) == 1:
                prompt = shown_again(self._llm, prompt)
        return streams

    async def _prompt(self, token_ids: Sequence[int], images: Sequence[str]) -> dict[str, Any]:
        # The salt keeps prefixes computed under older weights from being reused while requests are in flight.
        prompt = {"prompt_token_ids": list(token_ids), "cache_salt": str(self._version)}
        if not images:
            return {"type": "token", **prompt}
        return await show(self._llm, prompt, images)

    async def _enqueue(self, prompt: dict[str, Any], params: Any) -> Any:
        return await self._llm.add_request(str(next(self._ids)), prompt, params)

    async def _collect(
        self, index: int, request: GenerateRequest, streams: Sequence[Any]
    ) -> tuple[int, list[Completion]]:
        outputs = [await _last_output(stream) for stream in streams]
        routing: Sequence[NDArray[np.int16] | None] = [None] * len(outputs)
        if self._settings.record_routing:
            routing = await self._take_routing(outputs, [stream.request_id for stream in streams])
        sampling = request.sampling
        return index, [completion(o, sampling, routing=r) for o, r in zip(outputs, routing, strict=True)]

    async def _take_routing(self, outputs: Sequence[Any], ids: Sequence[str]) -> list[NDArray[np.int16]]:
        """[P + T, L, k] of each sample; its last token was no input."""
        lengths = [len(o.prompt_token_ids) + len(o.outputs[0].token_ids) for o in outputs]
        wanted = [(i, length - 1) for i, length in zip(ids, lengths, strict=True)]
        found = (await self._llm.collective_rpc("take_routing", args=(wanted,)))[0]
        routing = [np.full((length, *self._routing_shape), -1, np.int16) for length in lengths]
        for rows, taken in zip(routing, found, strict=True):
            rows[:-1] = np.frombuffer(taken, np.int16).reshape(-1, *self._routing_shape)
        return routing

    async def _forget_routing(self, ids: Sequence[str]) -> None:
        if self._settings.record_routing:
            await self._llm.collective_rpc("forget_routing", args=(ids,))

    async def probe(
        self, sequences: Sequence[Sequence[int]], images: Sequence[Sequence[str]] = ()
    ) -> list[list[float]]:
        """[sequence][T-1] log-probability (temperature 1, full vocabulary) of each token after the first."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if self._holds:
            raise EngineError("probe: the engine is paused (an update or a sleep holds it). Resume it first.")
        params = SamplingParams(
            max_tokens=1, prompt_logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
        asked = zip(sequences, images or [()] * len(sequences), strict=True)
        prompts = [await self._prompt(sequence, seen) for sequence, seen in asked]
        streams = [await self._enqueue(prompt, params) for prompt in prompts]
        outputs = [await _last_output(stream) for stream in streams]
        await self._forget_routing([stream.request_id for stream in streams])
        return [prompt_logprobs(output) for output in outputs]

    async def pause(self) -> None:
        """Stop decoding; requests in flight keep their place, new ones wait."""
        await self._hold("update")

    async def resume(self) -> None:
        """Go on decoding (unless the engine sleeps)."""
        await self._release("update")

    async def sleep(self) -> None:
        """Pause; on CUDA also move the weights to host memory and drop the KV cache."""
        await self._hold("sleep")
        if self._settings.device == "cuda":
            await self._llm.sleep(level=1, mode="keep")
            self._asleep = True

    async def wake(self) -> None:
        """Undo `sleep`. While an update holds the engine only weights return; `resume` brings the rest."""
        if self._asleep:
            await self._llm.wake_up(["weights"])
        await self._release("sleep")

    async def _hold(self, reason: str) -> None:
        if reason in self._holds:
            raise EngineError(f"the engine is already paused for {reason}")
        self._holds.add(reason)
        if len(self._holds) == 1:
            await self._gate.acquire()
            await self._stop_scheduler()

    async def _stop_scheduler(self) -> None:
        # Not pause_generation: it sleeps 20 ms so that outputs arrive in a nicer order, not needed here.
        await self._llm.engine_core.pause_scheduler_async(mode="keep", clear_cache=False)

    async def _release(self, reason: str) -> None:
        self._holds.discard(reason)
        if self._holds or not self._gate.locked():
            return
        if self._asleep:
            await self._llm.wake_up(["kv_cache"])
            self._asleep = False
        await self._llm.resume_generation()
        self._gate.release()

    async def init_transfer(self, info: Mapping[str, Any]) -> None:
        """Open the backend's connection. `rank_offset` (nccl) is that of engine 0; others add theirs."""
        info = dict(info)
        if "rank_offset" in info:
            info["rank_offset"] += self._settings.index * self._settings.config.tensor_parallel
        await self._rpc("init_weight_transfer_engine", init_info=info)

    async def begin_update(self) -> None:
        """Make the model ready for new weights. The engine must be paused."""
        if "update" not in self._holds:
            raise EngineError("begin_update: the engine is running. Pause it first.")
        self._incoming = None
        await self._rpc("start_weight_update")

    async def update(self, info: Mapping[str, Any]) -> None:
        """Receive and load what `info` describes. Raises SyncError with the receiver's own words."""
        info = dict(info)
        self._incoming = int(info["version"])
        if self._settings.transfer in _VLLM_TRANSFERS:
            del info["version"]  # they refuse keys that they do not know
        await self._rpc("update_weights", update_info=info)

    async def finish_update(self, version: int) -> None:
        """Make the new weights live. Tokens sampled from now on carry the version that came with them."""
        await self._rpc("finish_weight_update")
        if self._incoming is None:
            raise SyncError(f"finish_update({version}) without an update")
        self._version = self._incoming
        await self._llm.update_weight_version(str(self._version))
        await self.reset_cache()
        if self._llm.model_config.is_multimodal_model:
            await self._llm.reset_encoder_cache()

    async def weight_version(self) -> int:
        """The version the engine core says it samples with."""
        return int(await self._llm.get_weight_version())

    async def reset_cache(self) -> bool:
        """Forget all cached prefixes; False when requests in flight still hold some."""
        return bool(await self._llm.reset_prefix_cache())

    async def close(self) -> None:
        """End the engine core and its workers; requests in flight end unanswered."""
        llm, self._llm = self._llm, None
        if llm is None:
            return
        for task in list(self._collecting):
            task.cancel()
        await asyncio.gather(*self._collecting, return_exceptions=True)
        if llm.output_handler is not None:
            # Else it takes the core's end for a crash.
            llm.output_handler.cancel()
            await asyncio.gather(llm.output_handler, return_exceptions=True)
        # On a CPU the core has nothing to give back, and takes seconds over it.
        await asyncio.to_thread(llm.shutdown, 0.0 if self._settings.device == "cpu" else None)
        # It sits in a reference cycle, and finalised at interpreter exit it would print an error.
        del llm
        gc.collect()

    async def _rpc(self, method: str, **kwargs: Any) -> None:
        try:
            await self._llm.collective_rpc(method, kwargs=kwargs)
        # vLLM reports whatever went wrong in a worker as a bare Exception that carries only the message.
        except Exception as error:
            raise SyncError(f"engine {self._settings.index}: {method} failed: {error}") from error


def _launch(settings: EngineSettings) -> Any:
    try:
        from vllm.config import WeightTransferConfig
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise DependencyError(
            f"engine.kind is vllm but vLLM cannot be imported ({error}). Install the extra `cpu` or `gpu`, "
            "or set engine.kind: hf."
        ) from error
    transfer = WeightTransferConfig(backend=settings.transfer)
    try:
        return AsyncLLM.from_engine_args(
            AsyncEngineArgs(**engine_arguments(settings), weight_transfer_config=transfer)
        )
    except (RuntimeError, ValueError) as error:
        raise EngineError(f"vLLM did not start on {settings.model}: {error}") from error


async def _last_output(stream: Any) -> Any:
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        output = stream.get_nowait() or await stream.get()
    except EngineDeadError as error:
        raise EngineError("the vLLM engine core died; its log above says why") from error
    while not output.finished:
        output = await stream.get()
    return output
