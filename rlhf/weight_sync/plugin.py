"""Registers our weight-transfer backends in every vLLM process (entry point `vllm.general_plugins`)."""


def register() -> None:
    """Make backends `cpu` and `disk` known to vLLM; the engine class is imported on first use."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    for backend in ("cpu", "disk"):
        WeightTransferEngineFactory.register_engine(
            backend, "rlhf.weight_sync.receiver", "FileTransferEngine"
        )
