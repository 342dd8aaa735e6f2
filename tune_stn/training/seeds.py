"""Random streams that depend on (seed, purpose, epoch) alone.

Every epoch starts its own streams, so a run resumed at an epoch's end needs no generator states to go on bit for bit,
and methods compared at a seed see the same data order whatever else they draw.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager

import torch


def derive_seed(seed: int, purpose: str, epoch: int = 0) -> int:
    """A 63-bit seed for one purpose and epoch of a run; the same on every machine."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def own_draws(device: torch.device) -> AbstractContextManager[None]:
    """Inside the block, torch draws as it likes; after it, on as if nothing had been drawn.

    Args:
        device: Where there are draws, beside those on the CPU.
    """
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def stream(seed: int, purpose: str, epoch: int = 0) -> torch.Generator:
    """A CPU generator for one purpose and epoch of a run."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, epoch))
