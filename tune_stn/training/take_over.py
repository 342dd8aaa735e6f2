"""The state with which a run goes on where another one is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def taken_over(state: Mapping[str, Any], own: Mapping[str, Any], *, spent_flops: int, branch: str) -> dict[str, Any]:
    """The state of another run as one's own: what was learned is the other's, what was spent and recorded one's own.

    Args:
        state: The state of the other run.
        own: The state of this run until now.
        spent_flops: What this run has spent, in operations.
        branch: The name of the random streams from now on; no other run from the same state has it.
    """
    return {
        **state,
        "schedule": own["schedule"],
        "device_time_s": own["device_time_s"],
        "cost": {**state["cost"], "spent_flops": spent_flops},
        "branch": branch,
        "last_good": None,  # it names records of the other schedule
    }
