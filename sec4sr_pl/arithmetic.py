"""The same results at every call."""

import os

import torch


def exact_arithmetic(device: torch.device, threads: int | None = None) -> None:
    """The same floating-point results at every call, as far as a device can, and no products of 19 bits (TF32).

    Args:
        device: where the work is done.
        threads: on a CPU; None: as they are.
    """
    if device.type == "cpu":
        if threads is not None:
            torch.set_num_threads(threads)
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first matrix is multiplied
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
