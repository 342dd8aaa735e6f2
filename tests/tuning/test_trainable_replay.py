"""A trial that replays a schedule: from a file or an object, restored, and as a result's own schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ray import tune

from tune_stn.training.schedule import Schedule
from tune_stn.tuning.cluster import Cluster
from tune_stn.tuning.trainable import STNTrainable

SMALL: dict[str, Any] = {
    "task": "digits-mlp",
    "seed": 3,
    "epochs": 3,
    "warmup_epochs": 0,
    "train_images": 300,
    "hidden": 16,
}
SMALL["batch_size"] = 100  # three steps an epoch
SCHEDULE = Schedule(
    ("dropout_1", "weight_decay"), np.array([0, 4, 5]), np.array([[0.1, 1e-4], [0.5, 1e-4], [0.5, 1e-3]])
)


def rows(one: STNTrainable, folder: Path) -> pd.DataFrame:
    folder.mkdir()
    one.save_checkpoint(str(folder))
    return pd.read_parquet(folder / "schedule.parquet")


def test_reports_and_records_are_those_of_the_schedule() -> None:
    one = STNTrainable(SMALL | {"algorithm": "fixed", "schedule": SCHEDULE, "hp": {"dropout_2": 0.3}})
    reports = [one.step() for _ in range(3)]
    assert [report["step"] for report in reports] == [3, 6, 9]
    assert [report["hp/dropout_1"] for report in reports] == pytest.approx([0.1, 0.5, 0.5])
    assert [report["hp/weight_decay"] for report in reports] == pytest.approx([1e-4, 1e-3, 1e-3])
    assert {report["hp/dropout_2"] for report in reports} == {np.float32(0.3)}
    assert reports[-1]["done"]


@pytest.mark.parametrize("as_text", [str, Path, lambda path: path.as_uri()])
def test_a_schedule_may_be_a_file(tmp_path: Path, as_text: Any) -> None:
    SCHEDULE.to_parquet(tmp_path / "found.parquet")
    one = STNTrainable(SMALL | {"algorithm": "fixed", "schedule": as_text(tmp_path / "found.parquet")})
    assert one.trainer.replay is not None
    assert one.trainer.replay.schedule == SCHEDULE


@pytest.mark.parametrize("schedule", [0.3, [0.1, 0.2]])
def test_what_is_no_schedule_is_refused(schedule: Any) -> None:
    with pytest.raises(ValueError, match="accepted is a Schedule, or the path"):
        STNTrainable(SMALL | {"algorithm": "fixed", "schedule": schedule})


def test_restored_in_the_middle_it_goes_on_bit_for_bit(tmp_path: Path) -> None:
    config = SMALL | {"algorithm": "fixed", "schedule": SCHEDULE}
    whole, first, resumed = (STNTrainable(config) for _ in range(3))
    ends = [whole.step() for _ in range(3)][-1]
    first.step()
    (tmp_path / "middle").mkdir()
    first.save_checkpoint(str(tmp_path / "middle"))
    resumed.load_checkpoint(str(tmp_path / "middle"))  # type: ignore[arg-type]
    again = [resumed.step() for _ in range(2)][-1]
    assert again["val_loss"] == ends["val_loss"]
    pd.testing.assert_frame_equal(rows(whole, tmp_path / "whole"), rows(resumed, tmp_path / "resumed"))


@pytest.mark.ray
def test_a_tuned_trials_result_is_replayed_by_tune(cluster: Cluster, tmp_path: Path) -> None:
    """STN, and then a plain network with the schedule of its result, which travels with the config."""

    def fit(name: str, **config: Any) -> Any:
        run = tune.RunConfig(name=name, storage_path=str(tmp_path), verbose=0)
        return tune.Tuner(STNTrainable, param_space=SMALL | config, run_config=run).fit()[0]

    found = Schedule.from_result(fit("stn", algorithm="stn"))
    assert found.times.tolist() == [0, 3, 6, 9]
    replayed = Schedule.from_result(fit("replay", algorithm="fixed", schedule=found, epochs=4))
    assert replayed == found
