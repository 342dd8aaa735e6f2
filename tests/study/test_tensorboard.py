"""Tables as TensorBoard files, read back."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from tune_stn.study.results import Results, export_results


def read_events(folder: Path) -> Iterator[Event]:
    """The records of the only event file of a folder: length, its checksum, data, its checksum."""
    (path,) = folder.iterdir()
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def read(folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Tag -> step, value and time of its scalars, in the order of the file."""
    found: dict[str, list[tuple[int, float, float]]] = {}
    for event in read_events(folder):
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value, event.wall_time))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("method", ["stn", "random"])
def test_every_trial_has_its_losses_and_its_schedule_by_step(results: Results, tmp_path: Path, method: str) -> None:
    for _ in range(2):  # a second export replaces the first
        assert export_results(results, tmp_path / "out", "tensorboard") == [tmp_path / "out"]
    folders = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").glob("*/*")}
    named = results.reports[["method", "seed", "trial_id"]].drop_duplicates()
    assert folders == {f"{row.method}-seed{row.seed}/{row.trial_id}" for row in named.itertuples()}
    reports = results.reports.query("method == @method and seed == 0")
    trial = reports["trial_id"].unique()[1]
    reports = reports[reports["trial_id"] == trial]
    schedule = results.schedule.query("method == @method and trial_id == @trial and hp == 'dropout'")
    found = read(tmp_path / "out" / f"{method}-seed0" / trial)
    finite = reports[reports["val_loss"].notna()]
    steps, values, times = (np.array(column) for column in zip(*found["val_loss"], strict=True))
    np.testing.assert_array_equal(steps, finite["step"])
    np.testing.assert_allclose(values, finite["val_loss"], rtol=1e-6)
    np.testing.assert_allclose(times, finite["wall_time_s"], rtol=1e-6)
    assert {"train_loss", "test_loss", "val_accuracy", "cost_total", "hp/dropout", "hp/weight_decay"} <= set(found)
    steps, values, _ = (np.array(column) for column in zip(*found["hp/dropout"], strict=True))
    assert (np.diff(steps) > 0).all()
    expected = {**reports.set_index("step")["hp/dropout"], **schedule.set_index("step")["value"]}
    assert dict(zip(steps, values, strict=True)) == pytest.approx(expected)
    assert ("scale/dropout" in found) == (method == "stn")
    if method == "stn":
        assert [step for step, _, _ in found["scale/dropout"]] == schedule["step"].tolist()
        assert {value for _, value, _ in found["scale/dropout"]} == {0.5}
