"""Everything that touches Ray."""

from typing import TYPE_CHECKING

from tune_stn.lazy import names_of

if TYPE_CHECKING:
    from tune_stn.tuning.cluster import Cluster
    from tune_stn.tuning.recording.recorder import Recorder
    from tune_stn.tuning.schedule_replay import ScheduleReplay
    from tune_stn.tuning.scheduler import STNScheduler
    from tune_stn.tuning.search import STNSearch
    from tune_stn.tuning.trainable import STNTrainable

__all__ = ["Cluster", "Recorder", "STNScheduler", "STNSearch", "STNTrainable", "ScheduleReplay"]

__getattr__ = names_of(
    __name__,
    {
        "Cluster": "tune_stn.tuning.cluster",
        "Recorder": "tune_stn.tuning.recording.recorder",
        "STNScheduler": "tune_stn.tuning.scheduler",
        "STNSearch": "tune_stn.tuning.search",
        "STNTrainable": "tune_stn.tuning.trainable",
        "ScheduleReplay": "tune_stn.tuning.schedule_replay",
    },
)
