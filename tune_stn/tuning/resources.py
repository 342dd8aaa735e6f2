"""What Ray calls the resources of a node, and how finely it counts them."""

from __future__ import annotations

import os

UNIT = 10_000  # Ray counts resources in ten-thousandths
# What a Ray that is started on this machine finds there; the last two go on with what they are of.
_LOCAL = ("memory", "object_store_memory", "node:", "accelerator_type:")


def is_local(name: str) -> bool:
    """Whether a Ray that is started on this machine may have a resource of this name, beside CPUs and GPUs."""
    return name.startswith(_LOCAL) or "RAY_OVERRIDE_RESOURCES" in os.environ
