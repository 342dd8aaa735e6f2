"""Lanes: parts of a cluster that have room for a fixed number of trials, one for each run that goes on at a time.

Ray Tune takes what is free: a population of one run would spread over the places of another, and its result would
depend on the size of the cluster. A lane is a placement group of Ray's that reserves the CPUs of its trials. Trials ask
for the CPUs of that group, so Ray itself keeps them to their lane; GPUs and custom resources they ask for as ever, on
nodes where a whole trial fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import tune
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.device import CPUS_OF_GROUP
from tune_stn.tuning.nodes import alive_nodes


@dataclass(frozen=True)
class Lane:
    """Room for some trials of one run.

    Attributes:
        group: id of the placement group, in hexadecimal digits.
        slots: trials at a time.
        cluster: that it is a part of.
    """

    group: str
    slots: int
    cluster: Cluster = field(compare=False)

    @property
    def per_trial(self) -> tune.PlacementGroupFactory:
        """A trial's resources, of this lane, as Tune wants them."""
        bundle = dict(self.cluster.bundle)
        return tune.PlacementGroupFactory([{CPUS_OF_GROUP + self.group: bundle.pop("CPU"), **bundle}])


class Lanes:
    """The lanes of a study, some of which may have to wait until others leave the cluster.

    Args:
        groups: of the lanes.
        slots: trials at a time in each.
        cluster: that they are parts of.
    """

    def __init__(self, groups: list[PlacementGroup], slots: int, cluster: Cluster) -> None:
        self._groups = groups
        self._by_lane = {Lane(group.id.hex(), slots, cluster): group for group in groups}
        self._waiting = {group.ready(): lane for lane, group in self._by_lane.items()}

    def __len__(self) -> int:
        return len(self._by_lane)

    def come(self, timeout_s: float = 0.0) -> list[Lane]:
        """The lanes that have got their room since this was asked last, after a wait for the first of them."""
        if not self._waiting:
            return []
        ready, _ = ray.wait(list(self._waiting), num_returns=1, timeout=timeout_s)
        if ready:  # and all others that are
            ready, _ = ray.wait(list(self._waiting), num_returns=len(self._waiting), timeout=0)
        return [self._waiting.pop(one) for one in ready]

    def leave(self, lane: Lane) -> None:
        """Give a lane's room back to the cluster."""
        remove_placement_group(self._by_lane.pop(lane))


@contextmanager
def open_lanes(cluster: Cluster, number: int, slots: int) -> Iterator[Lanes]:
    """Lanes inside the block. Needs a session.

    Args:
        cluster: of which they are parts.
        number: of lanes.
        slots: trials at a time in each.
    """
    where: dict[str, str] = dict(cluster.labels)
    if set(cluster.bundle) > {"CPU"}:
        fitting = [node.name for node in alive_nodes() if node.fits(cluster.bundle, cluster.labels)]
        where["ray.io/node-id"] = f"in({','.join(fitting)})"
    how: dict[str, Any] = {"bundle_label_selector": [where] * slots} if where else {}
    groups = [placement_group([{"CPU": cluster.cpus_per_trial}] * slots, **how) for _ in range(number)]
    lanes = Lanes(groups, slots, cluster)
    try:
        yield lanes
    finally:
        for lane in list(lanes._by_lane):
            lanes.leave(lane)
