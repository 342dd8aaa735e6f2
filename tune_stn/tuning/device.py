"""The device a trial runs on, and the memory it has of it."""

from __future__ import annotations

import resource
import sys

import torch

# Of a trial's part of a GPU: CUDA itself needs some beside what torch hands out.
SHARE_OF_TORCH = 0.95


def claim(gpus: float) -> torch.device:
    """The device of a trial that was given so many GPUs, 0 for none; what a trial before it in this process kept is
    given back.

    Of a part of a GPU, a trial gets that part of the memory and no more: one that wants more fails by itself, and its
    neighbours go on.
    """
    if not gpus:
        return torch.device("cpu")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(gpus * SHARE_OF_TORCH if gpus < 1 else 1.0)
    torch.cuda.reset_peak_memory_stats()
    return torch.device("cuda")


def peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU, the most that torch has held there since `claim`; else the most the process has ever had."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
