"""What Ray calls the resources of a node, and how finely it counts them."""

from __future__ import annotations

UNIT = 10_000  # Ray counts resources in ten-thousandths
