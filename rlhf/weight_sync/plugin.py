"""What every vLLM process of ours loads first (entry point `vllm.general_plugins`): weight transfer, image shims."""

from rlhf.weight_sync.without_torchvision import stand_in


def register() -> None:
    """Make backends `cpu` and `disk` known to vLLM; the engine class is imported on first use.

    Where there is no torchvision, models that see images do without.
    """
    stand_in()
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    for backend in ("cpu", "disk"):
        WeightTransferEngineFactory.register_engine(
            backend, "rlhf.weight_sync.receiver", "FileTransferEngine"
        )
